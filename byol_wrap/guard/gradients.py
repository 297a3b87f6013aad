"""Notices gradients that are never cleared."""

from itertools import chain, pairwise

from torch import Tensor, nn

from byol_wrap.guard.later import Later
from byol_wrap.guard.look import norms, weights
from byol_wrap.guard.parts import parts

LOOKS = 12  # at a parameter's gradient, when the first losses go backward
STEPS = 8  # of the optimizer among them, after which nothing was cleared

MESSAGE = (
    "Gradients are added up from step to step: call optimizer.zero_grad() before loss.backward(), "
    "or after optimizer.step()."
)


class GradientsWatch:
    """Looks at the smallest weight whenever gradients of a loss begin to be taken.

    What is added up on purpose is not stepped with in between, or is cleared after a step.
    """

    def __init__(self) -> None:
        self._parameter: Tensor | None = None
        self._looks: list[Later | None] = []  # None where there was no gradient

    def follow(self, loss: Tensor, learner: nn.Module) -> None:
        """Look when gradients of a learner's loss are taken."""
        if len(self._looks) >= LOOKS or not loss.requires_grad:
            return
        if self._parameter is None:
            self._parameter = smallest(learner)
        if self._parameter is not None:
            loss.register_hook(self._look)

    def _look(self, gradient: Tensor) -> None:
        assert self._parameter is not None
        values, there = self._parameter, self._parameter.grad
        if there is None or there.is_sparse:
            self._looks.append(None)
            return
        self._looks.append(norms([values, there]))

    def never_cleared(self) -> str:
        """What to say, when a training step begins; "" where nothing is to be said."""
        if len(self._looks) < LOOKS or self._parameter is None:
            return ""
        looks = [look for look in self._looks if look is not None]
        if not all(look.has_come for look in looks):
            return ""
        self._parameter = None
        if len(looks) < LOOKS - 1:  # there is none before the first
            return ""
        read = [look.read() for look in looks]
        stepped = [now for before, now in pairwise(read) if before[0] != now[0]]
        return MESSAGE if len(stepped) >= STEPS and all(grad > 0 for _, grad in stepped) else ""


def smallest(learner: nn.Module) -> Tensor | None:
    """The smallest of the weights that are trained, if it can be looked at without a wait."""
    return min(weights(chain(*parts(learner).values())), key=Tensor.numel, default=None)
