"""The steps of a view on pixels: batches (B, C, H, W) of floats in [0, 1], a parameter an image.

Each gives what torchvision's function of the same name gives for one image and its parameter. They
are written for a batch with a parameter for each image, with few passes over memory: colour steps
without branches, the blur as a sum of shifted images as far as its weights matter.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

SMALLEST_WEIGHT = 1e-8  # of a pixel in a blur, beside 1 in the middle; less is lost in float32


def as_unit_float(images: Tensor) -> Tensor:
    """Images as float32 in [0, 1]: uint8 is divided by 255, floats are taken as they are."""
    return images.float().div_(255) if images.dtype == torch.uint8 else images.float()


def crop(images: Tensor, boxes: list[tuple[int, int, int, int]], size: tuple[int, int]) -> Tensor:
    """Cut one box (top, left, height, width) out of each image and resize it to ``size``.

    Bicubic with antialiasing, clipped to [0, 1]; equal to torchvision's ``resized_crop``.
    """
    out = images.new_empty((len(images), images.shape[1], *size))
    antialias = images.device.type != "mps"
    for image, view, (top, left, height, width) in zip(images, out, boxes, strict=True):
        box = image[None, :, top : top + height, left : left + width]
        view.copy_(F.interpolate(box, size, mode="bicubic", antialias=antialias)[0])
    return out.clamp_(0, 1)


def brightness(images: Tensor, factors: Tensor) -> Tensor:
    """Multiply each image by its factor."""
    return (images * factors[:, None, None, None]).clamp_(0, 1)


def contrast(images: Tensor, factors: Tensor) -> Tensor:
    """Mix each image with the mean of its grey values."""
    mean = _luma(images).mean((1, 2, 3), keepdim=True)
    return torch.lerp(mean, images, factors[:, None, None, None]).clamp_(0, 1)


def saturation(images: Tensor, factors: Tensor) -> Tensor:
    """Mix each image with its grey values."""
    return torch.lerp(_luma(images), images, factors[:, None, None, None]).clamp_(0, 1)


def hue(images: Tensor, turns: Tensor) -> Tensor:
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
    hues = within.add_(sector).abs_().add_(turns[:, None, None])
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


def blur(images: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian blur, ``sigma`` in pixels for each image; the kernel spans a tenth of the image."""
    if images.device.type != "cpu":  # where a launch for each shift would cost more than it saves
        from kornia.filters import gaussian_blur2d

        height, width = images.shape[2:]
        sigmas = sigma.to(images.device, non_blocking=True)[:, None].expand(-1, 2)
        return gaussian_blur2d(images, (height // 10 | 1, width // 10 | 1), sigmas)
    reach_y, reach_x = (side // 10 // 2 for side in images.shape[2:])
    padded = F.pad(images, (reach_x, reach_x, reach_y, reach_y), mode="reflect")
    out = torch.empty_like(images)
    for image, blurred, width in zip(padded, out, sigma.tolist(), strict=True):
        blurred.copy_(_blur_along(1, _blur_along(2, image, width, reach_x), width, reach_y))
    return out


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
    return torch.where(images < 0.5, images, 1 - images)
