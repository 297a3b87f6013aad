"""What our deviations from the reference implementation do to the backbone.

    python tests/benchmarks/fidelity.py               # five variants, three seeds

The race of quality.py with 64,000 images, byol_wrap's entry against itself: each variant does one
thing as the reference code does it, where byol_wrap does otherwise on purpose. Takes the same
options as quality.py, and resumes like it. Views of 32 pixels are not blurred: the blur's border,
another deviation, is not measured.

Needs ``pip install '.[bench]'``.
"""

import math
import sys
from pathlib import Path
from unittest.mock import patch

import entries
import quality
import torch
import torch.nn.functional as F
from kornia.color import hsv_to_rgb, rgb_to_hsv
from torch import Tensor, nn

from byol_wrap.views import cropping, pixels


class TargetDrawnAnew(entries.ByolWrap):
    """The target starts from weights of its own."""

    def __init__(self, net: nn.Module, race: entries.Race) -> None:
        super().__init__(net, race)
        for module in self.learner.target.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()


class TruncatedNormal(entries.ByolWrap):
    """Weights of the heads are drawn from a truncated normal; their biases are zero."""

    def __init__(self, net: nn.Module, race: entries.Race) -> None:
        super().__init__(net, race)
        projector = self.learner.online.projector
        for layer in [*projector, *self.learner.predictor]:
            if isinstance(layer, nn.Linear):
                std = layer.in_features**-0.5
                nn.init.trunc_normal_(layer.weight, std=std, a=-2 * std, b=2 * std)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
        self.learner.target.projector.load_state_dict(projector.state_dict())


class ReferenceJitter(entries.ByolWrap):
    """Brightness is added, contrast is around each channel's mean, saturation and hue are HSV's."""

    def step(self, images: Tensor, labels: Tensor) -> Tensor:
        """The same draws, other formulas."""
        with patch.multiple(
            pixels, brightness=brightness, contrast=contrast, saturation=saturation, hue=hue
        ):
            return super().step(images, labels)


class PlainCrop(entries.ByolWrap):
    """Crops are resized without antialiasing."""

    def step(self, images: Tensor, labels: Tensor) -> Tensor:
        """The same boxes, resized in another way."""
        with patch.object(cropping, "crop", crop):
            return super().step(images, labels)


def brightness(images: Tensor, factors: Tensor) -> Tensor:
    """Add to each image what its factor is over 1."""
    return (images + factors[:, None, None, None] - 1).clamp(0, 1)


def contrast(images: Tensor, factors: Tensor) -> Tensor:
    """Mix each channel of each image with its mean."""
    mean = images.mean((2, 3), keepdim=True)
    return (mean + factors[:, None, None, None] * (images - mean)).clamp(0, 1)


def saturation(images: Tensor, factors: Tensor) -> Tensor:
    """Multiply the saturation in HSV."""
    hue, saturation, value = rgb_to_hsv(images).unbind(1)
    saturation = (factors[:, None, None] * saturation).clamp(0, 1)
    return hsv_to_rgb(torch.stack([hue, saturation, value], 1))


def hue(images: Tensor, factors: Tensor) -> Tensor:
    """Turn the hue in HSV; 1 is a whole turn."""
    hue, saturation, value = rgb_to_hsv(images).unbind(1)
    hue = (hue + 2 * math.pi * factors[:, None, None]) % (2 * math.pi)
    return hsv_to_rgb(torch.stack([hue, saturation, value], 1))


def crop(images: Tensor, boxes: Tensor, size: tuple[int, int], flip: Tensor) -> Tensor:
    """Cut a box (top, left, height, width) out of each image, resize it, bicubic, clip, mirror."""
    cut = [
        F.interpolate(image[None, :, y : y + height, x : x + width], size, mode="bicubic")
        for image, (y, x, height, width) in zip(images, boxes.tolist(), strict=True)
    ]
    out = torch.cat(cut).clamp(0, 1)
    return torch.where(flip[:, None, None, None], out.flip(-1), out)


VARIANTS: dict[str, type[entries.Entry]] = {
    "byol_wrap": entries.ByolWrap,
    "target drawn anew": TargetDrawnAnew,
    "heads from a truncated normal": TruncatedNormal,
    "the reference's colour jitter": ReferenceJitter,
    "crop without antialiasing": PlainCrop,
}

if __name__ == "__main__":
    quality.ENTRIES["cpu"] = VARIANTS
    question = "What do our deviations from the reference implementation do to the backbone?"
    defaults = {"entries": list(VARIANTS), "images_seen": 64_000, "output": Path("fidelity.jsonl")}
    quality.main(sys.argv[1:], question, **defaults)
