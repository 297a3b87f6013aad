"""Self-supervised learning around the backbone you have: BYOL, SimSiam, SimCLR, MoCo."""

from typing import TYPE_CHECKING, Any

from byol_wrap.backbone.listing import representation_candidates
from byol_wrap.ema import cosine_ema_decay
from byol_wrap.evaluation import (
    Verdict,
    extract_features,
    knn_accuracy,
    linear_probe,
    linear_probe_sgd,
    verdict,
)
from byol_wrap.learner import Learner
from byol_wrap.methods.byol import BYOL
from byol_wrap.methods.losses import byol_loss, moco_loss, nt_xent_loss, simsiam_loss
from byol_wrap.methods.moco import MoCo
from byol_wrap.methods.simclr import SimCLR
from byol_wrap.methods.simsiam import SimSiam
from byol_wrap.published import published_recipe
from byol_wrap.recipe import TrainingRecipe, training_recipe
from byol_wrap.training.optim import LARS, cosine_schedule, param_groups, warmup_cosine
from byol_wrap.views import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    MOCO_VIEW,
    SIMCLR_VIEW,
    SIMSIAM_VIEW,
    VIEW1,
    VIEW2,
    Recipe,
)

if TYPE_CHECKING:
    from byol_wrap.views import RandomView, kornia_view

__version__ = "0.1.0"

__all__ = [
    "BYOL",
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "LARS",
    "MOCO_VIEW",
    "SIMCLR_VIEW",
    "SIMSIAM_VIEW",
    "VIEW1",
    "VIEW2",
    "Learner",
    "MoCo",
    "RandomView",
    "Recipe",
    "SimCLR",
    "SimSiam",
    "TrainingRecipe",
    "Verdict",
    "byol_loss",
    "cosine_ema_decay",
    "cosine_schedule",
    "extract_features",
    "knn_accuracy",
    "kornia_view",
    "linear_probe",
    "linear_probe_sgd",
    "moco_loss",
    "nt_xent_loss",
    "param_groups",
    "published_recipe",
    "representation_candidates",
    "simsiam_loss",
    "training_recipe",
    "verdict",
    "warmup_cosine",
]


def __getattr__(name: str) -> Any:
    if name in ("RandomView", "kornia_view"):  # which import kornia
        from byol_wrap import views

        return getattr(views, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
