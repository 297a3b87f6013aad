"""The one watch on training: it sees each step, and gives every warning, each once."""

import warnings
from collections import deque

from torch import Tensor, nn

from byol_wrap.evaluation.health import Outputs
from byol_wrap.guard.collapse import CollapseWatch, Run, message

STEPS_WITHOUT_UPDATE = 100  # after how many a learner says that its target stands still
LOOKS_BEFORE_WARNING = 10  # after how many it says that a head is left out of training


class Watch:
    """Counts a learner's training steps and updates, and looks at what comes out of them.

    A copy of a learner starts to watch anew, and gives its own warnings.
    """

    def __init__(self) -> None:
        self._warned: set[str] = set()
        self._steps_since_update = 0
        self._looks = 0  # at the heads
        self._writes = (0, 0)
        self._collapse = CollapseWatch()
        self._seen: deque[tuple[Tensor, Tensor]] = deque(maxlen=8)

    def __reduce__(self) -> tuple[type["Watch"], tuple[()]]:
        return Watch, ()

    def warn(self, about: str, message: str) -> None:
        """Give a warning, unless it was given already."""
        if about not in self._warned:
            self._warned.add(about)
            warnings.warn(message, UserWarning, stacklevel=3)

    # What came out of the networks

    def forget_batch(self) -> None:
        """A new batch begins."""
        self._seen.clear()

    def saw(self, representation: Tensor, projection: Tensor) -> None:
        """Note what the online network makes of one view of a batch."""
        self._seen.append((representation.detach(), projection.detach()))

    @property
    def outputs(self) -> Outputs | None:
        """What it made of the last batch; None before the first."""
        if not self._seen:
            return None
        representation2 = self._seen[1][0] if len(self._seen) > 1 else None
        return Outputs(self._seen[0][0], representation2, self._seen[0][1])

    # What happens in training

    def step(self, run: Run) -> None:
        """A training step begins; what the one before it left is looked at."""
        self._steps_since_update += 1
        still = self._steps_since_update > STEPS_WITHOUT_UPDATE
        if still and run.tau is not None and run.tau < 1:
            self.warn(
                "still",
                f"The target network has not been updated for {STEPS_WITHOUT_UPDATE} training "
                "steps: call learner.update_moving_average() after optimizer.step(), or "
                "learner.attach(optimizer) once.",
            )
        outputs = self.outputs
        ratios = None if outputs is None else self._collapse.collapsed(outputs)
        if outputs is not None and ratios is not None:
            batch_size = len(outputs.representation1)
            self.warn("collapse", message(ratios, run, self._steps_since_update, batch_size))

    def updated(self) -> None:
        """The target was moved."""
        self._steps_since_update = 0

    def look_at(self, net: nn.Module, head: nn.Module, name: str) -> None:
        """Notice where the net is trained, and a head has gradients that nobody uses."""
        self._looks += 1
        if self._looks not in (1, 1 + LOOKS_BEFORE_WARNING):
            return
        writes = _writes(net), _writes(head)
        if self._looks == 1:
            self._writes = writes
        elif writes[0] != self._writes[0] and writes[1] == self._writes[1] and _has_gradient(head):
            self.untrained(name)

    def untrained(self, name: str) -> None:
        """The optimizer leaves a head out."""
        self.warn(
            "heads",
            f"The optimizer does not train the {name}. Unless another one does, build it from "
            "learner.parameters(), not from the net's.",
        )


def _has_gradient(module: nn.Module) -> bool:
    return any(parameter.grad is not None for parameter in module.parameters())


def _writes(module: nn.Module) -> int:
    """How often a module's parameters were written in place; fused optimizers do not count."""
    return sum(parameter._version for parameter in module.parameters())
