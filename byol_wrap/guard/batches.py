"""Notices batches to learn nothing from: one picture all over, or the same ones again."""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from byol_wrap.guard.later import Later

GAP = 10  # training steps to the first look; each gap is longer by one than the gap before, so that
# batches that take turns are not taken for one
ROWS = 64  # of a batch that are compared with each other
MOST = 4096  # of it that are compared with those of the look before
VALUES = 128  # of an image, roughly, where it is not looked at as a whole
LOOKS, LIMIT = 2, 6  # at whole images: in a row that find the same, and in all that find nothing
AGAIN = 12  # looks in a row that find the images of the look before
FEW = 0.1  # of a batch: fewer different images than that are too few
ONE = 0.45  # of a batch: one picture, or one colour, on more than that is too much
SAME = 0.9  # of a batch that were in an earlier one, too
FLAT = 1e-5  # times its mean: an image whose values spread less is of one colour

FEW_MESSAGE = (
    "{} of {} images in a batch are the same picture, and so it was in {} looks until step {}: "
    "there is next to nothing to tell apart. Does the data set's __getitem__ use its index? Does "
    "one picture stand in for files that cannot be read?"
)
BLANK_MESSAGE = (
    "{} of {} images in a batch are of one colour, and so it was in {} looks until step {}: there "
    "is nothing on them to learn from. Are they read rightly? Does a blank stand in for files that "
    "cannot be read?"
)
VIEW_MESSAGE = (
    "The {} view keeps nothing of its image: of {} such views {} are of one colour and {} differ, "
    "in {} looks until step {}, although the images do. Look at what makes it, augment_fn or "
    "augment_fn2; learner.views(images) shows both."
)
AGAIN_MESSAGE = (
    "The same {} images made up the batch in {} looks in a row, from step {} to step {}. If there "
    "are others, draw each batch from the same iterator, as for images in loader does: "
    "next(iter(loader)) begins anew each time, or gives one batch outside of the loop. If there "
    "are no others, next to nothing can be learnt but these."
)
FEW_PICTURES, BLANK_PICTURES, VIEWS = "few", "blank", ("first", "second")  # what may be wrong


class _Rows:
    """What was seen of the rows of a batch.

    Attributes:
        count: how many of them are compared with each other.
        blank: how many of those are of one colour.
        different: how many of them are not the same.
        different_pictures: how many of those are not of one colour.
        most: how often the most frequent picture is among them.
        pictures: the different rows of all that are not of one colour.
    """

    def __init__(self, read: list[float], *, are_pictures: bool) -> None:
        self._are_pictures = are_pictures  # not rows of a table, many of which may be all 0
        marks = by_row(read)
        is_blank = [are_pictures and spread <= FLAT * abs(mean) for mean, spread in marks]
        seen = [mark for mark, blank in zip(marks[:ROWS], is_blank, strict=False) if not blank]
        self.count = min(len(marks), ROWS)
        self.blank = self.count - len(seen)
        self.different = len(set(marks[:ROWS]))
        self.different_pictures = len(set(seen))
        self.most = max(Counter(seen).values(), default=0)
        self.pictures = {mark for mark, blank in zip(marks, is_blank, strict=True) if not blank}

    @property
    def are_few(self) -> bool:
        """Whether too few of them are different pictures."""
        there = self.count - self.blank
        few = self.different_pictures <= max(1, FEW * there)
        return self.most > 1 and (few or (self._are_pictures and self.most > ONE * self.count))

    @property
    def are_lost(self) -> bool:
        """Whether they are views on which images cannot be told apart."""
        few = self.different <= max(1, FEW * self.count)
        return self.count > 1 and (few or self.blank >= SAME * self.count)


class _Look(NamedTuple):
    """A look, which may not have come yet."""

    step: int
    is_whole: bool  # at all values of a few images, not at a few values of all
    are_pictures: bool
    numbers: list[Later]


class BatchesWatch:
    """Looks now and then at images and their views, and whether they differ.

    A look goes to a few values of each image. Where they are the same, the next look goes to whole
    images, and what is found there twice is told.
    """

    def __init__(self) -> None:
        self._steps = 0
        self._gap = self._next = GAP
        self._look: _Look | None = None
        self._suspect = ""  # what the next look at whole images is for
        self._found = self._wholes = 0  # such looks: in a row that found it, and in all
        self._before: set[tuple[float, float]] = set()
        self._again = self._since = 0

    @property
    def are_lost(self) -> bool:
        """Whether there is nothing to learn from in what was seen last: a collapse is no wonder."""
        return self._found >= LOOKS

    def told(
        self, images: Tensor | Sequence[Tensor], view1: Tensor, view2: Tensor
    ) -> tuple[str, str] | None:
        """What to warn of, a subject and a message, when two views are to be trained on.

        Args:
            images: of which they were made, a batch or a list; ``view1`` where two are given.
            view1: (B, ...).
            view2: (B, ...).
        """
        self._steps += 1
        if self._steps < self._next:
            return None
        self._gap += 1
        self._next += self._gap
        look, self._look = self._look, None
        told = self._judge(look) if look and all(n.has_come for n in look.numbers) else None
        if _are_plain(view1, view2):
            batches = [view1, view2] if images is view1 else [images, view1, view2]
            whole = bool(self._suspect)
            numbers = [Later(marks(batch, whole)) for batch in batches]
            self._look = _Look(self._steps, whole, view1.ndim > 2, numbers)
        return told

    def _judge(self, look: _Look) -> tuple[str, str] | None:
        read = [numbers.read() for numbers in look.numbers]
        images, *views = (_Rows(numbers, are_pictures=look.are_pictures) for numbers in read)
        before, self._suspect = self._suspect, _suspect(images, views)
        if not look.is_whole:
            if self._wholes >= LIMIT and not self.are_lost:
                self._suspect = ""
            return self._judge_again(images, look.step)
        self._found = self._found + 1 if self._suspect == before else 0
        self._wholes += 1
        return self._message(images, views, look.step) if self._found == LOOKS else None

    def _message(self, images: _Rows, views: list[_Rows], step: int) -> tuple[str, str]:
        if self._suspect == FEW_PICTURES:
            return "images", FEW_MESSAGE.format(images.most, images.count, LOOKS, step)
        if self._suspect == BLANK_PICTURES:
            return "images", BLANK_MESSAGE.format(images.blank, images.count, LOOKS, step)
        view = views[VIEWS.index(self._suspect) - len(VIEWS)]
        counts = view.count, view.blank, view.different
        return "views", VIEW_MESSAGE.format(self._suspect, *counts, LOOKS, step)

    def _judge_again(self, images: _Rows, step: int) -> tuple[str, str] | None:
        before, self._before = self._before, images.pictures
        count = max(len(before), len(self._before))
        if count < 2 or len(before & self._before) < SAME * count:
            self._again, self._since = 0, step
            return None
        self._again += 1
        if self._again != AGAIN:
            return None
        return "again", AGAIN_MESSAGE.format(count, AGAIN + 1, self._since, step)


def _suspect(images: _Rows, views: list[_Rows]) -> str:
    """What is wrong with a batch; "" where nothing is."""
    if images.blank > ONE * images.count:
        return BLANK_PICTURES
    if images.are_few:
        return FEW_PICTURES
    if 2 * images.different < images.count:
        return ""
    named = zip(VIEWS[-len(views) :], views, strict=True)
    return next((name for name, view in named if view.are_lost), "")


def _are_plain(*views: Tensor) -> bool:
    return not any(
        view.ndim < 2 or view.is_complex() or is_traceable_wrapper_subclass(view) for view in views
    )


@torch.no_grad()
def marks(batch: Tensor | Sequence[Tensor], whole: bool) -> Tensor:
    """Two numbers of each row, by which it is known again: a weighted mean, and its spread.

    Equal rows have equal ones, wherever they are in a batch. A spread is that within a channel.

    Args:
        batch: (B, ...), or a list of B images.
        whole: whether all values count; some of them otherwise.

    Returns:
        (2 B,), the means first; of the first rows alone where there are many.
    """
    if not isinstance(batch, Tensor):
        return torch.stack([marks(row[None], whole) for row in batch[:ROWS]], dim=1).flatten()
    some = batch.detach()[: ROWS if whole else MOST]
    if not whole:
        side = max(1, round(VALUES ** (1 / (batch.ndim - 1))))
        steps = [max(1, size // side) for size in batch.shape[1:]]
        some = some[(slice(None), *(slice(step // 2, None, step) for step in steps))]
    rows = some.flatten(1).float()
    weights = torch.arange(rows.shape[1], dtype=torch.float32, device=rows.device)
    means = (rows * weights.mul(0.618).frac()).mean(dim=1)
    channels = some.flatten(2) if some.ndim > 2 and some.shape[2:].numel() > 1 else rows[:, None]
    spread = channels.float().std(dim=2, correction=0).mean(dim=1)
    return torch.cat([means, spread])


def by_row(read: list[float]) -> list[tuple[float, float]]:
    """Of ``marks``, the two numbers of each row."""
    size = len(read) // 2
    return list(zip(read[:size], read[size:], strict=True))
