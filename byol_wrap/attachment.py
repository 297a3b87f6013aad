"""When the target moves by itself: after the steps that an optimizer really takes."""

import weakref
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle


class Attachment:
    """The optimizer whose real steps move the target. A copy is not attached."""

    def __init__(self) -> None:
        self._handle: RemovableHandle | None = None
        self._optimizer: weakref.ref[Optimizer] | None = None

    def attach(self, optimizer: Optimizer, update: Callable[..., None]) -> RemovableHandle:
        """Call ``update``, a bound method, after each step of an optimizer; see ``on_step``.

        Once, however often it is asked for. What was attached before is no longer.
        """
        if self._handle is not None and self.optimizer is not optimizer:
            self._handle.remove()
            self._handle = None
        if self._handle is None or not self.is_active:
            self._handle = on_step(optimizer, update)
            self._optimizer = weakref.ref(optimizer)
        return self._handle

    @property
    def is_active(self) -> bool:
        """Whether the handle was not removed, and the optimizer is alive."""
        return is_active(self._handle)

    @property
    def optimizer(self) -> Optimizer | None:
        """Which optimizer that is."""
        return self._optimizer() if self._optimizer is not None and self.is_active else None

    def __reduce__(self) -> tuple[Any, ...]:
        return Attachment, ()


def innermost(optimizer: Any) -> Optimizer:
    """The optimizer itself, where an engine has wrapped it: what calls hooks after its steps.

    Raises:
        TypeError: there is none in it.
    """
    inner = optimizer
    while not _calls_hooks(inner):
        held = {id(part): part for part in _parts(inner) if _acts(part)}
        if not _acts(inner) or len(held) != 1:
            raise TypeError(
                "attach expects a torch.optim.Optimizer, or what an engine has made of one, got "
                f"{type(optimizer).__name__}; give the optimizer itself."
            )
        (inner,) = held.values()
    found: Optimizer = inner
    return found


def _calls_hooks(optimizer: object) -> bool:
    """Not so wrappers that are optimizers by name, but never were constructed as one."""
    return isinstance(optimizer, Optimizer) and hasattr(type(optimizer).step, "hooked")


def _acts(thing: object) -> bool:
    return isinstance(thing, Optimizer) or (hasattr(thing, "step") and hasattr(thing, "zero_grad"))


def _parts(wrapper: object) -> list[object]:
    """What it holds: as ``optimizer``, as engines have it, or as any attribute of its own."""
    named = getattr(wrapper, "optimizer", None)
    return list(getattr(wrapper, "__dict__", {}).values()) if named is None else [named]


def check_trains(optimizer: Optimizer, learner: nn.Module) -> set[int]:
    """Ids of the learner's parameters that an optimizer trains.

    Raises:
        ValueError: it trains none of them.
    """
    own = {id(parameter) for parameter in learner.parameters() if parameter.requires_grad}
    trained = own & {id(p) for group in optimizer.param_groups for p in group["params"]}
    if not trained:
        raise ValueError(
            "The optimizer trains none of the learner's parameters: build it from "
            "learner.parameters(), after the learner."
        )
    return trained


def on_step(optimizer: Optimizer, update: Callable[..., None]) -> RemovableHandle:
    """Call a bound method after each step that an optimizer really takes.

    A step that ``GradScaler`` skips is none: usually the optimizer is not called then; a fused one
    is, and told by its attribute ``found_inf``. Where reading that would be a wait, the method is
    called with it, not 0 for a step that is skipped. The method's owner is not kept alive.
    """
    method = weakref.WeakMethod(update)

    def after_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        found_inf, bound = getattr(optimizer, "found_inf", None), method()
        if bound is None:
            return
        if isinstance(found_inf, Tensor) and found_inf.device.type != "cpu":
            bound(found_inf)
        elif found_inf is None or not bool(found_inf):
            bound()

    return optimizer.register_step_post_hook(after_step)


def is_active(handle: RemovableHandle | None) -> bool:
    """Whether a hook is there still: not removed, and its optimizer alive."""
    hooks = None if handle is None else handle.hooks_dict_ref()
    return hooks is not None and handle is not None and handle.id in hooks
