"""Two views of a batch, and what images are that are not augmented: one preparation for both."""

import sys
from collections.abc import Callable, Iterable
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from byol_wrap.views.applying import Images, place
from byol_wrap.views.pixels import as_unit_float
from byol_wrap.views.recipes import VIEW1, VIEW2, Recipe, gentle
from byol_wrap.views.taken import checked

Augment = Callable[[Any], Tensor]

DRAWING = ("Random", "ColorJitter", "GaussianBlur", "Elastic", "AutoAug", "RandAug", "TrivialAug")
ONCE_MESSAGE = (
    "augment_fn holds torchvision's {}, which draws once for a whole batch, so that all images of "
    "it are treated alike. RandomView and kornia's augmentations draw for each image, and so does "
    "lambda images: torch.stack([augment(image) for image in images])."
)


class Views:
    """The pipelines of both views, and the normalisation that ends them.

    Attributes:
        is_own: whether the first pipeline is the user's own, and gives no pixels.

    Args:
        augment_fn: replaces both pipelines; None for the default views.
        augment_fn2: replaces the second.
        size: (height, width) of the default views; None keeps that of the images.
        normalize: what a pipeline that gives pixels goes through last, and images to embed where
            the first one does; None for nothing.
        always: whether every pipeline does, and those images.
        recipes: of the default views, the first and the second.
        gently: whether the default views crop from half of the area and more.

    Raises:
        TypeError: a pipeline that cannot be called.
    """

    def __init__(
        self,
        augment_fn: Augment | None,
        augment_fn2: Augment | None,
        size: tuple[int, int] | None,
        normalize: Augment | None,
        *,
        always: bool = False,
        recipes: tuple[Recipe, Recipe] = (VIEW1, VIEW2),
        gently: bool = False,
    ) -> None:
        for name, augment in (("augment_fn", augment_fn), ("augment_fn2", augment_fn2)):
            if augment is not None and not callable(augment):
                raise TypeError(f"{name} should be callable, got {type(augment).__name__}.")
        self._given = augment_fn, augment_fn if augment_fn2 is None else augment_fn2
        self._recipes = tuple(map(gentle, recipes)) if gently else recipes
        self.size = size
        self._normalize = normalize
        first, second = self._given
        self.is_own = first is not None and not works_on_pixels(first)
        own2 = normalizes(second) or (self.is_own and not works_on_pixels(second))
        self._leave = (False, False) if always else (self.is_own, own2)

    @property
    def normalize(self) -> Augment | None:
        """What images to embed go through, and the first view at its end."""
        return None if self._leave[0] else self._normalize

    @normalize.setter
    def normalize(self, normalize: Augment | None) -> None:
        self._normalize = normalize

    @property
    def drawing_once(self) -> str:
        """What to say of pipelines that treat all images of a batch alike; "" of others."""
        name = next(filter(None, map(draws_once, self._given)), "")
        return name and ONCE_MESSAGE.format(name)

    @property
    def may_prepare(self) -> bool:
        """Whether the first pipeline is not known to give pixels, nor to normalise them."""
        first = self._given[0]
        return not (first is None or is_random_view(first) or self.normalizes_itself)

    @cached_property
    def normalizes_itself(self) -> bool:
        """Whether the first pipeline ends its views in a way that images to embed do not get."""
        return self._leave[0] and normalizes(self._given[0])

    @cached_property
    def augment1(self) -> Augment:
        """The first pipeline; the default one imports kornia, which it does not do before."""
        return self._pipeline(0)

    @cached_property
    def augment2(self) -> Augment:
        """The second."""
        return self._pipeline(1)

    def _pipeline(self, i: int) -> Augment:
        if (given := self._given[i]) is not None:
            return given
        from byol_wrap.views.random_view import RandomView

        return RandomView(self._recipes[i], self.size)

    @torch.no_grad()
    def __call__(self, images: Images) -> tuple[Tensor, Tensor]:
        """Two views (B, C, h, w) of images, in float32 whatever autocast says."""
        with torch.autocast(place(images).type, enabled=False), checked():
            return self._view(0, images), self._view(1, images)

    def _view(self, i: int, images: Images) -> Tensor:
        augment = self.augment2 if i else self.augment1
        if isinstance(augment, nn.Module):
            _move(augment, place(images))
        view = _augmented(augment, images)
        if not isinstance(view, Tensor) or view.shape[:1] != (len(images),):
            got = tuple(view.shape) if isinstance(view, Tensor) else type(view).__name__
            raise ValueError(
                f"augment_fn should return a view of each of the {len(images)} images, got {got}."
            )
        if not view.is_floating_point():
            raise ValueError(f"augment_fn should return floats, got {view.dtype}: divide by 255?")
        return view if self._normalize is None or self._leave[i] else self._normalize(view)

    def normalized(self, images: Images) -> Tensor:
        """Images (B, C, H, W) as the networks expect them, neither augmented nor resized.

        Raises:
            ValueError: a list of images of different sizes, which are no batch.
        """
        if not isinstance(images, Tensor):
            if len({image.shape for image in images}) > 1:
                raise ValueError(
                    "Images of different sizes are no batch without views, which would crop them: "
                    "resize them, or give one at a time."
                )
            images = torch.stack(list(images))
        with torch.autocast(images.device.type, enabled=False):
            images = as_unit_float(images)
            return images if self.normalize is None else self.normalize(images)


def _augmented(augment: Augment, images: Images) -> Any:
    """What a pipeline makes of images.

    Raises:
        TypeError: it does not take a list of them.
    """
    if is_random_view(augment):
        return augment(images)
    try:
        return augment(_own_floats(images))
    except (AttributeError, TypeError, ValueError) as error:
        if isinstance(images, Tensor):
            raise
        raise TypeError(
            f"augment_fn was given a list of images (C, H, W), as the learner was, and does not "
            f"take it ({error}). A RandomView alone does; kornia's containers take one tensor "
            "(B, C, H, W): resize the images to one size and stack them."
        ) from error


def _move(augment: nn.Module, device: torch.device) -> None:
    """Move a module that holds something elsewhere; kornia would move its draws each time."""
    if any(held.device != device for held in (*augment.parameters(), *augment.buffers())):
        augment.to(device)


def _own_floats(images: Images) -> Images:
    """Float images for a user's pipeline, which may work in place on them."""
    if isinstance(images, Tensor):
        floats = as_unit_float(images)
        return floats.clone() if floats is images else floats
    return [_own_floats(image[None])[0] for image in images]


def is_random_view(augment: object) -> bool:
    """Whether a pipeline is a ``RandomView``, which takes bytes and leaves its input alone."""
    module = sys.modules.get("byol_wrap.views.random_view")  # where it is not, there is none
    return module is not None and isinstance(augment, module.RandomView)


def works_on_pixels(augment: object) -> bool:
    """Whether what a pipeline gives are pixels in [0, 1], and so are to be normalised.

    It is a ``RandomView``, or something that holds one and no ``Normalize``.
    """
    return any(map(is_random_view, _parts(augment, set()))) and not normalizes(augment)


def normalizes(augment: object) -> bool:
    """Whether a pipeline holds a ``Normalize``, of kornia, of torchvision, or derived from one."""
    kinds = (kind for part in _parts(augment, set()) for kind in type(part).__mro__)
    return any(kind.__name__ == "Normalize" for kind in kinds)


def draws_once(augment: object) -> str:
    """The step of torchvision's in a pipeline that draws once for all images of a batch; or "".

    Only of what is handed the batch whole: torchvision's own, or such in a ``Sequential``.
    """
    kind = type(augment)
    if isinstance(augment, nn.Sequential):
        return next(filter(None, map(draws_once, augment)), "")
    if not kind.__module__.startswith("torchvision.transforms"):
        return ""
    if kind.__name__.startswith(DRAWING):
        return kind.__name__
    held = getattr(augment, "transforms", ())
    return next(filter(None, map(draws_once, held if isinstance(held, Iterable) else ())), "")


def _parts(augment: object, seen: set[int]) -> list[object]:
    """A pipeline and what it holds: modules, also those in lists, as in torchvision's Compose."""
    if id(augment) in seen:
        return []
    seen.add(id(augment))
    held: list[object] = list(augment.children()) if isinstance(augment, nn.Module) else []
    if isinstance(augment, partial):
        held += [augment.func, *augment.args, *augment.keywords.values()]
    for value in getattr(augment, "__dict__", {}).values():
        held += value if isinstance(value, list | tuple) else [value]
    return [augment, *(part for value in held if callable(value) for part in _parts(value, seen))]
