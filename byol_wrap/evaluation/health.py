"""Measures of a representation: is it still spread out, and do views agree?"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BLOCK = 2**22  # values that a tensor of differences holds, 16 MB; one row's where that is more


class Outputs(NamedTuple):
    """What the online network made of a batch, without gradient."""

    representation1: Tensor  # (B, D) of the first view
    representation2: Tensor | None  # (B, D) of the second; None where only one went through
    projection1: Tensor  # (B, P) of the first view


def figures(outputs: Outputs) -> dict[str, float]:
    """All that can be told of a batch's outputs; reads from the device."""
    # It is read anyway, and devices other than CUDA's lack operators, such as the SVD.
    first, second, projection = (x if x is None or x.is_cuda else x.cpu() for x in outputs)
    assert first is not None
    assert projection is not None
    told = {
        "std_ratio": std_ratio(first),
        "rank": effective_rank(first),
        "projection_std_ratio": std_ratio(projection),
        "projection_rank": effective_rank(projection),
        "projection_participation": participation_ratio(projection),
        "uniformity": uniformity(first),
    }
    if second is not None:
        told["alignment"] = alignment(first, second)
        told["instance_accuracy"] = instance_accuracy(first, second)
    return {name: float(figure) for name, figure in told.items()}


@torch.no_grad()
def std_ratio(features: Tensor) -> Tensor:
    """How evenly features fill the sphere: 1 for an isotropic Gaussian, 0 collapsed to a point.

    The standard deviation over the batch of each dimension of the L2-normalised features, averaged
    over dimensions, times sqrt(D). Features behind a ReLU share a positive mean, and are healthy
    at 0.3 to 0.6; what tells a collapse is a fall towards 0.

    Args:
        features: (B, D), floating, B at least 2.

    Returns:
        A scalar on the features' device, at least 0, in float32 or wider.

    Reference:
        Chen and He 2020 (SimSiam, arXiv 2011.10566), section 4.1.

    Example:
        >>> std_ratio(torch.ones(8, 4)).item()
        0.0
    """
    return _unit(features).std(dim=0).mean() * math.sqrt(features.shape[1])


@torch.no_grad()
def effective_rank(features: Tensor) -> Tensor:
    """How many dimensions features use: RankMe, the exponential of the spectrum's entropy.

    Args:
        features: (B, D), floating. At most min(B, D) can come out: compare like batches only.

    Returns:
        A scalar on the features' device, in float32 or wider: from 1, all in one direction, to
        min(B, D); 0 where all features are 0, NaN where one is not finite.

    Reference:
        Garrido et al. 2022 (arXiv 2210.02885), equation 1. Deviation: no epsilon is added to the
        singular values' shares; those of 0 count for nothing.

    Example:
        >>> round(effective_rank(torch.eye(4)).item(), 3)
        4.0
    """
    features = _wide(features)
    if not features.isfinite().all():
        return features.new_full((), math.nan)
    values: Tensor = torch.linalg.svdvals(features)
    shares = values / values.sum().clamp(min=torch.finfo(values.dtype).tiny)
    rank: Tensor = torch.special.entr(shares).sum().exp()
    return rank * (values[0] > 0)


@torch.no_grad()
def participation_ratio(features: Tensor) -> Tensor:
    """Along how many directions L2-normalised features lie: 1 where all lie along one line.

    The squared sum of the eigenvalues of their second moment over the sum of their squares, which
    is one over the mean squared cosine of all pairs, each feature with itself included. It needs no
    decomposition, and so no wait on an accelerator; one strong direction counts for more than in
    ``effective_rank``.

    Args:
        features: (B, D), floating.

    Returns:
        A scalar on the features' device, in float32 or wider: from 1 to min(B, D), 0
        where all features are 0.

    Reference:
        The participation ratio of the spectrum, as in Gao et al. 2017 (bioRxiv 214262), but of the
        second moment rather than the covariance: a common direction counts.

    Example:
        >>> round(participation_ratio(torch.eye(4)).item(), 3)
        4.0
    """
    x = _unit(features)
    gram = x @ x.T
    total = gram.diagonal().mean().square()  # 1, but for features of 0
    return total / gram.square().mean().clamp(min=torch.finfo(gram.dtype).tiny)


@torch.no_grad()
def instance_accuracy(features1: Tensor, features2: Tensor) -> Tensor:
    """The share of first views whose nearest second view, by cosine, is of the same image.

    Chance is 1 / B: compare like batches only.

    Args:
        features1: (B, D), floating.
        features2: (B, D), of the other views of the same images.

    Returns:
        A scalar in [0, 1] on the features' device.

    Reference:
        The top-1 accuracy of instance discrimination, Wu et al. 2018 (arXiv 1805.01978), within a
        batch; what SimCLR's and MoCo's codes log.

    Example:
        >>> instance_accuracy(torch.eye(4), torch.eye(4)).item()
        1.0
    """
    nearest = (_unit(features1) @ _unit(features2).T).argmax(dim=1)
    return (nearest == torch.arange(len(nearest), device=nearest.device)).float().mean()


@torch.no_grad()
def alignment(features1: Tensor, features2: Tensor) -> Tensor:
    """How near the two views of an image lie: the mean squared distance on the sphere.

    Args:
        features1: (B, D), floating.
        features2: (B, D), of the other views of the same images.

    Returns:
        A scalar in [0, 4], 0 where views are represented alike, in float32 or wider.

    Reference:
        Wang and Isola 2020 (arXiv 2005.10242), equation 1 with alpha 2.

    Example:
        >>> alignment(torch.eye(3), -torch.eye(3)).item()
        4.0
    """
    return (_unit(features1) - _unit(features2)).square().sum(dim=1).mean()


@torch.no_grad()
def uniformity(features: Tensor) -> Tensor:
    """How evenly different images lie on the sphere: the lower, the more evenly.

    The logarithm of the mean of ``exp(-2 d^2)`` over all pairs of a batch, d being their distance.

    Args:
        features: (B, D), floating, B at least 2.

    Returns:
        A scalar in [-8, 0], 0 where all features are one, in float32 or wider.

    Reference:
        Wang and Isola 2020 (arXiv 2005.10242), equation 2 with t 2.

    Example:
        >>> uniformity(torch.ones(4, 2)).item()
        0.0
    """
    x = _unit(features)
    rows = max(1, BLOCK // max(1, x.numel()))
    # Differences and no product, which would lose digits; torch.pdist has no kernel on MPS.
    sums = [
        (-2 * (x[start : start + rows, None] - x[start:]).square().sum(dim=2)).exp()
        .triu(1).sum()
        for start in range(0, len(x), rows)
    ]  # fmt: skip
    return (torch.stack(sums).sum() / (len(x) * (len(x) - 1) / 2)).log()


@torch.no_grad()
def relative_distance(module: nn.Module, other: nn.Module) -> Tensor:
    """How far the parameters of two modules of one kind are apart: |p - q| / |p|, over all of them.

    Args:
        module: on the same device as ``other``.
        other: of the same parameters, in any dtype; those that it shares with ``module``, or
            lets be empty, do not count.

    Returns:
        A scalar on their device, at least 0, in float32 or wider.
    """
    pairs = [
        (_wide(p), _wide(q))
        for p, q in zip(module.parameters(), other.parameters(), strict=True)
        if p.is_floating_point() and q.numel() and not _shared(p, q)
    ]
    if not pairs:
        return next(module.parameters()).new_zeros((), dtype=torch.float32)
    ours, theirs = [p for p, _ in pairs], [q for _, q in pairs]
    distance = _norm(torch._foreach_sub(ours, theirs))
    length = _norm(ours)
    return distance / length.clamp(min=torch.finfo(length.dtype).tiny)


def _shared(p: Tensor, q: Tensor) -> bool:
    plain = type(p.data) is Tensor and type(q.data) is Tensor  # a sharded one has no address
    return plain and p.data_ptr() == q.data_ptr() != 0  # as on XLA


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _unit(features: Tensor) -> Tensor:
    return F.normalize(_wide(features), dim=1)


def _norm(tensors: Sequence[Tensor]) -> Tensor:
    norm: Tensor = torch.stack(torch._foreach_norm(list(tensors))).norm()
    return norm
