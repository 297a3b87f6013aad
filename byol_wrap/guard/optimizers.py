"""Who holds parameters, and who steps."""

import gc
import weakref
from collections.abc import Collection, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from byol_wrap.guard.look import is_plain
from byol_wrap.guard.parts import parts


class OptimizerSteps:
    """Counts the steps of optimizers that hold a learner's parameters, and those of others.

    Steps that are compiled are not seen, nor those of optimizers that are none of torch's.

    Args:
        learner: whose parameters.

    Attributes:
        counts: how many steps each optimizer has taken that holds any.
        empty: how many of them found no parameter of the learner's with a gradient.
        others: how many steps other optimizers have taken.
    """

    def __init__(self, learner: nn.Module) -> None:
        self.counts: weakref.WeakKeyDictionary[Optimizer, int] = weakref.WeakKeyDictionary()
        self.empty = self.others = 0
        self._ids = {id(parameter) for part in parts(learner).values() for parameter in part}
        self._last: weakref.ref[Optimizer] | None = None
        self._handles = [
            register_optimizer_step_pre_hook(_on_step(weakref.WeakMethod(self._steps))),
            register_optimizer_step_post_hook(_on_step(weakref.WeakMethod(self._has_stepped))),
        ]

    def remove(self) -> None:
        """Count no more."""
        for handle in self._handles:
            handle.remove()

    @property
    def count(self) -> int:
        """How many steps optimizers have taken that hold any of the parameters."""
        return sum(self.counts.values())

    @property
    def rate(self) -> float:
        """The highest learning rate of the optimizer that stepped last."""
        optimizer = None if self._last is None else self._last()
        groups = [] if optimizer is None else optimizer.param_groups
        return max((rate_of(group) for group in groups if self._own(group)), default=0.0)

    def before(self, own: list[Tensor]) -> None:
        """Do what is to be done before a step with these of the learner's parameters."""

    def after(self) -> None:
        """Do what is to be done after it."""

    def _own(self, group: dict[str, Any]) -> list[Tensor]:
        return [parameter for parameter in group["params"] if id(parameter) in self._ids]

    def _steps(self, optimizer: Optimizer) -> None:
        own = [parameter for group in optimizer.param_groups for parameter in self._own(group)]
        if not own:
            self.others += 1
            return
        self.counts[optimizer] = self.counts.get(optimizer, 0) + 1
        self.empty += all(parameter.grad is None for parameter in own)
        self._last = weakref.ref(optimizer)
        self.before(own)

    def _has_stepped(self, optimizer: Optimizer) -> None:
        if optimizer in self.counts:
            self.after()


def _on_step(method: "weakref.WeakMethod[Any]") -> Any:
    """A hook on any optimizer's steps that calls a method; nothing once its owner is gone."""

    def on_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if not torch.compiler.is_compiling() and (bound := method()) is not None:
            bound(optimizer)

    return on_step


def in_no_optimizer(
    parts: dict[str, list[Tensor]], among: Collection[Optimizer] | None = None
) -> list[str]:
    """Names of those parts of which no optimizer holds a parameter, of all that there are.

    An optimizer that holds other than plain tensors, such as shards, may hold anything.

    Args:
        parts: parameters by name.
        among: only these optimizers are asked.
    """
    if not parts:
        return []
    parameters = [parameter for parameter, _ in held(among)]
    if not all(map(is_plain, parameters)):
        return []
    known = {id(parameter) for parameter in parameters}
    return [name for name, part in parts.items() if known.isdisjoint(map(id, part))]


def held(among: Collection[Optimizer] | None = None) -> Iterator[tuple[Tensor, float]]:
    """All parameters of some optimizers, or of all that are alive, with their learning rates."""
    for thing in gc.get_objects() if among is None else among:
        if issubclass(type(thing), Optimizer):
            for group in getattr(thing, "param_groups", ()):
                rate = rate_of(group)
                yield from ((parameter, rate) for parameter in group["params"])


def rate_of(group: dict[str, Any]) -> float:
    """The learning rate of a group; 1 where it has none, or reading it were a wait."""
    rate = group.get("lr", 1)
    return 1.0 if isinstance(rate, Tensor) and rate.device.type != "cpu" else float(rate)


def rates(optimizers: Iterable[Optimizer]) -> dict[float, type[Optimizer]]:
    """The learning rates of all groups, with the kind of optimizer that has each."""
    return {
        rate_of(group): type(optimizer)
        for optimizer in optimizers
        for group in optimizer.param_groups
    }
