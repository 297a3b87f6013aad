"""Images on a disk: found in folders and archives, read rightly, skipped if broken."""

import io
import os
import struct
import sys
import tarfile
import zipfile
import zlib
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from byol_wrap.data import BatchOrder, ImageFiles, Skipped, collate, held_out, load_image
from byol_wrap.data.decoding import pixels

RED, GREEN, BLUE, GREY = (250, 10, 10), (10, 250, 10), (10, 10, 250), (120, 120, 120)


def corners() -> Image.Image:
    """Red and green above, blue and grey below; 48 x 32, so that turns and flips are seen."""
    image = Image.new("RGB", (48, 32))
    for colour, box in (
        (RED, (0, 0, 24, 16)),
        (GREEN, (24, 0, 48, 16)),
        (BLUE, (0, 16, 24, 32)),
        (GREY, (24, 16, 48, 32)),
    ):
        image.paste(colour, box)
    return image


def stored(image: Image.Image, format: str, **options: object) -> bytes:
    data = io.BytesIO()
    image.save(data, format, **options)
    return data.getvalue()


def at_corners(image: Image.Image) -> list[tuple[int, ...]]:
    assert image.mode == "RGB"
    w, h = image.size
    return [image.getpixel(at) for at in ((4, 4), (w - 5, 4), (4, h - 5), (w - 5, h - 5))]


def close(image: Image.Image, colours: list[tuple[int, ...]], by: int = 12) -> bool:
    return bool(np.abs(np.array(at_corners(image)) - np.array(colours)).max() <= by)


# What a file may be stored as


@pytest.mark.parametrize(
    ("mode", "format"),
    [
        *[("RGB", format) for format in ("JPEG", "PNG", "WEBP", "TIFF", "BMP")],
        *[("CMYK", "JPEG"), ("CMYK", "TIFF"), ("P", "PNG"), ("P", "GIF"), ("RGBA", "PNG")],
    ],
)
def test_colours_are_those_that_a_viewer_shows(mode: str, format: str) -> None:
    options = {"quality": 95, "subsampling": 0} if format == "JPEG" else {}
    picture = corners().quantize(8) if mode == "P" else corners().convert(mode)
    image = load_image(stored(picture, format, **options))
    assert close(image, [RED, GREEN, BLUE, GREY])


@pytest.mark.parametrize("mode", ["L", "LA", "1"])
def test_grey_becomes_three_alike_channels(mode: str) -> None:
    grey = Image.new("L", (48, 32), 0)
    grey.paste(255, (24, 0, 48, 32))
    image = load_image(stored(grey.convert(mode), "PNG"))
    assert at_corners(image) == [(0,) * 3, (255,) * 3, (0,) * 3, (255,) * 3]


def test_transparency_lies_on_white() -> None:
    clear = corners().convert("RGBA")
    clear.paste((0, 0, 0, 0), (0, 0, 24, 16))
    clear.paste((0, 0, 0, 128), (24, 0, 48, 16))
    assert close(load_image(stored(clear, "PNG")), [(255,) * 3, (127,) * 3, BLUE, GREY])
    palette = Image.new("P", (48, 32), 0)
    palette.putpalette([0, 0, 0, *BLUE])
    palette.paste(1, (24, 0, 48, 32))
    data = stored(palette, "PNG", transparency=0)
    assert close(load_image(data), [(255,) * 3, BLUE, (255,) * 3, BLUE])


@pytest.mark.parametrize(
    ("dtype", "full", "format"),
    [(">u2", 65535, "TIFF"), ("<u2", 65535, "PNG"), ("<i4", 100_000, "TIFF"), ("<f4", 1, "TIFF")],
)
def test_wide_values_keep_their_range(dtype: str, full: float, format: str) -> None:
    values = np.zeros((32, 48), np.dtype(dtype))
    values[:16, 24:], values[16:, :24], values[16:, 24:] = full, full / 2, full / 4
    mode = {">u2": "I;16B", "<u2": "I;16", "<i4": "I", "<f4": "F"}[dtype]
    image = Image.frombytes(mode, (48, 32), values.tobytes())
    expected = [(0,) * 3, (255,) * 3, (127,) * 3, (64,) * 3]
    assert close(load_image(stored(image, format)), expected, by=1)


# From the upright picture to the stored one, for each orientation of the EXIF standard.
TURNED = {
    1: lambda x: x,
    2: np.fliplr,
    3: lambda x: np.rot90(x, 2),
    4: np.flipud,
    5: lambda x: x.transpose(1, 0, 2),
    6: lambda x: np.rot90(x, 1),
    7: lambda x: np.rot90(x, 2).transpose(1, 0, 2),
    8: lambda x: np.rot90(x, -1),
}


@pytest.mark.parametrize("orientation", TURNED)
def test_a_photograph_is_turned_upright(orientation: int) -> None:
    turned = Image.fromarray(np.ascontiguousarray(TURNED[orientation](np.asarray(corners()))))
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = load_image(stored(turned, "JPEG", exif=exif, quality=95, subsampling=0))
    assert image.size == (48, 32)
    assert close(image, [RED, GREEN, BLUE, GREY])


def test_a_large_jpeg_is_decoded_small_and_looks_the_same() -> None:
    large = corners().resize((1920, 1280), Image.Resampling.BICUBIC)
    data = stored(large, "JPEG", quality=95)
    small = load_image(data, 64)
    assert small.size == (240, 160)
    assert load_image(data).size == (1920, 1280)
    assert close(small, [RED, GREEN, BLUE, GREY])


# Broken ones


def bomb() -> bytes:
    """A PNG of a few bytes that says it has 3.6 thousand million pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(1000))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


def jpeg() -> bytes:
    return stored(corners(), "JPEG")


BROKEN = {
    "cut.jpg": jpeg()[: len(jpeg()) // 2],
    "empty.png": b"",
    "noise.webp": np.random.default_rng(0).bytes(3000),
    "bomb.png": bomb(),
    "text.jpeg": b"this is not a picture\n" * 20,
    "program.jpg": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
}


def folder_of(path: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        file = path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    return path


def mixed() -> dict[str, bytes]:
    """Two classes of five good pictures, and broken ones among them."""
    good = {f"{kind}/{k}.png": picture(k, kind) for kind in ("cat", "dog") for k in range(5)}
    return good | {f"cat/3{name}": data for name, data in BROKEN.items()}


def picture(k: int, kind: str) -> bytes:
    return stored(Image.new("RGB", (20 + k, 30), (10 * k, 200 * (kind == "dog"), 0)), "PNG")


def read(files: ImageFiles, **options: object) -> tuple[Tensor, Tensor, Skipped]:
    skipped = Skipped()
    loader = DataLoader(files, 4, collate_fn=collate, **options)
    batches = list(skipped.watch(loader))
    return (
        torch.cat([batch.image for batch in batches]),
        torch.cat([batch.label for batch in batches]),
        skipped,
    )


def test_broken_files_are_replaced_named_and_counted(tmp_path: Path) -> None:
    files = ImageFiles(folder_of(tmp_path, mixed()), 16)
    assert len(files) == 16
    images, labels, skipped = read(files)
    assert images.shape == (16, 3, 16, 16)
    assert images.dtype == torch.uint8
    assert set(skipped) == {f"cat/3{name}" for name in BROKEN}
    assert "3600000000 pixels" in skipped["cat/3bomb.png"]
    assert skipped["cat/3empty.png"] == "ValueError: the file is empty"
    assert skipped["cat/3program.jpg"].startswith("ValueError: none of")  # and is not run
    assert labels.tolist().count(-1) == len(BROKEN)
    assert [labels.tolist().count(k) for k in (0, 1)] == [5, 5]
    at = [files.name(k) for k in range(16)].index("cat/3text.jpeg")
    assert torch.equal(images[at], images[at + 1])


def test_each_broken_file_is_told_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files, skipped = ImageFiles(folder_of(tmp_path, mixed()), 16), Skipped()
    for _ in range(2):
        list(skipped.watch(DataLoader(files, 4, collate_fn=collate)))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(BROKEN) == len(skipped)
    known = Skipped()
    known.load_state_dict(skipped.state_dict())
    list(known.watch(DataLoader(files, 4, collate_fn=collate)))
    assert not capsys.readouterr().out


def test_all_processes_know_what_one_has_met(monkeypatch: pytest.MonkeyPatch) -> None:
    """The group is made up: the other process has met one file more."""

    def gather(parts: list[dict[str, str]], own: dict[str, str]) -> None:
        parts[:] = [own, {"b.jpg": "cut"}]

    skipped = Skipped({"a.jpg": "empty"})
    skipped.share()
    assert skipped == {"a.jpg": "empty"}
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
    monkeypatch.setattr("torch.distributed.all_gather_object", gather)
    skipped.share()
    assert skipped == {"a.jpg": "empty", "b.jpg": "cut"}


def test_workers_read_what_the_main_process_reads(tmp_path: Path) -> None:
    files = ImageFiles(folder_of(tmp_path, mixed()), 16)
    alone, by_workers = read(files), read(files, num_workers=2)
    assert all(torch.equal(a, b) for a, b in zip(alone[:2], by_workers[:2], strict=True))
    assert alone[2] == by_workers[2]


def test_a_wrong_ending_does_not_matter_to_what_can_be_read(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, {"a.jpg": picture(3, "cat"), "b.png": jpeg()})
    _, _, skipped = read(ImageFiles(folder, 16))
    assert not skipped


def test_a_path_may_begin_with_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder_of(tmp_path / "photos", {"a.jpg": jpeg()})
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(ImageFiles("~/photos", 16)) == 1


def test_nothing_to_read_is_an_error_that_says_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=rf"no folder, zip or tar '{Path.cwd()}/nowhere'"):
        ImageFiles("nowhere", 16)
    with pytest.raises(ValueError, match="It is empty"):
        ImageFiles(tmp_path, 16)
    folder_of(tmp_path, {"notes.txt": b"", "photos.tar.gz": b""})
    with pytest.raises(ValueError, match=r"notes.txt: not an image by its ending.*plain .tar"):
        ImageFiles(tmp_path, 16)
    with pytest.raises(ValueError, match=r"notes.txt: no .zip or .tar: give the folder"):
        ImageFiles(tmp_path / "notes.txt", 16)
    files = ImageFiles(folder_of(tmp_path, BROKEN), 16)
    assert (len(files), files.others) == (len(BROKEN), 2)
    with pytest.raises(ValueError, match=r"6 files in a row cannot be read as images\. bomb.png"):
        files[0]


def test_without_pillow_no_file_is_called_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = ImageFiles(folder_of(tmp_path, mixed()), 16)
    monkeypatch.setitem(sys.modules, "PIL", None)  # type: ignore[arg-type]
    with pytest.raises(ImportError, match="PIL"):
        files[0]


# Where files may lie


def as_zip(path: Path, files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def as_tar(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def test_archives_read_as_the_folder_does(tmp_path: Path) -> None:
    content = dict(sorted(mixed().items()))
    images, labels, skipped = read(ImageFiles(folder_of(tmp_path / "folder", content), 16))
    for path in (
        as_zip(tmp_path / "deflated.zip", content),
        as_zip(tmp_path / "stored.zip", content, zipfile.ZIP_STORED),
        as_tar(tmp_path / "plain.tar", content),
    ):
        files = ImageFiles(path, 16)
        others = read(files)
        assert torch.equal(images, others[0])
        assert torch.equal(labels, others[1])
        assert {f"{path.name}/{name}" for name in skipped} == set(others[2])
        assert files.classes == ["cat", "dog"]
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "deflated.zip", "folder", "plain.tar", "stored.zip",
    ]  # fmt: skip


def test_archives_and_files_lie_side_by_side(tmp_path: Path) -> None:
    colours = {"a.png": (250, 0, 0), "z/b.png": (0, 250, 0), "c.png": (0, 0, 250)}
    data = {
        name: stored(Image.new("RGB", (9, 9), colour), "PNG") for name, colour in colours.items()
    }
    as_zip(tmp_path / "b.zip", {"in/1.png": data["c.png"], "in/2.png": data["a.png"]})
    as_tar(folder_of(tmp_path, data) / "d.tar", {"3.png": data["z/b.png"]})
    files = ImageFiles(tmp_path, 8)
    found = {files.name(k): tuple(files[k].image[:, 4, 4].tolist()) for k in range(len(files))}
    packed = {"b.zip/in/1.png": "c.png", "b.zip/in/2.png": "a.png", "d.tar/3.png": "z/b.png"}
    assert found == colours | {name: colours[of] for name, of in packed.items()}
    assert list(found)[:4] == ["a.png", "b.zip/in/1.png", "b.zip/in/2.png", "c.png"]


@pytest.mark.parametrize("pack", [as_zip, as_tar])
def test_an_archive_writes_nothing_wherever_its_names_point(tmp_path: Path, pack: object) -> None:
    home = tmp_path / "a" / "b"
    home.mkdir(parents=True)
    names = ["../out.jpg", "../../out.jpg", str(tmp_path / "out.jpg"), "in/../../out.jpg"]
    path = pack(home / "evil.arc", dict.fromkeys(names, jpeg()))  # type: ignore[operator]
    path = path.rename(home / ("evil.zip" if pack is as_zip else "evil.tar"))
    before = sorted(tmp_path.rglob("*"))
    images, _, skipped = read(ImageFiles(path, 16))
    assert (len(images), len(skipped)) == (4, 0)
    assert sorted(tmp_path.rglob("*")) == before


def test_links_out_of_a_tar_are_not_followed(tmp_path: Path) -> None:
    folder_of(tmp_path, {"secret.jpg": jpeg()})
    with tarfile.open(tmp_path / "links.tar", "w") as archive:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
            member = tarfile.TarInfo(f"{kind!r}.jpg")
            member.type, member.linkname = kind, str(tmp_path / "secret.jpg")
            archive.addfile(member)
    with pytest.raises(ValueError, match="no images"):
        ImageFiles(tmp_path / "links.tar", 16)


def test_a_webdataset_brings_its_labels(tmp_path: Path) -> None:
    for shard in range(2):
        files: dict[str, bytes] = {}
        for k in range(3):
            files |= {f"{shard}{k}.jpg": jpeg(), f"{shard}{k}.cls": str(k % 2 + 7).encode()}
        as_tar(tmp_path / f"{shard}.tar", files)
    files_of = ImageFiles(tmp_path, 16)
    assert files_of.classes == ["7", "8"]
    assert read(files_of)[1].tolist() == [0, 1, 0, 0, 1, 0]
    assert files_of.name(3) == "1.tar/10.jpg"


def test_damaged_archives_give_what_can_be_read(tmp_path: Path) -> None:
    content = {f"{k}.png": picture(k, "cat") for k in range(6)}
    whole = as_tar(tmp_path / "cut.tar", content).read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[: 512 * 5 + 60])
    zipped = as_zip(tmp_path / "cut.zip", content).read_bytes()
    (tmp_path / "cut.zip").write_bytes(zipped[: len(zipped) // 2])
    spoilt = bytearray(as_zip(tmp_path / "spoilt.zip", content).read_bytes())
    spoilt[:4] = b"\0\0\0\0"  # the first member's header
    (tmp_path / "spoilt.zip").write_bytes(spoilt)
    files = ImageFiles(tmp_path, 16)
    assert {Path(name).name for name in files.left_out} == {"cut.tar", "cut.zip"}
    _, _, skipped = read(files)
    assert [files.name(k) for k in range(3)] == ["cut.tar/0.png", "cut.tar/1.png", "cut.tar/2.png"]
    assert skipped == {
        "cut.tar/2.png": "ValueError: the archive ends before the file does",
        "spoilt.zip/0.png": "ValueError: the archive is damaged here",
    }


def test_a_folder_is_listed_in_order_and_once(tmp_path: Path) -> None:
    names = ["b/2.jpg", "a/1.JPG", "a/ä ö.png", "top.gif", "a/c/3.webp"]
    folder = folder_of(tmp_path, dict.fromkeys(names, jpeg()))
    folder_of(tmp_path, {"a/.hidden.jpg": b"", ".git/x.jpg": b"", "a/notes.txt": b""})
    (folder / "b" / "again").symlink_to(folder, target_is_directory=True)
    (folder / "gone.jpg").symlink_to(folder / "nowhere.jpg")
    os.mkfifo(folder / "pipe.jpg")  # to open it would wait for ever
    files = ImageFiles(folder, 16)
    found = [files.name(k) for k in range(len(files))]
    assert found == ["top.gif", "a/1.JPG", r"a/ä ö.png", "a/c/3.webp", "b/2.jpg"]
    assert files.classes == ["a", "b", "c"]
    assert files.labels.tolist() == [-1, 0, 0, 2, 1]
    assert files.left_out == {"a/notes.txt": "not an image by its ending"}
    assert "a/notes.txt: not an image by its ending" in str(files)
    (folder / "a" / "1.JPG").unlink()
    assert ImageFiles(folder, 16).fingerprint != files.fingerprint


def test_names_that_are_no_text_can_be_told(tmp_path: Path) -> None:
    path = os.path.join(os.fsencode(tmp_path), b"\xff.jpg")
    with open(path, "wb") as file:
        file.write(jpeg())
    files = ImageFiles(tmp_path, 16)
    assert files.name(0) == r"\xff.jpg"
    assert not files[0].skipped


def test_images_may_keep_sizes_of_their_own(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, mixed())
    files = ImageFiles(folder, 16).at(16, lambda image, _: pixels(image))
    batch = collate([files[0], files[1]])
    assert [image.shape for image in batch.image] == [(3, 30, 20), (3, 30, 21)]


# The order


def batches(**options: object) -> list[list[int]]:
    return list(BatchOrder(torch.arange(100, 123), 4, 5, 3, **options))  # type: ignore[arg-type]


def test_an_epoch_sees_an_image_once_and_each_epoch_has_its_order() -> None:
    epochs = [list(chain(*batches()[k : k + 5])) for k in (0, 5, 10)]
    for epoch in epochs:
        assert len(set(epoch)) == 20
        assert set(epoch) <= set(range(100, 123))
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert batches(seed=1) != batches()


def test_an_order_goes_on_where_it_stopped() -> None:
    for first in (0, 3, 5, 14, 15):
        assert batches(first=first) == batches()[first:]


def test_processes_share_the_batches_of_one() -> None:
    indices = torch.arange(30)
    one = list(BatchOrder(indices, 6, 4, 2))
    parts = [list(BatchOrder(indices, 3, 4, 2, share=(k, 2))) for k in (0, 1)]
    assert [a + b for a, b in zip(*parts, strict=True)] == one


def test_too_few_images_are_told() -> None:
    with pytest.raises(ValueError, match="5 images make 0 batches of 8 in 1 process"):
        BatchOrder(torch.arange(5), 8, 0, 1)


def test_what_is_held_out_is_alike_of_each_class_and_not_trained_on() -> None:
    labels = torch.cat([torch.full((n,), k - 1) for k, n in enumerate((7, 100, 50, 20))])
    train, held = held_out(labels, most=24)
    assert torch.equal(torch.cat([train, held]).sort().values, torch.arange(177))
    assert labels[held].bincount().tolist() == [12, 10]  # the third would have four
    assert len(held_out(labels[:107])[1]) == len(held_out(labels, most=0)[1]) == 0
    assert len(held_out(torch.full((50,), -1))[1]) == 0
