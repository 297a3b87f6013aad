"""Notices a target that is updated more often than its online network is, or by another one."""

from itertools import chain

from torch import nn

from byol_wrap.guard.look import writes
from byol_wrap.guard.parts import parts

LOOKS = 40  # at updates by hand
SHARE = 0.4  # of them that find nothing changed are too many
FRESH = 5  # of them that follow a step, at least, for the others to be too many

MESSAGE = (
    "update_moving_average() is called more often than the optimizer steps: {} of {} updates found "
    "no weight changed, and each moves the target and counts. Call it after optimizer.step() "
    "alone, not after each batch that is added up; or learner.attach(optimizer) once."
)
ELSEWHERE_MESSAGE = (
    "The learner is run with other parameters than its own, as torch.func.functional_call does, so "
    "that in {} of {} updates update_moving_average() found its own unchanged: the target follows "
    "what is not trained. Copy what is trained into the learner before each update, such as "
    "learner.load_state_dict(parameters, strict=False), and give the functional call the learner's "
    "own target."
)


class PacingWatch:
    """Looks whether weights were written between the first updates by hand."""

    def __init__(self) -> None:
        self._looks = 0
        self._stale = 0
        self._writes = -1
        self._run_with = 0  # whose id, when a step began
        self._elsewhere = 0

    def begins(self, learner: nn.Module) -> None:
        """A training step begins."""
        self._run_with = _first(learner)

    def too_often(self, learner: nn.Module) -> str:
        """What to say when an update by hand was made; "" where nothing is to be said.

        Fused optimizers do not count what they write: of them nothing is said.
        """
        if self._looks >= LOOKS:
            return ""
        before = self._writes
        self._writes = sum(writes(chain(*parts(learner).values())))
        self._looks += 1
        is_stale = self._writes == before
        self._stale += is_stale
        self._elsewhere += is_stale and self._run_with not in (0, _first(learner))
        if self._looks == LOOKS and self._elsewhere > LOOKS // 2:
            return ELSEWHERE_MESSAGE.format(self._elsewhere, LOOKS)
        if self._looks < LOOKS or self._stale < SHARE * LOOKS or LOOKS - self._stale < FRESH:
            return ""
        return MESSAGE.format(self._stale, LOOKS)


def _first(learner: nn.Module) -> int:
    return id(next(learner.parameters()))
