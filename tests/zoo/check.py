"""What wrapping any backbone must do: find a layer, train, move the target, leave no trace."""

import copy
import pickle
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from byol_wrap import BYOL, Learner, MoCo, SimCLR, SimSiam
from byol_wrap.views import as_pair

METHODS: dict[str, Callable[..., Learner]] = {
    "BYOL": partial(BYOL, projection_hidden_size=64, moving_average_decay=0.5),
    "SimSiam": partial(SimSiam, projection_hidden_size=64, prediction_hidden_size=8),
    "SimCLR": partial(SimCLR, projection_hidden_size=64),
    "MoCo": partial(
        MoCo, projection_hidden_size=64, queue_size=16, key_parts=2, moving_average_decay=0.5
    ),
}
BATCH = 4  # images; two of more than 512 pixels
MOST_PARAMETERS = 1.5e8  # a step with more does not fit the machines that tests run on


class TooLargeError(Exception):
    """The net has not been tried."""


@dataclass
class Backbone:
    """A net of the zoo.

    Attributes:
        name: what the table calls it.
        make: builds it.
        size: side, or (height, width), of its images; None feeds ``views`` instead.
        features: how long its representation is; None where its library does not tell.
        options: for the learner.
        views: builds two views for nets that take no images.
        refused: the error that wrapping or a first step must give, and a part of its message.
    """

    name: str
    make: Callable[[], nn.Module]
    size: int | tuple[int, int] | None = 224
    features: Callable[[nn.Module], int] | None = None
    options: dict[str, Any] = field(default_factory=dict)
    views: Callable[[], tuple[Tensor, Tensor]] | None = None
    refused: tuple[type[Exception], str] | None = None


def pictures(channels: int, size: int | tuple[int, int], count: int = BATCH) -> Tensor:
    """Smooth random images (count, channels, height, width) in [0, 1]: blobs of many sizes."""
    height, width = (size, size) if isinstance(size, int) else size
    layers = [
        F.interpolate(torch.randn(count, channels, n, n) / n**0.5, (height, width), mode="bicubic")
        for n in (2, 5, 13, 34)
    ]
    return torch.stack(layers).sum(0).sigmoid()


def check(backbone: Backbone, method: str = "BYOL") -> dict[str, Any]:
    """Wrap the net in a method and take one step with it; gives what the table shows.

    Raises:
        AssertionError: something is not as it should be.
        TooLargeError: it was not tried.
    """
    torch.manual_seed(0)
    began = time.perf_counter()
    net = backbone.make()
    count = sum(parameter.numel() for parameter in net.parameters())
    if count > MOST_PARAMETERS:
        raise TooLargeError(f"not tried, {count / 1e6:.0f} million parameters")
    before = outside(net)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        learner = METHODS[method](net, backbone.size, projection_size=16, **backbone.options)
        if backbone.views is None:
            assert backbone.size is not None
            images = BATCH if max(as_pair(backbone.size)) <= 512 else 2
            inputs = (pictures(learner.channels, backbone.size, images),)
        else:
            inputs = backbone.views()
            with torch.no_grad():
                learner.eval()(*inputs)
            learner.train()
    told = any("An image is represented by" in str(w.message) for w in caught)
    found = learner.representation
    assert found is not None
    if backbone.features is not None:
        assert found.size == backbone.features(net), f"the representation's size is {found.size}"

    parameters = [p for p in learner.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=1e-3)
    target = [p.clone() for p in learner.target.parameters()] if learner.has_target else []
    loss = learner(*inputs)
    low, high = {"BYOL": (0, 8), "SimSiam": (-1, 1)}.get(method, (0, 20))
    assert low < loss.item() < high, f"the loss is {loss.item()}"
    loss.backward()
    check_gradients(learner)
    optimizer.step()
    if learner.has_target:
        assert same(target, learner.target.parameters()), "the target moved without an update"
    learner.update_moving_average()
    if learner.has_target:
        check_update(learner, target)

    if backbone.views is None:
        vectors = learner.embed(inputs[0])
        assert vectors.shape == (len(inputs[0]), found.size)
        assert vectors.isfinite().all(), "an embedding is not finite"
    check_outside(net, before)
    return {
        "layer": found.layer,
        "side": found.side,
        "pool": found.pool if isinstance(found.pool, str) else "own",
        "size": found.size,
        "warns": "yes" if told else "",
        "seconds": round(time.perf_counter() - began, 1),
    }


def check_gradients(learner: Learner) -> None:
    """The first layer that can be trained, and the heads, have a gradient."""
    layers = [
        module.weight
        for module in learner.net.modules()
        if isinstance(getattr(module, "weight", None), Tensor) and module.weight.ndim > 1
    ]
    weights = [weight for weight in layers if weight.requires_grad]
    first = weights[0] if weights else next(p for p in learner.net.parameters() if p.requires_grad)
    heads = [p for p in learner.online.projector.parameters() if p.ndim > 1]
    heads += [p for p in getattr(learner, "predictor", nn.Identity()).parameters() if p.ndim > 1]
    assert len(heads) >= 2
    for weight in (first, *heads):
        gradient = weight.grad if weight.is_leaf else first_leaf_gradient(learner)
        assert gradient is not None, "a layer has no gradient"
        assert gradient.isfinite().all(), "a gradient is not finite"
        assert gradient.abs().sum() > 0, "a gradient is zero"
    if learner.has_target:
        assert all(p.grad is None for p in learner.target.parameters()), "the target has a gradient"


def first_leaf_gradient(learner: Learner) -> Tensor | None:
    """Of a parametrized first layer, whose weight is computed from others."""
    return next(p.grad for p in learner.net.parameters() if p.grad is not None)


def check_update(learner: Learner, before: list[Tensor]) -> None:
    """Every parameter of the target is where the moving average says; some have moved."""
    moved = False
    for old, new, online in zip(
        before, learner.target.parameters(), learner.online.parameters(), strict=True
    ):
        if not new.numel():
            assert online.grad is None, "the target lacks a parameter that is trained"
        elif new.is_floating_point():
            torch.testing.assert_close(new, torch.lerp(old, online.to(new.dtype), 0.5))
            moved = moved or not torch.equal(old, new)
    assert moved, "the update moved nothing"


def outside(net: nn.Module) -> dict[str, Any]:
    """What a net shows to others, apart from the values of its weights."""
    return {
        "keys": list(net.state_dict()),
        "training": [module.training for module in net.modules()],
        "trained": [parameter.requires_grad for parameter in net.parameters()],
        "hooks": hooks(net),
        "pickles": pickles(net),
    }


def hooks(net: nn.Module) -> list[int]:
    """How many hooks of each kind each module has."""
    return [
        len(value)
        for module in net.modules()
        for name, value in sorted(vars(module).items())
        if "_hooks" in name
    ]


def pickles(net: nn.Module) -> bool:
    """Whether a copy through pickle has the same keys."""
    try:
        return list(pickle.loads(pickle.dumps(net)).state_dict()) == list(net.state_dict())
    except Exception:
        return False


def check_outside(net: nn.Module, before: dict[str, Any]) -> None:
    """The net is as it was: keys, modes, hooks; it pickles and copies if it did before."""
    after = outside(net)
    for what, value in before.items():
        assert after[what] == value, f"wrapping changed the net's {what}"
    if before["pickles"]:
        copy.deepcopy(net)


def same(ones: list[Tensor], others: Any) -> bool:
    """Whether tensors are equal, one by one."""
    return all(torch.equal(one, other) for one, other in zip(ones, others, strict=True))
