"""A data set of image files, of which some may be broken."""

import copy
import os
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from byol_wrap.data.decoding import cropped, load_image
from byol_wrap.data.listing import DEFLATED, NOT_PACKED, Listing, text

MOST_BYTES = 2**28
MOST_IN_A_ROW = 1000


class Item(NamedTuple):
    """One image of a data set.

    Attributes:
        image: uint8 (3, H, W).
        label: number of its class; -1 where it has none, or where it came in place of another.
        skipped: (name, reason) of each broken file in whose place this image came.
    """

    image: Tensor
    label: int
    skipped: list[tuple[str, str]]


class ImageFiles(Dataset[Item]):
    """All images below a folder, or in a zip or tar, or in a folder of those.

    Listed at once and read when asked for, archives without being unpacked: nothing is written
    anywhere. A file that cannot be decoded is replaced by the next one that can, so that batches
    keep their size and a run can be repeated; ``Item.skipped`` names it. The innermost folder that
    an image lies in is its class; in a WebDataset, what its ``.cls`` file says.

    Args:
        path: a folder, a .zip or a .tar.
        size: side in pixels that ``prepare`` brings images to.
        prepare: from an upright Pillow image in RGB and ``size`` to a tensor; runs in the workers.

    Attributes:
        labels: (N,), numbers of classes; -1 for an image that lies in no folder of its own.
        classes: their names.
        left_out: what the listing found and left out, and why; names of the first thousand.
        others: how many were left out.

    Raises:
        FileNotFoundError: there is nothing at ``path``.
        ValueError: there are no images; the message says what there is.
    """

    def __init__(
        self,
        path: str | Path,
        size: int,
        *,
        prepare: Callable[[Any, int], Tensor] = cropped,
    ) -> None:
        path = Path(path).expanduser()
        if not path.exists():
            raise FileNotFoundError(f"There is no folder, zip or tar '{path.absolute()}'.")
        self.size, self.prepare = size, prepare
        self._listing = Listing(path)
        self.labels, self.classes = self._listing.labels, self._listing.classes
        self.left_out, self.others = self._listing.left_out, self._listing.others
        if not len(self):
            found = "; ".join(f"{name}: {why}" for name, why in list(self.left_out.items())[:3])
            raise ValueError(f"There are no images in {str(path)!r}. {found or 'It is empty.'}")

    def __len__(self) -> int:
        return len(self._listing)

    def __getitem__(self, index: int) -> Item:
        skipped: list[tuple[str, str]] = []
        for step in range(min(len(self), MOST_IN_A_ROW)):
            other = (index + step) % len(self)
            try:
                image = self.prepare(load_image(self.read(other), self.size), self.size)
            except ImportError:  # Pillow is not there: no file can be read
                raise
            except Exception as error:  # a broken file can raise anything
                skipped.append((self.name(other), f"{type(error).__name__}: {error}"))
            else:
                return Item(image, -1 if skipped else int(self.labels[index]), skipped)
        first = "; ".join(f"{name}: {why}" for name, why in skipped[:3])
        raise ValueError(f"{len(skipped)} files in a row cannot be read as images. {first}")

    def __str__(self) -> str:
        """How many there are, and what was left out, the first ten by name."""
        lines = [f"{len(self)} images in {len(self.classes)} classes, {self.others} files left out"]
        lines += [f"left out {name}: {why}" for name, why in list(self.left_out.items())[:10]]
        return "\n".join(lines)

    @property
    def fingerprint(self) -> str:
        """Tells whether these are the same files, by their names and places, as another time."""
        return self._listing.fingerprint

    def name(self, index: int) -> str:
        """What a message calls an image: its path below the folder, or its archive and member."""
        place = self._listing[index]
        archive = os.path.basename(self._listing.sources[place.source])
        packed = self._listing.is_packed(place)
        return text(os.path.join(archive, place.name) if packed else place.name)

    def read(self, index: int) -> bytes:
        """A file's content.

        Raises:
            OSError, ValueError: it cannot be read, or has more than ``MOST_BYTES``.
        """
        place = self._listing[index]
        source = self._listing.sources[place.source]
        if self._listing.is_packed(place):
            return _member(source, place.offset, place.size, place.method)
        with open(os.path.join(source, place.name), "rb") as file:
            return _whole(file.read(MOST_BYTES + 1))

    def at(self, size: int, prepare: Callable[[Any, int], Tensor] | None = None) -> "ImageFiles":
        """The same images, not listed again, at another size."""
        other = copy.copy(self)
        other.size, other.prepare = size, prepare or self.prepare
        return other


def collate(items: Sequence[Item]) -> Item:
    """A batch: images (B, 3, H, W), or a list where they differ in size; labels (B,); skipped."""
    images = [item.image for item in items]
    alike = len({image.shape for image in images}) == 1
    labels: Any = torch.tensor([item.label for item in items])
    batch: Any = torch.stack(images) if alike else images
    return Item(batch, labels, [one for item in items for one in item.skipped])


def _member(archive: bytes, offset: int, size: int, method: int) -> bytes:
    """A member of an archive, read from where it lies."""
    if size > MOST_BYTES:
        raise ValueError(f"{size} bytes, more than {MOST_BYTES}")
    with open(archive, "rb") as file:
        file.seek(offset)
        if method != NOT_PACKED:  # a zip's header, whose length only it says
            header = file.read(30)
            if header[:4] != b"PK\x03\x04":
                raise ValueError("the archive is damaged here")
            lengths = header[26:28], header[28:30]
            file.seek(sum(int.from_bytes(part, "little") for part in lengths), os.SEEK_CUR)
        data = file.read(size)
    if len(data) < size:
        raise ValueError("the archive ends before the file does")
    if method == DEFLATED:
        data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, MOST_BYTES + 1)
    return _whole(data)


def _whole(data: bytes) -> bytes:
    if len(data) > MOST_BYTES:
        raise ValueError(f"more than {MOST_BYTES} bytes")
    return data
