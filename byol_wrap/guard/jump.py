"""Notices weights that jump: written by others when training has begun, or thrown far by a step."""

from collections import deque

import torch
from torch import Tensor, nn

from byol_wrap.guard.drift import moved
from byol_wrap.guard.later import Later
from byol_wrap.guard.look import is_plain, spread, weights, writes
from byol_wrap.guard.parts import NET, parts

LOOK_EVERY = 20  # training steps: a window
LAYERS = 4  # that are looked at
USUAL = 10  # updates after which nobody wrote, before it is unusual that somebody does
REPLACED = 0.5  # of a layer's size, since the last look; the weights of another net are 1.4 away
THROWN = 30.0  # times its size, in a window; sound runs stay below 2
FROZEN, WINDOWS = 0.02, 5  # less than which is moved in each of so many windows

REPLACED_MESSAGE = (
    "At step {} (of this process) other weights were written into the net, after training had "
    "begun: its layers changed by {:.0f} % of their size. The target network was not changed, and "
    "teaches what the old weights were. Load weights before the first loss, or wrap the net anew "
    "after it, with a new optimizer; learner.load_state_dict() loads both networks."
)
THROWN_MESSAGE = (
    "At about step {} (of this process) the net's weights grew to {:.0f} times their size, and "
    "have hardly moved since: what they held is lost, and they are too large to learn anew. Start "
    "again with a lower learning rate (0.03 is usual for SGD, 1e-3 for AdamW), one that rises from "
    "0, or clipped gradients."
)


class JumpWatch:
    """Follows a few of a net's layers from window to window, and who writes them.

    How far they move is the median of what each moves, relative to its size.
    """

    def __init__(self) -> None:
        self._steps = 0
        self._kept: list[tuple[Tensor, Tensor]] = []  # layers, and what they were in the last look
        self._twins: list[Tensor] = []  # the target's, of the same names
        self._move: Later | None = None  # of the last window
        self._moves: deque[float] = deque(maxlen=WINDOWS + 2)
        self._left: tuple[list[int], list[int]] | None = None  # writes, when the target followed
        self._usual = 0  # updates in a row after which nobody wrote
        self._written: tuple[int, Later] | None = None  # the step, and how far

    def updated(self) -> None:
        """The target has followed the net."""
        self._left = writes(layer for layer, _ in self._kept), writes(self._twins)

    def jumped(self, learner: nn.Module) -> tuple[str, str] | None:
        """What to warn of, a subject and a message, when a training step begins."""
        self._steps += 1
        if self._is_written():
            self._written = self._steps, Later([moved(self._kept)])
        told = self._judge_written()
        if (self._steps - 1) % LOOK_EVERY == 0:
            told = self._judge_windows() or told
            self._look(learner)
        return told

    @torch.no_grad()
    def _look(self, learner: nn.Module) -> None:
        self._move = Later([moved(self._kept)]) if self._kept else None
        layers = spread(weights(parts(learner).get(NET, [])), LAYERS)
        copies = torch._foreach_mul(layers, 1.0) if layers else []
        self._kept = list(zip(layers, copies, strict=True))
        self._twins = _twins(learner, layers)

    def _is_written(self) -> bool:
        """Whether the net, not its target, was written to since, where nobody does usually."""
        if self._left is None or not self._twins:
            return False
        (net, target), self._left = self._left, None
        if writes(layer for layer, _ in self._kept) == net:
            self._usual += 1
            return False
        unusual, self._usual = self._usual >= USUAL, 0
        return unusual and writes(self._twins) == target

    def _judge_written(self) -> tuple[str, str] | None:
        if self._written is None or not self._written[1].has_come:
            return None
        (step, later), self._written = self._written, None
        (move,) = later.read()
        if move < REPLACED:
            return None
        return "written", REPLACED_MESSAGE.format(step, 100 * move)

    def _judge_windows(self) -> tuple[str, str] | None:
        if self._move is None or not self._move.has_come:
            self._moves.clear()
            return None
        self._moves += self._move.read()
        thrown, _, *after = self._moves if len(self._moves) > 1 else (0.0, 0.0)
        if len(after) < WINDOWS or thrown < THROWN or max(after) > FROZEN:
            return None
        step = self._steps - (WINDOWS + 3) * LOOK_EVERY
        return "thrown", THROWN_MESSAGE.format(step, thrown)


def _twins(learner: nn.Module, layers: list[Tensor]) -> list[Tensor]:
    """The target's layers that are copies of some of the net's; none where there is no target."""
    target = learner._modules.get("target")
    if target is None or not layers:
        return []
    twins = dict(target.get_submodule("net").named_parameters())
    net = learner.get_submodule("online").get_submodule("net")
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    found = [twins.get(names[id(layer)]) for layer in layers if id(layer) in names]
    return [twin for twin in found if twin is not None and is_plain(twin)]
