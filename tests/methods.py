"""The four methods, small, as the tests wrap them."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from byol_wrap import BYOL, Learner, MoCo, SimCLR, SimSiam

METHODS: dict[str, tuple[type[Learner], dict[str, Any]]] = {
    "BYOL": (BYOL, {"projection_size": 8, "projection_hidden_size": 16}),
    "SimSiam": (SimSiam, {"projection_size": 8, "prediction_hidden_size": 4}),
    "SimCLR": (SimCLR, {"projection_size": 8}),
    "MoCo": (MoCo, {"projection_size": 8, "queue_size": 20}),
    "MoCo in parts": (MoCo, {"projection_size": 8, "queue_size": 20, "key_parts": 2}),
    "MoCo, symmetric": (MoCo, {"projection_size": 8, "queue_size": 20, "symmetric": True}),
}
WITH_TARGET = [name for name in METHODS if name == "BYOL" or name.startswith("MoCo")]
WITH_HALVES = ["BYOL", "MoCo, symmetric"]


def make(
    name: str, net: nn.Module, image_size: int | None = 32, *, seed: int = 0, **options: Any
) -> Learner:
    """A learner of that method; the same weights each time."""
    method, sizes = METHODS[name]
    torch.manual_seed(seed)
    return method(net, image_size, **(sizes | options))


def images(batch: int = 8, size: int = 32) -> Tensor:
    return torch.rand(batch, 3, size, size)


def train(
    learner: Learner,
    steps: int = 3,
    *,
    model: Callable[..., Tensor] | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    seed: int = 0,
) -> list[float]:
    """Steps on random images, each drawn from a seed of its own; gives the losses."""
    optimizer = optimizer or torch.optim.SGD(learner.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for k in range(steps):
        torch.manual_seed(seed + k)
        loss = (learner if model is None else model)(images())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        learner.update_moving_average()
        losses.append(loss.item())
    return losses
