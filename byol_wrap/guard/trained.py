"""Notices which parts of a learner no optimizer trains."""

import gc
from collections.abc import Iterator, Sequence

from torch import Tensor, nn
from torch.optim import Optimizer

from byol_wrap.guard.look import WITHOUT_WAIT, Look, is_plain

NET = "net"
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
    "In {} steps no weight has changed, although an optimizer holds them, at a learning rate above "
    "0: call optimizer.step() after loss.backward()."
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

    def left_out(self, learner: nn.Module, updates: int) -> tuple[str, str] | None:
        """What to warn of, a subject and a message, when a training step begins.

        Args:
            learner: whose step it is.
            updates: how often the user has said that an optimizer stepped.
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
        still = [name for name, look in self._now.items() if look.is_like(self._first[name])]
        self._first, self._now = {name: self._first[name] for name in still}, {}
        last = self._next > HEADS_AFTER + 1
        self._next, self._is_done = 1 + NET_AFTER, last or not still
        told = self._judge(learner, still, last=last)
        stepped = updates >= NET_AFTER // 2
        if told is None and last and stepped and len(still) == len(now := parts(learner)):
            known = {id(parameter) for part in now.values() for parameter in part}
            rates = [rate for parameter, rate in held() if id(parameter) in known]
            return ("net", STANDS_STILL_MESSAGE.format(NET_AFTER)) if any(rates) else None
        return told

    def _may_stand(self, name: str) -> bool:
        return not self._first or name in self._first

    def _judge(
        self, learner: nn.Module, still: Sequence[str], *, last: bool
    ) -> tuple[str, str] | None:
        now = parts(learner)
        left = in_no_optimizer({name: now[name] for name in still if name in now})
        if NET not in left and left:
            self._is_done = True
            return "heads", HEADS_MESSAGE.format(" and the ".join(left))
        if not last or not left:
            return None
        everything = len(left) == len(now)
        return "net", (NOTHING_MESSAGE if everything else NET_MESSAGE).format(NET_AFTER)


def parts(learner: nn.Module) -> dict[str, list[Tensor]]:
    """What an optimizer should train, by the names of its parts: "net", "projector" and others."""
    behind = set(getattr(learner, "_ddp_params_and_buffers_to_ignore", ()))
    found: dict[str, list[Tensor]] = {}
    for name, parameter in learner.named_parameters():
        of_target = name.startswith("target.")
        if of_target or name in behind or not parameter.requires_grad:
            continue
        part = name.removeprefix("online.").partition(".")[0]
        found.setdefault(part, []).append(parameter)
    return found


def in_no_optimizer(parts: dict[str, list[Tensor]]) -> list[str]:
    """Names of those parts of which no optimizer, of all that there are, holds a parameter.

    An optimizer that holds other than plain tensors, such as shards, may hold anything.
    """
    if not parts:
        return []
    parameters = [parameter for parameter, _ in held()]
    if not all(map(is_plain, parameters)):
        return []
    known = {id(parameter) for parameter in parameters}
    return [name for name, part in parts.items() if known.isdisjoint(map(id, part))]


def held() -> Iterator[tuple[Tensor, float]]:
    """All parameters of all optimizers that are alive, with their learning rates."""
    for thing in gc.get_objects():
        if issubclass(type(thing), Optimizer):
            for group in getattr(thing, "param_groups", ()):
                rate = float(group.get("lr", 1))
                yield from ((parameter, rate) for parameter in group["params"])
