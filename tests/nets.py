"""Small nets that the tests wrap."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def conv_net(width: int = 8, channels: int = 3, classes: int | None = None) -> nn.Sequential:
    """Convolutions with BatchNorm, pooled to a vector, with a classifier where asked for."""
    layers: list[nn.Module] = [
        nn.Conv2d(channels, width, 3, stride=2, padding=1),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
        nn.Conv2d(width, width, 3, stride=2, padding=1),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    ]
    if classes is not None:
        layers.append(nn.Linear(width, classes))
    return nn.Sequential(*layers)


def block(inputs: int, outputs: int, stride: int = 2) -> nn.Sequential:
    """A convolution, its norm and an activation."""
    convolution = nn.Conv2d(inputs, outputs, 3, stride, 1)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())


def encoder() -> nn.Module:
    """Two blocks: a map (B, 16, H / 4, W / 4)."""
    return nn.Sequential(block(3, 8), block(8, 16))


class Function(nn.Module):
    """A net whose forward is a function of its layers and the input."""

    def __init__(self, forward: Callable[..., Any], **layers: nn.Module) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.function = forward

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


class Tokens(nn.Module):
    """A patch embedding that gives a token sequence (B, T, C), with or without a class token."""

    def __init__(self, class_token: bool) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 12, 8, stride=8)
        self.norm = nn.LayerNorm(12)
        if class_token:
            self.cls_token = nn.Parameter(torch.randn(1, 1, 12))
        self.class_token = class_token

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patch(x).flatten(2).transpose(1, 2)
        if self.class_token:
            tokens = torch.cat([self.cls_token.expand(len(x), -1, -1), tokens], dim=1)
        return self.norm(tokens)
