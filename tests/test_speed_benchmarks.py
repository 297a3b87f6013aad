"""The benchmarks of speed measure what they say; their tables and charts come out."""

import json
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

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

    monkeypatch.setattr(views, "SIZES", {**views.SIZES, "cpu": [(32, 32, 4), (64, 64, 2)]})
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
    for name, run in views.pairs(images, side).items():
        for view in run():
            assert view.shape == images.shape, name
            assert view.dtype == torch.float32


def test_our_steps_are_measured_against_kornia_s_functions(views: ModuleType, capsys: Any) -> None:
    views.FUNCTIONS = [(32, 3), (65, 2)]
    views.main(["--only", "functions", "--rounds", "1"])
    rows = [row.strip("| ").split(" | ") for row in capsys.readouterr().out.splitlines()[2:]]
    assert rows[0][1:-1] == list(views.functions(torch.rand(2, 3, 32, 32)))
    assert len(rows) == 4
    assert all(float(row[-1]) < 1e-4 for row in rows[2:])


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


def test_siblings_are_measured_against_their_floors(step_time: ModuleType, capsys: Any) -> None:
    only = ["--only", "siblings", "--networks", "small", "--rounds", "2", "--precisions", "fp32"]
    peers = ["lightly", "lightly, no views"] if PEERS else []
    step_time.main(["--device", "cpu", "--entries", "floor", "byol_wrap", *peers, *only])
    found = json.loads(Path("step_time.json").read_text())["siblings"]
    assert list(found) == ["SimSiam, small, fp32", "SimCLR, small, fp32", "MoCo, small, fp32"]
    for name, one in found.items():
        in_parts = ["byol_wrap, keys in 8 parts"] if "MoCo" in name else []
        assert list(one["seconds"]) == ["floor", "byol_wrap", *peers, *in_parts]
        assert len(one["milliseconds by part"]) == 5
    out = capsys.readouterr().out
    for name in found:  # the first table; where there are no parts, their cell is empty
        row = next(x for x in out.splitlines() if x.startswith(f"| {name}, 32 x 32, batch 4 |"))
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert cells[2] == "1.000"
        assert (cells[-1] == "") == ("MoCo" not in name)


def test_siblings_of_large_networks_are_left_out(
    step_time: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    networks = step_time.NETWORKS
    monkeypatch.setitem(networks, "resnet50", replace(networks["small"], side=224))
    only = ["--only", "siblings", "--rounds", "1", "--precisions", "fp32", "--entries", "floor"]
    step_time.main(["--device", "cpu", *only, "byol_wrap"])
    found = json.loads(Path("step_time.json").read_text())["siblings"]
    assert {name.split(", ")[1] for name in found} == {"small", "resnet18"}


def entries(step_time: ModuleType) -> list[tuple[str, str]]:
    """All that are whole steps, by method and name."""
    tables = {"BYOL": step_time.ENTRIES, **step_time.SIBLINGS}
    found = [(method, name) for method, table in tables.items() for name in table]
    return [(m, n) for m, n in found if n != "floor" and (PEERS or n.startswith("byol_wrap"))]


def test_an_entry_trains(step_time: ModuleType) -> None:
    network = step_time.NETWORKS["small"]
    images = step_time.pictures(4, 32, torch.device("cpu"))
    for method, name in entries(step_time):
        one = step_time.entry(name, network, images, method)
        net = one.recipe.online if hasattr(one, "recipe") else one
        net = one.learner if hasattr(one, "learner") else net
        before = [p.clone() for p in net.parameters() if p.requires_grad]
        one.step()
        after = [p for p in net.parameters() if p.requires_grad]
        changed = [not torch.equal(a, b) for a, b in zip(before, after, strict=True)]
        assert sum(changed) > len(changed) / 2, (method, name)


def layers(module: nn.Module, kind: type) -> list[Any]:
    return [layer for layer in module.modules() if isinstance(layer, kind)]


def take_weights(module: nn.Module, source: nn.Module) -> None:
    """Also from a module that is built of the same layers in another way.

    A bias that BatchNorm follows changes nothing: lightly's layers have none there.
    """
    for kind in (nn.Conv2d, nn.Linear, nn.BatchNorm1d, nn.BatchNorm2d):
        for one, other in zip(layers(module, kind), layers(source, kind), strict=True):
            for name, parameter in one.named_parameters():
                parameter.data.copy_(getattr(other, name))


@pytest.mark.parametrize("method", ["SimSiam", "SimCLR", "MoCo"])
def test_the_networks_of_siblings_are_the_same(
    step_time: ModuleType, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With equal weights and views, floor and lightly have the loss of byol_wrap."""
    if PEERS:  # all targets stay where the test puts them
        monkeypatch.setattr("lightly.models.utils.update_momentum", lambda *_, **__: None)
    network = step_time.NETWORKS["small"]
    images = step_time.pictures(6, 32, torch.device("cpu"))
    view1, view2 = images, images.flip(3) + 0.1 * torch.randn_like(images)
    learner = step_time.entry("byol_wrap", network, images, method).learner
    with torch.no_grad():
        if method == "MoCo":
            for parameter in learner.target.parameters():
                parameter.add_(0.01)
            queue = learner.queue.clone()
    expected = learner(view1, view2)
    expected.backward()
    for name in ["floor", "lightly, no views"] if PEERS else ["floor"]:
        one = step_time.entry(name, network, images, method)
        take_weights(one.online, learner.online)
        if method == "SimSiam":
            take_weights(one.predictor, learner.predictor)
        if method == "MoCo":
            take_weights(one.target, learner.target)
            kept = one.queue if name == "floor" else one.criterion.memory_bank.bank
            kept.copy_(queue)
        loss = one.loss(view1, view2)
        assert loss.item() == pytest.approx(expected.item(), rel=1e-5), name
        loss.backward()
        theirs, own = layers(one.online, nn.Conv2d)[0], layers(learner.online, nn.Conv2d)[0]
        torch.testing.assert_close(theirs.weight.grad, own.weight.grad, rtol=1e-3, atol=1e-6)


@pytest.mark.skipif(not PEERS, reason="needs the bench extra")
def test_lightlys_views_are_of_the_papers_recipe(step_time: ModuleType) -> None:
    from byol_wrap.views import MOCO_VIEW, SIMCLR_VIEW, SIMSIAM_VIEW

    recipes = {"SimSiam": SIMSIAM_VIEW, "SimCLR": SIMCLR_VIEW, "MoCo": MOCO_VIEW}
    for method, recipe in recipes.items():
        for side in (32, 64):
            images = torch.rand(2, 3, side, side)
            one = step_time.entry("lightly", step_time.NETWORKS["small"], images, method)
            views = one.two_views()
            assert [view.shape for view in views] == [images.shape] * 2
            assert not views[0].equal(views[1])
            for view in one.transform.transforms:
                parts = {type(part).__name__: part for part in view.transform.transforms}
                [jitter] = parts["RandomApply"].transforms
                factors = (jitter.brightness, jitter.contrast, jitter.saturation)
                found = [jitter.hue[1], *(most - 1 for _, most in factors)]
                names = ("hue", "brightness", "contrast", "saturation")
                assert found == pytest.approx([getattr(recipe, name) for name in names])
                assert parts["RandomResizedCrop"].scale == recipe.crop_area
                assert parts["GaussianBlur"].prob == (recipe.blur if side == 64 else 0)


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


def test_reading_from_disk_is_measured_against_the_bare_loop(
    monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """With a reader that waits, images come as fast as it reads."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import disk

    class Slow(disk.ImageFiles):
        def __getitem__(self, index: int) -> Any:
            time.sleep(0.1)
            return super().__getitem__(index)

    monkeypatch.setattr(disk, "ImageFiles", Slow)
    small = ["--backbone", "squeezenet1_1", "--image-size", "32", "--batch-size", "4"]
    small += ["--images", "8", "--workers", "0", "--steps", "1", "--rounds", "1"]
    found = disk.main([*small, "--device", "cpu"])
    assert found["disk"] < 10
    assert found["ratio"] == pytest.approx(found["disk"] / found["bare"])
    assert "from disk" in capsys.readouterr().out
