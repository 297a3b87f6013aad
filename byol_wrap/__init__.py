"""Self-supervised learning (BYOL) around the backbone you have."""

from byol_wrap.evaluation import extract_features, knn_accuracy, linear_probe, linear_probe_sgd
from byol_wrap.methods.byol import BYOL
from byol_wrap.methods.losses import byol_loss
from byol_wrap.methods.target import cosine_ema_decay
from byol_wrap.training.optim import LARS, PRESETS, param_groups, warmup_cosine
from byol_wrap.views import IMAGENET_MEAN, IMAGENET_STD, VIEW1, VIEW2, RandomView, Recipe

__version__ = "0.1.0"

__all__ = [
    "BYOL",
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "LARS",
    "PRESETS",
    "VIEW1",
    "VIEW2",
    "RandomView",
    "Recipe",
    "byol_loss",
    "cosine_ema_decay",
    "extract_features",
    "knn_accuracy",
    "linear_probe",
    "linear_probe_sgd",
    "param_groups",
    "warmup_cosine",
]
