"""Normalisation of pixels in [0, 1], channel by channel."""

import math
from collections.abc import Sequence, Sized
from typing import Any

import torch
from torch import Tensor

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def normalization(
    mean: Sequence[float] | None, std: Sequence[float] | None, channels: int
) -> "Normalize":
    """Normalisation with the given statistics, or else ImageNet's for 3 channels, 0.5 for others.

    Raises:
        ValueError: one of the two is missing, or see ``Normalize``.
    """
    if mean is None and std is None:
        half = (0.5,) * channels
        mean, std = (IMAGENET_MEAN, IMAGENET_STD) if channels == 3 else (half, half)
    if mean is None or std is None:
        raise ValueError(f"mean and std go together, got mean={mean}, std={std}: give both.")
    return Normalize(mean, std, channels)


class Normalize:
    """Subtract a mean and divide by a standard deviation, channel by channel.

    Args:
        mean: one number a channel, for pixels in [0, 1] (divide those for [0, 255] by 255).
        std: one positive number a channel.
        channels: how many channels there are.

    Raises:
        ValueError: another number of values than channels, or values out of range.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], channels: int) -> None:
        for name, values in (("mean", mean), ("std", std)):
            count = len(values) if isinstance(values, Sized) else "no sequence"
            if count != channels:
                raise ValueError(
                    f"{name} expects one number for each of the {channels} channels, got {count}: "
                    f"{values}. Give channels= too if the images have another number of channels."
                )
        self.mean = tuple(float(value) for value in mean)
        self.std = tuple(float(value) for value in std)
        if not all(math.isfinite(m) and 0 < s < math.inf for m, s in zip(mean, std, strict=True)):
            raise ValueError(
                f"mean must be finite and std positive, got mean={self.mean}, std={self.std}."
            )
        self.__setstate__(self.__getstate__())

    def __repr__(self) -> str:
        return f"Normalize(mean={self.mean}, std={self.std})"

    def __getstate__(self) -> dict[str, Any]:
        return {"mean": self.mean, "std": self.std}  # loading may put tensors on another device

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.mean, self.std = state["mean"], state["std"]
        with torch.inference_mode(False):
            slopes = [1 / std for std in self.std]
            offsets = [-mean * slope for mean, slope in zip(self.mean, slopes, strict=True)]
            rows = [offsets, slopes]
            self._statistics = torch.tensor(rows, dtype=torch.float32, device="cpu")
        self._on_device: dict[torch.device, Tensor] = {}

    def __call__(self, images: Tensor) -> Tensor:
        """(B, C, ...) in, the same shape out."""
        flat = (2, len(self.mean), *[1] * (images.ndim - 2))
        line = self._on(images.device).view(flat)
        return torch.addcmul(line[0], images, line[1])  # one pass

    def _on(self, device: torch.device) -> Tensor:
        if device.type == "cpu":
            return self._statistics
        if device in self._on_device:
            return self._on_device[device]
        with torch.inference_mode(False):
            statistics = self._statistics.to(device)
        tracing = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
        if type(statistics) is Tensor and not tracing:  # of an export it would be a part
            self._on_device[device] = statistics
        return statistics
