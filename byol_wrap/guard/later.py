"""Numbers that are read without a wait for the device."""

import torch
from torch import Tensor


class Later:
    """A few numbers, copied to the host in the background, to be read once they have come."""

    def __init__(self, numbers: Tensor) -> None:
        self._copy = numbers.to("cpu", non_blocking=numbers.is_cuda)
        stream = torch.cuda.current_stream(numbers.device) if numbers.is_cuda else None
        self._copied = stream.record_event() if stream else None

    @property
    def has_come(self) -> bool:
        """Whether reading them is no wait."""
        return self._copied is None or self._copied.query()

    def read(self) -> list[float]:
        """The numbers."""
        numbers: list[float] = self._copy.tolist()
        return numbers
