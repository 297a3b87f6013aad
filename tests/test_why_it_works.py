"""examples/why_it_works.py: each arm differs from BYOL in what it says, and in nothing else."""

import argparse
import importlib
import json
import signal
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from threading import Event
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from byol_wrap import BYOL, knn_accuracy, linear_probe
from byol_wrap.evaluation.health import effective_rank, std_ratio

EXAMPLES = Path(__file__).parents[1] / "examples"
STEPS, BATCH_SIZE = 3, 8
SHORT = ["--data", "digits", "--device", "cpu", "--image-size", "16", "--width", "2"]
SHORT += ["--images-seen", "48", "--batch-size", "16"]


@pytest.fixture(scope="module")
def why() -> Iterator[ModuleType]:
    """The script as a module; it imports its neighbour."""
    sys.path.insert(0, str(EXAMPLES))
    yield importlib.import_module("why_it_works")
    sys.path.remove(str(EXAMPLES))


@pytest.fixture
def args(why: ModuleType) -> argparse.Namespace:
    seen, size = str(STEPS * BATCH_SIZE), str(BATCH_SIZE)
    options = ["--images-seen", seen, "--batch-size", size, "--width", "2", "--device", "cpu"]
    return why.parse(options)


@pytest.fixture
def data(why: ModuleType) -> Any:
    """Random pictures in colour."""
    images = torch.randint(0, 256, (40, 3, 16, 16), generator=torch.Generator().manual_seed(1))
    return why.Data("random", images.byte(), torch.arange(40) % 2, ["a", "b"])


def arm(why: ModuleType, name: str) -> Any:
    return next(arm for arm in why.ARMS if arm.name == name)


def built(why: ModuleType, data: Any, args: argparse.Namespace, name: str) -> BYOL:
    return why.build(arm(why, name), data, args)


def train(why: ModuleType, learner: BYOL, data: Any, args: argparse.Namespace, name: str) -> Any:
    watched = torch.rand(10, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    return why.train(learner, arm(why, name), data.images, watched, Event(), args)


def parameters(module: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in module.parameters()]


def equal(ones: list[Tensor], others: list[Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(ones, others, strict=True))


def test_every_arm(tmp_path: Path, why: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    """Warnings are errors here: no arm is quiet because something went wrong."""
    numbers_file, picture = tmp_path / "out" / "n.json", tmp_path / "out" / "p.png"
    why.main([*SHORT, "--json", str(numbers_file), "--picture", str(picture)])
    numbers = json.loads(numbers_file.read_text())
    said = capsys.readouterr().out
    assert list(numbers["arms"]) == [arm.name for arm in why.ARMS]
    assert len(numbers["arms"]) == 15
    for name, found in numbers["arms"].items():
        line = next(line for line in said.splitlines() if line.startswith(f"{name:24}"))
        columns = ("knn", "linear", "std_ratio", "rank", "projection_std_ratio")
        shown = [float(cell) for cell in line[24:].split()]
        digits = (1, 1, 2, 1, 2)
        assert shown[:5] == [round(found[k], n) for k, n in zip(columns, digits, strict=True)]
        assert 5 < found["knn"] < 100
        assert 5 < found["linear"] < 100
        assert found["warnings"] == []
        seen = [point["images_seen"] for point in found["curve"]]
        assert seen == ([0] if name == "random weights" else [0, 16, 32, 48])
        for key in ("std_ratio", "rank", "projection_std_ratio", "projection_rank"):
            assert found[key] == found["curve"][-1][key]
        assert all(0 < point["loss"] < 8 for point in found["curve"][1:])
    start = [found["curve"][0] for found in numbers["arms"].values()]
    assert all(point == start[0] for point in start)
    assert numbers["settings"]["images_seen"] == 48
    assert numbers["versions"]["torch"] == torch.__version__
    assert numbers["images"] == 1797
    assert numbers["held_out"] == pytest.approx(1797 / 5, abs=10)
    assert "fifteen small experiments" in why.__doc__
    with Image.open(picture) as image:
        assert image.size[0] >= 1200
        assert len(np.unique(np.asarray(image.convert("RGB")).reshape(-1, 3), axis=0)) > 100


def test_all_arms_start_alike(why: ModuleType, data: Any, args: argparse.Namespace) -> None:
    plain = built(why, data, args, "BYOL")
    for other in why.ARMS:
        learner = built(why, data, args, other.name)
        assert equal(parameters(learner.online), parameters(plain.online)), other.name
        if other.predictor:
            assert equal(parameters(learner.predictor), parameters(plain.predictor)), other.name
        same_target = equal(parameters(learner.target), parameters(learner.online))
        assert same_target != other.random_target, other.name


def test_all_arms_see_the_same_images(
    why: ModuleType, data: Any, args: argparse.Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[Tensor]] = []
    original = why.batches

    def recorded(*arguments: Any) -> Iterator[Tensor]:
        seen.append([])
        for batch in original(*arguments):
            seen[-1].append(batch)
            yield batch

    monkeypatch.setattr(why, "batches", recorded)
    for name in ("BYOL", "fixed random target", "neither"):
        train(why, built(why, data, args, name), data, args, name)
    assert [len(images) for images in seen] == [STEPS] * 3
    assert equal(seen[0], seen[1])
    assert equal(seen[0], seen[2])
    assert [len(batch) for batch in seen[0]] == [BATCH_SIZE] * STEPS


def test_batches_show_each_image_once_a_pass(why: ModuleType) -> None:
    images = torch.arange(12)
    passes = torch.cat(list(why.batches(images, 9, 4))).view(3, 12)
    assert all(one.sort().values.equal(images) for one in passes)
    assert not passes[0].equal(passes[1])


def test_random_target_stays_as_it_is(why: ModuleType, data: Any, args: argparse.Namespace) -> None:
    learner = built(why, data, args, "fixed random target")
    before, online = parameters(learner.target), parameters(learner.online)
    differ = [not torch.equal(a, b) for a, b in zip(before, online, strict=True)]
    names = [name for name, _ in learner.target.named_parameters()]
    drawn = {name for name, differs in zip(names, differ, strict=True) if differs}
    assert {"net.0.weight", "projector.0.weight", "projector.3.weight"} <= drawn
    assert not any(parameter.requires_grad for parameter in learner.target.parameters())
    train(why, learner, data, args, "fixed random target")
    assert equal(parameters(learner.target), before)
    assert not equal(parameters(learner.online), online)


@pytest.mark.parametrize(
    ("name", "first", "last"),
    [
        ("tau 0", 0, 0),
        ("tau 0.9", 0.9, 0.9),
        ("tau 0.99", 0.99, 0.99),
        ("tau 0.999", 0.999, 0.999),
        ("fixed random target", 1, 1),
        ("BYOL", 0.9, 1),
        ("no predictor", 0.9, 1),
    ],
)
def test_tau(
    why: ModuleType, data: Any, args: argparse.Namespace, name: str, first: float, last: float
) -> None:
    learner = built(why, data, args, name)
    assert learner.tau == pytest.approx(first, abs=1e-12)
    train(why, learner, data, args, name)
    assert int(learner.step) == STEPS
    assert learner.tau == pytest.approx(last, abs=1e-12)
    follows = equal(parameters(learner.target), parameters(learner.online))
    assert follows == (name == "tau 0")


@pytest.mark.parametrize("name", ["no predictor", "neither", "BYOL"])
def test_what_the_optimizer_trains(
    why: ModuleType,
    data: Any,
    args: argparse.Namespace,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    optimizers = []

    class Recorded(torch.optim.SGD):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            optimizers.append(self)

    learner = built(why, data, args, name)
    monkeypatch.setattr(torch.optim, "SGD", Recorded)
    train(why, learner, data, args, name)
    [optimizer] = optimizers
    given = {id(p) for group in optimizer.param_groups for p in group["params"] if p.requires_grad}
    expected = {id(p) for p in learner.online.parameters()}
    if name == "BYOL":
        heads = {id(p) for p in learner.predictor.parameters()}
        assert len(heads) == 5
        expected |= heads
    assert given == expected
    assert [group["initial_lr"] for group in optimizer.param_groups] == [args.lr] * 2
    assert [group["weight_decay"] for group in optimizer.param_groups] == [5e-4, 0]


class Detached(nn.Module):
    """A predictor through which no gradient flows."""

    def forward(self, x: Tensor) -> Tensor:
        return x.detach()


@pytest.mark.parametrize("name", ["no stop-gradient", "neither"])
def test_without_stop_gradient_the_other_branch_has_one(
    why: ModuleType, data: Any, args: argparse.Namespace, name: str
) -> None:
    """With the predictor's branch cut there is nothing left in BYOL, and the other branch here."""
    learner = built(why, data, args, "BYOL")
    learner.predictor = Detached()
    with pytest.raises(RuntimeError, match="without a gradient"):
        train(why, learner, data, args, "BYOL")

    learner = built(why, data, args, name)
    learner.predictor = Detached()
    before = parameters(learner.net)
    why.loss_without_stop_gradient(learner, data.images[:8]).backward()
    gradients = [parameter.grad for parameter in learner.net.parameters()]
    assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients)
    assert all(parameter.grad is None for parameter in learner.target.parameters())
    train(why, learner, data, args, name)
    assert not equal(parameters(learner.net), before)


def test_loss_without_stop_gradient_is_that_of_an_equal_target(
    why: ModuleType, data: Any, args: argparse.Namespace
) -> None:
    """Before the first step the target is a copy: the two losses agree, their gradients do not."""
    learner = built(why, data, args, "BYOL")
    torch.manual_seed(5)
    plain = learner(data.images[:8])
    torch.manual_seed(5)
    other = why.loss_without_stop_gradient(learner, data.images[:8])
    assert other.item() == pytest.approx(plain.item(), abs=1e-5)
    weight = learner.net[0].weight
    gradients = [torch.autograd.grad(loss, weight)[0] for loss in (plain, other)]
    assert (gradients[0] - gradients[1]).norm() > 0.1 * gradients[0].norm()


def views_of(
    why: ModuleType, args: argparse.Namespace, name: str, images: Tensor
) -> tuple[Tensor, Tensor]:
    """Views of 200 images, as pixels again."""
    data = why.Data("x", images, torch.zeros(len(images)).long(), ["a"])
    learner = built(why, data, args, name)
    mean, std = (torch.tensor(values)[:, None, None] for values in data.mean_std)
    view1, view2 = learner.views(images)
    return view1 * std + mean, view2 * std + mean


def coloured(pixels: tuple[int, int, int]) -> Tensor:
    return torch.tensor(pixels, dtype=torch.uint8)[:, None, None].expand(200, 3, 16, 16)


def share(found: Tensor) -> float:
    return found.float().mean().item()


def test_views_leave_out_what_they_say(why: ModuleType, args: argparse.Namespace) -> None:
    images = coloured((50, 110, 90))

    def kept(view: Tensor, images: Tensor = images) -> Tensor:
        return (view - images / 255).abs().amax((1, 2, 3)) < 1e-4

    def grey(view: Tensor) -> Tensor:
        return (view.amax(1) - view.amin(1)).amax((1, 2)) < 1e-4

    bright = coloured((200, 150, 250))  # which solarizing would change
    for view in views_of(why, args, "crop only", bright):
        assert kept(view, bright).all()
    for view in views_of(why, args, "no greyscale", images):
        assert not grey(view).any()
        assert share(kept(view)) < 0.4
    view1, _ = views_of(why, args, "no jitter", images)
    assert (kept(view1) | grey(view1)).all()
    assert 0.05 < share(grey(view1)) < 0.4
    view1, view2 = views_of(why, args, "no jitter, no greyscale", coloured((50, 90, 200)))
    assert share((view2[:, 2] < 0.5).all(2).all(1)) == pytest.approx(0.5, abs=0.1)  # solarized
    assert (view1[:, 2] > 0.5).all()
    for view in views_of(why, args, "BYOL", images):
        assert 0.05 < share(grey(view)) < 0.4
        assert share(kept(view)) < 0.4


def test_no_crop_and_crop_only(why: ModuleType, args: argparse.Namespace) -> None:
    """A white square in a corner stays where it is, or is mirrored; only crops move it."""
    images = torch.zeros(200, 3, 16, 16, dtype=torch.uint8)
    images[:, :, :5, :3] = 255
    square = images[0, 0] > 0

    def white(view: Tensor) -> Tensor:
        low, high = view.amin((1, 2, 3), keepdim=True), view.amax((1, 2, 3), keepdim=True)
        return (view > (low + high) / 2).all(1)

    there = white(views_of(why, args, "no crop", images)[0])
    as_it_was = (there == square).flatten(1).all(1)
    mirrored = (there == square.flip(1)).flatten(1).all(1)
    assert (as_it_was | mirrored).all()
    assert 0.3 < share(mirrored) < 0.7

    cropped = views_of(why, args, "crop only", images)[0]
    top = cropped[:, 0, :8]
    assert share((white(cropped) == square).flatten(1).all(1)) < 0.4
    left, right = top[..., :8].mean((1, 2)), top[..., 8:].mean((1, 2))
    assert (right <= left + 1e-4).all()  # never mirrored


def test_crops_keep_most_and_nothing_is_blurred(why: ModuleType, args: argparse.Namespace) -> None:
    """The ramp of a crop is as steep as the crop is wide."""
    ramp = torch.linspace(0, 255, 64).byte().expand(200, 3, 64, 64)
    view1, _ = views_of(why, args, "crop only", ramp)
    width = (view1[:, 0, 32, 60] - view1[:, 0, 32, 4]) * 64 / 56
    assert width.min() > 0.95 * (0.7 * 3 / 4) ** 0.5
    assert width.max() <= 1.1
    noise = torch.randint(0, 256, (20, 3, 64, 64)).byte()
    view1, _ = views_of(why, args, "no crop", noise)
    steps = (view1[..., 1:] - view1[..., :-1]).abs().mean((1, 2, 3))
    assert steps.min() > 0.1  # blurred noise has 0.06 and less


def test_measure_is_knn_and_linear(
    why: ModuleType, data: Any, args: argparse.Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = built(why, data, args, "BYOL")
    monkeypatch.setattr(why, "BANK", 24)
    monkeypatch.setattr(why, "QUERIES", 9)
    known, held_out = torch.randperm(40).split([28, 12])
    mean, std = (torch.tensor(values)[:, None, None] for values in data.mean_std)
    with torch.no_grad():
        features = learner.net.eval()((data.images / 255 - mean) / std)
    learner.net.train()
    train, test = known[:24], held_out[:9]
    task = (features[train], data.labels[train], features[test], data.labels[test])
    found = why.measure(learner, data, known, held_out)
    assert found["knn"] == pytest.approx(100 * knn_accuracy(*task))
    assert found["linear"] == pytest.approx(100 * linear_probe(*task))


def test_look_changes_nothing(why: ModuleType, data: Any, args: argparse.Namespace) -> None:
    learner = built(why, data, args, "BYOL")
    views = torch.rand(12, 3, 16, 16)
    before = {name: value.clone() for name, value in learner.state_dict().items()}
    found = why.look(learner, views, seen=7)
    assert equal(list(before.values()), list(learner.state_dict().values()))
    projection, representation = (part.detach() for part in learner.online(views))
    assert found == {
        "images_seen": 7,
        "std_ratio": pytest.approx(std_ratio(representation).item(), rel=1e-4),
        "rank": pytest.approx(effective_rank(representation).item(), rel=1e-4),
        "projection_std_ratio": pytest.approx(std_ratio(projection).item(), rel=1e-4),
        "projection_rank": pytest.approx(effective_rank(projection).item(), rel=1e-4),
    }


def test_warnings_are_kept_and_said(
    tmp_path: Path,
    why: ModuleType,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original = why.loss_without_stop_gradient

    def warns(*arguments: Any) -> Tensor:
        warnings.warn("all is one", UserWarning, stacklevel=1)
        return original(*arguments)

    monkeypatch.setattr(why, "loss_without_stop_gradient", warns)
    numbers, picture = str(tmp_path / "n.json"), str(tmp_path / "p.png")
    options = ["--only", "random weights", "no stop-gradient", "--json", numbers]
    why.main([*SHORT, *options, "--picture", picture])
    found = json.loads(Path(numbers).read_text())["arms"]
    assert list(found) == ["random weights", "no stop-gradient"]
    assert set(found["no stop-gradient"]["warnings"]) == {"all is one"}
    assert found["random weights"]["warnings"] == []
    assert "byol_wrap warns: all is one" in capsys.readouterr().out
    assert Path(picture).is_file()


def test_ctrl_c_keeps_what_there_is(
    tmp_path: Path,
    why: ModuleType,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original, trained = why.batches, []

    def interrupted(*arguments: Any) -> Iterator[Tensor]:
        for number, batch in enumerate(original(*arguments)):
            if len(trained) == STEPS + 1:  # before the second step of the second arm
                signal.raise_signal(signal.SIGINT)
            trained.append(number)
            yield batch

    monkeypatch.setattr(why, "batches", interrupted)
    monkeypatch.chdir(tmp_path)
    why.main([*SHORT, "--only", "BYOL", "tau", "--json", "n.json"])
    said = capsys.readouterr().out
    assert trained == [0, 1, 2, 0, 1]
    assert "Interrupted in 'tau 0'" in said
    assert list(json.loads(Path("n.json").read_text())["arms"]) == ["BYOL"]
    assert [line[:4] for line in said.splitlines()].count("BYOL") == 1
    assert Path("why_it_works.png").is_file()


def test_only_names_groups_and_arms(why: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert why.parse(["--only", "tau", "no crop"]).only == ["tau", "no crop"]
    for options in (["--only", "nothing"], ["--images-seen", "10"], ["--batch-size", "1"]):
        with pytest.raises(SystemExit) as stop:
            why.parse(options)
        assert stop.value.code == 2
        assert options[0] in capsys.readouterr().err


def test_a_folder_without_classes_ends_without_traceback(
    tmp_path: Path, why: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for number in range(20):
        Image.new("RGB", (16, 16), (number, 0, 0)).save(tmp_path / "photos" / f"{number}.png")
    with pytest.raises(SystemExit, match="Without classes"):
        why.main(["--data", "photos", "--device", "cpu"])
