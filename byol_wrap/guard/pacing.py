"""Notices a target that is updated more often than its online network is."""

from itertools import chain

from torch import nn

from byol_wrap.guard.look import writes
from byol_wrap.guard.trained import parts

LOOKS = 40  # at updates by hand
SHARE = 0.4  # of them that find nothing changed are too many
FRESH = 5  # of them that follow a step, at least, for the others to be too many

MESSAGE = (
    "update_moving_average() is called more often than the optimizer steps: {} of {} updates found "
    "no weight changed, and each moves the target and counts. Call it after optimizer.step() "
    "alone, not after each batch that is added up; or learner.attach(optimizer) once."
)


class PacingWatch:
    """Looks whether weights were written between the first updates by hand."""

    def __init__(self) -> None:
        self._looks = 0
        self._stale = 0
        self._writes = -1

    def too_often(self, learner: nn.Module) -> str:
        """What to say when an update by hand was made; "" where nothing is to be said.

        Fused optimizers do not count what they write: of them nothing is said.
        """
        if self._looks >= LOOKS:
            return ""
        before = self._writes
        self._writes = sum(writes(chain(*parts(learner).values())))
        self._looks += 1
        self._stale += self._writes == before
        if self._looks < LOOKS or self._stale < SHARE * LOOKS or LOOKS - self._stale < FRESH:
            return ""
        return MESSAGE.format(self._stale, LOOKS)
