"""Two views of a batch, on its device."""

from byol_wrap.views.normalize import IMAGENET_MEAN, IMAGENET_STD, Normalize, normalization
from byol_wrap.views.pair import Augment, Views
from byol_wrap.views.pixels import as_unit_float
from byol_wrap.views.random_view import (
    Draws,
    RandomView,
    apply,
    as_pair,
    draw,
    is_random_view,
)
from byol_wrap.views.recipes import (
    MOCO_VIEW,
    SIMCLR_VIEW,
    SIMSIAM_VIEW,
    VIEW1,
    VIEW2,
    Recipe,
)

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "MOCO_VIEW",
    "SIMCLR_VIEW",
    "SIMSIAM_VIEW",
    "VIEW1",
    "VIEW2",
    "Augment",
    "Draws",
    "Normalize",
    "RandomView",
    "Recipe",
    "Views",
    "apply",
    "as_pair",
    "as_unit_float",
    "draw",
    "is_random_view",
    "normalization",
]
