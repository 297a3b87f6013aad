"""The steps of a view on pixels: batches (B, C, H, W) of floats in [0, 1], a parameter an image.

Each gives what torchvision's function of the same name gives for one image and its parameter. They
are written for a batch with a parameter for each image, with few passes over memory: colour steps
without branches; crop and blur of larger images on the CPU image by image, as far as weights
matter, and elsewhere as products of whole batches with matrices.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

SMALL = 64  # pixels a side; up to it products with matrices are faster than a loop on the CPU, too
LARGE = 160  # from it colour steps are faster in a loop on the CPU: one image fits the cache
SMALLEST_WEIGHT = 1e-8  # of a pixel in a blur, beside 1 in the middle; less is lost in float32


def as_unit_float(images: Tensor) -> Tensor:
    """Images as float32 in [0, 1]: uint8 is divided by 255, floats are taken as they are."""
    return images.float().div_(255) if images.dtype == torch.uint8 else images.float()


def _loops(images: Tensor, size: tuple[int, int] = (0, 0)) -> bool:
    """Whether crop and blur are faster image by image, from these images to those of ``size``."""
    return images.device.type == "cpu" and max(*images.shape[2:], *size) > SMALL


def crop(
    images: Tensor,
    boxes: list[tuple[int, int, int, int]],
    size: tuple[int, int],
    mirrored: Tensor | None = None,
) -> Tensor:
    """Cut one box (top, left, height, width) out of each image and resize it to ``size``.

    Bicubic with antialiasing, clipped to [0, 1]; equal to torchvision's ``resized_crop``. Those
    images whose indices ``mirrored`` holds are mirrored left and right in passing.
    """
    if not _loops(images, size):
        return crop_by_matrices(images, boxes, size, mirrored)
    turned = set() if mirrored is None else set(mirrored.tolist())
    out = images.new_empty((len(images), images.shape[1], *size))
    for i, (top, left, height, width) in enumerate(boxes):
        box = images[i : i + 1, :, top : top + height, left : left + width]
        view = F.interpolate(box, size, mode="bicubic", antialias=True)[0]
        out[i] = view.flip(-1) if i in turned else view
    return out.clamp_(0, 1)


def crop_by_matrices(
    images: Tensor,
    boxes: list[tuple[int, int, int, int]],
    size: tuple[int, int],
    mirrored: Tensor | None = None,
) -> Tensor:
    """The same for all images at once: two products with matrices of resampling weights.

    More arithmetic, but no launch for each image: for accelerators, and for small images.
    """
    drawn = torch.tensor(boxes, device="cpu").to(images.device, non_blocking=True)
    top, left, height, width = drawn.T
    down = _resampling(top, height, size[0], images.shape[2])
    across = _resampling(left, width, size[1], images.shape[3])
    if mirrored is not None:
        on_some(across, mirrored, lambda weights: weights.flip(-2))
    return (down @ (images @ across.mT)).clamp_(0, 1)


def _resampling(start: Tensor, length: Tensor, outputs: int, inputs: int) -> Tensor:
    """Weights (B, 1, outputs, inputs) that resize a stretch of pixels in each of B images.

    Keys' bicubic kernel with a = -1/2, widened where it shrinks, and normalised at the borders of
    the stretch, as torchvision has it.
    """
    start, length = (whole.view(-1, 1, 1, 1).float() for whole in (start, length))
    steps = torch.arange(max(outputs, inputs), dtype=torch.float32, device=start.device)
    scale = length / outputs
    wide = scale.clamp(min=1)
    centre = (steps[:outputs, None] + 0.5) * scale
    pixel = steps[:inputs] - start
    distance = ((pixel + 0.5 - centre) / wide).abs_()
    near = (1.5 * distance - 2.5) * distance.square() + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    inside = (pixel >= 0) & (pixel < length) & (distance < 2)
    weights = torch.where(distance < 1, near, far).mul_(inside)
    return weights.div_(weights.sum(-1, keepdim=True))


def jitter(x: Tensor, index: Tensor, order: Tensor, factors: Tensor) -> None:
    """Four colour steps on those images that ``index`` names, each in an order of its own.

    Args:
        x: images, changed in place.
        index: (n,), on the CPU, as what follows.
        order: (n, 4), each row a permutation: 0 is brightness, 1 contrast, 2 saturation, 3 hue.
        factors: (n, 4), what each of them gets.
    """
    steps = (brightness, contrast, saturation, hue)
    if x.device.type == "cpu" and min(x.shape[2:]) >= LARGE:
        for i, kinds, own in zip(index.tolist(), order.tolist(), factors[:, :, None], strict=True):
            image = x[i : i + 1]
            for kind in kinds:
                image = steps[kind](image, own[kind])
            x[i] = image[0]
        return
    for place in range(4):  # image by image the same work as one step of a batch
        for kind, step in enumerate(steps):
            here = order[:, place] == kind
            on_some(x, index[here], step, factors[here, kind].to(x.device, non_blocking=True))


def on_some(x: Tensor, index: Tensor, step: Callable[..., Tensor], *args: Tensor) -> None:
    """Replace the images that ``index`` names by what ``step`` makes of them."""
    if len(index) == 0:
        return
    index = index.to(x.device, non_blocking=True)
    x[index] = step(x[index], *args)


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
    if not _loops(images):
        return blur_by_matrices(images, sigma)
    reach_y, reach_x = (side // 10 // 2 for side in images.shape[2:])
    padded = F.pad(images, (reach_x, reach_x, reach_y, reach_y), mode="reflect")
    out = torch.empty_like(images)
    for image, blurred, width in zip(padded, out, sigma.tolist(), strict=True):
        blurred.copy_(_blur_along(1, _blur_along(2, image, width, reach_x), width, reach_y))
    return out


def blur_by_matrices(images: Tensor, sigma: Tensor) -> Tensor:
    """The same for all images at once, as ``crop_by_matrices``."""
    sigma = sigma.to(images.device, non_blocking=True)
    down, across = (_blurring(sigma, side) for side in images.shape[2:])
    return down @ (images @ across.mT)


def _blurring(sigma: Tensor, side: int) -> Tensor:
    """Weights (B, 1, side, side) that blur along one dimension, mirrored at the border."""
    from kornia.filters import get_gaussian_kernel1d

    taps = side // 10 | 1
    weights = get_gaussian_kernel1d(taps, sigma[:, None])
    pixel = torch.arange(side, device=sigma.device)
    read = (pixel[:, None] + pixel[:taps] - taps // 2).abs()
    read = torch.minimum(read, 2 * (side - 1) - read)
    reads = (read[:, :, None] == pixel).to(weights.dtype)  # (outputs, taps, inputs)
    return torch.einsum("bt,oti->boi", weights, reads)[:, None]


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
