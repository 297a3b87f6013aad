"""From a budget to all settings of a run, found on measurements."""

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import partial
from operator import index
from typing import Any, Literal

from torch import nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from byol_wrap.backbone.pretrained import batch_norms, is_pretrained
from byol_wrap.backbone.trainable import check_module
from byol_wrap.learner import Learner
from byol_wrap.methods.byol import BYOL
from byol_wrap.training.optim import LARS, param_groups, warmup_cosine
from byol_wrap.views import GENTLE_AREA, VIEW1, VIEW2, as_pair
from byol_wrap.warning import warn

SHORT, LONG = 10_000, 100_000  # steps: up to one all is as found here, from the other as in papers
# Rates at batches of 32.
HEADS = 1e-3  # AdamW's, beside a net that was trained before
CAREFUL = 2e-4  # AdamW's, of that net
NEW = {"AdamW": 3e-4, "SGD": 0.03}  # of a new net and its heads
WEIGHT_DECAY = {"AdamW": 1e-4, "SGD": 5e-4}
Algorithm = Literal["AdamW", "SGD", "LARS"]
OPTIMIZERS: dict[Algorithm, Callable[[Any, float], Optimizer]] = {
    "AdamW": AdamW,
    "SGD": partial(SGD, momentum=0.9),
    "LARS": LARS,
}
ONLY_OF = {  # settings that not every method has
    "moving_average_decay": "of a target network",
    "decay_rises": "of a target network",
    "projection_hidden_size": "of heads that would be wider",
}
UNSURE = 2_000  # steps; with 600 new nets of some kinds ended worse on some data
REMIND_AFTER = 20  # steps of the optimizer in which the scheduler took none


@dataclass(frozen=True)
class TrainingRecipe:
    """All settings of one run: ``training_recipe`` finds them, ``dataclasses.replace`` changes one.

    It changes no other: for other ``steps`` ask for a new recipe, as ``heads_alone``,
    ``warmup_steps``, crops and tau go by them.

    Attributes:
        steps: of the optimizer in the whole run.
        image_size: side, or (height, width), in pixels of the views.
        pretrained: whether the net was trained before; an argument of every ``Learner``.
        algorithm: "AdamW", or "SGD" or "LARS" with momentum 0.9.
        learning_rate: the highest, of the heads.
        backbone_learning_rate: the highest, of the net.
        heads_alone: for how many steps the heads learn while the net waits, its rate being 0.
        warmup_steps: over how many steps each rate rises, before it falls along a cosine.
        weight_decay: of what is no bias and no normalisation layer.
        crop_area: range of the share of an image's area that the views are cropped from.
        moving_average_decay: tau of the first update of a target.
        projection_hidden_size: of heads that the method would make wider.
        decay_rises: whether tau rises to 1 over ``steps``, or stays.
    """

    steps: int
    image_size: int | tuple[int, int]
    pretrained: bool
    algorithm: Algorithm
    learning_rate: float
    backbone_learning_rate: float
    heads_alone: int
    warmup_steps: int
    weight_decay: float
    crop_area: tuple[float, float]
    moving_average_decay: float
    projection_hidden_size: int
    decay_rises: bool = True

    def __post_init__(self) -> None:
        """Refuse an algorithm that is not known.

        Raises:
            ValueError: it is not one of "AdamW", "SGD" and "LARS".
        """
        if self.algorithm not in OPTIMIZERS:
            raise ValueError(
                f"algorithm should be 'AdamW', 'SGD' or 'LARS', got {self.algorithm!r}."
            )

    def __str__(self) -> str:
        """A setting a line; of those that some methods have no use for, which ones do.

        Of a new net and a run in which some got worse: that.
        """
        lines = [type(self).__name__]
        for field in fields(self):
            of = f"  ({ONLY_OF[field.name]})" if field.name in ONLY_OF else ""
            lines.append(f"  {field.name:24}{_shown(getattr(self, field.name))}{of}")
        if not self.pretrained and self.steps < UNSURE:
            lines.append(
                f"  From random weights, fewer than {UNSURE:,} steps may leave features worse than "
                "they were (byol_wrap.verdict tells); weights that were trained before gain more."
            )
        return "\n".join(lines)

    def at_rate(self, learning_rate: float) -> "TrainingRecipe":
        """The same with another highest rate of the heads; the backbone's changes in proportion."""
        backbone = self.backbone_learning_rate * learning_rate / self.learning_rate
        return replace(self, learning_rate=learning_rate, backbone_learning_rate=backbone)

    def arguments(self, method: type[Learner] = BYOL) -> dict[str, Any]:
        """Keyword arguments for a learner: ``BYOL(net, **recipe.arguments())``.

        Args:
            method: which learner they are for. Of a method of your own its class attribute
                ``recipes`` tells the two views, and its constructor which of the arguments it has;
                ``**options`` are taken for those of ``Learner``, but for the target's.

        Raises:
            TypeError: no class of learners.
        """
        if not (isinstance(method, type) and issubclass(method, Learner)):
            raise TypeError(f"method should be a class of learners such as SimCLR, got {method!r}.")

        from byol_wrap.views import RandomView  # which imports kornia

        recipes = getattr(method, "recipes", (VIEW1, VIEW2))
        first, second = (replace(recipe, crop_area=self.crop_area) for recipe in recipes)
        takes = dict(inspect.signature(method).parameters)
        if any(parameter.kind is parameter.VAR_KEYWORD for parameter in takes.values()):
            shared = inspect.signature(Learner).parameters
            takes |= {name: shared[name] for name in ("augment_fn", "augment_fn2", "pretrained")}
        given: dict[str, Any] = {
            "image_size": self.image_size,
            "augment_fn": RandomView(first, self.image_size),
            "augment_fn2": RandomView(second, self.image_size),
            "pretrained": self.pretrained,
            "moving_average_decay": self.moving_average_decay,
            "total_steps": self.steps if self.decay_rises else None,
        }
        width = takes.get("projection_hidden_size")
        if width is not None and (width.default or 0) > self.projection_hidden_size:
            given["projection_hidden_size"] = self.projection_hidden_size
        return {name: value for name, value in given.items() if name in takes}

    def optimizer(self, learner: Learner) -> tuple[Optimizer, LambdaLR]:
        """What trains a learner, and the scheduler to be stepped after each of its steps.

        A predictor's rate stays where the method says so (``predictor_keeps_its_rate``): SimSiam.
        A scheduler that is not stepped is told of, once: the rates begin at 0.
        """
        if not isinstance(learner, Learner):
            raise TypeError(f"optimizer() takes a learner, got {type(learner).__name__}.")
        rates = {learner.net: self.backbone_learning_rate}
        keeps = getattr(learner, "predictor_keeps_its_rate", False)
        constant = learner.predictor if keeps else None
        groups = param_groups(learner, self.weight_decay, constant_lr=constant, rates=rates)
        shares = [self._share_of(group) for group in groups]
        optimizer = OPTIMIZERS[self.algorithm](groups, self.learning_rate)
        scheduler = LambdaLR(optimizer, shares)  # type: ignore[arg-type]
        _remind(optimizer, scheduler)
        return optimizer, scheduler

    def _share_of(self, group: dict[str, Any]) -> Callable[[int], float]:
        """Which share of its highest rate a group of parameters has at a step."""
        if group.get("constant_lr"):
            return _whole
        return self._share_of_net if "lr" in group else self._share_of_heads

    def _share_of_heads(self, step: int) -> float:
        return warmup_cosine(step, self.steps, self.warmup_steps)

    def _share_of_net(self, step: int) -> float:
        left = self.steps - self.heads_alone
        if step < self.heads_alone or left < 1:
            return 0.0
        return warmup_cosine(step - self.heads_alone, left, min(self.warmup_steps, left))


def _whole(step: int) -> float:
    return 1.0


def _remind(optimizer: Optimizer, scheduler: LambdaLR) -> None:
    """Say that a scheduler is forgotten."""
    steps = 0

    def count(*_: Any) -> None:
        nonlocal steps
        steps += 1
        if steps == REMIND_AFTER and scheduler.last_epoch == 0:
            warn(
                f"The optimizer has made {steps} steps and the recipe's scheduler none, so that "
                "the learning rate is still 0: call scheduler.step() after each optimizer.step()."
            )

    optimizer.register_step_post_hook(count)


def training_recipe(
    net: nn.Module,
    image_size: int | tuple[int, int],
    *,
    steps: int,
    batch_size: int = 32,
    pretrained: bool | None = None,
) -> TrainingRecipe:
    """Settings for a budget, by what was measured.

    A net that was trained before changes slowly: its rate is a fifth of the heads', which learn
    alone for a third of the run; its BatchNorm layers keep their statistics; views crop gently. A
    new net trains by SGD where it has BatchNorm and by AdamW where not, gently cropped and with a
    target that follows fast in a short run, and as the papers have it in a long one.

    Args:
        net: the backbone, before it is wrapped; it is looked at only.
        image_size: side, or (height, width), in pixels of the views.
        steps: of the optimizer in the whole run, at least 1.
        batch_size: images a step; rates grow with its square root.
        pretrained: whether the net was trained for long; None asks its normalisation layers, which
            say so of BatchNorm that has counted 1,000 batches, or that came without a count. Say it
            yourself of a net that was trained for less, or that goes on from an earlier run.

    Raises:
        TypeError: not an ``nn.Module``, or no whole number.
        ValueError: ``steps``, ``batch_size`` or ``image_size`` is less than 1.

    Reference:
        "Never worse" in tests/benchmarks/RESULTS.md: found on CIFAR-10 and photographs of hands,
        batches of 32, 300 to 6,250 steps. From 10,000 to 100,000 steps crops, tau and heads go
        over to Grill et al. 2020; that part is interpolated, not measured.

    Example:
        >>> import torch
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8))
        >>> recipe = training_recipe(net, 32, steps=300)
        >>> recipe.algorithm, recipe.learning_rate, recipe.crop_area
        ('SGD', 0.03, (0.7, 1.0))
        >>> learner = BYOL(net, **recipe.arguments())
        >>> optimizer, scheduler = recipe.optimizer(learner)
    """
    check_module(net, "BYOL")
    steps, batch_size, _ = index(steps), index(batch_size), as_pair(image_size)
    if steps < 1 or batch_size < 1:
        raise ValueError(
            f"steps and batch_size should be at least 1, got steps={steps}, "
            f"batch_size={batch_size}."
        )
    known = is_pretrained(net) if pretrained is None else bool(pretrained)
    algorithm: Algorithm = "SGD" if batch_norms(net) and not known else "AdamW"
    larger = math.sqrt(batch_size / 32)
    rate = (HEADS if known else NEW[algorithm]) * larger
    length = min(max(math.log(steps / SHORT) / math.log(LONG / SHORT), 0.0), 1.0)
    return TrainingRecipe(
        steps=steps,
        image_size=image_size,
        pretrained=known,
        algorithm=algorithm,
        learning_rate=rate,
        backbone_learning_rate=CAREFUL * larger if known else rate,
        heads_alone=steps // 3 if known else 0,
        warmup_steps=steps // 10,
        weight_decay=WEIGHT_DECAY[algorithm],
        crop_area=(GENTLE_AREA if known else _between(0.7, 0.08, length), 1.0),
        moving_average_decay=0.99 if known else 1 - _between(0.1, 0.004, length),
        projection_hidden_size=round(_between(2048, 4096, length)),
    )


def _between(short: float, long: float, length: float) -> float:
    """A value for a length in [0, 1], on a logarithmic scale."""
    return math.pow(short, 1 - length) * math.pow(long, length)


def _shown(value: Any) -> str:
    """A setting as it is read: no more digits than tell."""
    if isinstance(value, tuple):
        return f"({', '.join(map(_shown, value))})"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
