"""What a view is made of, and the errors and the warning for what it cannot be made of."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

from byol_wrap.warning import warn

LOOKS = 3  # batches of a view whose values are looked at, on the CPU
LOWEST, HIGHEST = -0.5, 1.5  # of what may be pixels in [0, 1] with an overshoot
EXPECTED = "(B, C, H, W), (C, H, W) or (H, W), or a list of (C, H, W)"

_is_checked: ContextVar[bool] = ContextVar("is_checked", default=False)


@contextmanager
def checked() -> Iterator[None]:
    """Whoever makes views here has looked at the values already."""
    token = _is_checked.set(True)
    try:
        yield
    finally:
        _is_checked.reset(token)


def check_taken(images: Any) -> None:
    """Refuse what is no batch of images.

    Raises:
        TypeError: neither a tensor nor a list of them, or of another type than pixels have.
        ValueError: of another shape than images have.
    """
    if isinstance(images, list | tuple):
        wrong = next((i for i in images if not isinstance(i, Tensor)), None)
        if wrong is not None or not images:
            got = f"one of {type(wrong).__name__}" if images else "an empty one"
            raise TypeError(f"A list of images should hold tensors (C, H, W), got {got}.")
        shapes = [tuple(image.shape) for image in images]
        if any(len(shape) != 3 for shape in shapes):
            raise ValueError(
                f"A list of images should hold tensors (C, H, W), got {shapes[0]}; give a batch as "
                "one tensor (B, C, H, W)."
            )
    elif not isinstance(images, Tensor):
        raise TypeError(
            f"A view is made of tensors, {EXPECTED}, got {type(images).__name__}; convert it, such "
            "as torch.as_tensor(array), with channels first."
        )
    elif not 2 <= images.ndim <= 4:
        raise ValueError(f"A view is made of images {EXPECTED}, got {tuple(images.shape)}.")
    for image in images if isinstance(images, list | tuple) else [images]:
        if not image.is_floating_point() and image.dtype not in (torch.uint8, torch.bool):
            raise TypeError(
                f"Pixels are uint8 in [0, 255] or floats in [0, 1], got {image.dtype}; make floats "
                "of them and divide by the largest value that there can be, such as "
                "images.float() / 65535 for 16 bits."
            )


def warn_of_values(images: Tensor | Sequence[Tensor]) -> None:
    """Warn of floats that are no pixels, unless they were looked at, or looking means waiting."""
    first = images if isinstance(images, Tensor) else images[0]
    readable = first.is_floating_point() and first.device.type == "cpu" and first.numel() > 0
    if _is_checked.get() or not readable:
        return
    low, high = torch.stack(first.detach().aminmax()).tolist()
    if low < LOWEST or high > HIGHEST:
        guess = "normalised already" if low < 0 else "still in [0, 255]"
        warn(
            f"Pixels should be floats in [0, 1], got values from {low:.3g} to {high:.3g}, which a "
            f"view clips. Are they {guess}? Divide by 255, or normalise after the view."
        )
