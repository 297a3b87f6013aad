"""The steps of a view on pixels: batches (B, C, H, W) of floats in [0, 1], a parameter an image.

Each gives what torchvision's function of the same name gives for one image and its parameter: a
number for all images, or a tensor with one for each. Colour steps have no branches. The blur comes
in two forms: of one image, and of a batch.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

SMALLEST_WEIGHT = 1e-8  # of a pixel in a blur, beside 1 in the middle; less is lost in float32


def as_unit_float(images: Tensor) -> Tensor:
    """Images as float32 in [0, 1]: uint8 is divided by 255, floats are taken as they are."""
    return images.float().div_(255) if images.dtype == torch.uint8 else images.float()


Factors = Tensor | float


def _each(factors: Factors) -> Factors:
    """Factors (B,) as they fit images; a number as it is."""
    return factors if isinstance(factors, float) else factors[:, None, None, None]


def brightness(images: Tensor, factors: Factors) -> Tensor:
    """Multiply each image by its factor."""
    return (images * _each(factors)).clamp_(0, 1)


def contrast(images: Tensor, factors: Factors) -> Tensor:
    """Mix each image with the mean of its grey values."""
    mean = _luma(images.mean((2, 3), keepdim=True))
    return torch.lerp(mean, images, _each(factors)).clamp_(0, 1)


def saturation(images: Tensor, factors: Factors) -> Tensor:
    """Mix each image with its grey values."""
    return torch.lerp(_luma(images), images, _each(factors)).clamp_(0, 1)


def hue(images: Tensor, turns: Factors) -> Tensor:
    """Turn each image's hue; 1 is a whole turn.

    The hue is read off the order of the channels, found by minima and maxima alone; the colour that
    it stands for after the turn is a clipped triangle wave in each channel.
    """
    red, green, blue = images.unbind(dim=1)
    larger, smaller = torch.maximum(green, blue), torch.minimum(green, blue)
    value, middle = torch.maximum(red, larger), torch.minimum(red, larger)
    chroma = value - torch.minimum(middle, smaller)
    blue_leads = (blue - green).sign_().clamp_(min=0)
    red_trails = (larger - red).sign_().clamp_(min=0)
    sector = blue_leads.mul(2).sub_(1 / 3).mul_(red_trails).sub_(blue_leads)
    within = middle.sub_(smaller).div_(chroma.mul(6).add_(1e-20))  # grey has no hue, and 0 / 0
    turns = turns if isinstance(turns, float) else turns[:, None, None]
    hues = within.add_(sector).abs_().add_(turns)
    out = torch.empty_like(images)
    for channel, shift in enumerate((1 / 2, 1 / 6, -1 / 6)):
        wave = hues + shift
        wave.sub_(wave.round()).abs_().mul_(-6).add_(2).clamp_(0, 1).mul_(chroma)
        torch.sub(value, wave, out=out[:, channel])
    return out


def _luma(images: Tensor) -> Tensor:
    """Grey values (B, 1, H, W), with torchvision's weights for saturation and contrast."""
    red, green, blue = images.unbind(dim=1)
    return (0.299 * red).add_(green, alpha=0.587).add_(blue, alpha=0.114).unsqueeze(1)


def greyscale(images: Tensor) -> Tensor:
    """Replace three channels by their luma (weights of the reference code and torchvision)."""
    red, green, blue = images.unbind(dim=1)
    grey = (0.2989 * red).add_(green, alpha=0.587).add_(blue, alpha=0.114)
    return grey.unsqueeze(1).expand_as(images)


def blur_one(image: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of an image (C, H, W), ``sigma`` in pixels; the kernel spans a tenth of it."""
    reach_y, reach_x = (side // 10 // 2 for side in image.shape[1:])
    padded = F.pad(image[None], (reach_x, reach_x, reach_y, reach_y), mode="reflect")[0]
    return _blur_along(1, _blur_along(2, padded, sigma, reach_x), sigma, reach_y)


def blur(images: Tensor, sigma: Tensor) -> Tensor:
    """The same for a batch, with a ``sigma`` (B,) for each image, by kornia.

    In two functions of its own, since ``gaussian_blur2d`` reads sigma off the device.
    """
    from kornia.filters import filter2d_separable, get_gaussian_kernel1d

    down, across = (
        get_gaussian_kernel1d(side // 10 | 1, sigma[:, None]) for side in images.shape[2:]
    )
    blurred: Tensor = filter2d_separable(images, across, down, "reflect")
    return blurred


def _blur_along(dim: int, image: Tensor, sigma: float, reach: int) -> Tensor:
    """Blur one dimension of an image (C, H, W), which loses ``reach`` pixels at both its ends."""
    weights = [math.exp(-0.5 * (shift / sigma) ** 2) for shift in range(reach + 1)]
    total = weights[0] + 2 * sum(weights[1:])
    length = image.shape[dim] - 2 * reach
    out = image.narrow(dim, reach, length) / total
    for shift, weight in enumerate(weights[1:], start=1):
        if weight < SMALLEST_WEIGHT:
            break
        out.add_(image.narrow(dim, reach - shift, length), alpha=weight / total)
        out.add_(image.narrow(dim, reach + shift, length), alpha=weight / total)
    return out


def solarize(images: Tensor) -> Tensor:
    """Keep values below one half and invert the others."""
    return torch.minimum(images, 1 - images)
