"""The gate that all input passes: checked, looked at, and remembered how it was prepared."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from byol_wrap.guard.feeding import Feeding
from byol_wrap.guard.inputs import (
    check_batch,
    check_images,
    check_pair,
    check_values,
    is_list_of_images,
)

FAR_BELOW, FAR_ABOVE = -0.5, 1.5
TOLERANCE = 0.02  # resizing overshoots a little
SHARE_OUTSIDE = 0.01  # of all values outside [0, 1] is more than resizing leaves
SMALLEST_SPREAD, LARGEST_SPREAD = 0.02, 20.0  # of pixels within an image that is normalised
SMALLEST_RAW_SPREAD = 1e-4  # of one that is not
SMALLEST_SPAN, LARGEST_SPAN = 0.9, 7.0  # between black and white, as a net's first layer is fed
FLAT_LOOKS = 3  # one black batch is no error
BATCHES_CHECKED = 10  # how many batches of floats are checked where a check waits for the device


class Gate:
    """All that comes in passes here, before anything is changed.

    Values are looked at in every batch on the CPU, and in the first few elsewhere, where looking
    means waiting.
    """

    def __init__(self) -> None:
        self._batches_checked = 0
        self._views_checked = 0
        self._flat = 0  # views in a row without a picture
        self._looks = 0
        self._views_looked_at = 0
        self.fed = Feeding()
        self.slopes: Sequence[float] | None = None  # by which the net scales what it is fed itself

    def images(
        self,
        images: Any,
        channels: int,
        device: torch.device,
        warn: Callable[[str, str], None],
        *,
        any_shape: bool = False,
    ) -> None:
        """Check a batch of images; see ``check_images``. Warns of values that are not pixels.

        Args:
            images: the batch, or a list of (C, H, W), each of which is checked.
            channels: how many it should have.
            device: where it should be.
            warn: gives a warning about a subject, once.
            any_shape: whether it may be other than (B, C, H, W), for a pipeline of the user's own.
        """
        if is_list_of_images(images):
            for image in images:
                self.images(image[None], channels, device, warn)
            return
        if any_shape and isinstance(images, Tensor) and images.ndim != 4:
            self.batch(images, device)
            return
        check_images(images, channels, device)
        (low, high), *_ = self._ranges(images=images)
        if low < FAR_BELOW or high > FAR_ABOVE:
            warn("range", far_from_unit_message(low, high))
        elif low < -TOLERANCE or high > 1 + TOLERANCE:
            outside = share_outside(images)
            if outside > SHARE_OUTSIDE:
                warn("outside", outside_message(outside, low, high))
        elif images.dtype == torch.uint8 and self._looks < BATCHES_CHECKED:
            self._looks += 1
            if images.amax().reshape(1).tolist() == [1]:
                warn("mask", MASK_MESSAGE)
                self._views_checked = BATCHES_CHECKED  # which would say the same

    def views(
        self, images: Any, view1: Tensor, views: Any, warn: Callable[[str, str], None]
    ) -> None:
        """Look at the first views as the networks get them: are there pictures on them?

        Args:
            images: that they were made of.
            view1: the first ones.
            views: what made them: its ``normalize`` has the ``std`` that they were divided by,
                None for nothing; what ``may_prepare`` may have done more to them.
            warn: gives a warning about a subject, once.
        """
        normalize = views.normalize
        if views.may_prepare and self._views_looked_at < BATCHES_CHECKED:
            self._views_looked_at += 1
            self.fed.look(images, view1, normalize)
        if self._views_checked >= BATCHES_CHECKED or view1.ndim < 3:
            return
        self._views_checked += 1
        scale, normalized = 1.0, normalize is not None
        if normalized and self.slopes:
            scale = sum(self.slopes) / len(self.slopes)
            span = scale / (sum(normalize.std) / len(normalize.std))
            if not SMALLEST_SPAN < span < LARGEST_SPAN:
                warn("twice", twice_message(span))
        deviations = view1.detach().float().flatten(2).std(dim=2)
        spread: float = deviations.mean().reshape(1).tolist()[0]
        flat = spread < (SMALLEST_SPREAD if normalized else SMALLEST_RAW_SPREAD)
        self._flat = self._flat + 1 if flat else 0
        if self._flat == FLAT_LOOKS:
            warn("flat", flat_message(spread))
        elif normalized and spread * scale > LARGEST_SPREAD:
            warn("scale", scale_message(spread))

    def as_it_is(self, batch: Tensor, warn: Callable[[str, str], None]) -> bool:
        """Whether a batch to embed is to be fed as it is, since training was on own views.

        Raises:
            TypeError: it cannot have been prepared as those were.
        """
        fed = self.fed.kinds
        if len(fed) == 2:
            warn("fed", BOTH_MESSAGE)
        if not fed or next(reversed(fed)) == "images":
            if self.fed.is_prepared:
                warn("prepared", PREPARED_MESSAGE)
            return False
        if isinstance(batch, Tensor) and not batch.is_floating_point() and fed["views"]:
            raise TypeError(
                "The learner was trained on two views of floats that were fed as they are, and got "
                f"{batch.dtype}: prepare it as the views were, or use learner.embed(images, "
                "prepared=False) to normalise images."
            )
        return True

    def batch(self, batch: Tensor, device: torch.device) -> None:
        """Check a batch of any shape that is fed as it is; see ``check_batch``."""
        check_batch(batch, device, "images")
        self._ranges(images=batch)

    def pair(self, view1: Tensor, view2: Tensor, device: torch.device) -> None:
        """Check two views that are fed as they are; see ``check_pair``."""
        check_pair(view1, view2, device)
        self._ranges(view1=view1, view2=view2)

    def _ranges(self, **batch: Tensor) -> list[tuple[float, float]]:
        """The smallest and the largest value of each part of a batch; (0, 1) where none is read."""
        floats = [part for part in batch.values() if part.is_floating_point()]
        if any(part.device.type != "cpu" for part in floats):
            if self._batches_checked >= BATCHES_CHECKED:
                return [(0.0, 1.0)] * len(batch)
            self._batches_checked += 1
        return [check_values(part, name) for name, part in batch.items()]


def share_outside(images: Tensor) -> float:
    """Which share of values lies outside [0, 1]; waits for the device."""
    outside = (images < -TOLERANCE) | (images > 1 + TOLERANCE)
    return float(outside.float().mean())


BOTH_MESSAGE = (
    "This learner was trained on images and on two views that were fed as they are. What it embeds "
    "is taken as the latest of them: say which by learner.embed(images, prepared=False or True)."
)

PREPARED_MESSAGE = (
    "augment_fn gives views whose values are no pixels in [0, 1], though the images' are: it "
    "seems to normalise or scale them, which images to embed do not go through. Take that out of "
    "augment_fn and give mean= and std=, or embed what is prepared likewise with prepared=True; "
    "prepared=False says that pixels are meant."
)

MASK_MESSAGE = (
    "images are uint8 and hold only 0 and 1, which as pixels of [0, 255] is black. Are they masks? "
    "images.float() has them in [0, 1]."
)


def outside_message(share: float, low: float, high: float) -> str:
    """What to say of floats of which some are no pixels."""
    return (
        f"images should be floats in [0, 1], but {100 * share:.0f} % of the values lie outside, "
        f"from {low:.3g} to {high:.3g}, and the default views clip them. Are they centred? Move "
        "them back, such as images + 0.5 for [-0.5, 0.5]; mean= and std= normalise inside."
    )


def flat_message(spread: float) -> str:
    """What to say of views without a picture."""
    return (
        f"The views hardly vary within an image: their pixels' standard deviation is {spread:.2g}, "
        "where about 1 is usual. Look at learner.views(images). Are mean= and std= given for "
        "[0, 255] while images are in [0, 1], or do the images fill a small part of [0, 1]?"
    )


def twice_message(span: float) -> str:
    """What to say where the views and the net together scale images to an odd range."""
    return (
        "The net scales what it is fed itself. After mean= and std= of the views it gives its "
        f"first layer black and white {span:.2g} apart, where 1 to 6 is usual: it may be "
        "normalised twice. Give mean=(0, 0, 0), std=(1, 1, 1) for a net that takes images in "
        "[0, 1], and std=(1 / 255,) * 3 for one that takes [0, 255]."
    )


def scale_message(spread: float) -> str:
    """What to say of views that are far larger than a net expects."""
    return (
        f"The normalised views' pixels have a standard deviation of {spread:.3g}, where about 1 is "
        "usual. Do augment_fn's views hold [0, 255] while mean= and std= are for [0, 1]?"
    )


def far_from_unit_message(low: float, high: float) -> str:
    """What to say of them."""
    guess = "Are they normalised already?" if low < 0 else "Are they still in [0, 255]?"
    return (
        f"images should be floats in [0, 1], got values from {low:.3g} to {high:.3g}. {guess} The "
        "default views clip to [0, 1] and normalise: divide by 255, or leave normalisation out of "
        "your loader."
    )
