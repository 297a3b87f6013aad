"""How many channels a net's images have: settled by what runs."""

from collections.abc import Callable, Iterable
from typing import TypeVar

import torch
from torch import Tensor, nn

from byol_wrap.backbone.copying import copy_net
from byol_wrap.backbone.encoder import float_parameter
from byol_wrap.backbone.probing import takes

MOST_GUESSES = 8
T = TypeVar("T")


def possible_channels(net: nn.Module) -> list[int]:
    """How many channels a net's images may have, the likeliest first: its first convolution tells.

    Not where that is not its first layer; then 3, or what another convolution takes, may run, or
    together what those of two streams take.
    """
    convolutions = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
    taken = [m.in_channels for m in net.modules() if isinstance(m, convolutions)]
    guesses = [*taken[:1], 3, sum(sorted(taken)[:2]), *sorted(taken)]
    return [count for count in dict.fromkeys(guesses) if count][:MOST_GUESSES]


def on_noise(
    net: nn.Module, channels: Iterable[int], size: tuple[int, int], run: Callable[[Tensor], T]
) -> tuple[int, T]:
    """Run on noise (2, C, *size) of as many channels as it takes.

    Returns:
        The first of ``channels`` with which ``run`` raises no ValueError, and what it gave.

    Raises:
        ValueError: it raised one with each; this is the first.
    """
    errors = []
    for count in channels:
        drawn = torch.Generator("cpu")
        shape = (2, count, *size)
        noise = torch.rand(shape, generator=drawn, dtype=torch.float32, device="cpu")
        try:
            return count, run(noise.to(float_parameter(net).device))
        except ValueError as error:
            errors.append(error)
    raise errors[0]


def channels_of(net: nn.Module, images: Tensor, guess: int) -> int:
    """How many channels the first images for a net have, where it runs on them; else the guess."""
    if not isinstance(images, Tensor) or images.ndim != 4 or images.shape[1] == guess:
        return guess
    few = torch.zeros_like(images[:2], dtype=torch.float32)
    return images.shape[1] if len(few) and takes(copy_net(net), few) else guess
