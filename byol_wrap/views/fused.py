"""A view in four kernels, for images of three channels on CUDA."""

from collections.abc import Sequence
from typing import Any

import torch
import triton
from torch import Tensor

from byol_wrap.views.draws import Draws
from byol_wrap.views.kernels import blur_kernel, colour_kernel, crop_kernel
from byol_wrap.views.packing import send
from byol_wrap.views.pixels import as_unit_float

ROWS, COLUMNS, PIXELS = 8, 64, 512  # of a program's tile in the crop; of one in other steps


def launch(kernel: Any, grid: tuple[int, int], *arguments: Any, **constants: int) -> None:
    """Run a kernel, on its tensors' device, in as many programs as ``grid`` has places."""
    with torch.cuda.device_of(arguments[0]):
        kernel[grid](*arguments, **constants)


def apply(
    draws: Draws,
    images: Tensor | Sequence[Tensor],
    size: tuple[int, int],
    layout: torch.memory_format = torch.contiguous_format,
) -> Tensor:
    """Apply a view's draws, as ``applying.apply``, to images of three channels."""
    height, width = size
    flat, where = _addresses(images)
    columns = [column.float().view(len(column), -1) for column in vars(draws).values()]
    numbers = torch.cat(columns, dim=1)
    chosen = draws.blur.nonzero()[:, 0]
    where, numbers, chosen = send([where, numbers, chosen], flat.device)
    shape = (len(where), 3, height, width)
    out = torch.empty(shape, dtype=torch.float32, device=flat.device, memory_format=layout)
    _, channel, _, pixel = out.stride()
    tiles = triton.cdiv(height, ROWS) * triton.cdiv(width, COLUMNS)
    sums = out.new_empty((len(where), tiles))
    per_byte = 1 / 255 if flat.dtype == torch.uint8 else 1.0
    launch(
        crop_kernel,
        (tiles, len(where)),
        flat,
        where,
        numbers,
        out,
        sums,
        height,
        width,
        channel,
        pixel,
        per_byte,
        ROWS=ROWS,
        COLUMNS=COLUMNS,
    )
    blocks = triton.cdiv(height * width, PIXELS)
    launch(
        colour_kernel,
        (blocks, len(where)),
        out,
        numbers,
        sums,
        tiles,
        height * width,
        channel,
        pixel,
        TILES=triton.next_power_of_2(tiles),
        PIXELS=PIXELS,
    )
    if len(chosen):
        between = torch.empty_like(out[: len(chosen)])
        for source, target, side in ((out, between, width), (between, out, height)):
            launch(
                blur_kernel,
                (blocks, 3 * len(chosen)),
                source,
                target,
                numbers,
                chosen,
                height,
                width,
                channel,
                pixel,
                side // 10 // 2,
                ALONG_ROWS=target is between,
                PIXELS=PIXELS,
            )
    return out


def _addresses(images: Tensor | Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """All pixels, and of each image where it begins and its strides: channel, row, pixel."""
    if isinstance(images, Tensor):
        images = _readable(images)
        first, *strides = images.stride()
        starts = first * torch.arange(len(images), device="cpu")
        rest = torch.tensor([strides], device="cpu").expand(len(images), 3)
        return images, torch.cat([starts[:, None], rest], dim=1)
    if len({image.dtype for image in images}) > 1:
        images = [as_unit_float(image) for image in images]
    flat = _readable(torch.cat([image.reshape(-1) for image in images]))
    lengths = torch.tensor([image.numel() for image in images], device="cpu")
    sides = [(image.shape[1] * image.shape[2], image.shape[2], 1) for image in images]
    starts = lengths.cumsum(0) - lengths
    return flat, torch.cat([starts[:, None], torch.tensor(sides, device="cpu")], dim=1)


def _readable(images: Tensor) -> Tensor:
    """Bytes and float32 are read as they are."""
    return images if images.dtype in (torch.uint8, torch.float32) else as_unit_float(images)
