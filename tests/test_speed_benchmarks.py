"""The benchmarks of speed measure what they say; their tables and charts come out."""

import json
import statistics
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).parent / "benchmarks"
PEERS = find_spec("byol_pytorch") is not None and find_spec("lightly") is not None
OURS = ["floor", "byol_wrap", "byol_wrap, halves"]


@pytest.fixture
def step_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.chdir(tmp_path)
    import step_time

    small = step_time.Network(lambda: step_time.quality.small_resnet(4), 32, 32, {"cpu": 4}, 2)
    monkeypatch.setattr(step_time, "NETWORKS", {"small": small, "resnet18": small})
    return step_time


@pytest.fixture
def views(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.chdir(tmp_path)
    import views

    monkeypatch.setattr(views, "SIZES", {"cpu": {32: 4, 64: 2}})
    return views


def test_views_are_tabled_by_maker_and_by_step(views: ModuleType, capsys: Any) -> None:
    views.main(["--device", "cpu", "--rounds", "2", "--output", "views.json"])
    out = capsys.readouterr().out
    for name in ("byol_wrap", "kornia", "torchvision", "copy"):
        assert out.count(f"| {name} |") == 2
    sizes = json.loads(Path("views.json").read_text())["sizes"]
    assert [len(times) for times in sizes["64"]["seconds"].values()] == [2, 2, 2, 2]
    steps = ["draw", "crop", "flip", "jitter", "greyscale", "blur", "solarize"]
    assert list(sizes["32"]["milliseconds by step"]) == steps


@pytest.mark.parametrize("side", [32, 64])
def test_all_makers_make_views_of_the_same_images(views: ModuleType, side: int) -> None:
    images = torch.rand(3, 3, side, side)
    for name, run in views.pairs(images).items():
        for view in run():
            assert view.shape == images.shape, name
            assert view.dtype == torch.float32
    chains = [views.kornia_chain(recipe, side) for recipe in (views.VIEW1, views.VIEW2)]
    assert [len(chain) for chain in chains] == ([4, 5] if side < 64 else [5, 6])


def test_steps_are_measured_against_the_floor(step_time: ModuleType, capsys: Any) -> None:
    only = ["--only", "step", "growth", "--networks", "small", "--rounds", "2"]
    step_time.main(["--device", "cpu", "--entries", *OURS, "--precisions", "fp32", *only])
    found = json.loads(Path("step_time.json").read_text())
    times = found["step"]["small, fp32"]["seconds"]
    assert list(times) == OURS
    assert all(len(values) == 2 for values in times.values())
    assert len(found["step"]["small, fp32"]["milliseconds by part"]) == 5
    assert len(found["growth"]) == 10
    floor = 1e3 * statistics.median(times["floor"])
    assert f"| small, fp32, 32 x 32, batch 4 | {floor:.0f} | 1.000 |" in capsys.readouterr().out


def test_an_entry_trains(step_time: ModuleType) -> None:
    network = step_time.NETWORKS["small"]
    images = step_time.pictures(4, 32, torch.device("cpu"))
    for name in list(step_time.ENTRIES) if PEERS else OURS:
        one = step_time.entry(name, network, images)
        if name == "floor":
            continue
        learner = one.recipe.online if hasattr(one, "recipe") else one.learner
        before = [p.clone() for p in learner.parameters() if p.requires_grad]
        one.step()
        after = [p for p in learner.parameters() if p.requires_grad]
        assert not all(torch.equal(a, b) for a, b in zip(before, after, strict=True)), name


def test_the_chart_is_drawn(step_time: ModuleType, tmp_path: Path) -> None:
    times = {name: [1.0, 2.0] for name in step_time.ENTRIES}
    growth = [
        {"network": name, "side": side, "batch": side, "seconds": times}
        for name in ("small", "resnet18")
        for side in (32, 64)
    ]
    step_time.draw_chart({"step": {"a": {"seconds": times}}, "growth": growth}, tmp_path / "c.png")
    assert (tmp_path / "c.png").stat().st_size > 10_000


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
@pytest.mark.skipif(not PEERS, reason="needs the bench extra")
def test_peak_memory_is_of_a_process_of_its_own() -> None:
    held = torch.ones(2**28)  # a GB here is none there
    peaks = {}
    for label in ("imports", "floor"):
        command = [sys.executable, str(BENCHMARKS / "step_time.py"), "--peak-of", "small", label]
        out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        peaks[label] = float(out.splitlines()[-1])
    assert held.sum() > 0
    assert 200 < peaks["imports"] < 1024
    assert peaks["floor"] > peaks["imports"] + 100
