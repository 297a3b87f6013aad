"""A view's draws, applied to a batch: image by image, all images of a step at once, or fused."""

import functools
import warnings
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from byol_wrap.views import cropping, pixels
from byol_wrap.views.draws import Draws, draw
from byol_wrap.views.packing import send
from byol_wrap.views.recipes import Recipe

Images = Tensor | Sequence[Tensor]

SMALL = 64  # pixels a side; larger images are cropped one by one on the CPU
MEDIUM, LARGE = 64, 160  # of views; from one of them all their steps are taken one by one there
LARGEST_ERROR = 1e-3  # of a fused pixel
COLOUR = ("brightness", "contrast", "saturation", "hue")  # by their numbers in ``jitter_order``


@torch.no_grad()
def apply(draws: Draws, images: Images, size: tuple[int, int]) -> Tensor:
    """Apply a view's draws.

    Args:
        draws: of these images.
        images: (B, C, H, W), or a list of (C, H, W) of any sizes; floats in [0, 1] or uint8.
        size: (height, width) of the view.

    Returns:
        float32 (B, C, *size) in [0, 1]. It lies in memory as a batch that goes in: channels first
        or last.
    """
    device, layout = place(images), _layout(images)
    if device.type == "cuda" and len(images) and images[0].shape[0] == 3:
        kernels = fused_on(device)
        if kernels is not None:
            return kernels(draws, images, size, layout)
    with torch.autocast(device.type, enabled=False):
        x = (_one_by_one if _fits_cache(device, size) else _at_once)(draws, images, size)
    return x.contiguous(memory_format=layout)


def place(images: Images) -> torch.device:
    """The device that images are on."""
    return images.device if isinstance(images, Tensor) else images[0].device


@functools.cache
def fused_on(device: torch.device) -> Callable[..., Tensor] | None:
    """The kernels, where they run on ``device`` and give there what the steps give on the host."""
    try:
        from byol_wrap.views import fused

        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            images = torch.rand(8, 3, 40, 56, device="cpu", dtype=torch.float32)
            recipe = Recipe(greyscale=0.3, blur=0.5, solarize=0.3)
            draws = draw(recipe, 8, 40, 56)
        expected = _one_by_one(draws, images, (48, 64))
        error = (fused.apply(draws, images.to(device), (48, 64)).cpu() - expected).abs().max()
        if not error < LARGEST_ERROR:
            raise ArithmeticError(f"they are off by {error:.2g}")
    except Exception as error:
        warnings.warn(
            f"The fused views cannot be used on {device}, {type(error).__name__}: {error}. Views "
            "are made step by step instead, which is as right and slower.",
            UserWarning,
            stacklevel=2,
        )
        return None
    return fused.apply


def _fits_cache(device: torch.device, size: tuple[int, int]) -> bool:
    """Whether views are faster one by one: on the CPU, and worth more than the calls they take.

    Steps of a batch run on all threads, those of one image only from ``LARGE`` on.
    """
    side = MEDIUM if torch.get_num_threads() == 1 else LARGE
    return device.type == "cpu" and min(size) >= side


def _layout(images: Images) -> torch.memory_format:
    """Channels last where a batch is."""
    if not isinstance(images, Tensor) or images.is_contiguous():
        return torch.contiguous_format
    last = images.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


def _one_by_one(draws: Draws, images: Images, size: tuple[int, int]) -> Tensor:
    """One view after the other."""
    out = _empty(images, size)
    rows = zip(*(column.tolist() for column in vars(draws).values()), strict=True)
    for image, row, view in zip(images, rows, out, strict=True):
        box, flip, jitter, order, factors, greyscale, blur, sigma, solarize = row
        x = cropping.crop_one(image, box, size)[None]
        if flip:
            x = x.flip(-1)
        if jitter:
            for kind in order:
                x = getattr(pixels, COLOUR[kind])(x, factors[kind])
        if greyscale:
            x = pixels.greyscale(x)
        if blur:
            x = pixels.blur_one(x[0], sigma)[None]
        view.copy_(pixels.solarize(x)[0] if solarize else x[0])
    return out


def _at_once(draws: Draws, images: Images, size: tuple[int, int]) -> Tensor:
    """The views of a batch, step by step, each for those images that it was drawn for."""
    names, tensors = zip(*_steps(draws), strict=True)
    there = iter(send([part for own in tensors for part in own], place(images)))
    x = _cropped(images, next(there), size, next(there))
    for name, own in zip(names[1:], tensors[1:], strict=True):
        index, *parameters = (next(there) for _ in own)
        if len(index):
            x[index] = getattr(pixels, name)(x[index], *parameters)
    return x


def _cropped(images: Images, boxes: Tensor, size: tuple[int, int], flip: Tensor) -> Tensor:
    on_host = boxes.device.type == "cpu"
    if isinstance(images, Tensor) and not (on_host and max(*images.shape[2:], *size) > SMALL):
        return cropping.crop(pixels.as_unit_float(images), boxes, size, flip)
    out, turned = _empty(images, size), flip.tolist() if on_host else []
    for i, (image, view) in enumerate(zip(images, out, strict=True)):
        if on_host:
            cut = cropping.crop_one(image, boxes[i].tolist(), size)
            view.copy_(cut.flip(-1) if turned[i] else cut)
        else:
            whole = pixels.as_unit_float(image[None])
            view.copy_(cropping.crop(whole, boxes[i : i + 1], size, flip[i : i + 1])[0])
    return out


def _empty(images: Images, size: tuple[int, int]) -> Tensor:
    channels = images.shape[1] if isinstance(images, Tensor) else images[0].shape[0]
    shape = (len(images), channels, *size)
    return torch.empty(shape, dtype=torch.float32, device=place(images))


def _steps(draws: Draws) -> Iterator[tuple[str, tuple[Tensor, ...]]]:
    """The crop's parameters; then each step with the indices of its images and their parameters."""
    yield "crop", (draws.boxes, draws.flip)
    jittered = draws.jitter.nonzero()[:, 0]
    order, factors = draws.jitter_order[jittered], draws.jitter_factors[jittered]
    for place in order.T:  # image by image the same work as one step of a batch
        for kind, name in enumerate(COLOUR):
            here = place == kind
            yield name, (jittered[here], factors[here, kind])
    greyscale, blur, solarize = (
        chosen.nonzero()[:, 0] for chosen in (draws.greyscale, draws.blur, draws.solarize)
    )
    yield "greyscale", (greyscale,)
    yield "blur", (blur, draws.blur_sigma[blur])
    yield "solarize", (solarize,)
