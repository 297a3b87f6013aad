"""Two views of a batch, and what images are that are not augmented: one preparation for both."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from byol_wrap.views.pixels import as_unit_float
from byol_wrap.views.random_view import RandomView, is_random_view
from byol_wrap.views.recipes import VIEW1, VIEW2, Recipe

Augment = Callable[[Tensor], Tensor]


class Views:
    """The pipelines of both views, and the normalisation that ends them.

    Args:
        augment_fn: replaces both pipelines; None for the default views.
        augment_fn2: replaces the second.
        size: (height, width) of the default views; None keeps that of the images.
        normalize: what both pipelines, and images to embed, go through last; None for nothing.
        recipes: of the default views, the first and the second.

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
        recipes: tuple[Recipe, Recipe] = (VIEW1, VIEW2),
    ) -> None:
        for name, augment in (("augment_fn", augment_fn), ("augment_fn2", augment_fn2)):
            if augment is not None and not callable(augment):
                raise TypeError(f"{name} should be callable, got {type(augment).__name__}.")
        self.augment1 = RandomView(recipes[0], size) if augment_fn is None else augment_fn
        second = augment_fn if augment_fn2 is None else augment_fn2
        self.augment2 = RandomView(recipes[1], size) if second is None else second
        self.normalize = normalize

    @torch.no_grad()
    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Two views (B, C, h, w) of images (B, C, H, W), in float32 whatever autocast says."""
        with torch.autocast(images.device.type, enabled=False):
            images = as_unit_float(images)
            return self._view(self.augment1, images), self._view(self.augment2, images)

    def _view(self, augment: Augment, images: Tensor) -> Tensor:
        if isinstance(augment, nn.Module):
            augment.to(images.device)
        # A user's own may work in place, on what is the other view's input or the user's batch.
        view = augment(images if is_random_view(augment) else images.clone())
        if not isinstance(view, Tensor) or view.shape[:1] != images.shape[:1]:
            got = tuple(view.shape) if isinstance(view, Tensor) else type(view).__name__
            raise ValueError(
                f"augment_fn should return a view of each of the {len(images)} images, got {got}."
            )
        if not view.is_floating_point():
            raise ValueError(f"augment_fn should return floats, got {view.dtype}: divide by 255?")
        return view if self.normalize is None else self.normalize(view)

    def normalized(self, images: Tensor) -> Tensor:
        """Images as the networks expect them, neither augmented nor resized."""
        with torch.autocast(images.device.type, enabled=False):
            images = as_unit_float(images)
            return images if self.normalize is None else self.normalize(images)
