"""What frozen features are worth: kNN and linear accuracy."""

import math
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from byol_wrap.modes import eval_mode


@torch.no_grad()
def extract_features(
    model: nn.Module, loader: Iterable[Any], *, device: torch.device | str | None = None
) -> tuple[Tensor, Tensor | None]:
    """Features of all images of a loader, in its order.

    Args:
        model: a learner, whose ``embed`` is used (it normalises), or any net from a batch to
            (B, ...), which is fed the images as they come, in eval mode; uint8 is divided by 255.
            Training flags are put back.
        loader: yields (images, labels) or images, images being (B, C, H, W).
        device: where features and labels are gathered; None for the model's device.

    Returns:
        Features (N, D), and labels (N,), or None where the loader yields no labels.

    Raises:
        ValueError: the loader yields nothing, or labels for some batches only.
        TypeError: the model returns something else than a tensor.
    """
    home = next((p.device for p in model.parameters()), torch.device("cpu"))
    features, labels = [], []
    embed = getattr(model, "embed", None)
    with eval_mode(model):
        for batch in loader:
            images, label, *_ = (*batch, None) if isinstance(batch, tuple | list) else (batch, None)
            images = images.to(home, non_blocking=True)
            if callable(embed):
                output = embed(images)
            else:
                output = model(images.float() / 255 if images.dtype == torch.uint8 else images)
            if not isinstance(output, Tensor):
                raise TypeError(
                    f"The model should return a tensor, got {type(output).__name__}; use "
                    "BYOL(net, ...).embed, which understands other outputs."
                )
            features.append(output.flatten(1).to(device or home))
            if label is not None:
                labels.append(torch.as_tensor(label).to(device or home))
    if not features:
        raise ValueError("The loader yields no batch: is the data set empty, or drop_last set?")
    if labels and len(labels) != len(features):
        raise ValueError("The loader yields labels for some batches and none for others.")
    return torch.cat(features), torch.cat(labels) if labels else None


@torch.no_grad()
def knn_accuracy(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    k: int = 20,
    temperature: float = 0.07,
    *,
    chunk_size: int = 1024,
) -> float:
    """Accuracy of a weighted k-nearest-neighbour classifier on cosine similarity.

    Each of the k neighbours votes for its class with weight exp(similarity / temperature).

    Args:
        train_features: (N, D), floating; the computation runs on their device.
        train_labels: (N,), any integers.
        test_features: (M, D).
        test_labels: (M,).
        k: number of neighbours, at most N; 20 and 200 are customary.
        temperature: positive; 0.07, or 0.1 in lightly's benchmarks.
        chunk_size: how many test features are compared at a time; memory grows as chunk_size x N.

    Returns:
        Accuracy in [0, 1].

    Raises:
        ValueError: shapes that do not match, nothing to compare, NaN or infinity, k or temperature
            out of range.

    Reference:
        Wu et al. 2018 (arXiv 1805.01978), section 3.4.

    Example:
        >>> import torch
        >>> features = torch.eye(4).repeat(3, 1)
        >>> labels = torch.arange(4).repeat(3)
        >>> knn_accuracy(features, labels, features, labels, k=3)
        1.0
    """
    classes, targets, truth = _check(train_features, train_labels, test_features, test_labels)
    if not 1 <= k <= len(train_features) or not 0 < temperature < math.inf:
        raise ValueError(
            f"k should lie between 1 and the {len(train_features)} training features, and "
            f"temperature be positive; got k={k}, temperature={temperature}."
        )
    if chunk_size < 1:
        raise ValueError(f"chunk_size should be at least 1, got {chunk_size}.")
    bank = F.normalize(train_features.float(), dim=1).T
    correct = torch.zeros((), dtype=torch.long, device=bank.device)
    for start in range(0, len(test_features), chunk_size):
        queries = test_features[start : start + chunk_size].to(bank.device).float()
        similarity, neighbours = (F.normalize(queries, dim=1) @ bank).topk(k, dim=1)
        votes = torch.zeros(len(queries), len(classes), device=bank.device)
        # Relative to the nearest, whose weight is then 1: no exponential over- or underflows it.
        weights = ((similarity - similarity[:, :1]) / temperature).exp()
        votes.scatter_add_(1, targets[neighbours], weights)
        correct += (votes.argmax(dim=1) == truth[start : start + chunk_size]).sum()
    return correct.item() / len(test_features)


def linear_probe(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    *,
    C: float = 1.0,
    max_iter: int = 200,
) -> float:
    """Accuracy of a logistic regression on standardised features.

    The same problem as scikit-learn's ``LogisticRegression(C=C)`` behind a ``StandardScaler``,
    solved by L-BFGS: summed cross entropy times C plus half the squared norm of the weights.

    Args:
        train_features: (N, D), floating; the computation runs on their device.
        train_labels: (N,), any integers.
        test_features: (M, D).
        test_labels: (M,).
        C: inverse strength of the L2 penalty, positive.
        max_iter: at most so many steps of L-BFGS.

    Returns:
        Accuracy in [0, 1].

    Raises:
        ValueError: shapes that do not match, nothing to fit, NaN or infinity, C out of range.

    Reference:
        Linear evaluation as in Grill et al. 2020, section 4.1, which trains by SGD on augmented
        images; here features are computed once, and the optimum is found.

    Example:
        >>> import torch
        >>> features = torch.eye(4).repeat(3, 1)
        >>> labels = torch.arange(4).repeat(3)
        >>> linear_probe(features, labels, features, labels)
        1.0
    """
    classes, targets, truth = _check(train_features, train_labels, test_features, test_labels)
    if not 0 < C < math.inf:
        raise ValueError(f"C should be positive, got {C}.")
    x = train_features.detach().float()
    mean, std = x.mean(dim=0), x.std(dim=0, correction=0)
    std = torch.where(std > 0, std, 1.0)
    x = (x - mean) / std
    with torch.inference_mode(False), torch.enable_grad():
        x, targets = x.clone(), targets.clone()  # which inference mode may have made
        rows = 1 if len(classes) == 2 else len(classes)  # of two classes one is the reference
        weight = x.new_zeros(rows, x.shape[1], requires_grad=True)
        bias = x.new_zeros(rows, requires_grad=True)
        optimizer = torch.optim.LBFGS(
            [weight, bias],
            max_iter=max_iter,
            tolerance_grad=1e-6,
            tolerance_change=1e-9,
            line_search_fn="strong_wolfe",
        )

        def logits(inputs: Tensor) -> Tensor:
            scores = F.linear(inputs, weight, bias)
            return F.pad(scores, (1, 0)) if len(classes) == 2 else scores

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = F.cross_entropy(logits(x), targets)
            loss = loss + weight.square().sum() / (2 * C * len(x))
            loss.backward()
            return loss

        optimizer.step(closure)
    with torch.no_grad():
        z = (test_features.to(x.device).float() - mean) / std
        return int((logits(z).argmax(dim=1) == truth).sum()) / len(truth)


def _check(
    train_features: Tensor, train_labels: Tensor, test_features: Tensor, test_labels: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Check features and labels; give the classes, and both labels as indices into them.

    A test label that no training label has gives -1, which no prediction equals.
    """
    train_labels, test_labels = torch.as_tensor(train_labels), torch.as_tensor(test_labels)
    for name, features, labels in (
        ("train", train_features, train_labels),
        ("test", test_features, test_labels),
    ):
        if features.ndim != 2 or labels.shape != features.shape[:1] or len(features) == 0:
            raise ValueError(
                f"{name}_features should be (N, D) and {name}_labels (N,) with N at least 1, got "
                f"{tuple(features.shape)} and {tuple(labels.shape)}."
            )
        if not features.isfinite().all():
            raise ValueError(f"{name}_features hold NaN or infinity.")
    if train_features.shape[1] != test_features.shape[1]:
        raise ValueError(
            f"train_features have {train_features.shape[1]} dimensions, test_features "
            f"{test_features.shape[1]}."
        )
    device = train_features.device
    classes, targets = train_labels.to(device).unique(return_inverse=True)
    test_labels = test_labels.to(device).contiguous()
    index = torch.searchsorted(classes, test_labels).clamp(max=len(classes) - 1)
    truth = torch.where(classes[index] == test_labels, index, -1)
    return classes, targets, truth
