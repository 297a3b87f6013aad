"""The one watch on training: it sees each step, and gives every warning, each once."""

import math
from collections.abc import Sequence, Set

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from byol_wrap.evaluation.health import Outputs
from byol_wrap.guard.alike import AlikeWatch
from byol_wrap.guard.batches import BatchesWatch
from byol_wrap.guard.collapse import CollapseWatch, Run, message
from byol_wrap.guard.drift import Drift, drift_message
from byol_wrap.guard.inputs import check_loss
from byol_wrap.guard.look import is_plain, writes
from byol_wrap.guard.no_grad import NoGradWatch
from byol_wrap.guard.optimizers import in_no_optimizer
from byol_wrap.guard.pacing import PacingWatch
from byol_wrap.guard.pairs import PairsWatch
from byol_wrap.guard.parts import NET, parts
from byol_wrap.guard.trained import HEADS_MESSAGE
from byol_wrap.guard.weights import WeightsWatch
from byol_wrap.warning import warn

STEPS_WITHOUT_UPDATE = 100  # after how many a learner says that its target stands still
WHEN_ATTACHED = 5  # times as many, since an attached optimizer may add up many batches to a step
TOO_LONG = 1.1, 10  # times total_steps, and steps: more than a run that was miscounted a little

MOVED_MESSAGE = (
    "The learner was attached to another optimizer, whose steps no longer move the target: those "
    "of the one that is given now do."
)


class Watch:
    """Counts a learner's training steps and updates, and looks at what comes out of them.

    A training step is a loss with gradient, whatever mode a flag is in. A copy of a learner starts
    to watch anew, and gives its own warnings.
    """

    def __init__(self) -> None:
        self._warned: set[str] = set()
        self._steps = 0
        self._steps_since_update = 0
        self._updates = 0
        self._in_training = False
        self._eval_writes: int | None = None  # of the net's, when a step in eval mode began
        self._collapse = CollapseWatch()
        self._drift = Drift()
        self._weights = WeightsWatch()
        self._pacing = PacingWatch()
        self._alike = AlikeWatch()
        self._pairs = PairsWatch()
        self._batches = BatchesWatch()
        self._no_grad = NoGradWatch()
        self._key: Tensor | None = None
        self._seen: list[tuple[Tensor, Tensor]] = []

    def __reduce__(self) -> tuple[type["Watch"], tuple[()]]:
        return Watch, ()

    def warn(self, about: str, message: str) -> None:
        """Give a warning, unless it was given already."""
        if about not in self._warned:
            self._warned.add(about)
            warn(message)

    # What came out of the networks

    def forget_batch(self) -> None:
        """A new batch begins."""
        self._seen = []
        self._key = None

    def saw(self, representation: Tensor, projection: Tensor) -> None:
        """Note what the online network makes of one view of a batch."""
        both = representation.detach(), projection.detach()
        self._seen = [*self._seen[-7:], both]  # a new list: PyTorch 2.5 compiles no deque

    @property
    def outputs(self) -> Outputs | None:
        """What it made of the last batch; None before the first."""
        if not self._seen:
            return None
        representation2 = self._seen[1][0] if len(self._seen) > 1 else None
        return Outputs(self._seen[0][0], representation2, self._seen[0][1])

    def saw_key(self, key: Tensor) -> None:
        """Note what a target makes of the second view, where that is all that is made of it."""
        self._key = key.detach()

    def pair(
        self, images: Tensor | Sequence[Tensor], view1: Tensor, view2: Tensor, learner: nn.Module
    ) -> None:
        """Two views are to be trained on, made of images; views that are given are images."""
        self._no_grad.with_gradient()
        self._weights.apart.saw(images)
        told = self._batches.told(images, view1, view2)
        if told and self._warned.isdisjoint(("alike", "flat", "images", "views")):
            self.warn(*told)
        if same := self._pairs.is_same(view1, view2):
            self.warn("alike", same)
        if images is not view1 and (repeated := self._pairs.is_repeated()):
            self.warn("repeated", repeated)
        if few := self._pairs.are_few(len(view1), learner):
            self.warn("few", few)

    # What happens in training

    def without_gradient(self, learner: nn.Module) -> None:
        """A loss without gradient begins."""
        if untrained := self._no_grad.told(learner, self._updates):
            self.warn("no_grad", untrained)

    def wrapped(self, net: nn.Module) -> None:
        """A target was made of a net as it is now."""
        self._alike.wrapped(net)

    def step(self, run: Run, learner: nn.Module, net: nn.Module) -> None:
        """A loss with gradient begins; what the one before it left is looked at."""
        self._in_training = learner.training
        if not self._is_training(learner, net):
            return
        self._steps += 1
        self._steps_since_update += 1
        self._pacing.begins(learner)
        limit = STEPS_WITHOUT_UPDATE * (1 if run.optimizer is None else WHEN_ATTACHED)
        still = self._steps_since_update > limit and "still" not in self._warned
        if still and (tau := run.tau) is not None and tau < 1:
            self.warn(
                "still",
                f"The target network has not been updated for {limit} training steps: call "
                "learner.update_moving_average() after optimizer.step(), or "
                "learner.attach(optimizer) once.",
            )
        if run.pretrained and (far := self._drift.too_far(net)) is not None:
            self.warn("drift", drift_message(far))
        if run.decay is not None and (replaced := self._alike.replaced(learner, net)):
            self.warn("replaced", replaced)
        updates = self._updates if run.optimizer is None else 0
        for about, told in self._weights.told(learner, updates, is_pretrained=run.pretrained):
            if told:
                self.warn(about, told)
        outputs = self.outputs
        if outputs is None:
            return
        both = outputs.representation1, outputs.representation2
        if self._key is not None:
            both = outputs.projection1, self._key
        strangers = self._pairs.are_strangers(*both)
        if strangers and "collapse" not in self._warned and not self._batches.are_lost:
            self.warn("strangers", strangers)
        if self._collapse.look(outputs):
            self._warn_of_collapse(run, len(outputs.representation1))

    def _warn_of_collapse(self, run: Run, batch_size: int) -> None:
        found = self._collapse
        if found.not_finite:
            self._warn_of_not_finite("The features", self._steps - 1)
        elif (found.is_collapsed or found.is_narrow) and not self._batches.are_lost:
            self.warn("collapse", message(found, run, self._steps_since_update, batch_size))

    def lost(self, loss: Tensor, learner: nn.Module) -> None:
        """A training step has its loss, which is looked at where that is no wait.

        Raises:
            TypeError, ValueError, RuntimeError: it is none that can be trained with.
        """
        check_loss(loss, trains=self._in_training)
        self._weights.follow(loss, learner)
        if _is_readable(loss) and not _is_finite(loss):
            self._warn_of_not_finite("The loss", self._steps)

    def may_follow(self, head: nn.Module) -> bool:
        """Whether the target may follow: not where the online network is known to be lost.

        A gradient that is not finite reaches the last weights of a head first.
        """
        last = list(head.parameters())[-1:]
        if not last or not _is_readable(last[0]) or _is_finite(last[0].sum()):
            return True
        self._warn_of_not_finite("The weights of the heads", self._steps)
        return False

    def updated(self, step: int | None, total_steps: int | None) -> None:
        """The target was moved, if there is one; ``step`` times in all where the host knows it."""
        self._steps_since_update = 0
        self._updates += 1
        self._weights.updated()
        times, more = TOO_LONG
        if step is None or total_steps is None:
            return
        if step > max(times * total_steps, total_steps + more):
            self.warn(
                "total_steps",
                f"The target has had {step} updates, but total_steps={total_steps}: since then tau "
                "is 1, and the target stands still. Give total_steps the number of optimizer steps "
                "of the whole run.",
            )

    def updated_by_hand(self, learner: nn.Module) -> None:
        """The user has said that the optimizer has stepped."""
        if not self._no_grad.losses and (too_often := self._pacing.too_often(learner)):
            self.warn("pacing", too_often)

    def moved(self) -> None:
        """It was attached to another optimizer before, which is told as often as it happens."""
        warn(MOVED_MESSAGE)

    def attached(self, learner: nn.Module, trained: Set[int]) -> None:
        """An optimizer is to move the target, and trains the parameters of these ids."""
        heads = {name: part for name, part in parts(learner).items() if name != NET}
        left = {name: part for name, part in heads.items() if trained.isdisjoint(map(id, part))}
        if names := in_no_optimizer(left):
            self.warn("heads", HEADS_MESSAGE.format(" and the ".join(names)))

    def _is_training(self, learner: nn.Module, net: nn.Module) -> bool:
        """Whether a loss with gradient is one of training; warn where that happens in eval mode.

        In eval mode it is where the weights have changed since the last one. BatchNorm layers alone
        in eval mode are another thing: people freeze them on purpose.
        """
        if learner.training and net.training:
            self._eval_writes = None
            return True
        before, self._eval_writes = self._eval_writes, sum(writes(net.parameters())) + self._updates
        if before is None or self._eval_writes == before:
            return learner.training
        which = "learner" if not learner.training else "learner.net"
        self.warn(
            "eval",
            f"The net is trained while {which} is in eval mode, left there by a validation pass or "
            "before it was wrapped? Without the batch's BatchNorm statistics training can "
            f"collapse: call {which}.train() before it. To keep BatchNorm as it is on purpose, put "
            "those layers alone in eval mode.",
        )
        return True

    def _warn_of_not_finite(self, what: str, step: int) -> None:
        self.warn(
            "finite",
            f"{what} ceased to be finite at about step {step} (of this process). Unless a "
            "GradScaler skips that step, training is lost: go back to a checkpoint before it, with "
            "a lower learning rate, bfloat16 in place of float16, or gradients clipped "
            "(torch.nn.utils.clip_grad_norm_). The target does not follow weights that are seen "
            "to be lost.",
        )


def _is_readable(tensor: Tensor) -> bool:
    """Whether a value can be read without a wait: of a plain tensor on the CPU."""
    return tensor.device.type == "cpu" and not is_lazy(tensor) and is_plain(tensor)


def _is_finite(scalar: Tensor) -> bool:
    value: float = scalar.reshape(1).tolist()[0]
    return math.isfinite(value)
