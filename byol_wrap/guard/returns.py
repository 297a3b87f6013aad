"""Notices weights that come back to what they were, or are written anew, as training goes on."""

import math
from collections import deque
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from byol_wrap.guard.later import Later
from byol_wrap.guard.look import SMALLEST, spread, weights
from byol_wrap.guard.parts import NET, parts

READ_EVERY, CHOOSE_EVERY = 50, 200  # training steps, of each of which a few values are kept
LAYERS, VALUES = 2, 16  # layers that are looked at, and values of each
RETURNS, SPAN = 3, 24  # to the same weights, and over how many steps: less may be on purpose
CHANGED = 0.25  # of the values that a return puts back; rounding alone may put back a few
MOST = 8192  # earlier weights that are known; of more, every other one is forgotten
JUMP, USUAL = 0.5, 0.1  # of its size by which each layer changes in a jump, and around it at most

RETURNED_MESSAGE = (
    "{} times the net's weights came back to exactly what they were at step {}, the last time at "
    "step {} (of this process), so that what is learnt in between is lost. Is load_state_dict() "
    "called in the loop, or what sets them up? Call it once, before it. For several runs wrap the "
    "net anew each time, with a new optimizer."
)
JUMPED_MESSAGE = (
    "{} times, the last time at step {} (of this process), other weights were written into the "
    "net: from one step to the next its layers changed by half of their size or more, and hardly "
    "before and after, so that what was learnt before is lost. Is load_state_dict() called in the "
    "loop, or what sets the weights up? Call it once, before it."
)


class _Past:
    """What weights were, as far as is needed to know them again.

    Attributes:
        returns: how often those that have come back last were there again.
        since: when they were seen first.
    """

    def __init__(self) -> None:
        self.returns = self.since = 0
        self._first_seen: dict[int, int] = {}  # at which step, by what weights are known by
        self._returned: dict[int, int] = {}
        self._last: Sequence[float] = ()

    def has_come_back(self, values: list[float], step: int) -> bool:
        """Whether some values are what they were before they last changed."""
        before, self._last = self._last, values
        if before == values:
            return False
        known = hash(tuple(values))
        self.since = self._first_seen.setdefault(known, step)
        if len(self._first_seen) > MOST:
            self._first_seen = dict(list(self._first_seen.items())[::2])
        if self.since == step:
            return False
        changed = sum(a != b for a, b in zip(before, values, strict=False))
        if changed < CHANGED * len(values):
            return False
        self.returns = self._returned[known] = self._returned.get(known, 0) + 1
        return True


class _Jumps:
    """Steps at which the net was another than at the one before, and hardly moved around it."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self._last: list[float] = []
        self._before = self._jump = math.inf  # how far it moved in the last two steps

    def note(self, values: list[float], step: int) -> bool:
        """Take in some values of the net at a step; whether there was a jump at the one before."""
        last, self._last = self._last or values, values
        after = math.dist(last, values) / max(math.hypot(*last), SMALLEST)
        is_jump = self._jump >= JUMP and max(self._before, after) <= USUAL
        if is_jump:
            self.steps.append(step - 1)
        self._before, self._jump = self._jump, after
        return is_jump


class ReturnsWatch:
    """Keeps a few values of the net's weights at each step, and reads them now and then.

    What is put in for a while and taken out again, such as an average for a validation, is no
    return: no training step has seen yet what it takes the place of.
    """

    def __init__(self) -> None:
        self._steps = 0
        self._layers: list[Tensor] = []
        self._views: list[Tensor] = []  # of some values of each
        self._storages: list[int] = []  # that those are in
        self._now: list[Tensor] = []  # all those values, at each step
        self._taken: deque[tuple[int, Later]] = deque()  # and the first step that they are of
        self._past, self._jumps = _Past(), _Jumps()

    @torch.no_grad()
    def told(self, learner: nn.Module) -> str:
        """What to say, when a training step begins; "" where nothing is to be said."""
        told = self._read() if self._steps % READ_EVERY == 0 else ""
        if self._steps % CHOOSE_EVERY == 0:
            self._choose(learner)
        self._steps += 1
        storages = [layer.untyped_storage()._cdata for layer in self._layers]
        if storages != self._storages:  # as also after parameter.data = other
            self._views, self._storages = list(map(_some, self._layers)), storages
        if self._views:
            self._now.append(torch.cat(self._views))
        return told

    def _choose(self, learner: nn.Module) -> None:
        """Settle what is looked at; of other parameters than before nothing is known."""
        layers = spread(weights(parts(learner).get(NET, [])), LAYERS)
        layers = [layer for layer in layers if layer.device == layers[0].device]
        if list(map(id, layers)) != list(map(id, self._layers)):
            self._layers = layers
            self._past, self._jumps = _Past(), _Jumps()
            self._taken.clear()

    def _read(self) -> str:
        if self._now:
            self._taken.append((self._steps - len(self._now) + 1, Later(torch.cat(self._now))))
            self._now = []
        told = ""
        while self._taken and self._taken[0][1].has_come:
            first, later = self._taken.popleft()
            read, width = later.read(), sum(map(len, self._views))
            for step, start in enumerate(range(0, len(read), width), first):
                told = self._judge(read[start : start + width], step) or told
        return told

    def _judge(self, values: list[float], step: int) -> str:
        told, past, jumps = "", self._past, self._jumps.steps
        came_back = past.has_come_back(values, step)
        if came_back and past.returns >= RETURNS and step - past.since >= SPAN:
            told = RETURNED_MESSAGE.format(past.returns, past.since, step)
        if (
            self._jumps.note(values, step)
            and len(jumps) >= RETURNS
            and jumps[-1] - jumps[0] >= SPAN
        ):
            told = told or JUMPED_MESSAGE.format(len(jumps), jumps[-1])
        return told


def _some(layer: Tensor) -> Tensor:
    """Some values from all over a layer, in whatever order they are stored; a view."""
    there = layer.untyped_storage().nbytes() // layer.element_size() - layer.storage_offset()
    stride = -(-layer.numel() // VALUES)
    return layer.as_strided((-(-min(layer.numel(), there) // stride),), (stride,))
