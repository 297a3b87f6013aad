"""The matrix measures what it says, runs a cell, and does not run it twice."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).parent / "benchmarks"


@pytest.fixture
def noregret(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.chdir(tmp_path)
    import noregret

    return noregret


def test_few_labels_are_as_many_of_each_class(noregret: Any) -> None:
    labels = torch.arange(200) % 4
    draws = list(noregret.few_labels(labels))
    assert len(draws) == noregret.DRAWS
    assert all(labels[chosen].bincount().tolist() == [10] * 4 for chosen in draws)
    assert not torch.equal(draws[0], draws[1])


def test_views_are_found_again(noregret: Any) -> None:
    assert noregret.found_again(torch.eye(4), torch.eye(4)) == 1
    assert noregret.found_again(torch.eye(4), torch.eye(4).roll(1, 0)) == 0


def test_a_spectrum_that_falls_as_a_power_has_its_slope(noregret: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(300, 60, generator=generator))[0]
    basis = torch.linalg.qr(basis - basis.mean(dim=0))[0]
    falling = torch.arange(1.0, 61).pow(-0.75)  # of singular values; variances fall as its square
    assert noregret.spectrum_slope(basis * falling) == pytest.approx(1.5, abs=1e-3)


def test_lidar_counts_the_directions_that_tell_images_apart(noregret: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    centres = torch.zeros(400, 1, 12)
    centres[..., :3] = torch.randn(400, 1, 3, generator=generator)
    views = 100 * centres + 0.01 * torch.randn(400, 4, 12, generator=generator)
    assert noregret.lidar(views) == pytest.approx(3, abs=0.1)


def test_a_cell_runs_once(
    noregret: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(noregret, "DRAWS", 1)
    monkeypatch.setattr(noregret, "LOOKS", 2)
    command = ["--cells", "resnet/digits/BYOL", "--seeds", "0", "--steps", "4", "--batch-size", "8"]
    command += ["--output", "runs.jsonl"]
    noregret.main(command)
    (row,) = map(json.loads, Path("runs.jsonl").read_text().splitlines())
    assert [look["step"] for look in row["curve"]] == [0, 2, 4]
    assert row["curve"][0]["distance"] == 0
    assert row["curve"][-1]["distance"] > 0
    assert row["recipe"]["pretrained"] is False
    capsys.readouterr()
    noregret.main(command)
    assert len(Path("runs.jsonl").read_text().splitlines()) == 1
    assert "| resnet/digits/BYOL | 1 |" in capsys.readouterr().out
    noregret.main([*command, "--changes", "crop_area=[0.3, 1.0]"])
    changed = json.loads(Path("runs.jsonl").read_text().splitlines()[1])
    assert changed["recipe"]["crop_area"] == [0.3, 1.0]
