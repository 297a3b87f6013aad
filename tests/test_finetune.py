"""examples/finetune.py, run as its users run it."""

import importlib
import json
import os
import re
import signal
import subprocess
import sys
from itertools import product
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

EXAMPLES = Path(__file__).parents[1] / "examples"
# The least that runs: 10 steps of 8 images of 16 x 16 pixels.
SHORT = ["--device", "cpu", "--image-size", "16", "--pretrain-epochs", "1", "--draws", "2"]
SHORT += ["--steps", "10", "--batch-size", "8", "--json", "numbers.json"]


@pytest.fixture(scope="module")
def finetune() -> Any:
    """The script as a module, which finds quickstart.py beside it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXAMPLES))
        yield importlib.import_module("finetune")


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def photographs(folder: Path, counts: dict[str, int], mode: str = "RGB") -> None:
    """Noise around a brightness of each class's own."""
    rng = np.random.default_rng(0)
    for number, (name, count) in enumerate(counts.items()):
        (folder / name).mkdir(parents=True)
        for k in range(count):
            pixels = rng.integers(0, 60, (20, 24, 3)) + 90 * number
            Image.fromarray(pixels.astype(np.uint8)).convert(mode).save(folder / name / f"{k}.png")


def digits(finetune: ModuleType, *arguments: str) -> tuple[Any, torch.Tensor, torch.Tensor, Any]:
    args = finetune.parse([*SHORT, *arguments])
    torch.manual_seed(args.seed)
    data = finetune.load_data(args)
    return (data, *finetune.split(data), args)


def test_table_json_and_picture_tell_the_same(
    finetune: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    finetune.main([*SHORT, "--shares", "10", "1", "--seed", "3", "--picture", "out/figure.png"])
    said = capsys.readouterr().out
    numbers = json.loads(Path("numbers.json").read_text())
    assert numbers["train"] + numbers["held_out"] == 1797
    assert numbers["pretraining"]["steps"] == numbers["train"] // 128
    assert numbers["settings"]["seed"] == 3
    assert numbers["versions"]["torch"] == torch.__version__
    assert 0 < numbers["seconds"]["pretraining"] < numbers["seconds"]["total"]
    rows = numbers["accuracy"]
    assert [(row["share"], row["labels"]) for row in rows] == [(1.0, 14), (10.0, 143)]
    lines = re.findall(r"^\| (\d+) % \((\d+) labels\) \|(.*)\|$", said, flags=re.MULTILINE)
    assert len(lines) == 2
    for row, (share, labels, cells) in zip(rows, lines, strict=True):
        assert (row["share"], row["labels"]) == (float(share), int(labels))
        means = []
        for arm, cell in zip(("scratch", "pretrained"), cells.split("|"), strict=False):
            draws = row[arm]["draws"]
            assert len(draws) == 2
            # Whole images of those held out.
            images = np.array(draws) * numbers["held_out"] / 100
            assert images == pytest.approx(images.round(), abs=1e-6)
            means.append(np.mean(draws))
            assert cell.strip() == f"{np.mean(draws):.1f} ± {np.std(draws):.1f} %"
        assert cells.split("|")[2].strip() == f"{means[1] - means[0]:+.1f}"
        assert cells.split("|")[3].strip() == "2"
    with Image.open("out/figure.png") as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    assert pixels.shape[0] >= 700
    assert pixels.shape[1] >= 1100
    for colour in finetune.COLOURS:
        wanted = [int(colour[k : k + 2], 16) for k in (1, 3, 5)]
        assert (np.abs(pixels - wanted).sum(axis=2) < 6).sum() > 500, colour


def test_same_seed_gives_the_same_numbers(finetune: ModuleType) -> None:
    runs = []
    for seed in ("0", "0", "1"):
        finetune.main([*SHORT, "--shares", "1", "--seed", seed])
        runs.append(json.loads(Path("numbers.json").read_text())["accuracy"])
    assert runs[0] == runs[1] != runs[2]


def test_folder_with_rare_class(finetune: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    photographs(Path("photos"), {"dark": 20, "light": 20, "rare": 3})
    finetune.main(["--data", "photos", *SHORT, "--shares", "1", "100", "--draws", "1"])
    rows = json.loads(Path("numbers.json").read_text())["accuracy"]
    assert [row["labels"] for row in rows] == [3, 16 + 16 + 2]
    assert "3 classes: 34 images, 9 held out" in capsys.readouterr().out


def test_a_share_of_labels_is_even_nested_and_has_all_classes(finetune: ModuleType) -> None:
    labels = torch.tensor([0] * 60 + [1] * 30 + [2] * 2 + [-1] * 8)
    shares = {0.1: [1, 1, 1], 5: [1, 2, 2], 20: [2, 8, 8], 100: [2, 30, 60]}
    for (share, counts), seed in product(shares.items(), range(5)):
        drawn = finetune.draw_share(labels, share, 3, seed)
        assert len(set(drawn.tolist())) == len(drawn)
        assert sorted(labels[drawn].bincount(minlength=3).tolist()) == counts
    small, large = (finetune.draw_share(labels, share, 3, seed=0).tolist() for share in (5, 20))
    assert set(small) < set(large)
    assert small != finetune.draw_share(labels, 5, 3, seed=1).tolist()


@pytest.mark.parametrize(("count", "size", "shortest", "longest"), [(11, 4, 5, 6), (3, 8, 3, 3)])
def test_batches_are_all_images_again_and_again(
    finetune: ModuleType, count: int, size: int, shortest: int, longest: int
) -> None:
    torch.manual_seed(0)
    stream = finetune.batches(count, size)
    epochs = []
    for _ in range(3):
        epoch: list[int] = []
        while len(epoch) < count:
            batch = next(stream).tolist()
            assert shortest <= len(batch) <= longest
            epoch += batch
        assert sorted(epoch) == list(range(count))
        epochs.append(epoch)
    assert epochs[0] != epochs[1]


def test_light_views_are_drawn_for_each_image_and_keep_digits_unmirrored(
    finetune: ModuleType,
) -> None:
    torch.manual_seed(0)
    images = torch.zeros(64, 1, 16, 16)
    images[..., :8] = 1  # bright on the left
    data = finetune.Data("x", images, torch.zeros(64), ["a"])
    for digits, mirrored in ((True, 0), (False, 32)):
        views = finetune.light_views(data, digits)(images)
        assert views.shape == images.shape
        right = views[..., 12:].mean((1, 2, 3)) > views[..., :4].mean((1, 2, 3))
        assert int(right.sum()) == pytest.approx(mirrored, abs=12 if mirrored else 0)
        assert len({float(view.sum()) for view in views}) > 50


def test_both_arms_differ_in_the_backbones_weights_alone(
    finetune: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given the weights that scratch would draw, the pretrained arm gives the same accuracy."""
    data, train, test, args = digits(finetune)
    chosen = train[:40]
    torch.manual_seed(7)
    start = finetune.backbone(1).state_dict()
    scratch = finetune.finetune(None, data, chosen, test, args, seed=7)
    assert finetune.finetune(start, data, chosen, test, args, seed=7) == scratch
    torch.manual_seed(8)
    other = finetune.backbone(1).state_dict()
    assert finetune.finetune(other, data, chosen, test, args, seed=7) != scratch


def test_fine_tuning_learns_and_leaves_the_start_alone(finetune: ModuleType) -> None:
    data, train, test, args = digits(finetune, "--steps", "60", "--batch-size", "64")
    start = finetune.backbone(1).state_dict()
    before = {name: value.clone() for name, value in start.items()}
    assert finetune.finetune(start, data, train, test, args, seed=0) > 80
    assert all(torch.equal(value, before[name]) for name, value in start.items())


def test_steps_are_in_training_mode_and_nothing_else(
    finetune: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Watched(torch.nn.Identity):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            modes.append((len(x), self.training, torch.is_grad_enabled()))
            return x

    modes: list[tuple[int, bool, bool]] = []
    backbone = finetune.backbone
    monkeypatch.setattr(finetune, "backbone", lambda n: torch.nn.Sequential(backbone(n), Watched()))
    data, train, test, args = digits(finetune)
    finetune.finetune(None, data, train[:40], test[:300], args, seed=0)
    tested = [(256, False, False), (44, False, False)]
    assert modes == [(1, False, False), *[(8, True, True)] * 10, *tested]


def test_held_out_images_are_never_trained_on(
    finetune: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither in pretraining nor in fine-tuning, for any share or draw."""
    seen: list[set[int]] = []
    pretrain = finetune.pretrain

    def recorded(learner: Any, loader: Any, args: Any) -> Any:
        seen.append({hash(image.numpy().tobytes()) for image in loader.dataset})
        return pretrain(learner, loader, args)

    def trained(start: Any, data: Any, chosen: Any, test: Any, args: Any, seed: int) -> float:
        seen.append({hash(data.images[k].numpy().tobytes()) for k in chosen})
        held_out.update(hash(data.images[k].numpy().tobytes()) for k in test)
        assert not set(chosen.tolist()) & set(test.tolist())
        runs.append((start is None, seed, chosen.tolist()))
        return 50.0

    runs: list[tuple[bool, int, list[int]]] = []
    held_out: set[int] = set()
    monkeypatch.setattr(finetune, "pretrain", recorded)
    monkeypatch.setattr(finetune, "finetune", trained)
    finetune.main(["--seed", "1", *SHORT])
    assert len(seen) == 1 + 2 * 2 * 3
    data, _, test, _ = digits(finetune, "--seed", "1")  # quickstart.py's split at this seed
    assert held_out == {hash(data.images[k].numpy().tobytes()) for k in test}
    assert not held_out & set().union(*seen)
    rows = json.loads(Path("numbers.json").read_text())["accuracy"]
    assert [row["share"] for row in rows] == [1, 10, 100]
    # The two runs of a pair have seed and labels in common, those of two draws have neither.
    for scratch, pretrained in zip(runs[::2], runs[1::2], strict=True):
        assert (scratch[0], pretrained[0]) == (True, False)
        assert scratch[1:] == pretrained[1:]
    for first, second in zip(runs[:6], runs[6:], strict=True):
        assert len(first[2]) == len(second[2])
        assert first[1] != second[1]
        assert first[2] != second[2]


# Weights


def test_weights_are_used_in_place_of_pretraining(
    finetune: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = finetune.backbone(1)
    torch.save(net.state_dict(), "net.pt")
    starts = []

    def trained(start: Any, *_: Any, **__: Any) -> float:
        starts.append(start)
        return 50.0

    monkeypatch.setattr(finetune, "finetune", trained)
    monkeypatch.setattr(finetune, "pretrain", None)
    finetune.main([*SHORT, "--weights", "net.pt", "--shares", "1", "--draws", "1"])
    assert starts[0] is None
    assert starts[1].keys() == net.state_dict().keys()
    assert all(torch.equal(value, starts[1][name]) for name, value in net.state_dict().items())
    assert json.loads(Path("numbers.json").read_text())["pretraining"] == {"weights": "net.pt"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read: .*No such file"),
        (b"no weights", "cannot be read"),
        ([1, 2], "should hold a backbone's state_dict"),
        ({"learner": {"0.weight": torch.zeros(1)}}, r"save learner.net.state_dict\(\)"),
        (
            "colour",
            r"in 1 of \d+ tensors: 0.weight should be \(16, 1, 3, 3\) and is \(16, 3, 3, 3\)",
        ),
        ("missing", r"in 1 of \d+ tensors: 0.weight should be \(16, 1, 3, 3\) and is absent"),
        ("more", r"in 1 of \d+ tensors: fc should be absent and is \(3,\)"),
    ],
)
def test_weights_that_do_not_fit_are_refused(
    finetune: ModuleType, content: Any, message: str
) -> None:
    state = finetune.backbone(3 if content == "colour" else 1).state_dict()
    if content == "missing":
        del state["0.weight"]
    if content == "more":
        state["fc"] = torch.zeros(3)
    if isinstance(content, bytes):
        Path("net.pt").write_bytes(content)
    elif content is not None:
        torch.save(state if isinstance(content, str) else content, "net.pt")
    with pytest.raises(SystemExit, match=message) as stop:
        finetune.main([*SHORT, "--weights", "net.pt"])
    assert "--weights: 'net.pt'" in str(stop.value)
    assert not Path("numbers.json").exists()


# Bad arguments and interruption


def test_images_without_classes_are_refused(finetune: ModuleType) -> None:
    photographs(Path("photos"), {".": 20})
    with pytest.raises(SystemExit, match="has 0 classes, at least 2 are needed"):
        finetune.main(["--data", "photos", *SHORT])


@pytest.mark.parametrize(
    "arguments",
    [("--shares", "0"), ("--shares", "101"), ("--shares", "nan"), ("--steps", "0")],
)
def test_bad_arguments(
    finetune: ModuleType, capsys: pytest.CaptureFixture[str], arguments: tuple[str, str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        finetune.parse(arguments)
    assert stop.value.code == 2
    assert arguments[0] in capsys.readouterr().err


def test_shares_come_in_order_and_once(finetune: ModuleType) -> None:
    assert finetune.parse(["--shares", "50", "2", "2.0"]).shares == [2, 50]


def test_interrupt_shows_the_pairs_there_are(
    finetune: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def trained(*_: Any, **__: Any) -> float:
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return 50.0

    calls: list[int] = []
    torch.save(finetune.backbone(1).state_dict(), "net.pt")
    monkeypatch.setattr(finetune, "finetune", trained)
    finetune.main([*SHORT, "--weights", "net.pt"])
    assert len(calls) == 4  # both arms of the pair at hand
    rows = json.loads(Path("numbers.json").read_text())["accuracy"]
    assert [row["share"] for row in rows] == [1, 10]
    assert Path("finetune.png").exists()


def test_interrupted_pretraining_goes_on_to_fine_tuning(
    finetune: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def pretrain(learner: Any, loader: Any, args: Any) -> dict[str, Any]:
        return {"steps": 3, "interrupted": True, "loss": [], "std_ratio": []}

    monkeypatch.setattr(finetune, "pretrain", pretrain)
    finetune.main([*SHORT, "--shares", "1", "--draws", "1"])
    assert "interrupted after 3 steps" in capsys.readouterr().out
    assert json.loads(Path("numbers.json").read_text())["pretraining"]["interrupted"]


def test_as_a_script_with_warnings_as_errors() -> None:
    command = [sys.executable, "-W", "error", str(EXAMPLES / "finetune.py"), "--data", "nowhere"]
    done = subprocess.run(
        command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "nowhere" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_pretraining_is_worth_points_where_labels_are_few(finetune: ModuleType) -> None:
    finetune.main(["--device", "cpu", "--shares", "1", "--json", "numbers.json"])
    row = json.loads(Path("numbers.json").read_text())["accuracy"][0]
    assert row["pretrained"]["mean"] >= row["scratch"]["mean"] + 2
