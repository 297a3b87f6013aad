"""Notices a pretrained net that leaves its weights faster than is good for it."""

import torch
from torch import Tensor, nn

from byol_wrap.guard.later import Later
from byol_wrap.guard.look import weights

WINDOW = 20  # training steps
BEGINS = (1, 101, 501)  # at which steps a window begins: rates may have to warm up
TOO_FAR = 0.03  # of a layer's own size, in a window; see "Never worse" in RESULTS.md
LAYERS, LARGEST = 16, 2**22  # how many are compared; values of the largest


class Drift:
    """How far a net's weights move in the first steps, the median over its layers.

    Weights are kept for the length of a window, and read without waiting for the device.
    """

    def __init__(self) -> None:
        self._steps = 0
        self._kept: list[tuple[Tensor, Tensor]] = []
        self._look: Later | None = None

    def too_far(self, net: nn.Module) -> float | None:
        """A training step begins.

        Returns:
            The relative distance that a window's weights moved, where it is over ``TOO_FAR``.
        """
        self._steps += 1
        if self._steps in BEGINS:
            self._kept = [(weight, weight.detach().clone()) for weight in compared(net)]
        elif self._kept and self._steps - WINDOW in BEGINS:
            self._look, self._kept = Later([moved(self._kept)]), []
        if self._look is None or not self._look.has_come:
            return None
        (far,), self._look = self._look.read(), None
        return far if far > TOO_FAR else None


def compared(net: nn.Module) -> list[Tensor]:
    """Weights that train, from all over the net."""
    trained = weights(p for p in net.parameters() if p.requires_grad)
    small = [weight for weight in trained if weight.numel() <= LARGEST]
    return small[:: max(1, -(-len(small) // LAYERS))]


@torch.no_grad()
def moved(kept: list[tuple[Tensor, Tensor]]) -> Tensor:
    """The median over weights of how far each is from what was kept of it, relative to its norm."""
    distances = [
        (weight.float() - old.float()).norm() / old.float().norm().clamp(min=1e-12)
        for weight, old in kept
        if weight.device == old.device
    ]
    if not distances:
        return torch.zeros(())
    return torch.stack([distance.to(distances[0].device) for distance in distances]).median()


def drift_message(far: float) -> str:
    """What to say of it."""
    return (
        f"The net was pretrained, and its layers have moved by {100 * far:.0f} % in {WINDOW} "
        "steps: its rate is too high, which costs such a net more than training brings. Use "
        "training_recipe(net, image_size, steps=...) and its optimizer(learner), or give the net "
        "a rate of its own: param_groups(learner, 1e-4, rates={learner.net: 1e-4}). If it was not "
        "pretrained, say so: pretrained=False."
    )
