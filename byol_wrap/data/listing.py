"""Where the images of a folder, a zip or a tar are. No image is opened, nothing is unpacked."""

import os
import tarfile
import zipfile
import zlib
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

SUFFIXES = (
    *(b".avif", b".bmp", b".gif", b".jpeg", b".jpg", b".pbm", b".pgm"),
    *(b".png", b".pnm", b".ppm", b".tif", b".tiff", b".webp"),
)
ZIPS, TARS = (b".zip",), (b".tar",)
PACKED_TARS = (b".tar.gz", b".tgz", b".tar.bz2", b".tbz2", b".tar.xz", b".txz", b".tar.zst")
STORED, DEFLATED = zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED
NOT_PACKED = 255
NAMES_TOLD = 1000


class Place(NamedTuple):
    """Where one image lies.

    Attributes:
        source: number of the folder or archive.
        name: in it, as the file system spells it.
        offset: of an archive's member: where its data begin, in a zip its header.
        size: of an archive's member: bytes in the archive.
        method: ``NOT_PACKED``, or the method of a zip.
        label: name of its class; empty where there is none.
    """

    source: int
    name: bytes
    offset: int = 0
    size: int = 0
    method: int = NOT_PACKED
    label: bytes = b""


class Listing:
    """Places of images in the order of their names, about 30 bytes each beside the names.

    A list of a million strings would be copied into each worker as it is read; tensors are not.

    Attributes:
        sources: paths of the folder and of the archives.
        labels: (N,), numbers of classes; -1 where an image has none.
        classes: their names, sorted.
        left_out: what was found and is not listed, and why; at most ``NAMES_TOLD`` are named.
        others: how many were left out, named or not.
    """

    def __init__(self, root: Path) -> None:
        self.sources: list[bytes] = [os.fsencode(root)]
        self._is_folder = root.is_dir()
        self.left_out: dict[str, str] = {}
        self.others = 0
        names, ends, packed, places = bytearray(), array("q"), array("q"), array("q")
        labels, classes = array("i"), {b"": -1}
        for place in self._walk() if self._is_folder else self._archive(0):
            names += place.name
            ends.append(len(names))
            if self.is_packed(place):
                packed.append(len(ends) - 1)
                places.extend((place.source, place.offset, place.size, place.method))
            labels.append(classes.setdefault(place.label, len(classes) - 1))
        self._names = torch.frombuffer(names or bytearray(1), dtype=torch.uint8)
        self._ends = _tensor(ends, torch.int64)
        self._packed = _tensor(packed, torch.int64)  # which ones lie in archives
        self._places = _tensor(places, torch.int64).reshape(-1, 4)  # and where
        found = [name for name in classes if name]
        ranks = {name: rank for rank, name in enumerate(sorted(found))}
        self.classes = [text(name) for name in ranks]
        by_number = torch.tensor([*(ranks[name] for name in found), -1])
        self.labels = by_number[_tensor(labels, torch.int32)]

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> Place:
        start = int(self._ends[index - 1]) if index else 0
        name = self._names[start : int(self._ends[index])].numpy().tobytes()
        row = int(torch.searchsorted(self._packed, index))
        if row == len(self._packed) or self._packed[row] != index:
            return Place(0, name)
        source, offset, size, method = self._places[row].tolist()
        return Place(source, name, offset, size, method)

    def is_packed(self, place: Place) -> bool:
        """Whether it lies in an archive."""
        return place.source > 0 or not self._is_folder

    @property
    def fingerprint(self) -> str:
        """The same for the same places: names, and where in which archive."""
        sums = (zlib.crc32(part.numpy().tobytes()) for part in (self._names, self._places))
        return f"{len(self)} images, {'-'.join(f'{number:08x}' for number in sums)}"

    def _leave_out(self, name: bytes, why: str) -> None:
        self.others += 1
        if len(self.left_out) < NAMES_TOLD:
            self.left_out[text(name)] = why

    def _walk(self) -> Iterator[Place]:
        """Files of a folder and those below it; a folder that is linked into itself only once."""
        waiting, seen = [b""], set()
        while waiting:
            folder = waiting.pop()
            where = os.path.join(self.sources[0], folder)
            try:
                status = os.stat(where)
                files, folders = _entries(where)
            except OSError as error:
                self._leave_out(folder, f"the folder cannot be read: {error.strerror}")
                continue
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            label = os.path.basename(folder)
            for name in files:
                path, kind = os.path.join(folder, name), name.lower()
                if kind.endswith(SUFFIXES):
                    yield Place(0, path, label=label)
                elif kind.endswith(ZIPS + TARS + PACKED_TARS):
                    self.sources.append(os.path.join(self.sources[0], path))
                    yield from self._archive(len(self.sources) - 1)
                else:
                    self._leave_out(path, "not an image by its ending")
            waiting += [os.path.join(folder, name) for name in reversed(folders)]

    def _archive(self, source: int) -> Iterator[Place]:
        path = self.sources[source]
        kind = path.lower()
        try:
            if kind.endswith(PACKED_TARS):
                why = "a compressed tar can only be read in order: unpack it, or write a plain .tar"
                self._leave_out(path, why)
            elif kind.endswith(TARS):
                yield from self._tar(source)
            elif kind.endswith(ZIPS):
                yield from self._zip(source)
            else:
                self._leave_out(path, "no .zip or .tar: give the folder that it lies in")
        except (OSError, zipfile.BadZipFile, ValueError) as error:
            self._leave_out(path, f"the archive cannot be read on: {error}")

    def _zip(self, source: int) -> Iterator[Place]:
        with zipfile.ZipFile(os.fsdecode(self.sources[source])) as archive:
            for info in archive.infolist():
                name = info.filename.encode(errors="surrogateescape")
                if info.is_dir() or not self._is_image(source, name):
                    continue
                if info.flag_bits & 1:
                    self._leave_out(self._full(source, name), "encrypted")
                elif info.compress_type not in (STORED, DEFLATED):
                    why = f"compressed by method {info.compress_type}: write the zip with deflate"
                    self._leave_out(self._full(source, name), why)
                else:
                    numbers = info.header_offset, info.compress_size, info.compress_type
                    yield Place(source, name, *numbers, label=_folder(name))

    def _tar(self, source: int) -> Iterator[Place]:
        """Members of a tar; in a WebDataset ``key.cls`` beside ``key.jpg`` has its label."""
        path, places, labels = self.sources[source], [], {}
        try:
            with tarfile.open(os.fsdecode(path), "r:") as archive:
                for member in archive:
                    vars(archive)["members"] = []  # which it would keep
                    name = member.name.encode(errors="surrogateescape")
                    if not member.isfile():
                        continue
                    if name.endswith(b".cls"):
                        file: Any = archive.extractfile(member)
                        labels[name[: -len(b".cls")]] = file.read(256).strip()
                    elif self._is_image(source, name):
                        places.append(Place(source, name, member.offset_data, member.size))
        except (OSError, tarfile.TarError) as error:  # what comes before a damage can be read
            self._leave_out(path, f"the archive cannot be read on: {error}")
        for place in places:
            yield place._replace(label=labels.get(_key(place.name), _folder(place.name)))

    def _is_image(self, source: int, name: bytes) -> bool:
        if any(part.startswith(b".") and part not in (b".", b"..") for part in name.split(b"/")):
            return False
        if b"__MACOSX" in name:
            return False
        if not name.lower().endswith(SUFFIXES):
            self._leave_out(self._full(source, name), "not an image by its ending")
            return False
        return True

    def _full(self, source: int, name: bytes) -> bytes:
        return os.path.join(os.path.basename(self.sources[source]), name)


def text(name: bytes) -> str:
    """A file's name, such that it can be printed."""
    return name.decode(errors="backslashreplace")


def _entries(folder: bytes) -> tuple[list[bytes], list[bytes]]:
    """Files and folders in a folder, without hidden ones, sorted."""
    files, folders = [], []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(b"."):
                continue
            if entry.is_file():
                files.append(entry.name)
            elif entry.is_dir():
                folders.append(entry.name)
    return sorted(files), sorted(folders)


def _folder(name: bytes) -> bytes:
    return os.path.basename(os.path.dirname(name))


def _key(name: bytes) -> bytes:
    folder, file = os.path.split(name)
    return os.path.join(folder, file.partition(b".")[0])


def _tensor(numbers: "array[int]", dtype: torch.dtype) -> Tensor:
    return torch.frombuffer(numbers, dtype=dtype) if numbers else torch.zeros(0, dtype=dtype)
