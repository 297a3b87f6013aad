"""What frozen features are worth to a linear classifier."""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from byol_wrap.evaluation.batches import Labels
from byol_wrap.evaluation.task import LARGEST, check_task


def linear_probe(
    train_features: Tensor,
    train_labels: Labels,
    test_features: Tensor,
    test_labels: Labels,
    *,
    C: float = 1.0,
    max_iter: int = 200,
) -> float:
    """Accuracy of a logistic regression on standardised features.

    The same problem as scikit-learn's ``LogisticRegression(C=C)`` behind a ``StandardScaler``,
    solved by L-BFGS: summed cross entropy times C plus half the squared norm of the weights.

    Args:
        train_features: (N, D); the computation runs on their device, in float32.
        train_labels: (N,), any whole numbers, or a list of class names.
        test_features: (M, D).
        test_labels: (M,), as ``train_labels``.
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
    task = (train_features, train_labels, test_features, test_labels)
    hits = linear_hits(*task, C=C, max_iter=max_iter)
    return int(hits.sum()) / len(hits)


def linear_hits(
    train_features: Tensor,
    train_labels: Labels,
    test_features: Tensor,
    test_labels: Labels,
    *,
    C: float = 1.0,
    max_iter: int = 200,
) -> Tensor:
    """Which test images ``linear_probe`` takes for what they are: (M,) of bool."""
    classes, targets, truth = check_task(train_features, train_labels, test_features, test_labels)
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
    return _hits(lambda z: logits((z - mean) / std), test_features, truth, rows)


def linear_probe_sgd(
    train_features: Tensor,
    train_labels: Labels,
    test_features: Tensor,
    test_labels: Labels,
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
        train_labels: (N,), any whole numbers, or a list of class names.
        test_features: (M, D).
        test_labels: (M,), as ``train_labels``.
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
    classes, targets, truth = check_task(train_features, train_labels, test_features, test_labels)
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
    generator = torch.Generator("cpu").manual_seed(int(seed))  # the same order on any device
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
            order = torch.randperm(len(x), generator=generator, device="cpu").to(x.device)
            for chosen in order.tensor_split(batches):
                loss = F.cross_entropy(F.linear(x[chosen].float(), weight, bias), targets[chosen])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
    if not (weight.isfinite().all() and bias.isfinite().all()):
        raise ValueError(f"Training diverged at lr={lr}; lower it, or divide the features by more.")
    rows = max(1, LARGEST // len(classes))
    hits = _hits(lambda z: F.linear(z, weight, bias), test_features, truth, rows)
    return int(hits.sum()) / len(hits)


@torch.no_grad()
def _hits(logits: Callable[[Tensor], Tensor], features: Tensor, truth: Tensor, rows: int) -> Tensor:
    """Of which features the highest logit is at the true index; ``rows`` at a time."""
    parts = zip(features.split(rows), truth.split(rows), strict=True)
    return torch.cat(
        [logits(part.to(truth.device).float()).argmax(dim=1) == target for part, target in parts]
    )
