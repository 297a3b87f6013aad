"""From a budget to all settings of a run, found on measurements."""

import inspect
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from byol_wrap.backbone.pretrained import is_pretrained
from byol_wrap.learner import Learner
from byol_wrap.methods.byol import BYOL
from byol_wrap.training.optim import param_groups, warmup_cosine
from byol_wrap.views import VIEW1, VIEW2


@dataclass(frozen=True)
class TrainingRecipe:
    """All settings of one run: ``training_recipe`` finds them, ``dataclasses.replace`` changes one.

    Attributes:
        steps: of the optimizer in the whole run.
        image_size: side, or (height, width), in pixels of the views.
        pretrained: whether the net was trained before; an argument of every ``Learner``.
        learning_rate: AdamW's highest, of the heads.
        backbone_learning_rate: AdamW's highest, of the net.
        heads_alone: for how many steps the heads learn while the net waits.
        warmup_steps: over how many steps each rate rises, before it falls along a cosine.
        weight_decay: of what is no bias and no normalisation layer.
        crop_area: range of the share of an image's area that the views are cropped from.
        moving_average_decay: tau of the first update of a target; it rises to 1 over ``steps``.
        projection_hidden_size: of heads that the method would make wider.
    """

    steps: int
    image_size: int | tuple[int, int]
    pretrained: bool
    learning_rate: float
    backbone_learning_rate: float
    heads_alone: int
    warmup_steps: int
    weight_decay: float
    crop_area: tuple[float, float]
    moving_average_decay: float
    projection_hidden_size: int

    def arguments(self, method: type[Learner] = BYOL) -> dict[str, Any]:
        """Keyword arguments for a learner: ``BYOL(net, **recipe.arguments())``.

        Args:
            method: which learner they are for. Of a method of your own its class attribute
                ``recipes`` tells the two views, and its constructor which of the arguments it has.
        """
        from byol_wrap.views import RandomView  # which imports kornia

        recipes = getattr(method, "recipes", (VIEW1, VIEW2))
        first, second = (replace(recipe, crop_area=self.crop_area) for recipe in recipes)
        takes = inspect.signature(method).parameters
        given: dict[str, Any] = {
            "image_size": self.image_size,
            "augment_fn": RandomView(first, self.image_size),
            "augment_fn2": RandomView(second, self.image_size),
            "pretrained": self.pretrained,
            "moving_average_decay": self.moving_average_decay,
            "total_steps": self.steps,
        }
        width = takes.get("projection_hidden_size")
        if width is not None and (width.default or 0) > self.projection_hidden_size:
            given["projection_hidden_size"] = self.projection_hidden_size
        return {name: value for name, value in given.items() if name in takes}

    def optimizer(self, learner: Learner) -> tuple[torch.optim.AdamW, LambdaLR]:
        """AdamW for a learner, and the scheduler to be stepped after it."""
        groups = param_groups(
            learner, self.weight_decay, rates={learner.net: self.backbone_learning_rate}
        )
        waits = ["lr" in group for group in groups]
        optimizer = torch.optim.AdamW(groups, lr=self.learning_rate)
        shares = [self._backbone_share if waits_too else self._share for waits_too in waits]
        return optimizer, LambdaLR(optimizer, shares)  # type: ignore[arg-type]

    def _share(self, step: int) -> float:
        return warmup_cosine(step, self.steps, self.warmup_steps)

    def _backbone_share(self, step: int) -> float:
        if step < self.heads_alone:
            return 0.0
        left = self.steps - self.heads_alone
        return warmup_cosine(step - self.heads_alone, left, min(self.warmup_steps, left))


def training_recipe(
    net: nn.Module,
    image_size: int | tuple[int, int],
    *,
    steps: int,
    pretrained: bool | None = None,
) -> TrainingRecipe:
    """..."""
    if steps < 1:
        raise ValueError(f"steps should be at least 1, got {steps}.")
    known = is_pretrained(net) if pretrained is None else bool(pretrained)
    return TrainingRecipe(
        steps=steps,
        image_size=image_size,
        pretrained=known,
        learning_rate=1e-3,
        backbone_learning_rate=2e-4 if known else 1e-3,
        heads_alone=steps // 3 if known else 0,
        warmup_steps=steps // 10,
        weight_decay=1e-4,
        crop_area=(0.5, 1.0) if known else (0.7, 1.0),
        moving_average_decay=0.99 if known else 0.9,
        projection_hidden_size=1024,
    )
