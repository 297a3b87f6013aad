"""Notices processes of a group that train weights of their own, or all on the same images."""

import itertools
import json
import math
from collections.abc import Sequence

import torch.distributed as dist
from torch import Tensor, nn

from byol_wrap.guard.batches import by_row, marks
from byol_wrap.guard.later import Later
from byol_wrap.guard.look import Sample, spread, weights
from byol_wrap.guard.parts import NET, parts

AT = 60  # the training step whose weights are compared
LOOK_EVERY, UNTIL = 20, 460  # steps, to see whether the others have come there, too
LAYERS = 3
APART = 1e-5  # of their size; gradients that are averaged keep weights equal
SHARED = 0.9  # of a batch: images that another process has, too

MESSAGE = (
    "In this group of {} processes each trains weights of its own: after {} steps they differ by "
    "{:.1g} of their size. Gradients are averaged only by a DistributedDataParallel through which "
    "the loss is computed: wrap the learner, parallel = DistributedDataParallel(learner), and call "
    "loss = parallel(images). One around the net alone does nothing here."
)
SHARED_MESSAGE = (
    "All processes of this group of {} seem to draw the same images: {} of {} in the batch of step "
    "{} were in another process's, too. So that each sees others, give the loader a "
    "torch.utils.data.DistributedSampler (its set_epoch() before each epoch), or each process a "
    "share of the files."
)


class ApartWatch:
    """Compares a few weights, and images, with those of another process, by the group's store.

    Nothing is waited for, and no collective is called: processes need not be in step.
    """

    _compared = itertools.count()  # the same in all processes, as far as they do the same

    def __init__(self) -> None:
        self._steps = 0
        self._sample: Sample | None = None
        self._images: Later | None = None
        self._key = ""  # what the values are kept under, once they are

    def saw(self, images: Tensor | Sequence[Tensor]) -> None:
        """Images are to be trained on, before a training step is counted."""
        if self._steps == AT - 1 and _in_group():
            self._images = Later(marks(images, whole=False))

    def apart(self, learner: nn.Module) -> tuple[str, str] | None:
        """What to warn of, a subject and a message, when a training step begins."""
        self._steps += 1
        if self._steps % LOOK_EVERY or self._steps > UNTIL or not _in_group():
            return None
        if self._steps == AT:
            layers = spread(weights(parts(learner).get(NET, [])), LAYERS)
            self._sample = Sample(layers) if layers else None
            return None
        sample, images = self._sample, self._images
        if sample is None or images is None or not (sample.has_come and images.has_come):
            return None
        return self._compare(sample.read(), images.read())

    def _compare(self, own: list[float], images: list[float]) -> tuple[str, str] | None:
        store, rank = dist.distributed_c10d._get_default_store(), dist.get_rank()
        if not self._key:
            self._key = f"byol_wrap/{next(self._compared)}"
            store.set(f"{self._key}/{rank}", json.dumps([own, images]))
        other = f"{self._key}/{int(rank == 0)}"
        if not store.check([other]):
            return None
        self._sample, (theirs, others) = None, json.loads(store.get(other))
        if len(theirs) != len(own):
            return None
        apart = math.dist(own, theirs) / max(math.hypot(*own), 1e-12)
        if apart > APART:
            return "apart", MESSAGE.format(dist.get_world_size(), AT, apart)
        known, batch = set(by_row(others)), set(by_row(images))
        shared = len(known & batch)
        if len(batch) < 2 or shared < SHARED * len(batch):
            return None
        return "shared", SHARED_MESSAGE.format(dist.get_world_size(), shared, len(batch), AT)


def _in_group() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
