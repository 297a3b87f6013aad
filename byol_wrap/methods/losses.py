"""The methods' objectives, as pure functions.

Each normalises its vectors, and gives a scalar in float32 (float64 for float64 input) whatever
autocast says.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

LARGEST = 2**25
"""Similarities that ``nt_xent_loss`` holds at a time, 128 MB in float32."""


def byol_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean squared distance between L2-normalised predictions and target projections.

    For one direction, the mean over the batch of ``|q/|q| - z/|z||^2 = 2 - 2 cos(q, z)``. The
    symmetric loss of the paper adds both directions and so lies in [0, 8].

    Args:
        prediction: (B, D), floating, what the online network predicts.
        target: (B, D), floating, what the target network projected. Detach it, or compute it
            without gradient: the function itself stops nothing.

    Returns:
        A scalar in [0, 4], in float32 (float64 for float64 input) whatever autocast says.

    Raises:
        ValueError: the two are not matrices of one shape.

    Reference:
        Grill et al. 2020, equation 2. Norms are floored at 1e-6, as in the reference code, so that
        a vector of zeros has a finite gradient.

    Example:
        >>> import torch
        >>> byol_loss(torch.eye(2), -torch.eye(2)).item()
        4.0
    """
    _check_alike("byol_loss", prediction, target)
    with torch.autocast(prediction.device.type, enabled=False):
        return (_unit(prediction, 1e-6) - _unit(target, 1e-6)).square().sum(dim=1).mean()


def simsiam_loss(prediction: Tensor, projection: Tensor) -> Tensor:
    """Negative cosine similarity of predictions and projections, for one direction.

    The symmetric loss of the paper is the mean of both directions.

    Args:
        prediction: (B, D), floating, of one view.
        projection: (B, D), floating, of the other. Detach it, which is what keeps the method from
            collapse: the function itself stops nothing.

    Returns:
        A scalar in [-1, 1].

    Raises:
        ValueError: the two are not matrices of one shape.

    Reference:
        Chen and He 2021 (arXiv 2011.10566), equations 1 and 3.

    Example:
        >>> import torch
        >>> simsiam_loss(torch.eye(2), torch.eye(2)).item()
        -1.0
    """
    _check_alike("simsiam_loss", prediction, projection)
    with torch.autocast(prediction.device.type, enabled=False):
        return -(_unit(prediction) * _unit(projection)).sum(dim=1).mean()


def nt_xent_loss(projection1: Tensor, projection2: Tensor, temperature: float = 0.5) -> Tensor:
    """Normalised temperature-scaled cross entropy: find the other view of an image in the batch.

    Each of the 2B rows is classified: its class is the other view of the same image, and all other
    rows, 2B - 2 of them negatives, are the classes that there are. The mean over the 2B rows.

    Args:
        projection1: (B, D), floating, of the first views.
        projection2: (B, D), of the second views of the same images.
        temperature: positive; similarities are divided by it. 0.1 on ImageNet, 0.5 on CIFAR-10 in
            the paper.

    Returns:
        A scalar, at least 0. Of the 2B x 2B similarities at most 2**25 are held at a time; of
        larger batches they are computed once more in the backward pass.

    Raises:
        ValueError: the two are not matrices of one shape, or the temperature is not positive.

    Reference:
        Chen et al. 2020 (arXiv 2002.05709), equation 1 and algorithm 1. The reference code adds up
        both directions, each a mean over B rows, which is twice this.

    Example:
        >>> import torch
        >>> round(nt_xent_loss(torch.eye(3), torch.eye(3), temperature=0.1).item(), 4)
        0.0002
    """
    _check_alike("nt_xent_loss", projection1, projection2)
    check_temperature("nt_xent_loss", temperature)
    with torch.autocast(projection1.device.type, enabled=False):
        rows = _unit(torch.cat([projection1, projection2]))
        at_a_time = max(1, LARGEST // len(rows))
        if at_a_time >= len(rows):
            return _nt_xent(rows, rows, 0, temperature) / len(rows)

        from torch.utils.checkpoint import checkpoint  # at 0.4 s in PyTorch 2.5

        parts = [
            checkpoint(_nt_xent, part, rows, i * at_a_time, temperature, use_reentrant=False)
            for i, part in enumerate(rows.split(at_a_time))
        ]
        return torch.stack(parts).sum() / len(rows)


def _nt_xent(part: Tensor, rows: Tensor, start: int, temperature: float) -> Tensor:
    """The summed cross entropy of some of the rows, of which the first is at ``start``."""
    similarity = part @ rows.T / temperature
    similarity.diagonal(start).fill_(-torch.inf)  # a row is no class of its own
    index = torch.arange(start, start + len(part), device=rows.device)
    other_view = (index + len(rows) // 2) % len(rows)
    return F.cross_entropy(similarity, other_view, reduction="sum")


def moco_loss(query: Tensor, key: Tensor, queue: Tensor, temperature: float = 0.2) -> Tensor:
    """InfoNCE: tell an image's key from a queue of other images' keys.

    Args:
        query: (B, D), floating, of one view, by the online network.
        key: (B, D), of the other view, by the target network.
        queue: (K, D), keys of earlier batches.
        temperature: positive; similarities are divided by it. 0.2 in MoCo v2, 0.07 in v1.

    Returns:
        A scalar, at least 0: the mean cross entropy over the B queries.

    Raises:
        ValueError: shapes that do not match, or a temperature that is not positive.

    Reference:
        He et al. 2020 (arXiv 1911.05722), equation 1 and algorithm 1.

    Example:
        >>> import torch
        >>> moco_loss(torch.eye(3), torch.eye(3), -torch.eye(3), temperature=0.1) < 1e-3
        tensor(True)
    """
    _check_alike("moco_loss", query, key)
    check_temperature("moco_loss", temperature)
    if queue.ndim != 2 or queue.shape[1] != query.shape[1]:
        raise ValueError(
            f"moco_loss expects a queue (K, {query.shape[1]}), got {tuple(queue.shape)}."
        )
    with torch.autocast(query.device.type, enabled=False):
        query, key, queue = _unit(query), _unit(key), _unit(queue)
        positive = (query * key).sum(dim=1, keepdim=True)
        similarity = torch.cat([positive, query @ queue.T], dim=1) / temperature
        first = torch.zeros(len(query), dtype=torch.long, device=query.device)
        return F.cross_entropy(similarity, first)


def _check_alike(name: str, first: Tensor, second: Tensor) -> None:
    if first.ndim != 2 or first.shape != second.shape:
        raise ValueError(
            f"{name} expects two matrices of one shape (B, D), got "
            f"{tuple(first.shape)} and {tuple(second.shape)}; pool or flatten them first."
        )


def check_temperature(name: str, temperature: float) -> None:
    """Raise ValueError for a temperature that similarities cannot be divided by."""
    if not 0 < temperature < float("inf"):
        raise ValueError(f"{name} expects a positive temperature, got {temperature}.")


def _unit(vectors: Tensor, eps: float = 1e-12) -> Tensor:
    dtype = torch.promote_types(vectors.dtype, torch.float32)
    return F.normalize(vectors.to(dtype), dim=1, eps=eps)
