"""Notices pairs of views from which nothing can be learnt."""

import math
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from byol_wrap.guard.later import Later

LOOK_EVERY = 10  # training steps
IMAGES = 64  # of a batch that are compared
SAME = 0.02  # of the batch's spread: views that differ by less are the same
SAME_SHARE, SAME_LOOKS = 0.75, 3  # of all images, in looks in a row, are too many
LAST = 100  # steps, after which sameness is not looked for
REPEATS = 5  # looks that found a random state of an earlier one
MATCH_LOOKS, MATCH_IMAGES = 50, 800  # over which it must be seen that views belong together
LEAST_EVIDENCE = 1.5  # standard errors; of untrained nets it was 4.5 and more
FEW, FEW_STEPS = 4, 30  # images in a batch, in steps in a row

SAME_MESSAGE = (
    "For {:.0f} % of the images both views are the same, so there is nothing to learn from. Does "
    "augment_fn change them at random? Two views that are given are fed as they are: give images "
    "alone, learner(images), of which views are made, or two different views."
)
STRANGERS_MESSAGE = (
    "After {} steps the two views of an image are no nearer to each other than views of different "
    "images. Do the rows of view1 and view2 belong together, or was one of them shuffled? Have the "
    "views anything in common, and do images differ (look at learner.views(images))?"
)
REPEATS_MESSAGE = (
    "The same random numbers are drawn again and again, so the same crops and colours come back. "
    "Is torch.manual_seed called in the loop, or the random state put back? Seed once, before it."
)
FEW_MESSAGE = (
    "For {} steps batches were of {} images or fewer. Of so few, BatchNorm leaves little more than "
    "a sign, and a contrastive loss has next to no negatives: use larger batches (32 and more). "
    "Adding up the gradients of small ones changes neither."
)


class PairsWatch:
    """Looks now and then at a few pairs of views, and at what the networks make of them."""

    def __init__(self) -> None:
        self._steps = 0
        self._few = 0  # steps in a row
        self._same: list[Later] = []
        self._states: set[int] = set()
        self._state = 0  # at the last look
        self._repeats = 0
        self._matches: list[tuple[int, Later]] | None = []  # until they are judged

    @property
    def _is_look(self) -> bool:
        return self._steps % LOOK_EVERY == 0

    def is_same(self, view1: Tensor, view2: Tensor) -> str:
        """What to say of two views that are to be trained on."""
        self._steps += 1
        alike = view1.shape == view2.shape and view1.device == view2.device
        if (
            not self._is_look
            or self._steps > LAST
            or not alike
            or view1.ndim < 2
            or view1.is_complex()
        ):
            return ""
        if len(self._same) == SAME_LOOKS and all(look.has_come for look in self._same):
            shares = [share for look in self._same for share in look.read()]
            if sum(shares) / SAME_LOOKS >= SAME_SHARE:
                return SAME_MESSAGE.format(100 * sum(shares) / SAME_LOOKS)
        self._same = [*self._same, Later([share_same(view1, view2)])][-SAME_LOOKS:]
        return ""

    def is_repeated(self) -> str:
        """What to say of the random state that views were drawn with."""
        if not self._is_look or self._repeats >= REPEATS:
            return ""
        before, self._state = self._state, hash(tuple(torch.get_rng_state().tolist()))
        # Where it has not changed since the last look nothing is drawn from it.
        self._repeats += self._state != before and self._state in self._states
        self._states.add(self._state)
        return REPEATS_MESSAGE if self._repeats == REPEATS else ""

    def are_few(self, batch_size: int, learner: nn.Module) -> str:
        """What to say of how many images a batch has, in all processes."""
        grouped = dist.is_available() and dist.is_initialized()
        together = batch_size * (dist.get_world_size() if grouped else 1)
        self._few = self._few + 1 if together < FEW else 0
        if self._few != FEW_STEPS or not _normalizes_batches(learner):
            return ""
        return FEW_MESSAGE.format(FEW_STEPS, FEW - 1)

    def are_strangers(self, one: Tensor, other: Tensor | None) -> str:
        """What to say of features of both views of the last batch, (B, D) each."""
        if self._matches is None or not self._is_look or other is None or len(one) < 2:
            return ""
        if one.shape == other.shape:
            count = min(len(one), IMAGES)
            self._matches.append((count, Later(evidence(one[:IMAGES], other[:IMAGES]))))
        images = sum(n for n, _ in self._matches[:-1])
        enough = len(self._matches) > MATCH_LOOKS and images >= MATCH_IMAGES
        if not enough or not self._matches[-2][1].has_come:
            return ""
        looks, self._matches = [(n, look.read()) for n, look in self._matches[:-1]], None
        mean, square = (sum(n * read[i] for n, read in looks) / images for i in (0, 1))
        error = math.sqrt(max(square - mean**2, 0.0) / images)
        return "" if mean > LEAST_EVIDENCE * error else STRANGERS_MESSAGE.format(self._steps)


@torch.no_grad()
def share_same(view1: Tensor, view2: Tensor) -> Tensor:
    """Which share of images is the same in both views; images of one colour do not count."""
    one, other = (view[:IMAGES].detach().flatten(1).float() for view in (view1, view2))
    spread = one.std(correction=0)
    is_picture = one.std(dim=1, correction=0) > SAME * spread
    is_same = (one - other).square().mean(dim=1).sqrt() < SAME * spread
    return (is_same & is_picture).sum() / is_picture.sum().clamp(min=1)


@torch.no_grad()
def evidence(one: Tensor, other: Tensor) -> list[Tensor]:
    """By how much the other view of an image is nearer than that of another one.

    Mean and mean square over images of a difference of squared distances on the sphere.
    """
    a, b = (F.normalize(features.detach().float(), dim=1) for features in (one, other))
    strangers = b.roll(max(1, len(b) // 2), 0)
    nearer = (a - strangers).square().sum(dim=1) - (a - b).square().sum(dim=1)
    return [nearer.mean(), nearer.square().mean()]


def _normalizes_batches(learner: nn.Module) -> bool:
    named: Any = learner.named_modules()
    return any(
        isinstance(module, _BatchNorm) and module.training
        for name, module in named
        if not name.startswith("target.")
    )
