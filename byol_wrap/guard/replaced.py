"""Notices parameters that were replaced, while an optimizer trains the old ones."""

from torch import nn

from byol_wrap.guard.optimizers import held
from byol_wrap.guard.parts import parts

LOOK_EVERY = 20  # training steps

MESSAGE = (
    "The optimizer holds parameters that the {} no longer has, and none of those that came in "
    "their place, as after load_state_dict(..., assign=True) or where a layer is replaced: what it "
    "trains is not used. Build it anew, from learner.parameters()."
)


class ReplacedWatch:
    """Looks now and then whether the learner's parts have the parameters that they had."""

    def __init__(self) -> None:
        self._steps = 0
        self._known: dict[str, set[int]] = {}

    def replaced(self, learner: nn.Module) -> str:
        """What to say, when a training step begins; "" where nothing is to be said."""
        self._steps += 1
        if (self._steps - 1) % LOOK_EVERY:
            return ""
        before = self._known
        self._known = {name: set(map(id, part)) for name, part in parts(learner).items()}
        for name, now in self._known.items():
            gone, new = before.get(name, now) - now, now - before.get(name, now)
            if gone and new:
                trained = {id(parameter) for parameter, _ in held()}
                if gone & trained and not new & trained:
                    return MESSAGE.format(name)
        return ""
