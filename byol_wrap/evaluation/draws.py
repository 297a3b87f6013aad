"""Draws of few labels, and the interval of what they say."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

FEWEST_BLOCKS = 4


class Partition(NamedTuple):
    """All labelled images, dealt out to blocks."""

    block: Tensor  # (N,), which block an image is in
    trains: Tensor  # (N,), whether its label is given when its block is the one to learn from


def partition(
    targets: Tensor, per_class: int, blocks: int, generator: torch.Generator
) -> Partition:
    """Deal images out at random: ``per_class`` of each class to each block, to learn from.

    What is left over is dealt out, too, and only tested.
    """
    block, trains = torch.empty_like(targets), torch.zeros_like(targets, dtype=torch.bool)
    left = []
    for target in range(int(targets.max()) + 1):
        members = (targets == target).nonzero()[:, 0]
        members = members[torch.randperm(len(members), generator=generator, device="cpu")]
        given, rest = members[: per_class * blocks], members[per_class * blocks :]
        block[given], trains[given] = torch.arange(len(given), device="cpu") % blocks, True
        left.append(rest)
    rest = torch.cat(left)
    block[rest] = torch.arange(len(rest), device="cpu") % blocks
    return Partition(block, trains)


class Interval(NamedTuple):
    """A mean difference, and how far it may be off."""

    difference: float
    low: float
    high: float


def jackknife_interval(differences: Tensor, counts: Tensor, confidence: float) -> Interval:
    """A difference of accuracies and its interval, images and label draws both being random.

    Blocks are disjoint sets of images, so they are independent, which repeated random splits are
    not. The mean over all pairs (learnt from one block, tested on another) is a U-statistic of
    order two in them; leaving out each block once, in both its roles, gives its variance. That
    variance is too large rather than too small (Efron and Stein), the more so the fewer the blocks.
    It is never taken for less than that of images of which each is either won or not.

    Args:
        differences: (P, M, M), of P partitions in M blocks: in row r and column s how many more
            images of block s are right, learnt from block r. The diagonal is 0.
        counts: (P, M, M), how many images were tested. The diagonal is 0.
        confidence: share of intervals that should hold the truth, in (0, 1).

    Reference:
        Efron and Stein 1981, The jackknife estimate of variance, Annals of Statistics 9 (3).
        Nadeau and Bengio 2003, Inference for the generalization error, Machine Learning 52, on why
        a plain t-test over random splits claims too much; their correction is made for training
        parts larger than the test part, the reverse of what few labels are.
    """
    partitions, blocks = differences.shape[:2]
    d, n = differences.double(), counts.double()
    total, tested = d.sum((1, 2)), n.sum((1, 2))
    mean = total / tested
    without = (total[:, None] - d.sum(1) - d.sum(2)) / (tested[:, None] - n.sum(1) - n.sum(2))
    variance = ((without - mean[:, None]).square().sum(dim=1) * (blocks - 1) / blocks).mean().item()
    difference = mean.mean().item()
    images = (n[0].sum() / (blocks - 1)).item()
    variance = max(variance, (abs(difference) - difference**2) / images)
    freedom = max(1, min(partitions * (blocks - 1), round(images) - 2))
    half = student_quantile(confidence, freedom) * math.sqrt(variance)
    return Interval(difference, difference - half, difference + half)


def student_quantile(confidence: float, freedom: int) -> float:
    """The t within which, either side of 0, Student's t lies with that probability.

    Example:
        >>> round(student_quantile(0.95, 10), 3)
        2.228
    """
    low, high = 0.0, 1.0
    while _within(high, freedom) < confidence:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, freedom) < confidence else (low, middle)
    return high


def _within(t: float, freedom: int) -> float:
    """The probability of [-t, t], by the finite sums that whole degrees of freedom have."""
    angle = math.atan(t / math.sqrt(freedom))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2
    term = cosine if odd else 1.0
    total = term if freedom > 1 else 0.0
    for k in range(3 if odd else 2, freedom - 1, 2):
        term *= cosine**2 * (k - 1) / k
        total += term
    return 2 / math.pi * (angle + sine * total) if odd else sine * total
