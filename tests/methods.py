"""The methods, with small heads, for the tests of what all of them promise."""

from collections.abc import Callable
from functools import partial

import torch
from nets import conv_net
from torch import nn

from byol_wrap import BYOL, Learner, MoCo, SimCLR, SimSiam

SMALL = {"projection_size": 8, "projection_hidden_size": 16}

METHODS: dict[str, Callable[..., Learner]] = {
    "BYOL": partial(BYOL, **SMALL),
    "SimSiam": partial(SimSiam, **SMALL, prediction_hidden_size=4),
    "SimCLR": partial(SimCLR, **SMALL),
    "MoCo": partial(MoCo, **SMALL, queue_size=32),
    "MoCo, symmetric": partial(MoCo, **SMALL, queue_size=48, symmetric=True),
    "MoCo, keys in parts": partial(MoCo, **SMALL, queue_size=32, key_parts=4),
}
PAPERS = [name for name in METHODS if "," not in name]
WITH_TARGET = [name for name in METHODS if name not in ("SimSiam", "SimCLR")]
IN_HALVES = ["BYOL", "MoCo, symmetric"]


def make(
    name: str, image_size: int | None = 32, net: nn.Module | None = None, **options: object
) -> Learner:
    """The learner of that name, always the same, around the net or a small classifier."""
    torch.manual_seed(0)
    return METHODS[name](conv_net(6, classes=5) if net is None else net, image_size, **options)


def possible(name: str, loss: float) -> bool:
    """Whether a loss lies where the method's can lie."""
    low, high = {"BYOL": (0, 8), "SimSiam": (-1, 1)}.get(name, (0, 40))
    return low <= loss <= high
