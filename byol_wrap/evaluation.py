"""What frozen features are worth: kNN and linear accuracy."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from byol_wrap.modes import eval_mode

LARGEST = 2**25
"""Values that a tensor of similarities or logits holds at most, 128 MB: rows are cut to it."""


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
        train_features: (N, D); the computation runs on their device, in float32.
        train_labels: (N,), any whole numbers.
        test_features: (M, D).
        test_labels: (M,).
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
    classes, targets, truth = _check(train_features, train_labels, test_features, test_labels)
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
    correct = torch.zeros((), dtype=torch.long, device=bank.device)
    for start in range(0, len(test_features), rows):
        queries = test_features[start : start + rows].to(bank.device).float()
        similarity = (F.normalize(queries, dim=1) @ bank.T).div_(norms)
        similarity, neighbours = similarity.topk(k, dim=1)
        votes = similarity.new_zeros(len(queries), len(classes))
        # Relative to the nearest, whose weight is then 1: no exponential over- or underflows it.
        weights = ((similarity - similarity[:, :1]) / temperature).exp()
        votes.scatter_add_(1, targets[neighbours], weights)
        correct += (votes.argmax(dim=1) == truth[start : start + rows]).sum()
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
        train_features: (N, D); the computation runs on their device, in float32.
        train_labels: (N,), any whole numbers.
        test_features: (M, D).
        test_labels: (M,).
        C: inverse strength of the L2 penalty, positive.
        max_iter: at most so many steps of L-BFGS.

    Returns:
        Accuracy in [0, 1].

    Raises:
        ValueError: shapes that do not match, nothing to fit, NaN or infinity, labels that are no
            whole numbers, C out of range.

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
    rows = max(1, LARGEST // len(classes))
    with torch.inference_mode(False), torch.enable_grad():
        targets = targets.clone()  # which inference mode may have made
        x = train_features.detach().to(torch.float32, copy=True)  # the only copy
        mean, std = x.mean(dim=0), x.std(dim=0, correction=0)
        std = torch.where(std > 0, std, 1.0)
        x.sub_(mean).div_(std)
        outputs = 1 if len(classes) == 2 else len(classes)  # of two classes one is the reference
        weight = x.new_zeros(outputs, x.shape[1], requires_grad=True)
        bias = x.new_zeros(outputs, requires_grad=True)
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
            loss = weight.square().sum() / (2 * C * len(x))
            loss.backward()
            for part, target in zip(x.split(rows), targets.split(rows), strict=True):
                share = F.cross_entropy(logits(part), target, reduction="sum") / len(x)
                share.backward()
                loss = loss + share.detach()
            return loss

        optimizer.step(closure)
    return _accuracy(lambda z: logits((z - mean) / std), test_features, truth, rows)


def linear_probe_sgd(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    *,
    epochs: int = 80,
    batch_size: int = 256,
    lr: float = 0.2,
    weight_decay: float = 0.0,
    seed: int = 0,
) -> float:
    """Accuracy of a linear classifier on raw features, trained as the reference trains it.

    SGD with Nesterov momentum 0.9 on the cross entropy, from lr x batch_size / 256 down to 0 along
    half a cosine. Nothing is standardised: the rate suits features of about unit size, and on
    others the result depends on their scale. ``linear_probe`` has no such settings to get wrong,
    and with a few hundred features or fewer is the better choice.

    Args:
        train_features: (N, D); the computation runs on their device, in float32.
        train_labels: (N,), any whole numbers.
        test_features: (M, D).
        test_labels: (M,).
        epochs: how often each feature is seen, at least 1.
        batch_size: features a step, at least 1; an epoch is cut in even batches of at most these.
        lr: base learning rate, positive; the one reached is lr x batch_size / 256.
        weight_decay: L2 penalty on the weights, not the bias; at least 0.
        seed: of the order of the features; the global random state is neither read nor changed.

    Returns:
        Accuracy in [0, 1].

    Raises:
        ValueError: shapes that do not match, nothing to fit, NaN or infinity, labels that are no
            whole numbers, a setting out of range, training that diverges.

    Reference:
        Grill et al. 2020, appendix on linear evaluation, and deepmind-research/byol:
        eval_experiment.py, configs/eval.py, from which the defaults are. There images are cropped
        and mirrored anew in each epoch; here features are computed once. There batches hold 1024
        images, weights start at random, and the paper takes the best of five rates on validation
        images; here 256, at zero, and the one rate of the code.

    Example:
        >>> import torch
        >>> features = torch.eye(4).repeat(3, 1)
        >>> labels = torch.arange(4).repeat(3)
        >>> linear_probe_sgd(features, labels, features, labels)
        1.0
    """
    classes, targets, truth = _check(train_features, train_labels, test_features, test_labels)
    if epochs < 1 or batch_size < 1:
        raise ValueError(
            f"epochs and batch_size should be at least 1, got epochs={epochs}, "
            f"batch_size={batch_size}."
        )
    if not 0 < lr < math.inf or not 0 <= weight_decay < math.inf:
        raise ValueError(
            "lr should be positive and weight_decay at least 0, got "
            f"lr={lr}, weight_decay={weight_decay}."
        )
    x, batches = train_features.detach(), math.ceil(len(train_features) / batch_size)
    generator = torch.Generator().manual_seed(seed)  # on the CPU: the same order on any device
    with torch.inference_mode(False), torch.enable_grad():
        weight = x.new_zeros(len(classes), x.shape[1], dtype=torch.float32, requires_grad=True)
        bias = x.new_zeros(len(classes), dtype=torch.float32, requires_grad=True)
        groups: list[dict[str, Any]] = [
            {"params": [weight], "weight_decay": weight_decay},
            {"params": [bias]},
        ]
        rate = lr * batch_size / 256
        optimizer = torch.optim.SGD(groups, lr=rate, momentum=0.9, nesterov=True)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * batches)
        for _ in range(epochs):
            order = torch.randperm(len(x), generator=generator).to(x.device)
            for chosen in order.tensor_split(batches):
                loss = F.cross_entropy(F.linear(x[chosen].float(), weight, bias), targets[chosen])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
    if not (weight.isfinite().all() and bias.isfinite().all()):
        raise ValueError(f"Training diverged at lr={lr}; lower it, or divide the features by more.")
    rows = max(1, LARGEST // len(classes))
    return _accuracy(lambda z: F.linear(z, weight, bias), test_features, truth, rows)


@torch.no_grad()
def _accuracy(
    logits: Callable[[Tensor], Tensor], features: Tensor, truth: Tensor, rows: int
) -> float:
    """Share of features whose highest logit is at the true index; ``rows`` at a time."""
    correct = torch.zeros((), dtype=torch.long, device=truth.device)
    for part, target in zip(features.split(rows), truth.split(rows), strict=True):
        correct += (logits(part.to(truth.device).float()).argmax(dim=1) == target).sum()
    return correct.item() / len(truth)


def _check(
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
