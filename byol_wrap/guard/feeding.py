"""What a learner was trained on, remembered so that it embeds the same."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from byol_wrap.guard.later import Later

LOW, HIGH = -0.25, 1.25  # what interpolation, jitter and a little noise leave of [0, 1]
SHARE = 0.03  # of all values beyond that is more than they do, at the sharpest edges too
IMAGES = 16  # of a batch that are looked at
NOTHING, PIXELS, FLOATS, OTHERS, PREPARED = range(5)  # what a checkpoint says


class Feeding:
    """What training was fed: images, or views as they are, and what was made of images.

    A copy that was never fed itself, such as an average, is what its original was fed: also when
    the learner of that one is gone. No tensor is held for long.
    """

    def __init__(self) -> None:
        self._kinds: dict[str, bool] = {}  # the latest last, and whether they were floats
        self._now: tuple[str, bool, bool] | None = None  # what the loss that is computed is fed
        self._in_training = False
        self._is_prepared = False  # whether a pipeline made more than pixels of images
        self._shares: list[Later] = []  # beyond [0, 1], of views and of their images
        self._original: Feeding | None = None  # of which this is a copy

    @property
    def kinds(self) -> dict[str, bool]:
        """What it was, "images" or "views": the latest last, and whether they were floats."""
        return self._source()._kinds

    @property
    def is_prepared(self) -> bool:
        """Whether the views of images were seen to hold more than pixels; waits for nothing."""
        source = self._source()
        source._read()
        return source._is_prepared

    @property
    def code(self) -> int:
        """For a checkpoint."""
        kind, floats = next(reversed(self.kinds.items()), (None, True))
        if kind is None:
            return NOTHING
        if kind == "views":
            return FLOATS if floats else OTHERS
        return PREPARED if self.is_prepared else PIXELS

    def remember(self, code: int) -> None:
        """Take over what a checkpoint says."""
        kinds = {PIXELS: {"images": True}, FLOATS: {"views": True}, OTHERS: {"views": False}}
        kinds[PREPARED] = kinds[PIXELS]
        self._kinds, self._in_training = dict(kinds.get(code, {})), False
        self._is_prepared, self._shares = code == PREPARED, []

    def begins(self, kind: str, batch: Tensor, *, in_eval_mode: bool) -> None:
        """Note what a loss with gradient is fed: "images", or "views" as they are.

        In eval mode it may be a validation: the latest counts, until there is one of training.
        """
        self._now = kind, batch.is_floating_point(), in_eval_mode

    def trained(self) -> None:
        """Remember what was noted: there is a loss."""
        if self._now is None:
            return
        (kind, floats, in_eval_mode), self._now = self._now, None
        if in_eval_mode and self._in_training:
            return
        if not self._in_training:
            self._kinds.clear()
        self._in_training = not in_eval_mode
        self._kinds.pop(kind, None)
        self._kinds[kind] = floats

    def look(self, images: Tensor | Sequence[Tensor], view: Tensor, normalize: Any) -> None:
        """Look at what a pipeline made of images: pixels in [0, 1] as well, but for ``normalize``.

        It is read when it has come to the host.
        """
        self._read()
        batches = [images] if isinstance(images, Tensor) else images[:IMAGES]
        before = torch.stack([share_beyond(batch) for batch in batches]).mean()
        self._shares = [*self._shares, Later([share_beyond(view, normalize), before])]

    def _read(self) -> None:
        while self._shares and self._shares[0].has_come:
            after, before = self._shares.pop(0).read()
            self._is_prepared |= before <= SHARE < after

    def _source(self) -> "Feeding":
        source = self
        while not source._kinds and source._original is not None:
            source = source._original
        return source

    def __getstate__(self) -> dict[str, Any]:
        self._read()
        return vars(self) | {"_shares": []}

    def __deepcopy__(self, memo: dict[int, Any]) -> "Feeding":
        copied = copy.copy(self)
        copied._kinds, copied._shares, copied._original = {**self._kinds}, [*self._shares], self
        return copied


@torch.no_grad()
def share_beyond(batch: Tensor, normalize: Any = None) -> Tensor:
    """Which share of the first images' values is no pixel's, before they were normalised."""
    if not batch.is_floating_point():
        return torch.zeros((), device=batch.device)
    some = batch[:IMAGES].detach()
    if normalize is None:
        beyond = (some < LOW) | (some > HIGH)
    else:
        one = some.new_empty(1, some.shape[1], *[1] * (some.ndim - 2))
        low, high = (normalize(torch.full_like(one, bound)) for bound in (LOW, HIGH))
        beyond = (some < low) | (some > high)
    return beyond.float().mean()
