"""examples/negatives.py: each cell changes what it says, and the lines of a file are not redone."""

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from byol_wrap import BYOL, MoCo, SimCLR

EXAMPLES = Path(__file__).parents[1] / "examples"
SHORT = ["--data", "digits", "--device", "cpu", "--image-size", "16", "--width", "2"]
SHORT += ["--images-seen", "512"]


@pytest.fixture(scope="module")
def negatives() -> Iterator[ModuleType]:
    """The script as a module; it imports its neighbours."""
    sys.path.insert(0, str(EXAMPLES))
    yield importlib.import_module("negatives")
    sys.path.remove(str(EXAMPLES))


@pytest.fixture
def data(negatives: ModuleType) -> Any:
    """Random pictures in colour."""
    images = torch.randint(0, 256, (40, 3, 16, 16), generator=torch.Generator().manual_seed(1))
    return negatives.Data("random", images.byte(), torch.arange(40) % 2, ["a", "b"])


def test_cells_are_those_of_the_papers(negatives: ModuleType) -> None:
    names = [f"{m}, batch {b}" for b in (16, 64, 256, 512) for m in ("SimCLR", "BYOL")]
    names += [f"MoCo, {label}" for label in ("queue 256", "queue 1024", "queue 4096", "tau 0")]
    names += ["MoCo, keys in 8 parts"]
    names += [f"{m}, {v}" for v in ("no colour", "crop only") for m in ("SimCLR", "BYOL")]
    assert [cell.name for cell in negatives.CELLS] == names


def test_each_cell_is_what_its_name_says(negatives: ModuleType, data: Any) -> None:
    args = negatives.parse([*SHORT])
    first = None
    for cell in negatives.CELLS:
        learner = negatives.build(cell, data, args)
        method, _, label = cell.name.partition(", ")
        assert type(learner) is {"SimCLR": SimCLR, "BYOL": BYOL, "MoCo": MoCo}[method]
        assert cell.batch_size == (int(label[6:]) if label.startswith("batch") else 64)
        weights = torch.cat([weight.flatten() for weight in learner.net.parameters()])
        first = weights if first is None else first
        assert torch.equal(weights, first)
        if isinstance(learner, MoCo):
            assert len(learner.queue) == (int(label[6:]) if label.startswith("queue") else 1024)
            assert learner.key_parts == (8 if "parts" in label else None)
            learner(data.images).backward()
            with torch.no_grad():
                learner.net[0].weight.add_(1)
            before = learner.target.net[0].weight.clone()
            learner.update_moving_average()
            moved = (learner.target.net[0].weight - before).mean().item()
            assert moved == pytest.approx(1 if label == "tau 0" else 0.01, abs=1e-4)


@pytest.mark.parametrize("method", ["SimCLR", "BYOL"])
def test_views_lose_colour_steps_then_the_flip(
    negatives: ModuleType, data: Any, method: str
) -> None:
    """One bright colour stays itself without colour steps; a slope stays upright without flips."""
    args = negatives.parse([*SHORT])
    bright = torch.tensor([200, 150, 250], dtype=torch.uint8)[:, None, None]
    bright = bright.expand(60, 3, 16, 16)
    slope = torch.linspace(0, 250, 16).byte().expand(60, 3, 16, 16)
    kept, upright = {}, {}
    for cell in negatives.CELLS:
        if cell.method == method and (cell.group == "views" or cell.batch_size == 64):
            learner = negatives.build(cell, data, args)
            mean, std = (torch.tensor(values)[:, None, None] for values in data.mean_std)
            colours = [view * std + mean for view in learner.views(bright)]
            slopes = learner.views(slope)
            kept[cell.label] = all((v - bright / 255).abs().max() < 1e-4 for v in colours)
            upright[cell.label] = all((v[..., -1] > v[..., 0]).all() for v in slopes)
    assert kept == {"batch 64": False, "no colour": True, "crop only": True}
    assert upright == {"batch 64": False, "no colour": False, "crop only": True}


def test_batches_and_learning_rate(
    negatives: ModuleType, data: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Equal images seen; the rate of the first step is as the root of the batch size."""
    seen: list[int] = []
    rates: list[float] = []
    adamw = torch.optim.AdamW

    def spy(groups: Any, rate: float) -> torch.optim.AdamW:
        rates.append(rate)
        return adamw(groups, rate)

    monkeypatch.setattr(torch.optim, "AdamW", spy)
    args = negatives.parse([*SHORT, "--lr", "0.001"])
    for cell in negatives.CELLS[:2:2] + negatives.CELLS[6:7]:  # SimCLR with 16 and 512
        learner = negatives.build(cell, data, args)
        learner.net.register_forward_hook(lambda _, images, __: seen.append(len(images[0])))
        seen.clear()
        negatives.train(learner, cell, data.images, args)
        assert set(seen) == {cell.batch_size}
        assert sum(seen) == 2 * 512
    assert rates == [pytest.approx(0.001 / 2), pytest.approx(0.001 * 8**0.5)]


def test_table_figure_and_resuming(
    tmp_path: Path,
    negatives: ModuleType,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lines, picture = tmp_path / "out" / "n.jsonl", tmp_path / "out" / "p.png"
    options = [*SHORT, "--json", str(lines), "--picture", str(picture)]
    negatives.main([*options, "--only", "MoCo, tau 0", "SimCLR, batch 512"])
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "| MoCo, tau 0 | " in capsys.readouterr().out
    before = [json.loads(line) for line in lines.read_text().splitlines()]
    assert [line["settings"]["label"] for line in before] == ["batch 512", "tau 0"]

    ran: list[str] = []

    def fake(cell: Any, *_: Any) -> dict[str, Any]:
        ran.append(cell.name)
        return {"knn": 12.34, "linear": 56.78, "seconds": 9.0, "warnings": ["all is one"]}

    monkeypatch.setattr(negatives, "run", fake)
    picture.unlink()
    negatives.main(options)
    said = capsys.readouterr().out
    names = [cell.name for cell in negatives.CELLS]
    assert ran == [n for n in names if n not in ("MoCo, tau 0", "SimCLR, batch 512")]
    assert "| BYOL, batch 16 | 12.3 | 56.8 | 9 |" in said
    assert f"| MoCo, tau 0 | {before[1]['numbers']['knn']:.1f} | " in said
    assert "byol_wrap warns: all is one" in said
    assert [row.split(" | ")[0][2:] for row in said.splitlines() if row[:2] == "| "][1:] == names
    assert picture.is_file()
    monkeypatch.setattr(negatives, "draw_picture", lambda *_: None)  # it takes its time
    ran.clear()
    negatives.main(options)
    assert ran == []
    negatives.main([*options, "--seed", "1", "--only", "batch"])  # other settings, other lines
    assert ran == names[:8]


def test_encoded_images(tmp_path: Path, negatives: ModuleType) -> None:
    files = []
    for number in range(3):
        path = tmp_path / f"{number}.png"
        Image.new("RGB", (8, 8), (10 * number, 20, 30)).save(path)
        files.append(np.frombuffer(path.read_bytes(), np.uint8))
    ends = np.cumsum([len(file) for file in files])
    path, labels = tmp_path / "few.npz", np.array([0, 2, 1])
    np.savez(path, train_bytes=np.concatenate(files), train_ends=ends, train_labels=labels)
    found = negatives.load(negatives.parse(["--data", str(path), "--image-size", "8"]))
    assert found.images[:, :, 0, 0].tolist() == [[0, 20, 30], [10, 20, 30], [20, 20, 30]]
    assert found.images.shape == (3, 3, 8, 8)
    assert (found.labels.tolist(), found.classes) == ([0, 2, 1], ["0", "1", "2"])
