"""What tells whether parameters were changed."""

import math
from collections.abc import Collection, Iterable

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from byol_wrap.guard.later import Later

WITHOUT_WAIT = ("cpu", "cuda")  # devices whose values come to the host without a wait
LOOKED_AT = 8  # parameters whose values are compared
VALUES = 32  # of a parameter that are sampled
LARGEST = 2**22  # values that such a parameter may have
SMALLEST = 1e-12  # size that a parameter counts as having


class Look:
    """Who some parameters are, how often they were written, and the norms of a few.

    Fused optimizers do not count what they write, nor does what writes into ``parameter.data``.

    Args:
        parameters: which; those that have no size yet are left out.
        devices: on which norms are taken; only of plain tensors.
    """

    def __init__(self, parameters: Iterable[Tensor], devices: Collection[str]) -> None:
        sized = [parameter for parameter in parameters if not is_lazy(parameter)]
        self.who = [id(parameter) for parameter in sized]
        self.writes = writes(sized)
        plain = [p for p in sized if is_plain(p) and p.is_floating_point()]
        plain = [p for p in plain if p.device.type in devices]
        chosen = plain[:: max(1, len(plain) // LOOKED_AT)]
        self.norms = norms(chosen) if chosen else None

    @property
    def has_come(self) -> bool:
        """Whether comparing it is no wait."""
        return self.norms is None or self.norms.has_come

    def is_like(self, other: "Look") -> bool:
        """Whether nothing was changed between the two."""
        if (self.who, self.writes) != (other.who, other.writes):
            return False
        if self.norms is None or other.norms is None:
            return self.norms is other.norms
        return self.norms.read() == other.norms.read()


class Sample:
    """A few values of each of some parameters, to be compared.

    Norms would not do: a step at right angles to a weight, as before BatchNorm, hardly changes its
    norm. Parameters of another device than the first's are left out.
    """

    @torch.no_grad()
    def __init__(self, parameters: Iterable[Tensor]) -> None:
        together = list(parameters)
        together = [p for p in together if p.device == together[0].device]
        self.who = [id(parameter) for parameter in together]
        taken = [_some(parameter) for parameter in together]
        self._sizes = [len(values) for values in taken]
        self._values = Later(torch.cat(taken)) if taken else None

    @property
    def has_come(self) -> bool:
        """Whether comparing it is no wait."""
        return self._values is None or self._values.has_come

    def moved(self, other: "Sample") -> list[float] | None:
        """How far each parameter has moved since another sample, relative to its size.

        None where they are of other parameters, of none, or have not come.
        """
        if self._values is None or other._values is None or self.who != other.who:
            return None
        if not (self.has_come and other.has_come):
            return None
        now, before, moves, start = self._values.read(), other._values.read(), [], 0
        for size in self._sizes:
            old, new = before[start : start + size], now[start : start + size]
            moves.append(math.dist(old, new) / max(math.hypot(*old), SMALLEST))
            start += size
        return moves


def spread(parameters: Iterable[Tensor], count: int) -> list[Tensor]:
    """At most ``count`` of them, from first to last; those that can be looked at without a wait."""
    sized = [p for p in parameters if not is_lazy(p) and 0 < p.numel() <= LARGEST]
    plain = [p for p in sized if is_plain(p) and p.is_floating_point()]
    there = [p for p in plain if p.device.type in WITHOUT_WAIT]
    return there[:: max(1, -(-len(there) // count))]


def _some(parameter: Tensor) -> Tensor:
    """Some values of a parameter, from all over it; a view, but of halves."""
    stride = -(-parameter.numel() // VALUES)
    if not parameter.is_contiguous():
        return parameter.flatten()[::stride].float()
    count = -(-parameter.numel() // stride)
    return parameter.as_strided((count,), (stride,)).float()


def writes(parameters: Iterable[Tensor]) -> list[int]:
    """How often each was written in place; fused optimizers and inference mode do not count."""
    return [0 if not is_lazy(p) and p.is_inference() else p._version for p in parameters]


def weights(parameters: Iterable[Tensor]) -> list[Tensor]:
    """Those that are matrices or wider, and can be looked at without a wait."""
    sized = [parameter for parameter in parameters if not is_lazy(parameter)]
    plain = [p for p in sized if is_plain(p) and p.is_floating_point()]
    return [p for p in plain if p.ndim > 1 and p.device.type in WITHOUT_WAIT]


@torch.no_grad()
def norms(tensors: list[Tensor]) -> Later:
    """The norms of some tensors."""
    return Later(torch._foreach_norm(tensors))


def is_plain(parameter: Tensor) -> bool:
    """Whether a parameter is what it seems: no shard, nor anything else of an engine."""
    return type(parameter) in (Tensor, nn.Parameter) or is_lazy(parameter)
