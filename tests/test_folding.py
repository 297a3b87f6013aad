"""Outputs that look like maps: landmarks, boxes and poses of one vector are read before it.

What a net gives for each place, and images that a decoder makes, go on being told.
"""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from nets import Function, block, conv_net, encoder
from oracles import IMAGE, Oracle, check, mean, same, wrap
from torch import Tensor, nn


def folded(
    *shape: int, head: nn.Module | None = None, then: Callable[[Tensor], Tensor] = same
) -> nn.Module:
    """A regressor of ``shape`` numbers an image, from 12 of features."""
    return Function(
        lambda net, x: then(net.fc(net.body(x)).view(-1, *shape)),
        body=conv_net(12),
        fc=head or nn.Linear(12, math.prod(shape)),
    )


def mlp(hidden: int, gives: int) -> nn.Module:
    return nn.Sequential(nn.Linear(12, hidden), nn.ReLU(), nn.Linear(hidden, gives))


def heads(*gives: int, hidden: int = 0) -> dict[str, nn.Module]:
    made = [mlp(hidden, size) if hidden else nn.Linear(12, size) for size in gives]
    return {"body": conv_net(12), "heads": nn.ModuleList(made)}


def stacked(net: Any, x: Tensor) -> Tensor:
    features = net.body(x)
    return torch.stack([head(features) for head in net.heads], 1).softmax(-1)


def body_model(net: Any, x: Tensor) -> dict[str, Tensor]:
    features = net.body(x)
    pose, shape, camera, hand = (head(features) for head in net.heads)
    pose, hand = pose.view(-1, 24, 3, 3), hand.view(-1, 21, 3)
    return {"pose": pose, "shape": shape, "camera": camera, "hand": hand}


def wide() -> nn.Module:
    return nn.Sequential(block(3, 48), block(48, 12), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def two_poses(net: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    features = net.body(x)
    body, hand = (head(features) for head in net.heads)
    return body.view(-1, 24, 3), hand.view(-1, 21, 3)


def beside_map(net: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    maps = net.body(x)
    return maps, net.fc(maps.amax((2, 3))).view(-1, 5, 2)


def beside_tower(net: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    return net.fc(net.body(x)).view(-1, 68, 2), net.small(x)


def scaled_by_own(net: Any, x: Tensor) -> Tensor:
    return net.fc(net.body(x) * net.scale(net.own)).view(-1, 68, 2)


def by_own(net: Any, x: Tensor) -> Tensor:
    return F.linear(net.body(x), net.own).view(-1, 68, 2)


def with_own(net: nn.Module, *shape: int) -> nn.Module:
    net.own = nn.Parameter(torch.rand(shape))
    return net


def of_maps(*behind: nn.Module) -> nn.Module:
    return nn.Sequential(encoder(), *behind, nn.Flatten(), nn.Unflatten(1, (68, 2)))


FC: Oracle = ("fc", "input", same)
FOLDED: dict[str, tuple[Callable[[], nn.Module], Oracle]] = {
    "landmarks": (lambda: folded(68, 2), FC),
    "landmarks in pixels": (lambda: folded(68, 2, then=lambda x: 224 * x.sigmoid()), FC),
    "cells of boxes": (lambda: folded(7, 7, 30), FC),
    "rotations": (lambda: folded(24, 3, 3), FC),
    "quaternions": (lambda: folded(24, 4, then=lambda x: F.normalize(x, dim=-1)), FC),
    "landmarks by layers that widen": (
        lambda: folded(68, 2, head=mlp(140, 136)),
        ("fc.2", "input", same),
    ),
    "landmarks by layers that narrow": (
        lambda: folded(68, 2, head=mlp(6, 136)),
        ("fc.0", "input", same),
    ),
    "scores of several tasks": (
        lambda: Function(stacked, **heads(9, 9, 9)),
        ("heads.0", "input", same),
    ),
    "scores of several tasks, by two layers each": (
        lambda: Function(stacked, **heads(9, 9, 9, hidden=10)),
        ("body", "output", same),
    ),
    "a pose beside other numbers": (
        lambda: Function(body_model, **heads(216, 10, 3, 63)),
        ("heads.0", "input", same),
    ),
    "two poses, by layers that widen": (
        lambda: Function(two_poses, **heads(72, 63, hidden=80) | {"body": wide()}),
        ("body", "output", same),
    ),
    "landmarks beside their map": (
        lambda: Function(beside_map, body=encoder(), fc=nn.Linear(16, 10)),
        ("fc", "input", same),
    ),
    "landmarks beside a small tower": (
        lambda: Function(beside_tower, body=conv_net(12), fc=nn.Linear(12, 136), small=conv_net(2)),
        ("fc", "input", same),
    ),
    "landmarks, and a scale that is made of parameters": (
        lambda: with_own(
            Function(
                scaled_by_own, body=conv_net(12), scale=nn.Linear(3, 12), fc=nn.Linear(12, 136)
            ),
            1,
            3,
        ),
        ("fc", "input", same),
    ),
    "landmarks by a parameter of the net's own": (
        lambda: with_own(Function(by_own, body=conv_net(12)), 136, 12),
        ("body", "output", same),
    ),
    "landmarks by a convolution over all": (
        lambda: of_maps(nn.Conv2d(16, 136, 8)),
        ("1", "input", mean),
    ),
    "landmarks by a convolution whose maps are averaged": (
        lambda: of_maps(nn.Conv2d(16, 136, 1), nn.AdaptiveAvgPool2d(1)),
        ("1", "input", mean),
    ),
}


@pytest.mark.parametrize("name", FOLDED)
def test_numbers_of_one_vector_are_no_places(name: str) -> None:
    build, oracle = FOLDED[name]
    check(build(), IMAGE, oracle)


def scores_of_tokens(net: Any, x: Tensor) -> Tensor:
    return net.fc(net.body(x).flatten(2).mT)


def flattened(net: Any, x: Tensor) -> Tensor:
    return scores_of_tokens(net, x).flatten(1).sigmoid().view(-1, 8, 8, 5)


def of_each_row(net: Any, x: Tensor) -> Tensor:
    rows = net.body(x).mean(3)
    return torch.stack([head(rows[:, :, i]) for i, head in enumerate(net.heads)], 1)


def decoder(code: int, *shape: int, hidden: int = 64) -> nn.Module:
    layers = [nn.Linear(code, hidden), nn.ReLU(), nn.Linear(hidden, math.prod(shape))]
    return nn.Sequential(conv_net(code), *layers, nn.Unflatten(1, shape))


def with_basis() -> nn.Module:
    """A morphable model: shapes are sums of fixed ones."""
    net = Function(
        lambda net, x: (net.fc(net.body(x)) @ net.basis).view(-1, 40, 3),
        body=conv_net(24),
        fc=nn.Linear(24, 16),
    )
    net.register_buffer("basis", torch.rand(16, 120))
    return net


PLACES: dict[str, Callable[[], nn.Module]] = {
    "tokens": lambda: Function(scores_of_tokens, body=encoder(), fc=nn.Linear(16, 5)),
    "tokens, flattened and folded again": lambda: Function(
        flattened, body=encoder(), fc=nn.Linear(16, 5)
    ),
    "rows, by a layer each": lambda: Function(
        of_each_row, body=encoder(), heads=nn.ModuleList(nn.Linear(16, 9) for _ in range(8))
    ),
    "one vector for all places": lambda: Function(
        lambda net, x: net.fc(net.body(x))[:, :, None, None].expand(-1, -1, 16, 16),
        body=conv_net(12),
        fc=nn.Linear(12, 5),
    ),
    "images as they were fed": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(3072, 12), nn.ReLU(), nn.Linear(12, 3072), nn.Unflatten(1, IMAGE)
    ),
    "masks as large as the images": lambda: nn.Sequential(
        conv_net(12), nn.Linear(12, 1024), nn.Unflatten(1, (1, 32, 32))
    ),
    "points, by a fixed basis": with_basis,
    "smaller images, decoded": lambda: decoder(12, 1, 16, 16),
}


def test_a_series_as_long_as_what_is_fed_is_told() -> None:
    net = nn.Sequential(
        nn.Flatten(), nn.Linear(60, 6), nn.ReLU(), nn.Linear(6, 60), nn.Unflatten(1, (12, 5))
    )
    with pytest.warns(UserWarning, match="values for each place"):
        check(net, (12, 5), ("1", "output", same))


@pytest.mark.parametrize("name", PLACES)
def test_values_for_each_place_are_told(name: str) -> None:
    with pytest.warns(UserWarning, match=r"values for each place .*hidden_layer='") as told:
        wrap(PLACES[name]())
    assert len(told) == 1


def test_a_gate_is_no_code_of_a_decoder() -> None:
    """What is read is made of a smaller vector, but of the map that it scales, too."""

    def gated(net: Any, x: Tensor) -> Tensor:
        maps = net.body(x)
        gate = net.up(net.down(maps.mean((2, 3)))).sigmoid()
        return net.fc((maps * gate[:, :, None, None]).mean((2, 3))).view(-1, 68, 2)

    parts = {"down": nn.Linear(16, 4), "up": nn.Linear(4, 16), "fc": nn.Linear(16, 136)}
    check(Function(gated, body=encoder(), **parts), IMAGE, FC)


CHANNELS_LAST: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "of a convolution": lambda net, x: net.body(x).permute(0, 2, 3, 1),
    "of a convolution, pooled": lambda net, x: F.adaptive_avg_pool2d(net.body(x), 7).permute(
        0, 2, 3, 1
    ),
    "normed": lambda net, x: net.norm(net.body(x).permute(0, 2, 3, 1)),
    "normed, and pooled": lambda net, x: (
        F.avg_pool2d(net.norm(net.body(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2), 2)
    ).permute(0, 2, 3, 1),
}


@pytest.mark.parametrize("name", CHANNELS_LAST)
def test_maps_with_channels_last_are_averaged_over_their_places(name: str) -> None:
    net = Function(CHANNELS_LAST[name], body=encoder(), norm=nn.LayerNorm(16))
    learner = check(net, (3, 28, 36), ("", "output", lambda out: out.mean((1, 2))))
    assert learner.representation is not None
    assert learner.representation.size == 16
