"""The two augmentation pipelines of BYOL, each image with draws of its own.

A view is drawn first, on the host, and then applied on the images' device: the draws depend on
``torch.manual_seed`` alone, not on the device, and nothing has to be read back. A step that only
some images were drawn for is computed for those only.
"""

import math
from collections.abc import Callable, Sequence, Sized
from dataclasses import dataclass, replace
from operator import index as as_index

import torch
from torch import Tensor, nn

from byol_wrap.pixels import as_unit_float, blur, crop, greyscale, jitter, on_some, solarize

Augment = Callable[[Tensor], Tensor]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Recipe:
    """Probabilities and ranges of one pipeline, in the order in which its steps are taken.

    The defaults are those of the paper's first view. Probabilities are per image. Small runs learn
    faster from gentler crops.

    Attributes:
        crop_area: range of the crop's share of the image's area.
        crop_ratio: range of its width over its height.
        flip: probability of mirroring left and right.
        jitter: probability of the four colour steps, which come in an order drawn for each image.
        brightness: factor drawn from 1 - brightness to 1 + brightness.
        contrast: likewise.
        saturation: likewise.
        hue: turn drawn from -hue to hue; 1 is a whole turn.
        greyscale: probability.
        blur: probability; images that come out smaller than 64 pixels are not blurred.
        blur_sigma: range in pixels.
        solarize: probability of inverting the values from one half up.

    Reference:
        Grill et al. 2020, appendix B and table 6.
    """

    crop_area: tuple[float, float] = (0.08, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    jitter: float = 0.8
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.2
    hue: float = 0.1
    greyscale: float = 0.2
    blur: float = 1.0
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    solarize: float = 0.0


VIEW1 = Recipe()
VIEW2 = replace(VIEW1, blur=0.1, solarize=0.2)


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


class Views:
    """The pipelines of both views, and the normalisation that ends them.

    Args:
        augment_fn: replaces both pipelines; None for the default views.
        augment_fn2: replaces the second.
        size: (height, width) of the default views; None keeps that of the images.
        normalize: what both pipelines, and images to embed, go through last; None for nothing.

    Raises:
        TypeError: a pipeline that cannot be called.
    """

    def __init__(
        self,
        augment_fn: Augment | None,
        augment_fn2: Augment | None,
        size: tuple[int, int] | None,
        normalize: Augment | None,
    ) -> None:
        for name, augment in (("augment_fn", augment_fn), ("augment_fn2", augment_fn2)):
            if augment is not None and not callable(augment):
                raise TypeError(f"{name} should be callable, got {type(augment).__name__}.")
        self.augment1 = RandomView(VIEW1, size) if augment_fn is None else augment_fn
        second = augment_fn if augment_fn2 is None else augment_fn2
        self.augment2 = RandomView(VIEW2, size) if second is None else second
        self.normalize = normalize

    @torch.no_grad()
    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Two views (B, C, h, w) of images (B, C, H, W), in float32 whatever autocast says."""
        with torch.autocast(images.device.type, enabled=False):
            images = as_unit_float(images)
            return self._view(self.augment1, images), self._view(self.augment2, images)

    def _view(self, augment: Augment, images: Tensor) -> Tensor:
        if isinstance(augment, nn.Module):
            augment.to(images.device)
        # A user's own may work in place, on what is the other view's input or the user's batch.
        view = augment(images if isinstance(augment, RandomView) else images.clone())
        if not isinstance(view, Tensor) or view.shape[:1] != images.shape[:1]:
            got = tuple(view.shape) if isinstance(view, Tensor) else type(view).__name__
            raise ValueError(
                f"augment_fn should return a view of each of the {len(images)} images, got {got}."
            )
        if not view.is_floating_point():
            raise ValueError(f"augment_fn should return floats, got {view.dtype}: divide by 255?")
        return view if self.normalize is None else self.normalize(view)

    def normalized(self, images: Tensor) -> Tensor:
        """Images as the networks expect them, neither augmented nor resized."""
        with torch.autocast(images.device.type, enabled=False):
            images = as_unit_float(images)
            return images if self.normalize is None else self.normalize(images)


def draw(recipe: Recipe, batch: int, height: int, width: int) -> Draws:
    """Draw a view's parameters for ``batch`` images of ``height`` x ``width`` pixels."""
    jitter = _chosen(recipe.jitter, batch)
    spread = torch.tensor([recipe.brightness, recipe.contrast, recipe.saturation, recipe.hue])
    factors = (2 * torch.rand(len(jitter), 4) - 1) * spread + torch.tensor([1.0, 1.0, 1.0, 0.0])
    blur = _chosen(recipe.blur, batch)
    return Draws(
        boxes=_draw_boxes(recipe, batch, height, width),
        flip=_chosen(recipe.flip, batch),
        jitter=jitter,
        jitter_order=torch.rand(len(jitter), 4).argsort(dim=1),
        jitter_factors=factors,
        greyscale=_chosen(recipe.greyscale, batch),
        blur=blur,
        blur_sigma=_uniform(recipe.blur_sigma, len(blur)),
        solarize=_chosen(recipe.solarize, batch),
    )


def _chosen(probability: float, batch: int) -> Tensor:
    return (torch.rand(batch) < probability).nonzero()[:, 0]


def _uniform(bounds: tuple[float, float], *shape: int) -> Tensor:
    low, high = bounds
    return low + (high - low) * torch.rand(shape)


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
    corners = torch.rand(batch, 2)
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
        self._on_device: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def __call__(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in, the same shape out."""
        if images.device not in self._on_device:
            with torch.inference_mode(False):
                stats = torch.tensor([self.mean, self.std], device=images.device)
            self._on_device[images.device] = (stats[0, :, None, None], stats[1, :, None, None])
        mean, std = self._on_device[images.device]
        return (images - mean) / std
