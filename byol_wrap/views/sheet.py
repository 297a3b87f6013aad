"""Views as a picture, to be looked at."""

import torch
from torch import Tensor


def sheet(*rows: Tensor, gap: int = 2) -> Tensor:
    """Batches one above the other, the images of each side by side.

    Args:
        rows: batches (B, C, H, W) of one size, of 1 or 3 channels, as ``learner.views(images)``
            gives them. Each image is stretched from its least to its greatest value, so it does not
            matter whether it is normalised.
        gap: white pixels between images.

    Returns:
        (height, width, 3), uint8, on the CPU.

    Example:
        >>> sheet(torch.rand(4, 3, 16, 16), torch.rand(4, 3, 16, 16)).shape
        torch.Size([34, 70, 3])
    """
    images = torch.stack([row.detach().float().cpu() for row in rows])
    low, high = images.amin((2, 3, 4), keepdim=True), images.amax((2, 3, 4), keepdim=True)
    images = (images - low) / (high - low).clamp(min=torch.finfo(torch.float32).tiny)
    images = torch.nn.functional.pad(images.expand(-1, -1, 3, -1, -1), (0, gap, 0, gap), value=1.0)
    picture = images.permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)
    return (picture[: -gap or None, : -gap or None] * 255).round().byte()
