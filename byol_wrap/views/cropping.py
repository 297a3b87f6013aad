"""The crop of a view: of one image, and of a batch."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from byol_wrap.views.pixels import as_unit_float


def crop_one(image: Tensor, box: Sequence[int], size: tuple[int, int]) -> Tensor:
    """Cut a box (top, left, height, width) out of an image (C, H, W), and resize it to ``size``.

    Bicubic with antialiasing, clipped to [0, 1]; equal to torchvision's ``resized_crop``. Bytes are
    cropped before they become floats.
    """
    top, left, height, width = box
    cut = as_unit_float(image[None, :, top : top + height, left : left + width])
    return F.interpolate(cut, size, mode="bicubic", antialias=True).clamp_(0, 1)[0]


def crop(images: Tensor, boxes: Tensor, size: tuple[int, int], flip: Tensor) -> Tensor:
    """The same for a batch: two products with matrices of resampling weights.

    More arithmetic, but no launch for each image: for accelerators, and for small images. Where
    TF32 is allowed, pixels are exact to three digits.

    Args:
        images: (B, C, H, W), floats.
        boxes: (B, 4) integers on the images' device.
        size: (height, width) of what comes out.
        flip: (B,), which images are mirrored left and right in passing.
    """
    top, left, height, width = boxes.float().T
    down = _resampling(top, height, size[0], images.shape[2])
    across = _resampling(left, width, size[1], images.shape[3], flip)
    return (down @ (images @ across.mT)).clamp_(0, 1)


def _resampling(
    start: Tensor, length: Tensor, outputs: int, inputs: int, mirrored: Tensor | None = None
) -> Tensor:
    """Weights (B, 1, outputs, inputs) that resize a stretch of pixels in each of B images.

    Keys' bicubic kernel with a = -1/2, widened where it shrinks, and normalised at the borders of
    the stretch, as torchvision has it.
    """
    start, length = start.view(-1, 1, 1, 1), length.view(-1, 1, 1, 1)
    steps = torch.arange(max(outputs, inputs), dtype=torch.float32, device=start.device)
    scale = length / outputs
    wide = scale.clamp(min=1)
    place = steps[:outputs, None]
    if mirrored is not None:
        place = torch.where(mirrored.view(-1, 1, 1, 1), outputs - 1 - place, place)
    centre = (place + 0.5) * scale
    pixel = steps[:inputs] - start
    distance = ((pixel + 0.5 - centre) / wide).abs_()
    near = (1.5 * distance - 2.5) * distance.square() + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    inside = (pixel >= 0) & (pixel < length) & (distance < 2)
    weights = torch.where(distance < 1, near, far).mul_(inside)
    return weights.div_(weights.sum(-1, keepdim=True))
