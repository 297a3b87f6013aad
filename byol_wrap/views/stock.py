"""A recipe in kornia's own steps: a reference, and for those who want nothing else."""

import kornia.augmentation as augmentation
import torch
from kornia.constants import Resample
from torch import nn

from byol_wrap.views.draws import suited
from byol_wrap.views.recipes import Recipe, as_pair


def kornia_view(recipe: Recipe, size: int | tuple[int, int]) -> augmentation.ImageSequential:
    """The stock kornia chain of a recipe, for images (B, 3, H, W) of floats in [0, 1].

    It has the arguments that make kornia's steps those of the recipe: crops with
    ``align_corners=False`` and clipped, since bicubic overshoots; torchvision's colour formulas;
    the reference's grey weights; a threshold of exactly one half.

    Two differences from ``RandomView`` are in kornia's steps: crops are not antialiased, and the
    order of the colour steps is drawn for a batch, not for each image. uint8 is refused.

    Args:
        recipe: what is drawn with which probability.
        size: side, or (height, width), in pixels of what comes out.

    Example:
        >>> import torch
        >>> from byol_wrap import VIEW2
        >>> kornia_view(VIEW2, 64)(torch.rand(4, 3, 80, 80)).shape
        torch.Size([4, 3, 64, 64])
    """
    size = as_pair(size)
    recipe = suited(recipe, 3, size)
    strength = (recipe.brightness, recipe.contrast, recipe.saturation, recipe.hue)
    steps: list[nn.Module] = [
        augmentation.RandomResizedCrop(
            size,
            scale=recipe.crop_area,
            ratio=recipe.crop_ratio,
            resample=Resample.BICUBIC,
            align_corners=False,
        ),
        nn.Hardtanh(0.0, 1.0),
        augmentation.RandomHorizontalFlip(p=recipe.flip),
        augmentation.ColorJitter(*strength, p=recipe.jitter),
        augmentation.RandomGrayscale(torch.tensor([0.2989, 0.5870, 0.1140]), p=recipe.greyscale),
    ]
    if recipe.blur:
        taps = tuple(side // 10 | 1 for side in size)
        steps.append(augmentation.RandomGaussianBlur(taps, recipe.blur_sigma, p=recipe.blur))
    if recipe.solarize:
        steps.append(augmentation.RandomSolarize((0.5, 0.5), (0.0, 0.0), p=recipe.solarize))
    return augmentation.ImageSequential(*steps)
