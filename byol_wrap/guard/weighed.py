"""Notices a loss whose negative is taken, or whose small gradients float16 loses."""

import math

import torch
from torch import Tensor, nn

from byol_wrap.guard.later import Later

LOOK_EVERY, LOOKS = 5, 6  # losses that gradients are taken of, and looks at them, the first ones
MOST = 0.8  # of the looks: at the very first a loss's sign may be another

UNSCALED_MESSAGE = (
    "Training runs in float16 without a scaled loss: gradients under 6e-8 become 0 on their way. "
    "Use torch.autocast(..., dtype=torch.bfloat16), or torch.amp.GradScaler: "
    "scaler.scale(loss).backward(), scaler.step(optimizer), scaler.update()."
)


class WeighedWatch:
    """Looks at the gradients that reach the first losses: the weight that each has in what is left.

    A ``GradScaler`` makes it large, and batches that are added up divide it by their number.

    Attributes:
        usual: what most of them are at most; None before they are known.
    """

    def __init__(self) -> None:
        self.usual: float | None = None
        self._taken = 0
        self._looks: list[Later] = []
        self._in_half = True  # whether all of them were

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

    def told(self) -> str:
        """What to say, when a training step begins; "" where nothing is to be said."""
        if len(self._looks) < LOOKS or self.usual is not None:
            return ""
        if not all(look.has_come for look in self._looks):
            return ""
        weights = sorted(look.read()[0] for look in self._looks)
        self.usual = weights[math.ceil(MOST * LOOKS) - 1]
        return UNSCALED_MESSAGE if self._in_half and self.usual >= 0 and weights[-1] <= 1 else ""
