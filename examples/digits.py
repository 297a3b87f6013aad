"""Handwritten digits and a small learner: what the training loops in this folder share."""

import torch
from quickstart import backbone, digit_views, resized
from sklearn.datasets import load_digits
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from byol_wrap import BYOL, Learner, knn_accuracy

SIZE = 32  # side of the images in pixels
TEST = 360  # how many of the images are held out


def digits() -> tuple[Tensor, Tensor]:
    """Images (1797, 1, 32, 32) in uint8 and their labels (1797,), in an order of its own."""
    data = load_digits()
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(0))
    images = torch.from_numpy(data.images).float()[:, None] * (255 / 16)
    return resized(images, SIZE)[order], torch.from_numpy(data.target).long()[order]


def training_set() -> TensorDataset:
    """(image, label) of all that is not held out."""
    images, labels = digits()
    return TensorDataset(images[TEST:], labels[TEST:])


def training_loader(batch_size: int = 64) -> DataLoader:
    """Shuffled batches of (images, labels), all of one size."""
    return DataLoader(training_set(), batch_size, shuffle=True, drop_last=True)


def small_learner(total_steps: int | None = None) -> BYOL:
    """A small residual network in BYOL, with views that suit digits."""
    return BYOL(
        backbone(channels=1),
        SIZE,
        projection_size=128,
        projection_hidden_size=512,
        augment_fn=digit_views(SIZE),
        mean=(0.5,),
        std=(0.5,),
        total_steps=total_steps,
    )


def accuracy(learner: Learner) -> float:
    """Percent of held-out digits that have the label of their nearest neighbours."""
    images, labels = digits()
    device = next(learner.parameters()).device
    features = torch.cat([learner.embed(part.to(device)).float() for part in images.split(500)])
    known, test = slice(TEST, None), slice(0, TEST)
    labels = labels.to(device)
    return 100 * knn_accuracy(features[known], labels[known], features[test], labels[test])
