"""Notices weights that hardly move, so that nothing is learnt in any number of steps."""

from collections.abc import Iterable

from torch import nn
from torch.optim import Optimizer

from byol_wrap.guard.look import Sample, spread, weights
from byol_wrap.guard.optimizers import rates
from byol_wrap.guard.parts import NET, parts

FIRST, SPAN = 11, 150  # the step whose weights are kept; they are judged so much later
OF_A_PART = 3  # weights that are looked at
LITTLE, NOTHING = 5e-4, 1e-7  # of their size; sound runs move them by 1 % and more
HEADS_ALONE = 3  # spans in which heads may learn alone
FALLEN, RISEN = 0.01, 1.2  # times what it was: between them a rate is the same

LITTLE_MESSAGE = (
    "In {} training steps no weight has moved by more than {:.1g} of its size: at this pace "
    "nothing is learnt. The learning rate is {:g} (0.03 is usual for SGD, 1e-3 for AdamW). Are "
    "gradients clipped before scaler.unscale_(optimizer), or to a tiny norm? Is the loss "
    "multiplied by a tiny number?"
)
NET_MESSAGE = (
    "In {} training steps the net has not moved at all, while the heads have: its learning rate is "
    "0, or next to it. The heads alone are not what is kept; give the net a rate."
)


class LittleWatch:
    """Compares a few weights with what they were, a few times, while rates are much the same."""

    def __init__(self) -> None:
        self._steps = 0
        self._looks = 0
        self._is_done = False
        self._names: list[str] = []
        self._kept: Sample | None = None
        self._now: Sample | None = None
        self._rate = 0.0

    def told(
        self, learner: nn.Module, optimizers: Iterable[Optimizer], *, is_pretrained: bool
    ) -> str:
        """What to say, when a training step begins; "" where nothing is to be said."""
        self._steps += 1
        if self._is_done or (self._steps - FIRST) % SPAN:
            return self._judge(is_pretrained=is_pretrained) if self._now else ""
        rate = max(rates(optimizers), default=0.0)
        sample = self._sample(learner)
        if self._kept is None or not FALLEN * self._rate <= rate <= RISEN * self._rate or rate == 0:
            self._kept, self._rate, self._looks = sample, rate, 0
        else:
            self._now = sample
        return ""

    def _sample(self, learner: nn.Module) -> Sample:
        chosen = [
            (name, parameter)
            for name, part in parts(learner).items()
            for parameter in spread(weights(part), OF_A_PART)
        ]
        self._names = [name for name, _ in chosen]
        return Sample(parameter for _, parameter in chosen)

    def _judge(self, *, is_pretrained: bool) -> str:
        if self._now is None or self._kept is None or not self._now.has_come:
            return ""
        moves, self._now, self._looks = self._now.moved(self._kept), None, self._looks + 1
        self._is_done = self._looks == HEADS_ALONE
        if not moves or len(moves) != len(self._names):
            return ""
        if max(moves) < LITTLE:
            return LITTLE_MESSAGE.format(SPAN, max(moves), self._rate)
        of_net = [move for name, move in zip(self._names, moves, strict=True) if name == NET]
        if self._is_done and of_net and max(of_net) < NOTHING and not is_pretrained:
            return NET_MESSAGE.format(HEADS_ALONE * SPAN)
        return ""
