"""Notices weights that stand still although training goes on."""

from collections import deque
from typing import NamedTuple

from torch import Tensor, nn

from byol_wrap.guard.look import Sample, spread, weights
from byol_wrap.guard.optimizers import OptimizerSteps
from byol_wrap.guard.parts import parts

LOOK_EVERY = 20  # training steps
LOOKS = 8  # in a row between which an optimizer stepped and no weight moved
OF_A_PART = 2  # parameters that are looked at
STEPS = 20  # without any gradient, of an optimizer, or followed by updates by hand

NO_GRADIENT_MESSAGE = (
    "In {} steps no parameter of the learner had a gradient when {}, so nothing is trained: call "
    "loss.backward() on the loss that the learner gives, and no zero_grad() between that and "
    "optimizer.step(). A loss made anew of its number, such as torch.tensor(loss.item(), "
    "requires_grad=True), leads nowhere."
)
RATE_MESSAGE = (
    "For {} training steps no weight has moved: the optimizer's learning rate is 0. Call "
    "scheduler.step() after each optimizer.step(), if it is to rise. If the run has become longer "
    "than its scheduler was made for, stop, or plan the whole run with it."
)
LOST_MESSAGE = (
    "For {} training steps no weight has moved, although an optimizer steps at a learning rate of "
    "{:g}. Was the rate lowered by a scheduler that counts epochs and is stepped after each batch? "
    "Are the weights in half precision, which loses small steps (keep them in float32 and use "
    "torch.autocast)? Are all gradients 0, or is every step skipped by a GradScaler?"
)


class _Seen(NamedTuple):
    """What was there when a look was taken."""

    sample: Sample
    steps: int
    empty: int
    updates: int


class StillWatch:
    """Looks at a few values of the weights now and then, and what stands still more closely."""

    def __init__(self) -> None:
        self._looks: deque[_Seen] = deque()
        self._steps = 0
        self._backward = 0  # losses that gradients were taken of
        self._optimizers: OptimizerSteps | None = None  # while nothing moves
        self._still = self._stepped = self._empty = self._updates = 0

    def follow(self, loss: Tensor) -> None:
        """Notice when gradients of a loss are taken, where nothing moves."""
        if self._optimizers is not None and loss.requires_grad:
            loss.register_hook(self._goes_backward)

    def _goes_backward(self, gradient: Tensor) -> None:
        self._backward += 1

    def stands_still(self, learner: nn.Module, updates: int) -> str:
        """What to say, when a training step begins; "" where nothing is to be said.

        Args:
            learner: whose step it is.
            updates: how often the user has said that an optimizer stepped.
        """
        self._steps += 1
        if self._steps % LOOK_EVERY:
            return ""
        counted = self._optimizers
        steps, empty = (0, 0) if counted is None else (counted.count, counted.empty)
        # Biases near 0 are moved by steps that leave every weight as it is.
        named = parts(learner).values()
        chosen = (p for part in named for p in spread(weights(part) or part, OF_A_PART))
        self._looks.append(_Seen(Sample(chosen), steps, empty, updates))
        if len(self._looks) < 3:
            return ""
        before = self._looks.popleft()
        now = self._looks[0]  # the last but one, which has come by now
        moves = now.sample.moved(before.sample)
        if moves is None or any(moves):
            self._start_anew()
            return ""
        if counted is None:
            self._optimizers = OptimizerSteps(learner)
            self._looks.popleft()  # what comes after it counts
            return ""
        self._still += now.steps > before.steps
        self._stepped += now.steps - before.steps
        self._empty += now.empty - before.empty
        self._updates += now.updates - before.updates
        return self._judge(counted)

    def _start_anew(self) -> None:
        if self._optimizers is not None:
            self._optimizers.remove()
        self._optimizers = None
        self._still = self._stepped = self._empty = self._updates = self._backward = 0
        self._looks = deque(look._replace(steps=0, empty=0) for look in self._looks)

    def _judge(self, optimizers: OptimizerSteps) -> str:
        if self._stepped == self._empty >= STEPS:
            return NO_GRADIENT_MESSAGE.format(self._empty, "the optimizer stepped")
        if not self._stepped and not self._backward and self._updates >= STEPS:
            when = "update_moving_average() was called"
            return NO_GRADIENT_MESSAGE.format(self._updates, when)
        if self._still < LOOKS or self._stepped < STEPS:
            return ""
        rate = optimizers.rate
        steps = self._still * LOOK_EVERY
        return LOST_MESSAGE.format(steps, rate) if rate else RATE_MESSAGE.format(steps)
