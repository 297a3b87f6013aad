"""Numbers that are read without a wait for the device."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class Later:
    """A few numbers, copied to the host in the background, to be read once they have come.

    Args:
        numbers: scalars, or a vector that nobody else writes to.
    """

    def __init__(self, numbers: Sequence[Tensor] | Tensor) -> None:
        self._there = [numbers] if isinstance(numbers, Tensor) else list(numbers)
        self._copied: torch.cuda.Event | None = None
        first = next(iter(self._there), None)
        if first is None or first.device.type == "cpu":
            return
        if not isinstance(numbers, Tensor):
            there = [n.to(first.device, torch.float32, non_blocking=True) for n in self._there]
            numbers = torch.stack(there)
        self._there = [numbers.to("cpu", non_blocking=first.is_cuda)]
        if first.is_cuda:
            self._copied = torch.cuda.current_stream(first.device).record_event()

    @property
    def has_come(self) -> bool:
        """Whether reading them is no wait."""
        return self._copied is None or self._copied.query()

    def read(self) -> list[float]:
        """The numbers."""
        read: list[Any] = [part.tolist() for part in self._there]
        return read[0] if read and isinstance(read[0], list) else read
