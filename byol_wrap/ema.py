"""The exponential moving average: its step, its decay tau, and how many updates there were."""

import copy
import math
from collections.abc import Collection
from operator import index as as_index
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy


@torch.no_grad()
def update_average(
    average: nn.Module, online: nn.Module, decay: float | Tensor, *, leave: Collection[str] = ()
) -> None:
    """Move every parameter of ``average`` towards its twin in ``online``, in one foreach call.

    ``average <- average + (1 - decay) (online - average)``, in the dtype of ``average``; equal
    values stay bit for bit equal. Buffers are left alone: the target has BatchNorm statistics of
    its own. Parameters that have no size yet, and integer ones, are left out.

    Args:
        average: the module that is moved. Parameters that it lets be empty are left out.
        online: a module of the same structure.
        decay: tau, in [0, 1]; 1 changes nothing, 0 copies. A scalar on the device is not read.
        leave: names of parameters of ``average`` that stay as they are.

    Raises:
        RuntimeError: the two no longer have the same parameters.
    """
    targets = [(name, p) for name, p in average.named_parameters() if _is_averaged(p)]
    sources = [p for p in online.parameters() if _is_averaged(p)]
    together = zip(targets, sources, strict=False)
    pairs = [(t, s) for (name, t), s in together if t.numel() and name not in leave]
    if len(targets) != len(sources) or any(t.shape != s.shape for t, s in pairs):
        raise RuntimeError(
            "The online network no longer has the parameters it was wrapped with: it has "
            f"{len(sources)}, its target {len(targets)}, or their shapes differ. Change a backbone "
            "before wrapping it, and wrap it anew after a change."
        )
    like: list[Tensor] = [s if s.dtype == t.dtype else s.to(t.dtype) for t, s in pairs]
    to: list[Tensor] = [t for t, _ in pairs]
    if isinstance(decay, Tensor) and all(t.device == decay.device for t in to):
        steps = torch._foreach_sub(like, to)
        torch._foreach_mul_(steps, (1 - decay).to(steps[0].dtype))
        torch._foreach_add_(to, steps)
    else:
        torch._foreach_lerp_(to, like, 1 - float(decay))


def _is_averaged(parameter: nn.Parameter) -> bool:
    return not is_lazy(parameter) and (parameter.is_floating_point() or parameter.is_complex())


class Pace:
    """How far the target moves with its next update: tau, constant or along a cosine.

    Knows the number of updates on the host, so that a step does not wait for the device, and so
    that the buffer which keeps it can be mended: averages of buffers truncate it.

    Attributes:
        base: tau of the first update, in [0, 1].
        total_steps: over how many updates it rises to 1; None keeps it constant.
        updates: how many there were, as far as is known without reading the buffer; None where it
            must be read first.

    Raises:
        ValueError: one of them out of its range.
    """

    def __init__(self, base: float, total_steps: int | None) -> None:
        self.base, self.total_steps = base, total_steps
        self.updates: int | None = 0
        self._was_read = False
        self._original: Pace | None = None  # of which this is a copy, and which it may outlive
        self._version = 0  # of the buffer, as this has left it
        self._has_no_value = False  # the buffer, while it is on the meta device

    @property
    def base(self) -> float:
        """Tau of the first update."""
        return self._base

    @base.setter
    def base(self, base: float) -> None:
        if not 0 <= base <= 1:
            raise ValueError(f"moving_average_decay lies in [0, 1], got {base}.")
        self._base = base

    @property
    def total_steps(self) -> int | None:
        """Over how many updates it rises to 1."""
        return self._total_steps

    @total_steps.setter
    def total_steps(self, total_steps: int | None) -> None:
        try:
            steps = None if total_steps is None else as_index(total_steps)
        except TypeError:
            steps = 0
        if steps is not None and steps < 1:
            raise ValueError(f"total_steps should be an integer >= 1 or None, got {total_steps!r}.")
        self._total_steps = steps

    def tau(self, step: Tensor) -> float:
        """The decay of the next update, after ``step`` of them."""
        if self.total_steps is None:
            return self.base
        if self.updates is None or not self._was_read:  # another process may have sent its own
            self.mend(step)
        return cosine_ema_decay(self.updates or 0, self.total_steps, self.base)

    def tau_unless(self, skipped: Tensor, step: Tensor) -> Tensor:
        """The same on the device, without a wait; 1, which changes nothing, if ``skipped`` is."""
        wide = torch.float32 if step.device.type == "mps" else torch.float64
        pace = torch.full((), 1 - self.base, dtype=wide, device=step.device)
        if self.total_steps is not None:
            pace *= (step.to(wide) / self.total_steps).clamp(max=1).mul(math.pi / 2).cos().square()
        return 1 - pace * _is_taken(skipped, step)

    def advance(self, step: Tensor, skipped: Tensor | None = None) -> None:
        """Count one more update, if it is one."""
        step += 1 if skipped is None else _is_taken(skipped, step)
        self.updates = None if self.updates is None or skipped is not None else self.updates + 1
        self._original = None  # a copy that trains goes its own way
        self.left(step)

    def mend(self, step: Tensor) -> None:
        """Write into the buffer what is known, where others have written less into it.

        A copy whose buffer others write is an average of its original, and as old as that one.
        """
        if step.is_meta:
            return
        self._was_read, stored = True, int(step)
        if stored != self.updates or self._version != _version(step):
            known = 0 if self._original is None else self._original.updates or 0
            self.updates = max(stored, known, self.updates or 0)
            step.fill_(self.updates)
            self.left(step)

    def hand_out(self, step: Tensor) -> None:
        """Give the buffer to somebody, who may write into it: it is read before it is used."""
        self.mend(step)
        self._was_read = False

    @property
    def is_of_copy(self) -> bool:
        """Whether it is that of a copy, perhaps an average, that goes no way of its own yet."""
        return self._original is not None

    def left(self, step: Tensor) -> None:
        """Whoever writes into the buffer from now on is another."""
        self._version = _version(step)

    def moved(self, step: Tensor) -> None:
        """The buffer is another now: one that had no value gets what is known."""
        if self._has_no_value and not step.is_meta:
            step.fill_(self.updates or 0)
        self._has_no_value = step.is_meta
        self.left(step)

    def read_anew(self, step: Tensor) -> None:
        """Forget what is known of the count: it was loaded."""
        self.updates, self._original = 0, None
        self.left(step)
        self.mend(step)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Pace":
        copied = copy.copy(self)
        copied._original = self
        return copied


def _version(tensor: Tensor) -> int:
    """How often it was written in place; inference mode does not count."""
    return 0 if tensor.is_inference() else tensor._version


def _is_taken(skipped: Tensor, step: Tensor) -> Tensor:
    return skipped.to(step.device).reshape(()).eq(0).to(step.dtype)


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
