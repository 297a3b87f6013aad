"""The verdict: is a backbone better than it was?"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from byol_wrap.evaluation.draws import FEWEST_BLOCKS, jackknife_interval, partition
from byol_wrap.evaluation.knn import knn_hits
from byol_wrap.evaluation.linear import linear_hits
from byol_wrap.evaluation.subjects import Subject, features_of
from byol_wrap.evaluation.task import numbered

TITLES = {"knn": "nearest neighbours", "linear": "linear classifier", "mean": "mean of both"}
MOST_PER_CLASS, USUAL_BLOCKS = 10, 8

Outcome = Literal["helped", "no difference", "harmed", "mixed"]


class Measure(NamedTuple):
    """Accuracy in [0, 1] before and after; spreads are over draws, the interval is paired."""

    before: float
    before_std: float
    after: float
    after_std: float
    difference: float
    low: float
    high: float


@dataclass(frozen=True)
class Verdict:
    """What ``verdict`` found; ``print`` it.

    Attributes:
        outcome: "helped" or "harmed" where the interval of the mean of both measures lies on one
            side of 0; "mixed" where they differ from 0 in opposite directions; or "no difference".
        measures: "knn", "linear" and their "mean".
        images: how many labelled images there were.
        classes: how many classes.
        labels_per_class: how many labels of each class were given in each draw.
        draws: how many draws.
        confidence: of the intervals.
    """

    outcome: Outcome
    measures: dict[str, Measure]
    images: int
    classes: int
    labels_per_class: int
    draws: int
    confidence: float

    @property
    def sentence(self) -> str:
        """The verdict in one sentence."""
        mean = self.measures["mean"]
        span = f"({100 * self.confidence:g} % interval {_points(mean.low)} to {_points(mean.high)})"
        by = f"{_points(mean.difference)} points of accuracy {span}"
        if self.outcome == "mixed":
            parts = [
                f"{TITLES[name]} {_points(self.measures[name].difference)}"
                for name in ("knn", "linear")
            ]
            return f"It helped by one measure and harmed by the other: {', '.join(parts)} points."
        if self.outcome == "no difference":
            return f"No difference is seen: {by}."
        return f"It {self.outcome}: {by}."

    def as_dict(self) -> dict[str, Any]:
        """All figures, as JSON takes them."""
        measures = {name: measure._asdict() for name, measure in self.measures.items()}
        return asdict(self) | {"measures": measures, "sentence": self.sentence}

    def __str__(self) -> str:
        labels = f"{self.labels_per_class} label{'s' * (self.labels_per_class > 1)}"
        lines = [
            self.sentence,
            f"Accuracy in percent, {self.draws} draws of {labels} a class, "
            f"{self.images} images of {self.classes} classes:",
            f"{'':20}{'before':>14}{'after':>14}   difference",
        ]
        for name, m in self.measures.items():
            before = f"{100 * m.before:.1f} ± {100 * m.before_std:.1f}"
            after = f"{100 * m.after:.1f} ± {100 * m.after_std:.1f}"
            span = f"{_points(m.difference)} ({_points(m.low)} to {_points(m.high)})"
            lines.append(f"{TITLES[name]:20}{before:>14}{after:>14}   {span}")
        return "\n".join(lines)

    def plot(self, path: str | Path | None = None) -> Any:
        """A picture: accuracies before and after, and the differences with their intervals.

        Args:
            path: a file to write it to.

        Returns:
            A matplotlib figure.

        Raises:
            ImportError: matplotlib is not installed.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise ImportError("The picture needs matplotlib: pip install matplotlib") from error
        figure = Figure(figsize=(9, 4), dpi=120, layout="constrained")
        left, right = figure.subplots(1, 2)
        names = list(self.measures)
        for offset, when, colour in ((-0.2, "before", "#b8bec6"), (0.2, "after", "#2166ac")):
            places = [place + offset for place in range(len(names))]
            means = [100 * getattr(self.measures[n], when) for n in names]
            spread = [100 * getattr(self.measures[n], f"{when}_std") for n in names]
            left.bar(places, means, 0.36, yerr=spread, capsize=4, color=colour, label=when)
        left.set_xticks(range(len(names)), [TITLES[n].replace(" ", "\n", 1) for n in names])
        left.set(ylabel="accuracy (%)", ylim=(0, 100))
        figure.legend(loc="outside lower left", ncols=2, frameon=False)
        for place, name in enumerate(names):
            m = self.measures[name]
            spans = [[100 * (m.difference - m.low)], [100 * (m.high - m.difference)]]
            right.errorbar(
                100 * m.difference, -place, xerr=spans, fmt="o", capsize=4, color="#2166ac"
            )
        right.axvline(0, color="black", linewidth=1)
        right.set_yticks([-place for place in range(len(names))], [TITLES[n] for n in names])
        right.set_xlabel("difference in points")
        figure.suptitle(self.sentence, fontsize=10)
        if path is not None:
            figure.savefig(path)
        return figure


def verdict(
    before: Subject,
    after: Subject,
    data: Any = None,
    labels: Any = None,
    *,
    labels_per_class: int | None = None,
    draws: int = 20,
    k: int = 10,
    confidence: float = 0.95,
    image_size: int | None = None,
    seed: int = 0,
) -> Verdict:
    """Is a backbone better after training than before, as far as labelled images can tell?

    A few labels of each class are drawn, all other images are classified from frozen features by
    nearest neighbours and by a linear classifier, before and after with the same draws. No image is
    classified by what it taught. Use images that training did not see, each independent of the
    others: ten frames of one film count as one.

    Args:
        before: the backbone as it was: a learner, a net (``copy.deepcopy(net)``, made before
            training), its state dict, or features (N, D) extracted earlier, in the images' order.
        after: the same of the backbone as it is. A net or state dict opposite a learner is read and
            normalised as the learner does it; two nets are fed the images as they come.
        data: labelled images: a tensor (N, C, H, W) with ``labels``, a loader or data set of
            (images, labels), or a folder with a subfolder for each class. Where both sides are
            features: their labels.
        labels: (N,), whole numbers or class names.
        labels_per_class: labels given in each draw, of each class; None for as many as leave eight
            draws without an image in common, but at most 10. Four such draws are needed.
        draws: about how many draws; each trains four classifiers.
        k: how many nearest neighbours vote.
        confidence: of the intervals. A backbone that is as good as before is said to have been
            helped or harmed with a probability of at most 1 - ``confidence``.
        image_size: side in pixels that images of a folder are brought to.
        seed: of the draws; the global random state is neither read nor changed.

    Returns:
        A ``Verdict``: ``print(v)``, ``v.outcome``, ``v.as_dict()``, ``v.plot("verdict.png")``.

    Raises:
        TypeError, ValueError: weights that before and after share, labels that are too few or of
            one class, features that are not finite or not of the same images.

    Reference:
        See ``byol_wrap.evaluation.draws.jackknife_interval``.

    Example:
        >>> import torch
        >>> generator = torch.Generator().manual_seed(0)
        >>> labels = torch.arange(120) % 3
        >>> noise = torch.randn(120, 3, generator=generator)
        >>> signal = torch.eye(3)[labels]
        >>> print(verdict(signal + 2 * noise, signal + noise, labels, draws=8).outcome)
        helped
    """
    old, new, given = features_of(before, after, data, labels, image_size)
    targets = _checked(old, new, given)
    if draws < 1 or k < 1 or not 0 < confidence < 1:
        raise ValueError(
            "draws and k should be at least 1 and confidence lie between 0 and 1, got "
            f"draws={draws}, k={k}, confidence={confidence}."
        )
    per_class, blocks = _sizes(targets, given, labels_per_class, draws)
    generator = torch.Generator("cpu").manual_seed(int(seed))
    classifiers: dict[str, Callable[..., Tensor]] = {
        "knn": lambda *task: knn_hits(*task, k=min(k, len(task[0]))),
        "linear": linear_hits,
    }
    partitions = math.ceil(draws / blocks)
    right = torch.zeros(2, 2, partitions, blocks, blocks, dtype=torch.double, device="cpu")
    counts = torch.zeros(partitions, blocks, blocks, dtype=torch.double, device="cpu")
    for p in range(partitions):
        block, trains = partition(targets, per_class, blocks, generator)
        for b in range(blocks):
            known, asked = (block == b) & trains, block != b
            counts[p, b] = block[asked].bincount(minlength=blocks)
            for when, features in enumerate((old, new)):
                task = (features[known], targets[known], features[asked], targets[asked])
                for which, classify in enumerate(classifiers.values()):
                    hits = classify(*task).double()
                    right[which, when, p, b] = block[asked].bincount(hits, blocks)
    measures = {
        name: _measure(part, counts, confidence)
        for name, part in zip(TITLES, (*right, right.mean(dim=0)), strict=True)
    }
    return Verdict(
        _outcome(measures),
        measures,
        images=len(targets),
        classes=int(targets.max()) + 1,
        labels_per_class=per_class,
        draws=partitions * blocks,
        confidence=confidence,
    )


def _checked(old: Tensor, new: Tensor, given: Any) -> Tensor:
    """Labels as indices of classes, after features and labels were found to go together."""
    for name, features in (("before", old), ("after", new)):
        if features.ndim != 2 or len(features) != len(given) or features.numel() == 0:
            raise ValueError(
                f"Features {name} should be (N, D) with a row for each of the {len(given)} labels, "
                f"got {tuple(features.shape)}."
            )
        if not features.isfinite().all():
            raise ValueError(f"Features {name} hold NaN or infinity.")
    labels, _ = numbered(given, given)
    if labels.ndim != 1 or (labels != labels.long()).any():
        raise ValueError(
            f"Labels should be (N,), whole numbers or names, got {tuple(labels.shape)}, "
            f"{labels.dtype}."
        )
    targets: Tensor = labels.cpu().unique(return_inverse=True)[1]
    return targets


def _sizes(targets: Tensor, given: Any, per_class: int | None, draws: int) -> tuple[int, int]:
    """How many labels of each class a draw gives; how many draws have no image in common."""
    counts = targets.bincount()
    if len(counts) < 2:
        raise ValueError("All labels are of one class; at least two are needed.")
    fewest = int(counts.min())
    if per_class is not None and per_class < 1:
        raise ValueError(f"labels_per_class should be at least 1, got {per_class}.")
    wanted = FEWEST_BLOCKS * (per_class or 1)
    if fewest < wanted:
        rare = numbered(given, given)[0].cpu()[targets == counts.argmin()][0].item()
        name = sorted(set(given))[int(rare)] if isinstance(given, list) else rare
        raise ValueError(
            f"Each class needs {wanted} labelled images for {FEWEST_BLOCKS} draws of "
            f"{per_class or 1} that share none; class {name!r} has {fewest}. Label more, leave it "
            "out, or give a smaller labels_per_class."
        )
    per_class = per_class or max(1, min(MOST_PER_CLASS, fewest // USUAL_BLOCKS))
    return per_class, min(fewest // per_class, max(draws, FEWEST_BLOCKS))


def _measure(right: Tensor, counts: Tensor, confidence: float) -> Measure:
    accuracies = (right.sum(dim=3) / counts.sum(dim=2)).flatten(1)  # (before and after, draws)
    interval = jackknife_interval(right[1] - right[0], counts, confidence)
    before, after = accuracies.mean(dim=1).tolist()
    before_std, after_std = accuracies.std(dim=1).tolist()
    return Measure(before, before_std, after, after_std, *interval)


def _outcome(measures: dict[str, Measure]) -> Outcome:
    signs = {name: (m.low > 0) - (m.high < 0) for name, m in measures.items()}
    if signs["knn"] * signs["linear"] < 0:
        return "mixed"
    outcomes: dict[int, Outcome] = {1: "helped", 0: "no difference", -1: "harmed"}
    return outcomes[signs["mean"]]


def _points(difference: float) -> str:
    return f"{100 * difference:+.1f}"
