"""Which images come when, as a function of the seed and the step alone."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import Sampler


class BatchOrder(Sampler[list[int]]):
    """Batches of a whole run, each epoch in an order of its own; one process's share of them.

    Batch k is the same however often a run was stopped, so a run goes on with ``first=k``. All
    processes together see the batches that one process with as many times their size would.
    What does not fill a batch in one epoch has its turn in another.

    Args:
        indices: (N,), of a data set, which are to be seen.
        batch_size: of one process.
        batches: how many there are in an epoch; ``N // (batch_size * processes)`` at most.
        epochs: how many.
        seed: of the orders.
        first: which batch to begin with, counted from the beginning of the run.
        share: which process this is, from 0, and how many there are.

    Raises:
        ValueError: an epoch has no batch, or more than there are images for.
    """

    def __init__(
        self,
        indices: Tensor,
        batch_size: int,
        batches: int,
        epochs: int,
        *,
        seed: int = 0,
        first: int = 0,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        self.process, self.processes = share
        most = len(indices) // (batch_size * self.processes)
        if not 1 <= batches <= most:
            raise ValueError(
                f"{len(indices)} images make {most} batches of {batch_size} in {self.processes} "
                f"process(es), but {batches} are wanted an epoch, and at least 1 is needed: give a "
                "smaller batch_size."
            )
        self.indices, self.batch_size, self.batches = indices, batch_size, batches
        self.total, self.first, self.seed = batches * epochs, first, seed

    def __len__(self) -> int:
        return max(0, self.total - self.first)

    def __iter__(self) -> Iterator[list[int]]:
        order, drawn = self.indices, -1
        for k in range(self.first, self.total):
            epoch, place = divmod(k, self.batches)
            if epoch != drawn:
                generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
                order = self.indices[torch.randperm(len(self.indices), generator=generator)]
                drawn = epoch
            start = (place * self.processes + self.process) * self.batch_size
            yield order[start : start + self.batch_size].tolist()


def held_out(
    labels: Tensor, *, share: float = 0.2, most: int = 2000, least_per_class: int = 8
) -> tuple[Tensor, Tensor]:
    """Divide images into those to train on and those to measure with: alike many of each class.

    Args:
        labels: (N,), numbers of classes; -1 where there is none.
        share: of each class at most.
        most: images at most, of all classes together, unless that is fewer than
            ``least_per_class`` of each of two; of many classes, some are taken.
        least_per_class: classes that would have fewer are left out.

    Returns:
        Indices to train on, and indices that are held out, both in order; the latter are none where
        fewer than two classes are large enough.
    """
    generator = torch.Generator().manual_seed(0)
    known = (labels >= 0).nonzero()[:, 0]
    counts = labels[known].bincount() if len(known) else torch.zeros(0)
    large = ((counts * share).floor() >= least_per_class).nonzero()[:, 0]
    large = large[torch.randperm(len(large), generator=generator)][: most // least_per_class]
    each = max(least_per_class, most // max(1, len(large)))
    by_class = known[labels[known].argsort(stable=True)].split(counts.long().tolist())
    held = torch.zeros(len(labels), dtype=torch.bool)
    for label in large.tolist() if len(large) > 1 else ():
        members = by_class[label]
        drawn = torch.randperm(len(members), generator=generator)
        held[members[drawn[: min(each, int(share * len(members)))]]] = True
    return (~held).nonzero()[:, 0], held.nonzero()[:, 0]
