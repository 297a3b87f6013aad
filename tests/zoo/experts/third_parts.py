"""What the nets of the third set written by hand are made of."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experts.own_parts import Net, block, tower

__all__ = ["Made", "Net", "block", "held", "maps", "small", "tower"]


def held(net: nn.Module, **parameters: Tensor) -> nn.Module:
    """The net with parameters of its own."""
    for name, value in parameters.items():
        net.register_parameter(name, nn.Parameter(value))
    return net


def small(*shape: int) -> Tensor:
    """Small random numbers."""
    return torch.randn(shape) / 8


def maps(channels: int = 3, wide: int = 24) -> nn.Module:
    """Images to maps a quarter of the side."""
    return nn.Sequential(block(channels, wide // 2), block(wide // 2, wide))


class Made(nn.Module):
    """A layer that is a function of its parameters."""

    def __init__(self, function: Callable[..., Any], **parameters: Tensor) -> None:
        super().__init__()
        held(self, **parameters)
        self.function = function

    def forward(self, *values: Any) -> Any:
        return self.function(self, *values)


class Scores(NamedTuple):
    """A classifier's output, and the vector before it."""

    scores: Tensor
    embedding: Tensor


@dataclass
class Output:
    """As libraries return it."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] = ()


class Result:
    """An object that is no container."""

    def __init__(self, scores: Tensor, features: Tensor) -> None:
        self.scores, self.features = scores, features


def gem() -> nn.Module:
    """Generalised mean over positions, its power learned."""
    return Made(lambda f, x: x.clamp(min=1e-6).pow(f.p).mean((2, 3)).pow(1 / f.p),
                p=torch.full((1,), 3.0))  # fmt: skip


def cosines(size: int, classes: int, centres: int = 1, scale: float = 16.0) -> nn.Module:
    """Scaled cosines with centres of classes; the nearest of several where a class has several."""

    def forward(f: Any, x: Tensor) -> Tensor:
        found = F.linear(F.normalize(x), F.normalize(f.weight)).view(len(x), classes, centres)
        return scale * found.amax(2)

    return Made(forward, weight=torch.randn(classes * centres, size))


def vlad(size: int, clusters: int) -> nn.Module:
    """Residuals to cluster centres, softly assigned, as one normalised vector."""

    def forward(f: Any, x: Tensor) -> Tensor:
        x = F.normalize(x.flatten(2))
        soft = torch.einsum("kc,bcn->bkn", f.assign, x).softmax(1)
        found = torch.einsum("bkn,bcn->bkc", soft, x) - soft.sum(2)[..., None] * f.centres
        return F.normalize(F.normalize(found, dim=2).flatten(1))

    return Made(forward, assign=torch.randn(clusters, size), centres=torch.rand(clusters, size))


def gated_attention(size: int, hidden: int) -> nn.Module:
    """Weights of a bag's instances."""

    def forward(f: Any, x: Tensor) -> Tensor:
        return (f.w(f.v(x).tanh() * f.u(x).sigmoid())).softmax(1)

    return Net(forward, v=nn.Linear(size, hidden), u=nn.Linear(size, hidden),
               w=nn.Linear(hidden, 1))  # fmt: skip


def capsules(before: int, size: int, after: int, wide: int) -> nn.Module:
    """Capsules by routing with agreement."""

    def squash(x: Tensor) -> Tensor:
        square = x.pow(2).sum(-1, keepdim=True)
        return square / (1 + square) * x / (square.sqrt() + 1e-6)

    def forward(f: Any, x: Tensor) -> Tensor:
        votes = torch.einsum("iasd,bis->biad", f.weight, x)
        logits = votes.new_zeros(votes.shape[:3])
        for _ in range(3):
            found = squash((logits.softmax(2)[..., None] * votes).sum(1))
            logits = logits + (votes * found[:, None]).sum(3)
        return found

    return Made(forward, weight=small(before, after, size, wide))


def shuffle(x: Tensor, groups: int) -> Tensor:
    """Channels of groups, interleaved."""
    return x.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)


def tokens(size: int = 24, patch: int = 8, depth: int = 1) -> nn.Module:
    """Patches of 32 by 32 images through a transformer: (B, 16, size)."""

    def forward(f: Any, x: Tensor) -> Tensor:
        return f.blocks(f.patch(x).flatten(2).transpose(1, 2) + f.positions)

    layer = nn.TransformerEncoderLayer(size, 2, 2 * size, 0.0, batch_first=True, norm_first=True)
    blocks = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
    made = Net(forward, patch=nn.Conv2d(3, size, patch, patch), blocks=blocks)
    return held(made, positions=small(1, (32 // patch) ** 2, size))


class Blend(torch.autograd.Function):
    """The identity, whose gradient is turned round."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grad: Tensor) -> Tensor:
        return -grad[0]
