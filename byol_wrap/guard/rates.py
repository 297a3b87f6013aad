"""Notices learning rates that no run is meant to have."""

from collections.abc import Iterable

from torch.optim import Optimizer

from byol_wrap.guard.optimizers import rates

# Rates from which on runs are harmed, of optimizers of torch.optim; a fifth of them is large.
TOO_HIGH = {"Adam": 0.05, "AdamW": 0.05, "NAdam": 0.05, "RAdam": 0.05, "SGD": 3.0}
USUAL = {"SGD": 0.03}  # the others' is 1e-3
LOW, HIGH = 0.02, 0.5  # of the highest rate so far
RISES = 3  # from low to high
VANISHED, LONG = 1e-4, 100  # of the highest rate so far; training steps in a row
UNTIL = 1_500  # training steps in which rates are followed

TOO_HIGH_MESSAGE = (
    "{0}'s learning rate is {1:g}, at which weights are thrown about and nothing is learnt: {2:g} "
    "is usual for {0}."
)
RISES_MESSAGE = (
    "The learning rate has fallen to next to nothing and risen again {} times in {} training "
    "steps. Does the scheduler count epochs, as CosineAnnealingLR with T_max epochs does, while "
    "scheduler.step() is called after each batch? Plan it for all steps of the run, or call it "
    "once an epoch. Restarts on purpose are all right."
)
VANISHED_MESSAGE = (
    "The learning rate is {:g}, less than a ten thousandth of what it was, and training goes on, "
    "from which nothing comes any more. Does the scheduler count epochs, while scheduler.step() is "
    "called after each batch? Plan it for all steps of the run, or call it once an epoch."
)


class RatesWatch:
    """Follows the learning rates of a learner's optimizers in the first part of a run."""

    def __init__(self) -> None:
        self._steps = 0
        self._highest = 0.0
        self._is_low = False
        self._rises = self._vanished = 0

    def told(self, optimizers: Iterable[Optimizer]) -> tuple[str, str] | None:
        """What to warn of, a subject and a message, when a training step begins.

        Args:
            optimizers: those that step with the learner's parameters.
        """
        self._steps += 1
        if self._steps > UNTIL:
            return None
        kinds = rates(optimizers)
        if not kinds:
            return None
        rate = max(kinds)
        self._highest = max(self._highest, rate)
        return _too_high(rate, kinds[rate]) or self._vanishes(rate) or self._comes_back(rate)

    def _vanishes(self, rate: float) -> tuple[str, str] | None:
        self._vanished = self._vanished + 1 if 0 < rate < VANISHED * self._highest else 0
        return ("rate", VANISHED_MESSAGE.format(rate)) if self._vanished == LONG else None

    def _comes_back(self, rate: float) -> tuple[str, str] | None:
        if self._highest > 0 and rate <= LOW * self._highest:
            self._is_low = True
        elif self._is_low and rate >= HIGH * self._highest:
            self._is_low = False
            self._rises += 1
            if self._rises == RISES:
                return "rate", RISES_MESSAGE.format(RISES, self._steps)
        return None


def _too_high(rate: float, kind: type[Optimizer]) -> tuple[str, str] | None:
    name = kind.__name__
    is_known = kind.__module__.startswith("torch.optim.") and name in TOO_HIGH
    if not is_known or rate < TOO_HIGH[name]:
        return None
    return "too high", TOO_HIGH_MESSAGE.format(name, rate, USUAL.get(name, 1e-3))
