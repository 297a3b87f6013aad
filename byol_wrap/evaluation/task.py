"""A task of classification from features, checked: what kNN and linear probe share."""

import torch
from torch import Tensor

LARGEST = 2**25
"""Values that a tensor of similarities or logits holds at most, 128 MB: rows are cut to it."""


def check_task(
    train_features: Tensor, train_labels: Tensor, test_features: Tensor, test_labels: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Check features and labels; give the classes, and both labels as indices into them.

    A test label that no training label has gives -1, which no prediction equals.
    """
    device, whole = train_features.device, []
    for name, features, given in (
        ("train", train_features, train_labels),
        ("test", test_features, test_labels),
    ):
        labels = torch.as_tensor(given)
        if features.ndim != 2 or labels.shape != features.shape[:1] or features.numel() == 0:
            raise ValueError(
                f"{name}_features should be (N, D) and {name}_labels (N,) with N and D at least "
                f"1, got {tuple(features.shape)} and {tuple(labels.shape)}."
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
    return classes, targets, truth
