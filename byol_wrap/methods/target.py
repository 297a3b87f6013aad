"""The moving average that is the target network, and the schedule of its decay."""

import math
import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle


def cosine_ema_decay(step: int, total_steps: int, base: float) -> float:
    """The decay tau of one update of the target: from ``base`` to 1 along half a cosine.

    ``tau_k = 1 - (1 - base) (cos(pi k / K) + 1) / 2``, held at 1 past the last step.

    Args:
        step: k, how many updates came before this one, at least 0.
        total_steps: K, at least 1.
        base: tau of the first update, in [0, 1].

    Returns:
        tau in [base, 1].

    Raises:
        ValueError: an argument out of its range.

    Reference:
        Grill et al. 2020, section 3.3.

    Example:
        >>> [round(cosine_ema_decay(k, 100, 0.99), 4) for k in (0, 50, 100, 150)]
        [0.99, 0.995, 1.0, 1.0]
    """
    if step < 0 or total_steps < 1 or not 0 <= base <= 1:
        raise ValueError(
            "cosine_ema_decay expects step >= 0, total_steps >= 1 and base in [0, 1], got "
            f"step={step}, total_steps={total_steps}, base={base}."
        )
    progress = min(step / total_steps, 1.0)
    return 1 - (1 - base) * (math.cos(math.pi * progress) + 1) / 2


@torch.no_grad()
def update_average(average: nn.Module, online: nn.Module, decay: float) -> None:
    """Move every parameter of ``average`` towards its twin in ``online``, in one foreach call.

    ``average <- average + (1 - decay) (online - average)``, in the dtype of ``average``; equal
    values stay bit for bit equal. Buffers are left alone: the target has BatchNorm statistics of
    its own. Parameters that have no size yet, and integer ones, are left out.

    Args:
        average: the module that is moved. Parameters that it lets be empty are left out.
        online: a module of the same structure.
        decay: tau, in [0, 1]; 1 changes nothing, 0 copies.

    Raises:
        RuntimeError: the two no longer have the same parameters.
    """
    targets, sources = _averaged(average.parameters()), _averaged(online.parameters())
    pairs = [(t, s) for t, s in zip(targets, sources, strict=False) if t.numel()]
    if len(targets) != len(sources) or any(t.shape != s.shape for t, s in pairs):
        raise RuntimeError(
            "The online network no longer has the parameters it was wrapped with: it has "
            f"{len(sources)}, its target {len(targets)}, or their shapes differ. Change a backbone "
            "before wrapping it, and wrap it anew after a change."
        )
    sources = [s if s.dtype == t.dtype else s.to(t.dtype) for t, s in pairs]
    torch._foreach_lerp_([t for t, _ in pairs], sources, 1 - decay)


def _averaged(parameters: Iterable[nn.Parameter]) -> list[Tensor]:
    return [p for p in parameters if not is_lazy(p) and (p.is_floating_point() or p.is_complex())]


def at_least_float32(module: nn.Module) -> None:
    """Widen a module's half-precision parameters and buffers: averages stand still in bf16."""
    half = (torch.float16, torch.bfloat16)
    module._apply(lambda tensor: tensor.float() if tensor.dtype in half else tensor)


def on_step(optimizer: Optimizer, update: Callable[[], None]) -> RemovableHandle:
    """Call a bound method after each step that an optimizer really takes.

    A step that ``GradScaler`` skips is none: usually the optimizer is not called then; a fused one
    is, and told by its attribute ``found_inf``. The method's owner is not kept alive.
    """
    method = weakref.WeakMethod(update)

    def after_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        found_inf = getattr(optimizer, "found_inf", None)
        if found_inf is None or not bool(found_inf):
            bound = method()
            if bound is not None:
                bound()

    return optimizer.register_step_post_hook(after_step)


def is_active(handle: RemovableHandle | None) -> bool:
    """Whether a hook is there still: not removed, and its optimizer alive."""
    hooks = None if handle is None else handle.hooks_dict_ref()
    return hooks is not None and handle is not None and handle.id in hooks
