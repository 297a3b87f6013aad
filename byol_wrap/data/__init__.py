"""Images on a disk, as a training run reads them: found, decoded in workers, skipped if broken."""

from byol_wrap.data.decoding import cropped, load_image
from byol_wrap.data.files import ImageFiles, Item, collate
from byol_wrap.data.order import BatchOrder, held_out
from byol_wrap.data.skipped import Skipped

__all__ = [
    "BatchOrder",
    "ImageFiles",
    "Item",
    "Skipped",
    "collate",
    "cropped",
    "held_out",
    "load_image",
]
