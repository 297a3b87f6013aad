"""Notices losses that are computed without gradients, although something is to be trained."""

from torch import nn

from byol_wrap.guard.optimizers import OptimizerSteps

LOSSES = 20  # in a row without gradients, before it is looked whether an optimizer steps
STEPS = 20  # of it, or updates by hand, from then on

MESSAGE = (
    "Nothing is trained: the last {} losses were computed without gradients, and yet {} followed. "
    "Were gradients switched off by torch.no_grad(), torch.inference_mode() or "
    "torch.set_grad_enabled(False), perhaps by a validation pass? Compute the loss outside of "
    "them. loss.requires_grad_() only hides the error that backward() gives."
)


class NoGradWatch:
    """Counts losses without gradients, and steps of optimizers that find none.

    A validation pass has losses without steps, and what else trains the net has gradients.

    Attributes:
        losses: how many there were since the last one with gradient.
    """

    def __init__(self) -> None:
        self.losses = 0
        self._optimizers: OptimizerSteps | None = None
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
            self._optimizers, self._updates = OptimizerSteps(learner), updates
        if self._optimizers is None or self._optimizers.count > self._optimizers.empty:
            return ""
        if self._optimizers.count >= STEPS:
            return MESSAGE.format(self.losses - 1, f"{self._optimizers.count} optimizer steps")
        if updates - self._updates >= STEPS:
            return MESSAGE.format(self.losses - 1, f"{updates - self._updates} updates")
        return ""
