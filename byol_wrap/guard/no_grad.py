"""Notices losses that are computed without gradients, although something is to be trained."""

from collections import deque

import torch
from torch import Tensor, nn

from byol_wrap.guard.look import Sample, spread
from byol_wrap.guard.optimizers import OptimizerSteps

LOSSES = 20  # in a row without gradients, before it is looked whether an optimizer steps
STEPS = 20  # of it, or updates by hand, from then on
LOOKED_AT = 2  # gradients

MESSAGE = (
    "Nothing is trained: the last {} losses were computed without gradients, and yet {} followed. "
    "Were gradients switched off by torch.no_grad(), torch.inference_mode() or "
    "torch.set_grad_enabled(False), perhaps by a validation pass? Compute the loss outside of "
    "them. loss.requires_grad_() only hides the error that backward() gives."
)


class _Gradients(OptimizerSteps):
    """Counts steps, and keeps a few values of the gradients that the last of them found."""

    def __init__(self, learner: nn.Module) -> None:
        super().__init__(learner)
        self._found: deque[Sample] = deque(maxlen=STEPS)

    def before(self, own: list[Tensor]) -> None:
        """Look at them."""
        there = [p.grad for p in own if p.grad is not None and p.grad.layout == torch.strided]
        self._found.append(Sample(spread(there, LOOKED_AT)))

    @property
    def are_old(self) -> bool:
        """Whether each optimizer found the same ones, such as 0 or none, in all those steps."""
        if len(self._found) < STEPS or not all(sample.has_come for sample in self._found):
            return False
        return len({tuple(sample.read()) for sample in self._found}) <= len(self.counts)


class NoGradWatch:
    """Counts losses without gradients, and steps of optimizers that find no new ones.

    A validation pass has losses without steps, and what else trains the net has gradients.

    Attributes:
        losses: how many there were since the last one with gradient.
    """

    def __init__(self) -> None:
        self.losses = 0
        self._optimizers: _Gradients | None = None
        self._updates = 0

    def with_gradient(self) -> None:
        """A loss with gradient begins."""
        if self._optimizers is not None:
            self._optimizers.remove()
        self.losses, self._optimizers = 0, None

    def told(self, learner: nn.Module, updates: int) -> str:
        """What to say, when a loss without gradient begins; "" where nothing is to be said.

        Args:
            learner: whose loss it is.
            updates: how often its target has been updated.
        """
        self.losses += 1
        if self.losses == LOSSES:
            self._optimizers, self._updates = _Gradients(learner), updates
        if self._optimizers is None:
            return ""
        steps, updated = self._optimizers.count, updates - self._updates
        if self._optimizers.are_old:
            return MESSAGE.format(self.losses - 1, f"{steps} optimizer steps")
        return (
            ""
            if steps or updated < STEPS
            else MESSAGE.format(self.losses - 1, f"{updated} updates")
        )
