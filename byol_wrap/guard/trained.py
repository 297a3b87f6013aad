"""Notices which parts of a learner no optimizer trains."""

from torch import Tensor, nn

from byol_wrap.guard.look import WITHOUT_WAIT, Look
from byol_wrap.guard.optimizers import OptimizerSteps, held, in_no_optimizer
from byol_wrap.guard.parts import NET, parts

HEADS_AFTER, NET_AFTER = 10, 100  # losses that went backward, before a part is said to be left out

HEADS_MESSAGE = (
    "The optimizer does not train the {}. Unless another one does, build it from "
    "learner.parameters(), not from the net's."
)
NET_MESSAGE = (
    "The optimizer does not train the net: in {} steps its weights have not changed, and no "
    "optimizer holds them. Was it built from the heads alone, or before the net was changed? Build "
    "it from learner.parameters(), after that. To train the heads alone for a while, give the net "
    "a learning rate of 0."
)
NOTHING_MESSAGE = (
    "No optimizer trains the learner: in {} steps its weights have not changed, and no optimizer "
    "holds them. Was it built from another net, or from copies? Build it from "
    "learner.parameters(), after the learner."
)
STANDS_STILL_MESSAGE = (
    "In {} steps no weight has changed, although an optimizer holds them: call optimizer.step() "
    "after loss.backward()."
)
NEVER_STEPS_MESSAGE = (
    "The optimizer that holds the {} never steps: another one has taken {} steps meanwhile, which "
    "does not hold it. Call step() of both, or of the one that is built from learner.parameters()."
)


class TrainedWatch:
    """Compares the weights of a learner's parts after its first steps.

    A part that has not changed is left out only if no optimizer holds any of its parameters: rates
    that begin at 0, steps that are skipped and batches that are added up leave all as it is, too.
    """

    def __init__(self) -> None:
        self._backward = 0  # losses that gradients were taken of
        self._first: dict[str, Look] = {}
        self._now: dict[str, Look] = {}
        self._next = 1  # the number of such losses after which a look is due
        self._is_done = False

    def follow(self, loss: Tensor) -> None:
        """Notice when gradients of a loss are taken."""
        if not self._is_done and loss.requires_grad:
            loss.register_hook(self._goes_backward)

    def _goes_backward(self, gradient: Tensor) -> None:
        self._backward += 1

    def left_out(
        self, learner: nn.Module, stepped: int, steps: OptimizerSteps
    ) -> tuple[str, str] | None:
        """What to warn of, a subject and a message, when a training step begins.

        Args:
            learner: whose step it is.
            stepped: how often it seems that the user means an optimizer to have stepped.
            steps: those that optimizers have taken.
        """
        if self._is_done or (self._backward < self._next and not self._now):
            return None
        if not self._now:
            found = {name: part for name, part in parts(learner).items() if self._may_stand(name)}
            self._now = {name: Look(part, WITHOUT_WAIT) for name, part in found.items()}
            if not self._first:
                self._first, self._now, self._next = self._now, {}, 1 + HEADS_AFTER
                return None
        looks = [look for name in self._now for look in (self._first[name], self._now[name])]
        if not all(look.has_come for look in looks):
            return None
        still = {name for name, look in self._now.items() if look.is_like(self._first[name])}
        self._first, self._now = {name: self._first[name] for name in still}, {}
        last = self._next > HEADS_AFTER + 1
        self._next, self._is_done = 1 + NET_AFTER, last or not still
        everything = parts(learner)
        unmoved = {name: part for name, part in everything.items() if name in still}
        left = in_no_optimizer(unmoved)
        if NET not in left and left:
            self._is_done = True
            return "heads", HEADS_MESSAGE.format(" and the ".join(left))
        if last and left:
            message = NOTHING_MESSAGE if len(left) == len(everything) else NET_MESSAGE
            return "net", message.format(NET_AFTER)
        if last and steps.count >= HEADS_AFTER and (idle := _idle(unmoved, steps)):
            return "net", NEVER_STEPS_MESSAGE.format(" and the ".join(idle), steps.count)
        stands_still = stepped >= NET_AFTER // 2 and len(unmoved) == len(everything)
        if last and stands_still and (not steps.count or _has_rate(everything)):
            return "net", STANDS_STILL_MESSAGE.format(NET_AFTER)
        return None

    def _may_stand(self, name: str) -> bool:
        return not self._first or name in self._first


def _idle(parts: dict[str, list[Tensor]], steps: OptimizerSteps) -> list[str]:
    """Names of those parts that an optimizer holds, but none that has stepped."""
    known = {id(parameter) for parameter, _ in held()}
    are_held = {name: part for name, part in parts.items() if not known.isdisjoint(map(id, part))}
    return in_no_optimizer(are_held, steps.counts)


def _has_rate(parts: dict[str, list[Tensor]]) -> bool:
    """Whether an optimizer holds any of the parameters at a rate above 0."""
    known = {id(parameter) for part in parts.values() for parameter in part}
    return any(rate for parameter, rate in held() if id(parameter) in known)
