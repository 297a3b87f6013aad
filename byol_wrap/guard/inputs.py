"""What a batch must be to be taken, and the errors for what it may not be."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from operator import index as as_index
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

SMALLEST_SIDE = 8  # pixels; the smallest crop of such an image has two


def check_not_captured() -> None:
    """Refuse to be part of a CUDA graph, which would replay what the host drew and counted once.

    Raises:
        RuntimeError: a graph is being captured.
    """
    if torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            "A learner's step cannot be captured in a CUDA graph: crops, colours and tau come from "
            "the host, so each replay would repeat those of this step. Use torch.compile(learner), "
            "which leaves them outside of its graphs."
        )


@contextmanager
def bytes_explained(view1: Any, view2: Any) -> Iterator[bool]:
    """Say of a pair of uint8 views, where the net does not take them, what is expected.

    Yields:
        Whether the two are such a pair.

    Raises:
        TypeError: in place of the net's own error.
    """
    are_bytes = view2 is not None and getattr(view1, "dtype", None) == torch.uint8
    try:
        yield are_bytes
    except (RuntimeError, ValueError) as error:
        is_net_s = isinstance(error if error.__cause__ is None else error.__cause__, RuntimeError)
        if not are_bytes or not is_net_s:
            raise
        raise TypeError(
            "view1 and view2 are uint8, and two views are fed as they are, which the net does not "
            f"take ({error}). Give them as the net expects them, such as floats that are "
            "normalised; or give images alone, learner(images), of which views are made."
        ) from error


def is_in_backward() -> bool:
    """Whether gradients are being taken, as when an activation checkpoint runs a part again."""
    return torch._C._current_graph_task_id() != -1


def check_loss(loss: Any, *, trains: bool) -> None:
    """Refuse what a method gives that cannot be trained with.

    Raises:
        TypeError: no tensor of floats.
        ValueError: more than one number.
        RuntimeError: no gradient, where it ``trains``.
    """
    if not isinstance(loss, Tensor):
        hint = (
            "leave out .item() or float()" if isinstance(loss, int | float) else "return it alone"
        )
        raise TypeError(
            f"loss(view1, view2) should return a scalar tensor, got {type(loss).__name__}: {hint}."
        )
    if loss.numel() != 1:
        raise ValueError(
            f"loss(view1, view2) should return a scalar, got {tuple(loss.shape)}: take its mean()."
        )
    if not loss.is_floating_point():
        raise TypeError(f"loss(view1, view2) should return floats, got {loss.dtype}.")
    if trains and not loss.requires_grad:
        raise RuntimeError(
            "loss(view1, view2) returned a value without a gradient: leave out detach(), .data and "
            "no_grad() on the way to it, and take numbers from self.project(view)."
        )


def is_list_of_images(batch: object) -> bool:
    """Whether a batch is a list of images (C, H, W), each of a size of its own."""
    return (
        isinstance(batch, list | tuple)
        and len(batch) > 0
        and all(isinstance(image, Tensor) and image.ndim == 3 for image in batch)
    )


def check_images(images: Tensor, channels: int, device: torch.device) -> None:
    """Check type, shape and device of a batch of images; reads no value.

    Raises:
        TypeError: not a tensor, or neither uint8 nor floating.
        ValueError: not (B, C, H, W) with C = ``channels``, empty, smaller than 8 pixels a side, or
            on another device than the net.
    """
    check_batch(images, device, "images")
    if images.dtype != torch.uint8 and not images.is_floating_point():
        if images.dtype == torch.bool:
            hint = "images.float() makes black and white of them"
        elif images.dtype.is_complex:
            hint = "take their magnitude, and divide by the largest that there can be"
        else:
            hint = (
                "make floats of them and divide by the largest value that there can be, such as "
                "images.float() / 65535 for 16 bits"
            )
        raise TypeError(
            f"images should be uint8 in [0, 255] or floats in [0, 1], got {images.dtype}; {hint}."
        )
    if images.ndim != 4:
        raise ValueError(
            f"images should have shape (B, C, H, W), got {tuple(images.shape)}; a single image "
            "needs images[None]. For input that is not images, make two views yourself: "
            "learner(view1, view2)."
        )
    if images.shape[1] != channels:
        hint = (
            "permute them to channels first: images.permute(0, 3, 1, 2)"
            if images.shape[3] == channels
            else "convert them (grey: images.expand(-1, 3, -1, -1); RGBA: images[:, :3]), give the "
            "net another first layer before wrapping it, or, where it takes them as they are, pass "
            f"channels={images.shape[1]}"
        )
        raise ValueError(
            f"images should have {channels} channels, as the net's first convolution takes (3 "
            f"where it has none), got {images.shape[1]} in {tuple(images.shape)}; {hint}."
        )
    if min(images.shape[2:]) < SMALLEST_SIDE:
        raise ValueError(
            f"images should be at least {SMALLEST_SIDE} pixels high and wide to be cropped, got "
            f"{images.shape[2]} x {images.shape[3]}; resize them."
        )


def check_batch(batch: Tensor, device: torch.device, name: str) -> None:
    """Check that ``batch`` is a tensor with entries on the net's device."""
    if not isinstance(batch, Tensor):
        raise TypeError(
            f"{name} should be a tensor, got {type(batch).__name__}; {_way_to_tensor(batch)}."
        )
    if batch.ndim == 0 or batch.numel() == 0:
        raise ValueError(f"{name} is empty: its shape is {tuple(batch.shape)}.")
    if batch.device != device:
        raise ValueError(
            f"{name} is on {batch.device} but the net is on {device}; move one of them: "
            f"{name}.to({str(device)!r}) or learner.to({str(batch.device)!r})."
        )


def _way_to_tensor(batch: Any) -> str:
    """What to give in place of what is no tensor."""
    first = batch[0] if isinstance(batch, tuple | list) and len(batch) else batch
    if hasattr(first, "convert") and hasattr(first, "getbands"):  # of Pillow, which may not be here
        return (
            "make a batch of tensors of one size, or a list of tensors: "
            "[torchvision.transforms.functional.pil_to_tensor(image) for image in images]"
        )
    if hasattr(batch, "_fields"):  # a named tuple
        return f"give its images: learner(batch.{batch._fields[0]})"
    if isinstance(batch, tuple | list) and not isinstance(first, Tensor):
        return "give one tensor (B, C, H, W), or a list of tensors (C, H, W)"
    if isinstance(batch, tuple | list):
        return (
            "of what a loader yields, give the images: for images, labels in loader: "
            "learner(images); two views are two arguments: learner(view1, view2)"
        )
    if isinstance(batch, Mapping):
        return f"give one of its entries, which are {', '.join(map(str, list(batch)[:5]))}"
    if isinstance(batch, DataLoader | Dataset):
        return "give its batches, one after the other: for images in loader: learner(images)"
    shape: Sequence[int] = getattr(batch, "shape", ())
    if len(shape) == 4 and shape[1] not in (1, 3, 4) and shape[3] in (1, 3, 4):
        return "convert it, with channels first: torch.as_tensor(images).permute(0, 3, 1, 2)"
    return "convert it, torch.as_tensor(...)"


def check_pair(view1: Tensor, view2: Tensor, device: torch.device) -> None:
    """Check that two views are batches of the same items."""
    check_batch(view1, device, "view1")
    check_batch(view2, device, "view2")
    if view2.ndim == 1 and view1.ndim > 1:
        raise ValueError(
            f"The second argument, {tuple(view2.shape)} in {view2.dtype}, looks like labels; it "
            "should be a second view of the images. Labels are not needed: learner(images)."
        )
    if view1.shape[0] != view2.shape[0]:
        raise ValueError(
            "view1 and view2 should show the same items, but their batches differ: "
            f"{tuple(view1.shape)} and {tuple(view2.shape)}."
        )


def check_more_than_one(batch: Tensor | Sequence[Tensor], method: str) -> None:
    """Raise ValueError for a batch of one, which neither BatchNorm nor negatives can train on."""
    if len(batch) == 1:
        raise ValueError(
            f"A batch of one cannot train {method}: it needs at least 2 images, for BatchNorm in "
            "the heads or to compare them. Use a larger batch (drop_last=True in the DataLoader); "
            "to only compute, use learner.embed(images) or learner.eval()."
        )


def check_channels(channels: int) -> int:
    """Raise ValueError for what is no number of channels; gives it as Python's own integer."""
    number = plain_integer(channels)
    if not isinstance(number, int) or number < 1:
        raise ValueError(f"channels should be a positive integer or None, got {channels!r}.")
    return number


def plain_integer(number: Any) -> Any:
    """Python's own integer for one of numpy's or another library's; what is none stays."""
    whole = hasattr(number, "__index__") and not isinstance(number, bool)
    return as_index(number) if whole else number


def check_known(representation: object) -> None:
    """Raise RuntimeError for a representation that is still to be found where a net is exported."""
    if representation is None:
        raise RuntimeError(
            "The representation is not known yet, so there is nothing to export: give image_size= "
            "when wrapping the net, or run learner.embed(images) once before."
        )


@torch.no_grad()
def check_values(batch: Tensor, name: str) -> tuple[float, float]:
    """Check that floats are finite; waits for the device.

    Returns:
        The smallest and the largest value; (0, 1) for integers.

    Raises:
        ValueError: NaN or infinity.
    """
    if not batch.is_floating_point():
        return 0.0, 1.0
    low, high = torch.stack(batch.aminmax()).tolist()
    if not (math.isfinite(low) and math.isfinite(high)):
        kind = "NaN" if math.isnan(low) or math.isnan(high) else "infinity"
        raise ValueError(
            f"{name} holds {kind}: {int((~batch.isfinite()).sum())} of {batch.numel()} values are "
            "not finite. Look for a division by zero or a broken file in the data."
        )
    return low, high
