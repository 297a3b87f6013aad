"""Notices gradients that are never cleared."""

from collections import defaultdict
from collections.abc import Iterable
from itertools import chain, pairwise

from torch import Tensor, nn

from byol_wrap.guard.later import Later
from byol_wrap.guard.look import norms, weights
from byol_wrap.guard.parts import parts

LOOKS = 12  # at a parameter's gradient, when the first losses go backward
STEPS = 8  # of the optimizer among them, after which nothing was cleared

MESSAGE = (
    "Gradients of the {} are added up from step to step: call optimizer.zero_grad() before "
    "loss.backward(), or after optimizer.step(), of an optimizer that holds all of the learner, or "
    "learner.zero_grad()."
)


class GradientsWatch:
    """Looks at each part's smallest weight whenever gradients of a loss begin to be taken.

    What is added up on purpose is not stepped with in between, or is cleared after a step.
    """

    def __init__(self) -> None:
        self._parameters: dict[str, Tensor] | None = None
        self._looks: list[tuple[list[str], Later | None]] = []  # of those that had a gradient
        self._is_done = False

    def follow(self, loss: Tensor, learner: nn.Module) -> None:
        """Look when gradients of a learner's loss are taken."""
        if len(self._looks) >= LOOKS or not loss.requires_grad:
            return
        if self._parameters is None:
            named = {name: _smallest(part) for name, part in parts(learner).items()}
            self._parameters = {name: p for name, p in named.items() if p is not None}
        if self._parameters:
            loss.register_hook(self._look)

    def _look(self, gradient: Tensor) -> None:
        there = {
            name: (parameter, parameter.grad)
            for name, parameter in (self._parameters or {}).items()
            if parameter.grad is not None and not parameter.grad.is_sparse
        }
        self._looks.append((list(there), norms(list(chain(*there.values()))) if there else None))

    def never_cleared(self) -> str:
        """What to say, when a training step begins; "" where nothing is to be said."""
        if len(self._looks) < LOOKS or self._is_done:
            return ""
        if not all(later is None or later.has_come for _, later in self._looks):
            return ""
        self._is_done = True
        seen: dict[str, list[tuple[float, float]]] = defaultdict(list)  # sizes, with its gradient's
        for names, later in self._looks:
            read = [] if later is None else later.read()
            for name, size, gradient in zip(names, read[::2], read[1::2], strict=True):
                seen[name].append((size, gradient))
        kept = [name for name, looks in seen.items() if _are_kept(looks)]
        return MESSAGE.format(" and the ".join(kept)) if kept else ""


def _are_kept(looks: list[tuple[float, float]]) -> bool:
    """Whether gradients were there at all looks but the first, although there were steps."""
    if len(looks) < LOOKS - 1:
        return False
    stepped = [now for before, now in pairwise(looks) if before[0] != now[0]]
    return len(stepped) >= STEPS and all(gradient > 0 for _, gradient in stepped)


def smallest(learner: nn.Module) -> Tensor | None:
    """The smallest of the weights that are trained, if it can be looked at without a wait."""
    return _smallest(chain(*parts(learner).values()))


def _smallest(part: Iterable[Tensor]) -> Tensor | None:
    return min(weights(part), key=Tensor.numel, default=None)
