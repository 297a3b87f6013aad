"""Oracles of what is read: hooks set by hand."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from byol_wrap import BYOL

SMALL = {"projection_size": 8, "projection_hidden_size": 16}
Oracle = tuple[str, str, Callable[[Any], Tensor]]  # a layer, its side, and how it becomes (B, D)


def wrap(net: nn.Module, image_size: int | None = 32, **kwargs: Any) -> BYOL:
    return BYOL(net, image_size, **SMALL, **kwargs)


def hooked(net: nn.Module, batch: Tensor, oracle: Oracle) -> Tensor:
    """What a hook of our own sees."""
    name, side, pool = oracle
    seen: list[Any] = []
    layer = net.get_submodule(name)
    handle = layer.register_forward_hook(lambda _, args, out: seen.append((args[0], out)))
    with torch.no_grad():
        net(batch)
    handle.remove()
    return pool(seen[0][side == "output"])


def check(net: nn.Module, shape: tuple[int, ...], oracle: Oracle) -> BYOL:
    """The learner reads the oracle's value, in training and in eval mode."""
    torch.manual_seed(0)
    learner = wrap(net, None)
    batch = torch.rand(4, *shape)
    learner(batch, batch)
    for training in (True, False):
        learner.train(training)
        expected = hooked(copy.deepcopy(net), batch, oracle)
        torch.testing.assert_close(learner.online.represent(batch).detach(), expected)
    return learner


def same(x: Tensor) -> Tensor:
    return x


def mean(x: Tensor) -> Tensor:
    return x.flatten(2).mean(2)


IMAGE = (3, 32, 32)
