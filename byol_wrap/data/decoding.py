"""From the bytes of a file to a picture, upright and in RGB, whatever it was stored as."""

import io
import warnings
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")


def load_image(data: bytes, least: int | None = None) -> "Image":
    """A picture in RGB, upright by its EXIF orientation; of an animation, the first frame.

    Transparency is laid on white. 16 bits a channel are shown by the upper 8. Values wider than
    that are divided by the largest one, floats in [0, 1] by 1. CMYK is converted without a profile.

    Args:
        data: a file's content, of one of ``FORMATS``, whatever its name says.
        least: how many pixels the shorter side should keep: a JPEG is decoded at half, a quarter or
            an eighth of its size where twice as many are left, which is much faster.

    Returns:
        A Pillow image of mode "RGB".

    Raises:
        ImportError: Pillow is not installed.
        ValueError: it is none of ``FORMATS``, or empty.
        Exception: whatever Pillow raises for a broken file, and for one that claims more than
            twice ``PIL.Image.MAX_IMAGE_PIXELS`` pixels (179 million), before it takes the memory.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Pillow's own limit, of odd metadata
        try:
            image: Image.Image = Image.open(io.BytesIO(data), formats=_formats())
        except UnidentifiedImageError:
            known = ", ".join(_formats())
            raise ValueError(f"none of {known}" if data else "the file is empty") from None
        if least is not None:
            image.draft("RGB", (2 * least, 2 * least))
        image.load()
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith(("I", "F")):
        image = _eight_bits(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def cropped(image: "Image", size: int) -> Tensor:
    """The square in the middle of a picture: uint8 (3, size, size)."""
    from PIL import Image

    side = min(image.size)
    left, top = (image.width - side) / 2, (image.height - side) / 2
    box = (left, top, left + side, top + side)
    square = image.resize((size, size), Image.Resampling.BICUBIC, box, reducing_gap=2.0)
    return pixels(square)


def pixels(image: "Image") -> Tensor:
    """A picture in RGB as uint8 (3, H, W)."""
    values = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return values.reshape(image.height, image.width, 3).permute(2, 0, 1).contiguous()


def _eight_bits(image: "Image") -> "Image":
    """A grey picture of 16 or 32 bits or of floats, in 8."""
    from PIL import Image

    wide = image if image.mode == "F" else image.convert("I")
    dtype = torch.float32 if wide.mode == "F" else torch.int32
    values = torch.frombuffer(bytearray(wide.tobytes()), dtype=dtype).double().nan_to_num()
    usual, largest = 1 if wide.mode == "F" else 65535, float(values.max())
    values = values * (255 / (usual if largest <= usual else largest))
    data = values.clamp(0, 255).round().byte()
    return Image.frombytes("L", wide.size, data.numpy().tobytes())


@cache
def _formats() -> list[str]:
    """Those that this Pillow knows. Others may start programs, as EPS does."""
    from PIL import Image

    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]
