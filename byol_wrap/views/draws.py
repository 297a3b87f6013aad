"""All that is random in a view: drawn on the host, a row for each image, whatever the device.

The draws depend on ``torch.manual_seed`` alone, and nothing has to be read back.
"""

import math
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from byol_wrap.views.recipes import Recipe

TRIES = 10  # at a crop that fits, as in torchvision
SMALLEST_BLURRED = 64  # pixels a side of what comes out


@dataclass(frozen=True)
class Draws:
    """What is done to each image of a batch; all tensors are on the CPU and have B rows."""

    boxes: Tensor  # (B, 4) integers: top, left, height, width of the crop
    flip: Tensor  # (B,) whether
    jitter: Tensor  # (B,) whether
    jitter_order: Tensor  # (B, 4), a permutation: 0 is brightness, 1 contrast, 2 saturation, 3 hue
    jitter_factors: Tensor  # (B, 4): brightness, contrast, saturation factors; hue in turns
    greyscale: Tensor  # (B,) whether
    blur: Tensor  # (B,) whether
    blur_sigma: Tensor  # (B,) in pixels
    solarize: Tensor  # (B,) whether

    @classmethod
    def of(cls, parameters: dict[str, Tensor]) -> "Draws":
        """The draws among a view's parameters."""
        return cls(**{field.name: parameters[field.name].cpu() for field in fields(cls)})


def suited(recipe: Recipe, channels: int, size: tuple[int, int]) -> Recipe:
    """The recipe without the steps that such images do not get: see ``RandomView``."""
    if min(size) < SMALLEST_BLURRED:
        recipe = replace(recipe, blur=0.0)
    if channels != 3:
        recipe = replace(recipe, jitter=0.0, greyscale=0.0)
    return recipe


def draw(
    recipe: Recipe,
    batch: int,
    height: int | Tensor,
    width: int | Tensor,
    *,
    same_on_batch: bool = False,
) -> Draws:
    """Draw a view's parameters.

    Args:
        recipe: what is drawn with which probability.
        batch: how many images there are.
        height: of the images, in pixels; one number, or (B,) on the CPU.
        width: likewise.
        same_on_batch: draw once for all images.
    """
    rows = 1 if same_on_batch else batch
    numbers = torch.rand(rows, 2 * TRIES + 16, dtype=torch.float32, device="cpu")
    numbers = numbers.expand(batch, -1)
    crops, chances, order, factors, sigma = numbers.split([2 * TRIES + 2, 5, 4, 4, 1], dim=1)
    chosen = (
        chances < _row(recipe.flip, recipe.jitter, recipe.greyscale, recipe.blur, recipe.solarize)
    ).unbind(1)
    spread = _row(recipe.brightness, recipe.contrast, recipe.saturation, recipe.hue)
    low, high = recipe.blur_sigma
    return Draws(
        boxes=_boxes(recipe, crops.double(), height, width),
        flip=chosen[0],
        jitter=chosen[1],
        jitter_order=order.argsort(dim=1),
        jitter_factors=(2 * factors - 1) * spread + _row(1.0, 1.0, 1.0, 0.0),
        greyscale=chosen[2],
        blur=chosen[3],
        blur_sigma=low + (high - low) * sigma[:, 0],
        solarize=chosen[4],
    )


def _row(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device="cpu")


def _boxes(recipe: Recipe, numbers: Tensor, height: int | Tensor, width: int | Tensor) -> Tensor:
    """Crops of random area and log-uniform aspect: the first of ten tries that fits.

    Where none fits, the largest central crop whose aspect is in range, as in torchvision.
    """
    areas, ratios, corners = numbers.split([TRIES, TRIES, 2], dim=1)
    sides = numbers.new_empty(len(numbers), 2)
    sides[:, 0], sides[:, 1] = height, width
    whole = sides.prod(1, keepdim=True)
    smallest, largest = recipe.crop_area
    low, high = recipe.crop_ratio
    area = (smallest + (largest - smallest) * areas) * whole
    ratio = (math.log(low) + math.log(high / low) * ratios).exp()
    tries = torch.stack([area / ratio, area * ratio], dim=2).sqrt_().round_().clamp_(min=1)
    fits = (tries <= sides[:, None]).all(2)
    first = tries.gather(1, fits.byte().argmax(1)[:, None, None].expand(-1, 1, 2))[:, 0]
    central = sides.flip(1).mul_(numbers.new_tensor([1 / low, high])).round_()
    fit = fits.any(1, keepdim=True)
    size = torch.where(fit, first, torch.minimum(central, sides))
    room = sides - size
    corner = torch.where(fit, corners * (room + 1), room / 2).floor_()
    return torch.cat([corner, size], dim=1).long()
