"""One view of a batch, each image with draws of its own: a kornia augmentation."""

from typing import Any

import torch
import torch.nn.functional as F
from kornia.augmentation import GeometricAugmentationBase2D
from torch import Tensor

from byol_wrap.views.applying import Images, apply
from byol_wrap.views.draws import Draws, draw, suited
from byol_wrap.views.recipes import Recipe, as_pair
from byol_wrap.views.taken import LOOKS, check_taken, warn_of_values


class RandomView(GeometricAugmentationBase2D):
    """A pipeline: images in [0, 1] or uint8 in, float32 images (B, C, h, w) in [0, 1] out.

    It is a kornia augmentation: it runs in kornia's containers and in ``nn.Sequential``, before and
    after other steps, and ``view(images, params=view._params)`` gives the same view again. Masks,
    boxes and key points that go in beside images are cropped and mirrored with them.

    Args:
        recipe: what is drawn with which probability.
        size: side, or (height, width), in pixels of what comes out; None keeps the size of what
            goes in.
        same_on_batch: whether one draw is for all images of a batch.
        keepdim: whether one image (C, H, W) or (H, W) keeps its dimensions.

    Shape:
        (B, C, H, W), (C, H, W), (H, W) or a list of (C, H, W) of any sizes; a list needs ``size``
        where they differ. Each image is cropped from its full size.

    Example:
        >>> import torch
        >>> gentle = RandomView(Recipe(crop_area=(0.5, 1.0), solarize=0.1))
        >>> gentle(torch.rand(4, 3, 32, 32)).shape
        torch.Size([4, 3, 32, 32])

    Deviations from the reference code: crops are resized with antialiasing (bicubic, as
    torchvision does); colour steps follow torchvision's
    formulas (brightness multiplies, saturation mixes with grey) where the reference adds and uses
    HSV; blur mirrors the border where the reference pads with zeros. Images that come out smaller
    than 64 pixels are not blurred, as in published recipes for 32 x 32. Colour jitter and greyscale
    are for images of 3 channels and left out for others. Deviations from kornia: what comes out is
    float32 and has no gradient (in a ``PatchSequential``, which keeps the type of what goes in,
    give it floats), and draws are made on the host whatever ``to`` says.
    """

    def __init__(
        self,
        recipe: Recipe,
        size: int | tuple[int, int] | None = None,
        *,
        same_on_batch: bool = False,
        keepdim: bool = False,
    ) -> None:
        super().__init__(p=1.0, p_batch=1.0, same_on_batch=same_on_batch, keepdim=keepdim)
        self.recipe = recipe
        self._looks = 0  # at values
        self.size = None if size is None else as_pair(size)
        self.flags = {"size": self.size}  # where kornia's containers look it up

    def forward(
        self, input: Images, params: dict[str, Tensor] | None = None, **kwargs: Any
    ) -> Tensor:
        """One view of each image; with ``params`` one that was drawn before."""
        check_taken(input)
        if self._looks < LOOKS:
            self._looks += 1
            warn_of_values(input)
        images = input
        if isinstance(input, Tensor) and input.ndim < 4:
            images = input[(None,) * (4 - input.ndim)]
        if params is None:
            params = self._drawn_for(images)
        else:
            _check_fits(params["boxes"], _sizes(images))
        params, flags = self._process_kwargs_to_params_and_flags(params, self.flags, **kwargs)
        view = apply(Draws.of(params), images, flags["size"] or _common_size(images))
        if isinstance(input, Tensor):
            view = self.transform_output_tensor(view, tuple(input.shape))
        return view

    def _drawn_for(self, images: Images) -> dict[str, Tensor]:
        if isinstance(images, Tensor):
            return self.forward_parameters(tuple(images.shape))
        channels = images[0].shape[0]
        return self._draw(channels, _sizes(images), self.size or _common_size(images))

    def forward_parameters(self, batch_shape: tuple[int, ...]) -> dict[str, Tensor]:
        """Draw for a batch (B, C, H, W): a row for each image, on the CPU."""
        batch, channels, height, width = batch_shape
        sizes = torch.tensor([[height, width]], device="cpu").expand(batch, 2)
        params = self._draw(channels, sizes, self.size or (height, width))
        params["forward_input_shape"] = torch.tensor(batch_shape, device="cpu")
        return params

    def _draw(self, channels: int, sizes: Tensor, size: tuple[int, int]) -> dict[str, Tensor]:
        recipe = suited(self.recipe, channels, size)
        same = self.same_on_batch
        params = vars(draw(recipe, len(sizes), *sizes.unbind(1), same_on_batch=same)).copy()
        params["output_size"] = torch.tensor([size], device="cpu").expand(len(sizes), 2)
        params["batch_prob"] = torch.ones(len(sizes), device="cpu")
        return params

    # What goes in beside images

    @property
    def transform_matrix(self) -> Tensor | None:
        """(B, 3, 3), from pixels of the last images to those of their views; None before them."""
        if not self._params:
            return None
        return self.compute_transformation(self._params["boxes"], self._params, self.flags)

    def compute_transformation(
        self, input: Tensor, params: dict[str, Tensor], flags: dict[str, Any]
    ) -> Tensor:
        """The matrices of the crop and the flip, where ``input`` is."""
        dtype = input.dtype if input.is_floating_point() else torch.float32
        top, left, height, width = params["boxes"].to(dtype).unbind(1)
        rows, columns = params["output_size"].to(dtype).unbind(1)
        down, across = rows / height, columns / width
        matrix = torch.zeros(len(top), 3, 3, dtype=dtype, device=top.device)
        matrix[:, 0, 0], matrix[:, 0, 2] = across, (0.5 - left) * across - 0.5
        matrix[:, 1, 1], matrix[:, 1, 2] = down, (0.5 - top) * down - 0.5
        matrix[:, 2, 2] = 1
        turned = torch.stack([columns - 1 - matrix[:, 0, 2], -across], dim=1)
        flip = params["flip"]
        matrix[:, 0, 2] = torch.where(flip, turned[:, 0], matrix[:, 0, 2])
        matrix[:, 0, 0] = torch.where(flip, turned[:, 1], across)
        return matrix.to(input.device)

    def apply_transform_mask(
        self,
        input: Tensor,
        params: dict[str, Tensor],
        flags: dict[str, Any],
        transform: Tensor | None = None,
    ) -> Tensor:
        """Masks (B, C, H, W), cropped to the nearest pixel."""
        size = tuple(params["output_size"][0].tolist())
        rows = zip(input, params["boxes"].tolist(), params["flip"].tolist(), strict=True)
        out = []
        for mask, (top, left, height, width), flip in rows:
            cut = mask[None, :, top : top + height, left : left + width]
            cut = F.interpolate(cut, size, mode="nearest-exact")[0]
            out.append(cut.flip(-1) if flip else cut)
        return torch.stack(out)

    def inverse_transform(self, *args: Any, **kwargs: Any) -> Tensor:  # type: ignore[override]
        """There is none of images: what a crop leaves out is lost.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(
            "A view cannot be undone: its crop leaves out a part of the image. The inverse of "
            "view.transform_matrix maps its pixels back to the image's."
        )

    # What is moved and printed

    def _apply(self, fn: Any, *args: Any, **kwargs: Any) -> "RandomView":
        """There is nothing to move; without this kornia's draws would move."""
        return self

    def __repr__(self) -> str:
        return f"RandomView({self.recipe}, size={self.size}, same_on_batch={self.same_on_batch})"


def _common_size(images: Images) -> tuple[int, int]:
    """The (height, width) of images that all have the same."""
    shapes = {tuple(image.shape[1:]) for image in images} if len(images) else set()
    if isinstance(images, Tensor):
        shapes = {tuple(images.shape[2:])}
    if len(shapes) != 1:
        raise ValueError(
            f"Images of different sizes, such as {sorted(shapes)[:3]}, need one for their views: "
            "give image_size= to the learner, or RandomView a size."
        )
    height, width = shapes.pop()
    return height, width


def _sizes(images: Images) -> Tensor:
    """(B, 2), height and width of each image, on the CPU."""
    if isinstance(images, Tensor):
        return torch.tensor([images.shape[-2:]], device="cpu").expand(len(images), 2)
    return torch.tensor([image.shape[1:] for image in images], device="cpu").view(-1, 2)


def _check_fits(boxes: Tensor, sizes: Tensor) -> None:
    """Refuse draws of other images than those of these sizes.

    Raises:
        ValueError: there are more or fewer images, or one is too small for its crop.
    """
    if len(boxes) != len(sizes):
        raise ValueError(
            f"params were drawn for {len(boxes)} images, got {len(sizes)}: a view is made again "
            "of the same images, or of others of their number and size."
        )
    if (boxes[:, :2] + boxes[:, 2:] > sizes).any():
        raise ValueError("params were drawn for larger images: a crop lies outside of these.")
