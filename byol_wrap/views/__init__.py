"""Two views of a batch, on its device.

What needs kornia, a second or two to import, is bound when it is first asked for.
"""

from typing import TYPE_CHECKING, Any

from byol_wrap.views.applying import Images, apply
from byol_wrap.views.draws import Draws, draw
from byol_wrap.views.normalize import IMAGENET_MEAN, IMAGENET_STD, Normalize, normalization
from byol_wrap.views.pair import Augment, Views
from byol_wrap.views.pixels import as_unit_float
from byol_wrap.views.recipes import (
    GENTLE_AREA,
    MOCO_VIEW,
    SIMCLR_VIEW,
    SIMSIAM_VIEW,
    VIEW1,
    VIEW2,
    Recipe,
    as_pair,
)

if TYPE_CHECKING:
    from byol_wrap.views.random_view import RandomView
    from byol_wrap.views.stock import kornia_view

__all__ = [
    "GENTLE_AREA",
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "MOCO_VIEW",
    "SIMCLR_VIEW",
    "SIMSIAM_VIEW",
    "VIEW1",
    "VIEW2",
    "Augment",
    "Draws",
    "Images",
    "Normalize",
    "RandomView",
    "Recipe",
    "Views",
    "apply",
    "as_pair",
    "as_unit_float",
    "draw",
    "kornia_view",
    "normalization",
]


def __getattr__(name: str) -> Any:
    if name == "RandomView":
        from byol_wrap.views.random_view import RandomView

        return RandomView
    if name == "kornia_view":
        from byol_wrap.views.stock import kornia_view

        return kornia_view
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
