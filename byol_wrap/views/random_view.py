"""One view of a batch, each image with draws of its own: drawn on the host, then applied.

The draws depend on ``torch.manual_seed`` alone, not on the device, and nothing has to be read back.
A step that only some images were drawn for is computed for those only.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from operator import index as as_index

import torch
from torch import Tensor

from byol_wrap.views.pixels import as_unit_float, blur, crop, greyscale, jitter, on_some, solarize
from byol_wrap.views.recipes import Recipe


@dataclass(frozen=True)
class Draws:
    """All that is random in one view of a batch; indices say which images a step is for."""

    boxes: list[tuple[int, int, int, int]]  # top, left, height, width of each image's crop
    flip: Tensor  # (n,) indices
    jitter: Tensor  # (n,) indices
    jitter_order: Tensor  # (n, 4), a permutation of the four colour steps for each of those images
    jitter_factors: Tensor  # (n, 4): brightness, contrast, saturation factors; hue in turns
    greyscale: Tensor  # (n,) indices
    blur: Tensor  # (n,) indices
    blur_sigma: Tensor  # (n,) in pixels
    solarize: Tensor  # (n,) indices


class RandomView:
    """A pipeline: images (B, C, H, W) in [0, 1] in, float32 images (B, C, h, w) in [0, 1] out.

    Args:
        recipe: what is drawn with which probability.
        size: side, or (height, width), in pixels of what comes out; None keeps the size of what
            goes in.

    Example:
        >>> import torch
        >>> gentle = RandomView(Recipe(crop_area=(0.5, 1.0), solarize=0.1))
        >>> gentle(torch.rand(4, 3, 32, 32)).shape
        torch.Size([4, 3, 32, 32])

    Deviations from the reference code: crops are resized with antialiasing (bicubic, as
    torchvision does); colour steps follow torchvision's
    formulas (brightness multiplies, saturation mixes with grey) where the reference adds and uses
    HSV; blur mirrors the border where the reference pads with zeros. Images that come out smaller
    than 64 pixels are not blurred, as in published recipes for 32 x 32. Colour jitter and greyscale
    are for images of 3 channels and left out for others.
    """

    def __init__(self, recipe: Recipe, size: int | tuple[int, int] | None = None) -> None:
        self.recipe = recipe
        self.size = None if size is None else as_pair(size)

    def __call__(self, images: Tensor) -> Tensor:
        """One view of each image."""
        height, width = images.shape[2:]
        size = self.size or (height, width)
        recipe = self.recipe
        if min(size) < 64:
            recipe = replace(recipe, blur=0.0)
        if images.shape[1] != 3:
            recipe = replace(recipe, jitter=0.0, greyscale=0.0)
        return apply(draw(recipe, len(images), height, width), images, size)

    def __repr__(self) -> str:
        return f"RandomView({self.recipe}, size={self.size})"


def is_random_view(augment: object) -> bool:
    """Whether a pipeline is a ``RandomView``, which ends in [0, 1] and leaves its input alone."""
    return isinstance(augment, RandomView)


def draw(recipe: Recipe, batch: int, height: int, width: int) -> Draws:
    """Draw a view's parameters for ``batch`` images of ``height`` x ``width`` pixels."""
    jitter = _chosen(recipe.jitter, batch)
    spread = _row(recipe.brightness, recipe.contrast, recipe.saturation, recipe.hue)
    factors = (2 * _random(len(jitter), 4) - 1) * spread + _row(1.0, 1.0, 1.0, 0.0)
    blur = _chosen(recipe.blur, batch)
    return Draws(
        boxes=_draw_boxes(recipe, batch, height, width),
        flip=_chosen(recipe.flip, batch),
        jitter=jitter,
        jitter_order=_random(len(jitter), 4).argsort(dim=1),
        jitter_factors=factors,
        greyscale=_chosen(recipe.greyscale, batch),
        blur=blur,
        blur_sigma=_uniform(recipe.blur_sigma, len(blur)),
        solarize=_chosen(recipe.solarize, batch),
    )


def _random(*shape: int) -> Tensor:
    return torch.rand(shape, dtype=torch.float32, device="cpu")  # whatever the defaults are


def _row(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device="cpu")


def _chosen(probability: float, batch: int) -> Tensor:
    return (_random(batch) < probability).nonzero()[:, 0]


def _uniform(bounds: tuple[float, float], *shape: int) -> Tensor:
    low, high = bounds
    return low + (high - low) * _random(*shape)


def _draw_boxes(
    recipe: Recipe, batch: int, height: int, width: int, tries: int = 10
) -> list[tuple[int, int, int, int]]:
    """Crops of random area and log-uniform aspect: the first of ten tries that fits.

    Where none fits, the largest central crop whose aspect is in range, as in torchvision.
    """
    low, high = recipe.crop_ratio
    area = _uniform(recipe.crop_area, batch, tries) * height * width
    ratio = _uniform((math.log(low), math.log(high)), batch, tries).exp()
    heights = (area / ratio).sqrt().round().int().clamp(min=1)
    widths = (area * ratio).sqrt().round().int().clamp(min=1)
    fits = (heights <= height) & (widths <= width)
    first = fits.int().argmax(dim=1, keepdim=True)
    rows = torch.cat([heights.gather(1, first), widths.gather(1, first)], dim=1)
    corners = _random(batch, 2)
    central = (
        min(height, round(width / low)),
        min(width, round(height * high)),
    )
    boxes = []
    for fit, (h, w), (y, x) in zip(
        fits.any(dim=1).tolist(), rows.tolist(), corners.tolist(), strict=True
    ):
        if fit:
            boxes.append((int(y * (height - h + 1)), int(x * (width - w + 1)), h, w))
        else:
            h, w = central
            boxes.append(((height - h) // 2, (width - w) // 2, h, w))
    return boxes


def apply(draws: Draws, images: Tensor, size: tuple[int, int]) -> Tensor:
    """Apply a view's draws: (B, C, H, W) in [0, 1] in, float32 (B, C, *size) in [0, 1] out.

    What comes out lies in memory as what goes in: channels first or last.
    """
    x = crop(as_unit_float(images), draws.boxes, size, draws.flip)
    jitter(x, draws.jitter, draws.jitter_order, draws.jitter_factors)
    on_some(x, draws.greyscale, greyscale)
    on_some(x, draws.blur, blur, draws.blur_sigma)
    on_some(x, draws.solarize, solarize)
    last = images.is_contiguous(memory_format=torch.channels_last) and not images.is_contiguous()
    return x.contiguous(memory_format=torch.channels_last) if last else x


def as_pair(image_size: int | Sequence[int]) -> tuple[int, int]:
    """A side, or a pair (height, width), in pixels, as a pair.

    Raises:
        ValueError: not one or two positive whole numbers.
    """
    sides = image_size if isinstance(image_size, Sequence) else (image_size, image_size)
    try:
        height, width = (as_index(side) for side in sides)
    except (TypeError, ValueError):
        height = width = 0
    if min(height, width) < 1:
        raise ValueError(
            "image_size should be a positive number of pixels or a pair (height, width), got "
            f"{image_size!r}."
        )
    return height, width
