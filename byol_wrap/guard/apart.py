"""Notices processes of a group of which each trains weights of its own."""

import itertools
import json
import math

import torch.distributed as dist
from torch import nn

from byol_wrap.guard.look import Sample, spread, weights
from byol_wrap.guard.parts import NET, parts

AT = 60  # the training step whose weights are compared
LOOK_EVERY, UNTIL = 20, 460  # steps, to see whether the others have come there, too
LAYERS = 3
APART = 1e-5  # of their size; gradients that are averaged keep weights equal

MESSAGE = (
    "In this group of {} processes each trains weights of its own: after {} steps they differ by "
    "{:.1g} of their size. Gradients are averaged only by a DistributedDataParallel through which "
    "the loss is computed: wrap the learner, parallel = DistributedDataParallel(learner), and call "
    "loss = parallel(images). One around the net alone does nothing here."
)


class ApartWatch:
    """Compares a few weights with those of another process, through the group's store.

    Nothing is waited for, and no collective is called: processes need not be in step.
    """

    _compared = itertools.count()  # the same in all processes, as far as they do the same

    def __init__(self) -> None:
        self._steps = 0
        self._sample: Sample | None = None
        self._key = ""  # what the values are kept under, once they are

    def apart(self, learner: nn.Module) -> str:
        """What to say, when a training step begins; "" where nothing is to be said."""
        self._steps += 1
        if self._steps % LOOK_EVERY or self._steps > UNTIL or not _in_group():
            return ""
        if self._steps == AT:
            layers = spread(weights(parts(learner).get(NET, [])), LAYERS)
            self._sample = Sample(layers) if layers else None
        elif self._sample is not None and self._sample.has_come:
            return self._compare(self._sample.read())
        return ""

    def _compare(self, own: list[float]) -> str:
        store, rank = dist.distributed_c10d._get_default_store(), dist.get_rank()
        if not self._key:
            self._key = f"byol_wrap/{next(self._compared)}"
            store.set(f"{self._key}/{rank}", json.dumps(own))
        other = f"{self._key}/{int(rank == 0)}"
        if not store.check([other]):
            return ""
        self._sample, theirs = None, json.loads(store.get(other))
        if len(theirs) != len(own):
            return ""
        apart = math.dist(own, theirs) / max(math.hypot(*own), 1e-12)
        return MESSAGE.format(dist.get_world_size(), AT, apart) if apart > APART else ""


def _in_group() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
