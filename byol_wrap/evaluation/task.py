"""A task of classification from features, checked: what kNN and linear probe share."""

import torch
from torch import Tensor

from byol_wrap.evaluation.batches import Labels, as_labels

LARGEST = 2**25
"""Values that a tensor of similarities or logits holds at most, 128 MB: rows are cut to it."""


def check_task(
    train_features: Tensor, train_labels: Labels, test_features: Tensor, test_labels: Labels
) -> tuple[Tensor, Tensor, Tensor]:
    """Check features and labels; give the classes, and both labels as indices into them.

    A test label that no training label has gives -1, which no prediction equals.

    Raises:
        ValueError: shapes that do not match, NaN or infinity, labels that are no whole numbers, or
            not one class that both have.
    """
    device, whole = train_features.device, []
    train, test = numbered(train_labels, test_labels)
    for name, features, labels in (
        ("train", train_features, train),
        ("test", test_features, test),
    ):
        if features.ndim != 2 or labels.shape != features.shape[:1] or features.numel() == 0:
            raise ValueError(
                f"{name}_features should be (N, D) and {name}_labels (N,) with N and D at least "
                f"1, got {tuple(features.shape)} and {tuple(labels.shape)}"
                f"{_way_to_classes(labels)}."
            )
        if not torch.stack(features.aminmax()).isfinite().all():  # makes no tensor of their size
            raise ValueError(f"{name}_features hold NaN or infinity.")
        whole.append(labels.to(device).long().contiguous())
        broken = labels.to(device)[whole[-1] != labels.to(device)]
        if len(broken):
            raise ValueError(
                f"{name}_labels should be whole numbers, one for each class, got {broken[0]:g}."
            )
    if train_features.shape[1] != test_features.shape[1]:
        raise ValueError(
            f"train_features have {train_features.shape[1]} dimensions, test_features "
            f"{test_features.shape[1]}."
        )
    classes, targets = whole[0].unique(return_inverse=True)
    index = torch.searchsorted(classes, whole[1]).clamp(max=len(classes) - 1)
    truth = torch.where(classes[index] == whole[1], index, -1)
    if not (truth >= 0).any():
        raise ValueError(
            "train_labels and test_labels have no class in common: the former are "
            f"{_names(train_labels)}, the latter {_names(test_labels)}."
        )
    return classes, targets, truth


def _way_to_classes(labels: Tensor) -> str:
    """What makes labels (N,) of a matrix, for the end of a message; "" where nothing does."""
    if labels.ndim != 2:
        return ""
    way = "squeeze(1)" if labels.shape[1] == 1 else "argmax(1), if they are one-hot"
    return f"; of the labels take labels.{way}"


def _names(labels: Labels) -> str:
    given = as_labels(labels)
    names = sorted(set(given.tolist() if isinstance(given, Tensor) else given))
    return ", ".join(map(repr, names[:5])) + (f" and {len(names) - 5} more" if names[5:] else "")


def numbered(train_labels: Labels, test_labels: Labels) -> tuple[Tensor, Tensor]:
    """Both labels as tensors: class names as their places in the alphabet.

    Raises:
        TypeError: names in one and numbers in the other.
    """
    train, test = as_labels(train_labels), as_labels(test_labels)
    if isinstance(train, Tensor) and isinstance(test, Tensor):
        return train, test
    if isinstance(train, Tensor) or isinstance(test, Tensor):
        raise TypeError("Labels are names in one of train and test, and numbers in the other.")
    places = {name: place for place, name in enumerate(sorted({*train, *test}))}
    indices = ([places[name] for name in part] for part in (train, test))
    return tuple(torch.tensor(part, device="cpu") for part in indices)  # type: ignore[return-value]
