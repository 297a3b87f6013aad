"""What is drawn with which probability: tables of numbers, one for each view of a method."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from operator import index as as_index


@dataclass(frozen=True)
class Recipe:
    """Probabilities and ranges of one pipeline, in the order in which its steps are taken.

    The defaults are those of the paper's first view. Probabilities are per image. Small runs learn
    faster from gentler crops.

    Attributes:
        crop_area: range of the crop's share of the image's area.
        crop_ratio: range of its width over its height.
        flip: probability of mirroring left and right.
        jitter: probability of the four colour steps, which come in an order drawn for each image.
        brightness: factor drawn from 1 - brightness to 1 + brightness.
        contrast: likewise.
        saturation: likewise.
        hue: turn drawn from -hue to hue; 1 is a whole turn.
        greyscale: probability.
        blur: probability; images that come out smaller than 64 pixels are not blurred.
        blur_sigma: range in pixels.
        solarize: probability of inverting the values from one half up.

    Reference:
        Grill et al. 2020, appendix B and table 6.
    """

    crop_area: tuple[float, float] = (0.08, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    jitter: float = 0.8
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.2
    hue: float = 0.1
    greyscale: float = 0.2
    blur: float = 1.0
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    solarize: float = 0.0

    def __post_init__(self) -> None:
        """Refuse numbers out of their range.

        Raises:
            ValueError: one of them is; the message says which.
        """
        for name in ("flip", "jitter", "greyscale", "blur", "solarize"):
            self._check(name, 0 <= getattr(self, name) <= 1, "a probability in [0, 1]")
        for name in ("brightness", "contrast", "saturation"):
            self._check(name, 0 <= getattr(self, name) <= 1, "in [0, 1]")
        self._check("hue", 0 <= self.hue <= 0.5, "in [0, 0.5]")
        low, high = self.crop_area
        self._check("crop_area", 0 < low <= high <= 1, "a range in (0, 1]")
        for name in ("crop_ratio", "blur_sigma"):
            low, high = getattr(self, name)
            self._check(name, 0 < low <= high < float("inf"), "a range of positive numbers")

    def _check(self, name: str, is_right: bool, what: str) -> None:
        if not is_right:
            raise ValueError(f"{name} should be {what}, got {getattr(self, name)}.")


VIEW1 = Recipe()
VIEW2 = replace(VIEW1, blur=0.1, solarize=0.2)

# Both views of the siblings: SimSiam (2011.10566), MoCo v2 (2003.04297) and, with the strength of
# colour that it has on ImageNet, SimCLR (2002.05709).
SIMSIAM_VIEW = Recipe(crop_area=(0.2, 1.0), saturation=0.4, blur=0.5)
MOCO_VIEW = SIMSIAM_VIEW
SIMCLR_VIEW = Recipe(brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2, blur=0.5)


GENTLE_AREA = 0.5  # least share of an image that views of a pretrained net are cropped from


def gentle(recipe: Recipe) -> Recipe:
    """A recipe that crops from half of the image's area and more, and is the same otherwise."""
    low, high = recipe.crop_area
    return replace(recipe, crop_area=(max(low, min(GENTLE_AREA, high)), high))


def as_pair(image_size: int | Sequence[int]) -> tuple[int, int]:
    """A side, or a pair (height, width), in pixels, as a pair.

    Raises:
        ValueError: not one or two positive whole numbers.
    """
    sides = image_size if isinstance(image_size, Sequence) else (image_size, image_size)
    try:
        height, width = (as_index(side) for side in sides)
    except (TypeError, ValueError):
        height = width = 0
    if min(height, width) < 1:
        raise ValueError(
            "image_size should be a positive number of pixels or a pair (height, width), got "
            f"{image_size!r}."
        )
    return height, width
