"""examples/quickstart.py, run as its users run it."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from byol_wrap import BYOL

SCRIPT = Path(__file__).parents[1] / "examples" / "quickstart.py"
COMMAND = [sys.executable, "-W", "error", str(SCRIPT), "--device", "cpu"]
# Threads that wait for one another make small work many times slower on a busy machine.
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def quickstart() -> ModuleType:
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("quickstart", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["quickstart"] = module  # its dataclass looks its own module up
    spec.loader.exec_module(module)
    return module


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [*COMMAND, *arguments]
    return subprocess.run(
        command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=110
    )


def photograph(rng: np.random.Generator, colour: int, side: tuple[int, int] = (40, 48)):
    """Smooth noise of one dominant channel."""
    pixels = rng.integers(0, 90, (5, 6, 3))
    pixels[..., colour] += 150
    return Image.fromarray(pixels.astype(np.uint8)).resize(side, Image.Resampling.BICUBIC)


def check_picture(path: Path) -> None:
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("RGB"))
        assert picture.format == "PNG"
    assert pixels.shape[0] >= 800
    assert pixels.shape[1] >= 1200
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 100


def check_weights(path: Path, fresh: torch.nn.Module, channels: int) -> None:
    """The file holds the backbone's own keys, and weights that were trained."""
    start = {name: value.clone() for name, value in fresh.state_dict().items()}
    fresh.load_state_dict(torch.load(path, weights_only=True))
    moved = [n for n, value in fresh.state_dict().items() if not torch.equal(value, start[n])]
    assert "0.weight" in moved
    assert fresh.state_dict()["1.num_batches_tracked"] > 0
    assert fresh.eval()(torch.rand(2, channels, 32, 32)).shape == (2, 128)
    assert not list(path.parent.glob("*.tmp"))


def test_digits(tmp_path: Path, quickstart: ModuleType) -> None:
    done = run(tmp_path, "--epochs", "1", "--draws", "2", "--json", "numbers.json", "--seed", "3")
    assert done.returncode == 0, done.stderr
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    assert numbers["images"] == 1797
    assert numbers["held_out"] == pytest.approx(1797 / 5, abs=10)
    assert numbers["classes"] == list("0123456789")
    assert numbers["labels_per_class"] == 10
    for when in ("before", "after"):
        for classifier in ("knn", "linear"):
            assert 30 < numbers[when][classifier]["mean"] < 100
            assert 0 < numbers[when][classifier]["std"] < 20
    assert numbers["before"] != numbers["after"]
    assert numbers["steps"] == 1438 // 128 == numbers["loss"][-1][0] + 1
    assert not numbers["interrupted"]
    assert all(0 < loss < 8 for _, loss in numbers["loss"])
    assert all(0 < ratio < 1.2 for _, ratio in numbers["std_ratio"])
    assert numbers["settings"]["seed"] == 3
    assert numbers["settings"]["lr"] == pytest.approx(5e-3)
    assert numbers["versions"]["torch"] == torch.__version__
    assert 0 < numbers["seconds"]["pretraining"] < numbers["seconds"]["total"]
    assert numbers["reload_difference"] < 1e-5
    check_picture(tmp_path / "quickstart.png")
    check_weights(tmp_path / "quickstart.pt", quickstart.backbone(1), 1)
    assert "loss=" in done.stderr
    assert "std_ratio=" in done.stderr
    assert "images/s" in done.stderr


def test_folder_with_classes(
    tmp_path: Path,
    quickstart: ModuleType,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for colour, name in enumerate(("apples", "leaves", "lakes")):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(14 if name != "lakes" else 5):
            suffix = ("png", "jpg", "JPG", "PNG")[number % 4]
            photograph(rng, colour).save(tmp_path / "photos" / name / f"{number}.{suffix}")
    apples = tmp_path / "photos" / "apples"
    photograph(rng, 0).convert("L").save(apples / "grey.png")
    photograph(rng, 0).convert("RGBA").save(apples / "transparent.png")
    photograph(rng, 0).convert("P").save(apples / "palette.PNG", transparency=b"\x00\x80")
    (apples / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n not an image")
    (apples / ".hidden.png").write_bytes(b"")
    (apples / "notes.txt").write_text("no image")

    arguments = ("--epochs", "2", "--draws", "2", "--batch-size", "16", "--json", "out/n.json")
    quickstart.main(["--data", "photos", "--output", "out/net.pt", "--device", "cpu", *arguments])
    said = capsys.readouterr().out
    numbers = json.loads((tmp_path / "out" / "n.json").read_text())
    assert numbers["classes"] == ["apples", "lakes", "leaves"]
    assert numbers["images"] == 14 + 14 + 5 + 3
    assert numbers["held_out"] == 4 + 3 + 1
    assert "broken.png" in said
    assert "hidden" not in said
    assert "lakes (4)" in said
    assert "apples (" not in said
    assert set(numbers["after"]) == {"knn", "linear"}
    check_picture(tmp_path / "quickstart.png")
    check_weights(tmp_path / "out" / "net.pt", quickstart.backbone(3), 3)


def test_folder_without_labels(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    (tmp_path / "digits").mkdir()  # a folder may be called like a data set
    for number in range(20):
        photograph(rng, number % 3).save(tmp_path / "digits" / f"{number}.jpg")
    done = run(tmp_path, "--data", "./digits", "--epochs", "1", "--json", "numbers.json")
    assert done.returncode == 0, done.stderr
    assert "accuracies are neither measured nor drawn" in done.stdout
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    assert numbers["held_out"] == 0
    assert "before" not in numbers
    assert "after" not in numbers
    check_picture(tmp_path / "quickstart.png")


def test_modes(tmp_path: Path, quickstart: ModuleType) -> None:
    """Every mode gives the picture it holds: a left half darker than the right."""
    ramp = np.tile(np.repeat([40, 200], 20).astype(np.uint8), (40, 1))
    eight = Image.fromarray(ramp)
    modes = {mode: eight.convert(mode) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK")}
    modes["16"] = Image.fromarray(ramp.astype(np.uint16) * 257)
    modes["32"] = Image.fromarray(ramp.astype(np.int32) * 257)
    modes["F"] = Image.fromarray(ramp.astype(np.float32) / 255)
    for name, image in modes.items():
        path = tmp_path / f"{name}.tif"
        image.save(path)
        pixels = quickstart.read_image(path, 8)
        assert pixels.shape == (8, 8, 3), name
        assert pixels.dtype == np.uint8
        left, right = pixels[:, :3].mean(), pixels[:, 5:].mean()
        assert left < 60, name
        assert right > 190, name

    wide = np.zeros((20, 60, 3), np.uint8)
    wide[:, 20:40] = 255  # the centre is white
    Image.fromarray(wide).save(tmp_path / "wide.png")
    assert quickstart.read_image(tmp_path / "wide.png", 10)[:, 1:-1].min() > 250


@pytest.mark.parametrize(
    ("setup", "message"),
    [("missing", "no folder"), ("empty", "0 readable images"), ("few", "2 readable images")],
)
def test_bad_folder(tmp_path: Path, quickstart: ModuleType, setup: str, message: str) -> None:
    folder = tmp_path / setup
    if setup != "missing":
        folder.mkdir()
    if setup == "few":
        for number in range(2):
            photograph(np.random.default_rng(0), 0).save(folder / f"{number}.png")
    with pytest.raises(SystemExit, match=message) as stop:
        quickstart.load_folder(folder, 32)
    assert str(folder) in str(stop.value)


def test_missing_folder_ends_without_traceback(tmp_path: Path) -> None:
    done = run(tmp_path, "--data", "nowhere")
    assert done.returncode == 1
    assert "nowhere" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "arguments",
    [("--epochs", "0"), ("--batch-size", "1"), ("--image-size", "4"), ("--device", "quantum")],
)
def test_bad_arguments(
    quickstart: ModuleType, capsys: pytest.CaptureFixture[str], arguments: tuple[str, str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        quickstart.parse(arguments)
    assert stop.value.code == 2
    assert arguments[0] in capsys.readouterr().err


@pytest.mark.parametrize("count", [1, 9, 10, 11])
def test_any_number_of_steps(quickstart: ModuleType, count: int) -> None:
    """The learning rate has a value for each, where the warm-up is of no or of one step."""
    args = quickstart.parse(["--epochs", "1", "--device", "cpu"])
    learner = BYOL(quickstart.backbone(1, width=2), 16, projection_hidden_size=8, channels=1)
    loader = torch.utils.data.DataLoader(torch.rand(2 * count, 1, 16, 16), batch_size=2)
    before = learner.net[0].weight.detach().clone()
    assert quickstart.pretrain(learner, loader, args)["steps"] == count
    assert not torch.equal(learner.net[0].weight, before)


def test_interrupt_keeps_what_there_is(tmp_path: Path, quickstart: ModuleType) -> None:
    arguments = ["--epochs", "1000", "--draws", "1", "--json", "numbers.json"]
    log = tmp_path / "log"
    with log.open("w") as stream:
        process = subprocess.Popen(
            [*COMMAND, *arguments], cwd=tmp_path, env=ENVIRONMENT, stdout=stream, stderr=stream
        )
        until = time.monotonic() + 60
        while "loss=" not in log.read_text() and time.monotonic() < until:
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        code = process.wait(60)
    assert code == 0, log.read_text()
    assert "Interrupted after" in log.read_text()
    assert "Traceback" not in log.read_text()
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    assert numbers["interrupted"]
    assert 0 < numbers["steps"] < 1000
    assert "after" in numbers
    check_picture(tmp_path / "quickstart.png")
    check_weights(tmp_path / "quickstart.pt", quickstart.backbone(1), 1)


def test_cifar10(tmp_path: Path, quickstart: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    asked = []

    def cifar10(root: str, train: bool = True, download: bool = False) -> SimpleNamespace:
        asked.append((root, train, download))
        pixels = rng.integers(0, 256, (60, 32, 32, 3), dtype=np.uint8)
        pixels[0] = [10, 20, 30]
        return SimpleNamespace(
            data=pixels, targets=[n % 10 for n in range(60)], classes=[*"abcdefghij"]
        )

    monkeypatch.setattr("torchvision.datasets.CIFAR10", cifar10)
    monkeypatch.chdir(tmp_path)
    arguments = ["--data", "cifar10", "--root", "here", "--device", "cpu"]
    data = quickstart.load_data(quickstart.parse(arguments))
    assert asked == [("here", True, True)]
    assert data.images.shape == (60, 3, 32, 32)
    assert data.images.dtype == torch.uint8
    assert data.images[0, :, 5, 5].tolist() == [10, 20, 30]
    larger = quickstart.load_data(quickstart.parse([*arguments, "--image-size", "40"]))
    assert larger.images.shape == (60, 3, 40, 40)
    assert larger.images[0, :, 5, 5].tolist() == [10, 20, 30]

    quickstart.main([*arguments, "--epochs", "1", "--draws", "1", "--batch-size", "24"])
    check_weights(tmp_path / "quickstart.pt", quickstart.backbone(3), 3)


def test_cifar10_that_cannot_be_downloaded(
    quickstart: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*_: object, **__: object) -> None:
        raise OSError("no route")

    monkeypatch.setattr("torchvision.datasets.CIFAR10", offline)
    with pytest.raises(SystemExit, match="no route"):
        quickstart.load_data(quickstart.parse(["--data", "cifar10"]))


def test_split_and_draws(quickstart: ModuleType) -> None:
    labels = torch.tensor([0] * 50 + [1] * 2 + [2] * 7 + [-1] * 5)
    data = quickstart.Data("x", torch.zeros(64, 1, 8, 8), labels, ["a", "b", "c"])
    train, test = quickstart.split(data)
    assert sorted([*train.tolist(), *test.tolist()]) == list(range(64))
    assert labels[test].bincount().tolist() == [10, 1, 2]
    drawn = quickstart.draw_labels(labels[train], 10, 3, seed=0)
    assert len(set(drawn.tolist())) == len(drawn)
    assert labels[train][drawn].bincount().tolist() == [10, 1, 5]
    assert not torch.equal(drawn, quickstart.draw_labels(labels[train], 10, 3, seed=1))


def test_digit_views_are_drawn_for_each_image(quickstart: ModuleType) -> None:
    torch.manual_seed(0)
    images = torch.rand(1, 1, 32, 32).repeat(6, 1, 1, 1)
    views = quickstart.digit_views(32)(images)
    assert views.shape == images.shape
    assert views.min() >= 0
    assert views.max() <= 1
    differ = [(views[i] - views[j]).abs().max() > 0.01 for i in range(6) for j in range(i)]
    assert all(differ)


def test_before_is_measured_on_the_untouched_backbone(quickstart: ModuleType) -> None:
    """The accuracies are those of features computed by hand from the random weights."""
    torch.manual_seed(0)
    args = quickstart.parse(["--draws", "2", "--labels", "3"])
    data = quickstart.load_data(args)
    train, test = quickstart.split(data)
    net = quickstart.backbone(1)
    with torch.no_grad():
        features = net.eval()((data.images.float() / 255 - 0.5) / 0.5)
    net.train()
    learner = BYOL(net, image_size=32, projection_hidden_size=64)
    scores = quickstart.measure(learner, data, train, test, args)
    expected = []
    for draw in range(2):
        few = train[quickstart.draw_labels(data.labels[train], 3, 10, seed=draw)]
        task = (features[few], data.labels[few], features[test], data.labels[test])
        expected.append(100 * quickstart.linear_probe(*task))
    assert scores["linear"]["mean"] == pytest.approx(np.mean(expected), abs=0.5)
    assert scores["linear"]["std"] == pytest.approx(np.std(expected), abs=0.5)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_pretraining_is_worth_ten_points(tmp_path: Path, seed: int) -> None:
    done = run(tmp_path, "--seed", str(seed), "--json", "numbers.json")
    assert done.returncode == 0, done.stderr
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    for classifier in ("knn", "linear"):
        assert numbers["after"][classifier]["mean"] >= numbers["before"][classifier]["mean"] + 10
    assert numbers["seconds"]["total"] < 120
