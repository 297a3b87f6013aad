"""What frozen features are worth to their nearest neighbours."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from byol_wrap.evaluation.batches import Labels
from byol_wrap.evaluation.task import LARGEST, check_task


def knn_accuracy(
    train_features: Tensor,
    train_labels: Labels,
    test_features: Tensor,
    test_labels: Labels,
    k: int = 20,
    temperature: float = 0.07,
    *,
    chunk_size: int = 1024,
) -> float:
    """Accuracy of a weighted k-nearest-neighbour classifier on cosine similarity.

    Each of the k neighbours votes for its class with weight exp(similarity / temperature).

    Args:
        train_features: (N, D); the computation runs on their device, in float32.
        train_labels: (N,), any whole numbers, or a list of class names.
        test_features: (M, D).
        test_labels: (M,), as ``train_labels``.
        k: number of neighbours, at most N; 20 and 200 are customary.
        temperature: positive; 0.07, or 0.1 in lightly's benchmarks.
        chunk_size: how many test features are compared at a time; fewer where that would be more
            than 2**25 similarities (128 MB), which bounds the memory for any N.

    Returns:
        Accuracy in [0, 1].

    Raises:
        ValueError: shapes that do not match, nothing to compare, NaN or infinity, labels that are
            no whole numbers, k, temperature or chunk_size out of range.

    Reference:
        Wu et al. 2018 (arXiv 1805.01978), section 3.4.

    Example:
        >>> import torch
        >>> features = torch.eye(4).repeat(3, 1)
        >>> labels = torch.arange(4).repeat(3)
        >>> knn_accuracy(features, labels, features, labels, k=3)
        1.0
    """
    task = (train_features, train_labels, test_features, test_labels)
    hits = knn_hits(*task, k=k, temperature=temperature, chunk_size=chunk_size)
    return int(hits.sum()) / len(hits)


@torch.no_grad()
def knn_hits(
    train_features: Tensor,
    train_labels: Labels,
    test_features: Tensor,
    test_labels: Labels,
    *,
    k: int,
    temperature: float = 0.07,
    chunk_size: int = 1024,
) -> Tensor:
    """Which test images ``knn_accuracy`` takes for what they are: (M,) of bool."""
    classes, targets, truth = check_task(train_features, train_labels, test_features, test_labels)
    if not 1 <= k <= len(train_features) or not 0 < temperature < math.inf:
        raise ValueError(
            f"k should lie between 1 and the {len(train_features)} training features, and "
            f"temperature be positive; got k={k}, temperature={temperature}."
        )
    if chunk_size < 1:
        raise ValueError(f"chunk_size should be at least 1, got {chunk_size}.")
    bank = train_features.float()
    norms = torch.linalg.vector_norm(bank, dim=1).clamp_min(1e-12)
    rows = max(1, min(chunk_size, LARGEST // len(bank)))
    hits = []
    for start in range(0, len(test_features), rows):
        queries = test_features[start : start + rows].to(bank.device).float()
        similarity = (F.normalize(queries, dim=1) @ bank.T).div_(norms)
        similarity, neighbours = similarity.topk(k, dim=1)
        votes = similarity.new_zeros(len(queries), len(classes))
        # Relative to the nearest, whose weight is then 1: no exponential over- or underflows it.
        weights = ((similarity - similarity[:, :1]) / temperature).exp()
        votes.scatter_add_(1, targets[neighbours], weights)
        hits.append(votes.argmax(dim=1) == truth[start : start + rows])
    return torch.cat(hits)
