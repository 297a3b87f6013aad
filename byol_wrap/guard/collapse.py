"""Notices a collapse, and says what may have caused it."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn
from torch.optim import Optimizer

from byol_wrap.evaluation.health import Outputs, participation_ratio, std_ratio
from byol_wrap.guard.later import Later

# A std ratio below it is that of features which hardly tell images apart. Measured for each method:
# "Collapse, by method" in tests/benchmarks/RESULTS.md.
COLLAPSED = 0.1
# Where images are much alike a net begins low: then half of that is a collapse, and not 0.1; but of
# a net that begins lower than this.
ALIKE, FALLEN = 0.02, 0.5
# A participation ratio below it is that of projections which lie along one line. Runs that helped
# ended at 1.5 and more, those that lost what they could tell at 1.1 and less: the same table.
NARROW = 1.4
WIDE = 2.0  # MoCo's head begins at 1.2, in a cone: only what was wide before has collapsed
FIRST = 1  # the batch that is looked at beside the others
LOOK_EVERY = 20  # training steps between two looks
LOOKS = 10  # so many looks in a row that find it are worth a warning

LARGEST_RATE = {"Adam": 0.01, "LARS": 10.0, "SGD": 1.0}  # by what the optimizer's name holds
VIEWS = "the two views of an image have nothing in common (look at learner.views(images))"
SMALLEST_TAU = 0.5
SMALLEST_BATCH = 16


@dataclass(frozen=True)
class Run:
    """What there is to know of a training run beside its outputs.

    Attributes:
        decay: gives that of the target's next update, which may wait; None where there is no
            target.
        predictor: of the learner; None for a method without one.
        optimizer: which one trains the learner, where that is known.
        pretrained: whether the net was trained before.
    """

    decay: Callable[[], float] | None
    predictor: nn.Module | None
    optimizer: Optimizer | None
    pretrained: bool = False

    @property
    def tau(self) -> float | None:
        """The decay of the target's next update; None where there is no target."""
        return None if self.decay is None else self.decay()


class CollapseWatch:
    """Notices that features have been collapsed for long, without waiting for the device.

    A look at one step is copied to the host in the background, and read at a later look. Looks go
    to the projections too: BatchNorm in the heads lets them collapse, which ends all learning,
    while the representation stays as it happens to be. Projections may also keep their spread and
    yet lie along one line, from which there is next to nothing to learn; that counts where they did
    not begin so.

    Attributes:
        not_finite: whether a look found features that were not.
        ratios: the std ratios of "representations" and "projections" at the last look.
        participation: of the projections, at the last look.
    """

    def __init__(self) -> None:
        self.not_finite = False
        self.ratios: dict[str, float] = {}
        self.participation = math.inf
        self._steps = 0
        self._collapsed_looks = self._narrow_looks = 0
        self._look: Later | None = None
        self._first: Later | None = None  # the look at the start
        self._was_wide = False
        self._limits = [COLLAPSED, COLLAPSED]  # of the two std ratios

    @property
    def is_collapsed(self) -> bool:
        """Whether ``LOOKS`` looks in a row found one of the std ratios under its limit."""
        return self._collapsed_looks >= LOOKS

    @property
    def is_narrow(self) -> bool:
        """Whether so many found projections under ``NARROW`` that had a ratio over ``WIDE``."""
        return self._was_wide and self._narrow_looks >= LOOKS

    def look(self, outputs: Outputs) -> bool:
        """Note what one more training step made of a batch; says whether a look has come."""
        self._steps += 1
        batch_size = len(outputs.representation1)
        if self._steps == FIRST and batch_size > 1:
            self._first = _look(outputs)
        if self._steps % LOOK_EVERY or batch_size < 2:
            return False
        if self._first is not None and self._first.has_come:
            *began, wide = self._first.read()
            self._was_wide, self._first = wide > WIDE, None
            self._limits = [
                min(FALLEN * ratio, COLLAPSED) if ratio > ALIKE else COLLAPSED for ratio in began
            ]
        has_come = self._look is not None and self._look.has_come
        if self._look is not None and has_come:
            *ratios, self.participation = self._look.read()
            self.not_finite = not all(map(math.isfinite, ratios))
            self.ratios = dict(zip(("representations", "projections"), ratios, strict=True))
            is_collapsed = any(r < limit for r, limit in zip(ratios, self._limits, strict=True))
            self._collapsed_looks = self._collapsed_looks + 1 if is_collapsed else 0
            self._was_wide |= self.participation > WIDE
            is_narrow = self.participation < NARROW and batch_size >= SMALLEST_BATCH
            self._narrow_looks = self._narrow_looks + 1 if is_narrow else 0
            self._look = None
        if self._look is None:
            self._look = _look(outputs)
        return has_come


def _look(outputs: Outputs) -> Later:
    """Both std ratios, and the participation ratio of the projections."""
    features = outputs.representation1, outputs.projection1
    figures = [*map(std_ratio, features), participation_ratio(outputs.projection1)]
    return Later([figure.float() for figure in figures])


def likely_causes(
    *,
    steps_since_update: int,
    tau: float | None,
    batch_size: int,
    predictor: nn.Module | None,
    optimizer: Optimizer | None,
) -> list[str]:
    """Why a run may have collapsed, the surest cause first, each with what to do about it.

    Args:
        steps_since_update: training steps since the target was last updated.
        tau: the decay of the next update; None where there is no target.
        batch_size: of the last batch.
        predictor: of the learner; None for a method without one.
        optimizer: which one trains the learner, where that is known.
    """
    causes = []
    if tau is None:
        pass
    elif steps_since_update >= LOOK_EVERY:
        causes.append(
            f"the target has not been updated for {steps_since_update} training steps (call "
            "learner.update_moving_average() after optimizer.step())"
        )
    elif tau < SMALLEST_TAU:
        causes.append(f"with tau at {tau:g} the target is as good as the online network (try 0.99)")
    if predictor is not None and next(predictor.parameters(), None) is None:
        causes.append("the predictor has nothing to learn with (it is what prevents a collapse)")
    if batch_size < SMALLEST_BATCH:
        causes.append(f"batches of {batch_size} leave BatchNorm little to work with (try 64)")
    if optimizer is None:
        causes.append(
            "the learning rate is out of range for the optimizer (1e-4 to 5e-3 is usual for Adam; "
            f"rates such as 0.2 are meant for LARS), or {VIEWS}"
        )
    else:
        name = type(optimizer).__name__
        rate = max(float(group["lr"]) for group in optimizer.param_groups)
        limit = next((high for kind, high in LARGEST_RATE.items() if kind in name), rate)
        if rate > limit:
            causes.append(f"{name}'s learning rate is {rate:g} (try {limit / 10:g})")
    return causes or [
        "the learning rate or the weight decay is too high for this network (try a tenth), or "
        + VIEWS
    ]


def message(watch: CollapseWatch, run: Run, steps_since_update: int, batch_size: int) -> str:
    """What to say of a collapse to a point, or to a line."""
    looked = f"for the last {LOOKS * LOOK_EVERY} steps"
    if watch.is_collapsed:
        figures = " and ".join(f"{ratio:.3f} of the {kind}" for kind, ratio in watch.ratios.items())
        found = (
            "Training has collapsed: images are hardly told apart any more. The std ratio is "
            f"{figures}, and one of them was under {COLLAPSED}, or under half of what it began "
            f"with, {looked}"
        )
    else:
        found = (
            f"Training has collapsed to a line: the projections of {batch_size} images lie along "
            f"hardly more than one direction (participation ratio {watch.participation:.2f}, under "
            f"{NARROW} {looked}), so that next to nothing is left to predict and to learn"
        )
    causes = likely_causes(
        steps_since_update=steps_since_update,
        tau=run.tau,
        batch_size=batch_size,
        predictor=run.predictor,
        optimizer=run.optimizer,
    )
    return (
        f"{found}. Likely causes in this run: {'; '.join(causes)}. Start anew: weights that have "
        "collapsed do not recover."
    )
