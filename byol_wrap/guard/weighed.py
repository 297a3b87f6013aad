"""Notices a loss that is maximised, or whose small gradients float16 loses."""

import torch
from torch import Tensor, nn

from byol_wrap.guard.later import Later

LOOK_EVERY, LOOKS = 5, 6  # losses that gradients are taken of, and looks at them, the first ones

NEGATED_MESSAGE = (
    "The loss is maximised: for {} losses backward() was called on its negative, or on a term in "
    "which its weight is negative. Every method's loss is to be minimised, also where its values "
    "are negative."
)
UNSCALED_MESSAGE = (
    "Training runs in float16 without a scaled loss: gradients under 6e-8 become 0 on their way. "
    "Use torch.autocast(..., dtype=torch.bfloat16), or torch.amp.GradScaler: "
    "scaler.scale(loss).backward(), scaler.step(optimizer), scaler.update()."
)


class WeighedWatch:
    """Looks at the gradients that reach the first losses: the weight that each has in what is left.

    A ``GradScaler`` makes it large, and batches that are added up divide it by their number.
    """

    def __init__(self) -> None:
        self._taken = 0
        self._looks: list[Later] = []
        self._in_half = True  # whether all of them were
        self._is_done = False

    def follow(self, loss: Tensor, learner: nn.Module) -> None:
        """Look when gradients of a learner's loss are taken."""
        if len(self._looks) >= LOOKS or not loss.requires_grad:
            return
        kind = loss.device.type
        casts = torch.is_autocast_enabled(kind)
        own = next(learner.parameters()).dtype
        in_half = (torch.get_autocast_dtype(kind) if casts else own) == torch.float16

        def look(gradient: Tensor) -> None:
            self._taken += 1
            if self._taken % LOOK_EVERY == 0 and len(self._looks) < LOOKS:
                self._looks.append(Later([gradient.detach().reshape(())]))
                self._in_half &= in_half

        loss.register_hook(look)

    def told(self) -> tuple[str, str] | None:
        """What to warn of, a subject and a message, when a training step begins."""
        if len(self._looks) < LOOKS or self._is_done:
            return None
        if not all(look.has_come for look in self._looks):
            return None
        weights, self._is_done = [look.read()[0] for look in self._looks], True
        if max(weights) < 0:
            return "negated", NEGATED_MESSAGE.format(LOOKS * LOOK_EVERY)
        if self._in_half and max(weights) <= 1:
            return "unscaled", UNSCALED_MESSAGE
        return None
