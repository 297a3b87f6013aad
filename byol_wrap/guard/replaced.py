"""Notices parameters of the net that were replaced, while an optimizer trains the old ones."""

from torch import nn

from byol_wrap.guard.optimizers import held
from byol_wrap.guard.parts import NET, parts

LOOK_EVERY = 20  # training steps

MESSAGE = (
    "The optimizer holds parameters that the net no longer has, and none of those that came in "
    "their place, as after load_state_dict(..., assign=True) or where a layer is replaced: what it "
    "trains is not used. Build it anew, from learner.parameters()."
)


class ReplacedWatch:
    """Looks now and then whether the net has the parameters that it had."""

    def __init__(self) -> None:
        self._steps = 0
        self._known: set[int] = set()

    def replaced(self, learner: nn.Module) -> str:
        """What to say, when a training step begins; "" where nothing is to be said."""
        self._steps += 1
        if (self._steps - 1) % LOOK_EVERY:
            return ""
        before, self._known = self._known, set(map(id, parts(learner).get(NET, [])))
        gone, new = before - self._known, self._known - before
        if not gone or not new:
            return ""
        trained = {id(parameter) for parameter, _ in held()}
        return MESSAGE if gone & trained and not new & trained else ""
