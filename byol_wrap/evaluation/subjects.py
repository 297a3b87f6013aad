"""What a verdict is about: the backbone before and after, and labelled images."""

import copy
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, RandomSampler

from byol_wrap.backbone.probing import probe
from byol_wrap.data import ImageFiles
from byol_wrap.evaluation.batches import Labels, as_labels, describe
from byol_wrap.evaluation.features import BATCH_SIZE, Reader, gather, is_learner, reader, unwrapped

Subject = nn.Module | Tensor | Mapping[str, Any]
Images = Tensor | list[Tensor]  # (N, C, H, W), or (C, H, W) each


def features_of(
    before: Subject, after: Subject, data: Any, labels: Any, image_size: int | None
) -> tuple[Tensor, Tensor, Labels]:
    """Features before and after, on the CPU, from one pass over the images; and the labels."""
    if isinstance(before, Tensor) and isinstance(after, Tensor):
        given = data if labels is None else labels
        if not isinstance(given, Tensor | list | tuple) and not hasattr(given, "tolist"):
            raise TypeError(
                "With features before and after, the third argument should be their labels, got "
                f"{describe(given)}."
            )
        return before.detach().cpu(), after.detach().cpu(), as_labels(given)
    loader = batches(data, labels, image_size)
    shuffles = isinstance(getattr(loader, "sampler", None), RandomSampler)
    if shuffles and (isinstance(before, Tensor) or isinstance(after, Tensor)):
        raise ValueError(
            "The loader shuffles, so its images are in another order than the given features: use "
            "shuffle=False, or give two models."
        )
    models = dict(zip(("before", "after"), _models(before, after), strict=True))
    readers = {name: _reader(m, loader) for name, m in models.items() if m is not None}
    gathered, found = gather(list(readers.values()), loader, "cpu")
    features: dict[str, Any] = dict(zip(readers, gathered, strict=True))
    found = found if labels is None or isinstance(data, Tensor | ImageFiles) else as_labels(labels)
    if found is None:
        raise ValueError("There are no labels: give labels=, or a loader of (images, labels).")
    sides = [features.get(n, s) for n, s in (("before", before), ("after", after))]
    return sides[0].detach().cpu(), sides[1].detach().cpu(), found


def batches(data: Any, labels: Any, image_size: int | None) -> Iterable[Any]:
    """Batches of (images, labels) of tensors, of a folder, or as a loader or data set yields them.

    Raises:
        TypeError, ValueError: no images, or none that can be understood.
    """
    if isinstance(data, str | Path):
        return _in_batches(*read_folder(Path(data), image_size))
    if isinstance(data, ImageFiles):
        files = data if image_size is None else data.at(image_size)
        return _in_batches(*read_files(files, labels))
    if isinstance(data, tuple) and len(data) == 2 and isinstance(data[0], Tensor):
        data, labels = data
    if isinstance(data, Tensor):
        if labels is None:
            raise ValueError("Images as a tensor need labels=, one for each.")
        given = as_labels(labels)
        if len(given) != len(data):
            raise ValueError(f"There are {len(data)} images, but {len(given)} labels.")
        return _in_batches(data, given)
    if not isinstance(data, Iterable) and not hasattr(data, "__getitem__"):
        raise TypeError(
            "The labelled images should be a tensor with labels=, a loader or data set of (images, "
            f"labels), or a folder whose subfolders are the classes; got {describe(data)}."
        )
    return data if isinstance(data, Iterable) else DataLoader(data, BATCH_SIZE)


def _in_batches(images: Images, labels: Labels) -> list[tuple[Images, Labels]]:
    starts = range(0, len(images), BATCH_SIZE)
    return [(images[k : k + BATCH_SIZE], labels[k : k + BATCH_SIZE]) for k in starts]


def read_folder(folder: Path, size: int | None) -> tuple[Images, list[str]]:
    """Images of a folder as uint8 (N, 3, size, size), cut from the centre; the classes' names.

    Broken files are left out, with a warning that names them.

    Raises:
        ImportError: Pillow is not installed.
        ValueError: no folder, no images in subfolders, or no size to bring them to.
    """
    if size is None:
        raise ValueError("Images of a folder need image_size=, the side in pixels as in training.")
    files = ImageFiles(folder, size)
    names = [files.name(index).split("/") for index in range(len(files))]
    classes = [parts[0] if len(parts) > 1 else None for parts in names]
    if not any(classes):
        raise ValueError(
            f"{str(folder)!r} should hold a subfolder of images for each class; there are none."
        )
    return read_whole(files, classes)


def read_files(files: ImageFiles, labels: Any = None) -> tuple[Images, list[Any]]:
    """Images of a data set of files, as its ``prepare`` gives them; labels, or the classes' names.

    What is broken is left out, with a warning, and so is what has no class.

    Raises:
        ValueError: no image has a class, or there is another number of labels than of files.
    """
    if labels is not None:
        given = as_labels(labels)
        if len(given) != len(files):
            raise ValueError(f"There are {len(files)} images, but {len(given)} labels.")
        return read_whole(files, given.tolist() if isinstance(given, Tensor) else given)
    classes = [files.classes[label] if label >= 0 else None for label in files.labels.tolist()]
    if not any(classes):
        raise ValueError("The images have no classes: each should lie in the folder of its class.")
    return read_whole(files, classes)


def read_whole(files: ImageFiles, classes: Sequence[Any]) -> tuple[Images, list[Any]]:
    """Images that have a class and can be read; a list where they differ in size."""
    items = [(files[index], name) for index, name in enumerate(classes) if name is not None]
    broken = {name: why for item, _ in items for name, why in item.skipped}
    if broken:
        warnings.warn(f"Left out, as they cannot be read: {broken}.", UserWarning, stacklevel=5)
    whole = [(item.image, name) for item, name in items if not item.skipped]
    images, names = [image for image, _ in whole], [name for _, name in whole]
    alike = len({image.shape for image in images}) == 1
    return torch.stack(images) if alike else images, names


def _models(before: Subject, after: Subject) -> Iterator[nn.Module | None]:
    """Both as models that are read alike; None for what is features already."""
    sides = {"before": unwrapped(before), "after": unwrapped(after)}
    for name, side in sides.items():
        if not isinstance(side, nn.Module | Tensor | Mapping):
            raise TypeError(
                f"{name} should be a learner, a net, its state_dict, or features (N, D), got "
                f"{type(side).__name__}."
            )
    _check_apart(sides["before"], sides["after"])
    for name, side in sides.items():
        other = sides["after" if name == "before" else "before"]
        if isinstance(side, Tensor):
            yield None
        elif is_learner(side) or (isinstance(side, nn.Module) and not is_learner(other)):
            yield side
        else:
            yield _like(other, side, name)


def _like(other: Any, side: Any, name: str) -> nn.Module:
    """A copy of a model with the weights of a state, or of a net as it was before."""
    if not isinstance(other, nn.Module):
        raise TypeError(f"{name} is a state_dict, which says nothing of its net: give the net.")
    if isinstance(side, nn.Module) and type(side) is not type(other.net):
        raise ValueError(
            f"{name} is a {type(side).__name__}, and the learner's net a "
            f"{type(other.net).__name__}: they would be read and normalised differently. Wrap both "
            "in learners, or give features."
        )
    model = copy.deepcopy(other)
    net: Any = model.net if is_learner(model) else model
    try:
        net.load_state_dict(side.state_dict() if isinstance(side, nn.Module) else side)
    except RuntimeError as error:
        raise ValueError(f"The weights of {name} do not fit the other net: {error}") from None
    return model


def _check_apart(before: Any, after: Any) -> None:
    """Refuse the same weights twice: training changes a net in place."""
    places = []
    for side in (before, after):
        side = side.net if is_learner(side) else side
        values = side.state_dict() if isinstance(side, nn.Module) else side
        tensors = values.values() if isinstance(values, Mapping) else []
        places.append({v.data_ptr() for v in tensors if isinstance(v, Tensor) and v.numel()} - {0})
    if places[0] & places[1]:
        raise ValueError(
            "before and after share their weights: a net is trained in place. Keep what it was "
            "before training, as copy.deepcopy(net), or as features by extract_features."
        )


def _reader(model: nn.Module, loader: Iterable[Any]) -> Reader:
    """A learner reads itself; a plain net is read where a learner around it would read it."""
    if is_learner(model):
        return reader(model)
    found: list[Any] = []

    def run(images: Tensor) -> Tensor:
        images = images.float() / 255 if images.dtype == torch.uint8 else images
        if not found:
            found.append(probe(model, images[:2], None, None).representation)
        features: Tensor = found[0].read(model, images)
        return features

    return Reader(model, run)
