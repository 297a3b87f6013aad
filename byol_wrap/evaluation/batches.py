"""What loaders yield, taken apart: images, and labels where there are any."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

IMAGES = ("image", "images", "pixel_values", "img", "imgs", "x", "input", "inputs")
LABELS = ("label", "labels", "target", "targets", "y", "class")
# Parts of names of what may look like labels and is none.
NO_LABELS = {
    "id",
    "ids",
    "idx",
    "index",
    "indices",
    "path",
    "paths",
    "file",
    "filename",
    "url",
    "key",
}

Labels = Tensor | list[str]


def read_batch(batch: Any) -> tuple[list[Tensor], Labels | None]:
    """Take a batch apart.

    Args:
        batch: images; (images, labels, ...); or a mapping that names them by one of ``IMAGES`` and
            of ``LABELS``. Images are a tensor or numpy array (B, ...), a list of (C, H, W), or a
            list of several views, of which the first is taken, with a warning. So it is said where
            a mapping may have labels under another name, which are left out.

    Returns:
        The images as batches, several where they differ in size; and the labels, if any.

    Raises:
        TypeError, ValueError: what this batch is cannot be known; the message says what it holds.
    """
    if isinstance(batch, Mapping):
        images, labels = _named(batch, IMAGES), _named(batch, LABELS, needed=False)
        if labels is None:
            _tell_of_others(batch, images)
    elif isinstance(batch, tuple | list) and batch and not _is_list_of_images(batch):
        images, labels = batch[0], batch[1] if len(batch) > 1 else None
        if _are_views(batch):
            images = [part for part in batch if _are_views((batch[0], part))]
            labels = next((p for p in batch[2:] if _may_be_labels(p, len(batch[0]))), None)
    else:
        images, labels = batch, None
    parts = _images(images)
    given = None if labels is None else as_labels(labels)
    count = sum(len(part) for part in parts)
    if given is not None and len(given) != count:
        raise ValueError(f"A batch holds {count} images, but {len(given)} labels.")
    return parts, given


def as_labels(labels: Any) -> Labels:
    """Labels as a tensor, or as a list of names.

    Raises:
        TypeError: they are neither numbers nor names.
    """
    if isinstance(labels, Tensor):
        return labels if labels.ndim else labels[None]
    if callable(getattr(labels, "tolist", None)):  # numpy, pandas
        labels = labels.tolist()
    if isinstance(labels, int | float | str):
        labels = [labels]
    if isinstance(labels, Sequence) and labels and all(isinstance(name, str) for name in labels):
        return list(labels)
    try:
        given = torch.as_tensor(labels, device="cpu")
        whole = not given.is_floating_point()
        return given if whole else torch.as_tensor(labels, dtype=torch.float64, device="cpu")
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(
            f"Labels should be whole numbers or names, one for each image, got {describe(labels)}."
        ) from None


def describe(value: Any) -> str:
    """What a message says of a value: its kind, and shape or parts where it has them."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key!r}: {describe(part)}" for key, part in value.items()) + "}"
    if isinstance(value, tuple | list):
        parts = [describe(part) for part in value[:3]] + ["..."] * (len(value) > 3)
        return f"{type(value).__name__} of {len(value)}: {', '.join(parts)}"
    shape = getattr(value, "shape", None)
    return type(value).__name__ + ("" if shape is None else f" {tuple(shape)}")


def _named(batch: Mapping[Any, Any], names: tuple[str, ...], *, needed: bool = True) -> Any:
    found = [name for name in names if name in batch]
    if len(found) > 1 or (needed and not found):
        raise ValueError(
            f"A batch should hold one of {', '.join(names)}; got {describe(batch)}. Let the loader "
            "yield (images, labels)."
        )
    return batch[found[0]] if found else None


def _tell_of_others(batch: Mapping[Any, Any], images: Any) -> None:
    """Warn of what a batch may have as labels, under a name that is not known."""
    count = len(images) if hasattr(images, "__len__") else 0
    others = {
        key: value
        for key, value in batch.items()
        if _may_be_labels(value, count) and NO_LABELS.isdisjoint(str(key).lower().split("_"))
    }
    if others:
        warnings.warn(
            f"No labels are taken from the batches: they would be called {', '.join(LABELS)}. A "
            f"batch holds {describe(others)}: if that is what they are, let the loader yield "
            "(images, labels).",
            UserWarning,
            stacklevel=6,
        )


def _may_be_labels(value: Any, count: int) -> bool:
    """Whether it is a whole number or a name for each of so many images."""
    try:
        labels = as_labels(value)
    except TypeError:
        return False
    if isinstance(labels, Tensor) and (labels.ndim != 1 or labels.is_floating_point()):
        return False
    return len(labels) == count


def _array(value: Any) -> Tensor | None:
    if isinstance(value, Tensor):
        return value
    if type(value).__module__.partition(".")[0] == "numpy" and callable(value.copy):
        # A copy may be written to, and lies in order.
        return torch.as_tensor(value.copy(), device="cpu")
    return None


def _is_list_of_images(batch: Sequence[Any]) -> bool:
    return all(getattr(part, "ndim", 0) == 3 for part in batch)


def _are_views(parts: Sequence[Any]) -> bool:
    """Whether the second part looks like the first: a view of the same images, not labels."""
    if len(parts) < 2:
        return False
    first, second = parts[0], parts[1]
    shapes = [getattr(part, "shape", ()) for part in (first, second)]
    return (
        len(shapes[0]) == len(shapes[1]) >= 2
        and tuple(shapes[0][:2]) == tuple(shapes[1][:2])
        and first.dtype == second.dtype
    )


def _images(images: Any) -> list[Tensor]:
    if isinstance(images, tuple | list) and images:
        if _is_list_of_images(images):
            arrays = [array for part in images if (array := _array(part)) is not None]
            if len(arrays) == len(images):
                alike = len({array.shape for array in arrays}) == 1
                return [torch.stack(arrays)] if alike else [array[None] for array in arrays]
        elif len(images) == 1 or _are_views(images):
            if len(images) > 1:
                warnings.warn(
                    f"The loader yields {len(images)} views of each image: features are those of "
                    "the first. Figures that can be compared need the images as they are.",
                    UserWarning,
                    stacklevel=6,
                )
            return _images(images[0])
    array = _array(images)
    if array is None or array.ndim < 2:
        raise TypeError(
            "A batch of images should be a tensor or a numpy array (B, ...), or a list of "
            f"(C, H, W), got {describe(images)}. Let the loader yield (images, labels), images, or "
            "a mapping of both."
        )
    return [array]
