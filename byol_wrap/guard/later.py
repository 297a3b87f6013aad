"""Figures that are read when they have come, without waiting for the device."""

import torch
from torch import Tensor


class Later:
    """A small tensor on its way to the host."""

    def __init__(self) -> None:
        self._copy: Tensor | None = None
        self._copied: torch.cuda.Event | None = None

    @property
    def is_free(self) -> bool:
        """Whether nothing is on its way."""
        return self._copy is None

    def put(self, figures: Tensor) -> None:
        """Send a tensor (N,) on its way."""
        self._copy = figures.to("cpu", non_blocking=figures.is_cuda)
        stream = torch.cuda.current_stream(figures.device) if figures.is_cuda else None
        self._copied = stream.record_event() if stream else None

    def take(self) -> list[float]:
        """What has come, once; nothing where nothing has."""
        if self._copy is None or not (self._copied is None or self._copied.query()):
            return []
        figures: list[float] = self._copy.tolist()
        self._copy = None
        return figures
