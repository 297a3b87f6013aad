"""The script for long runs: killed and resumed, in several processes, logged, judged."""

import contextlib
import json
import multiprocessing
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from devices import needs_fsdp2
from nets import conv_net
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from byol_wrap.evaluation import Progress
from byol_wrap.training.saving import Checkpoints, plain_state
from byol_wrap.views.sheet import sheet

EXAMPLES = Path(__file__).parents[1] / "examples"
HEADS = {"projection_size": 8, "projection_hidden_size": 16}
SMALL = ["--backbone", "test_pretrain:small_net", "--method-options", json.dumps(HEADS)]
SMALL += ["--image-size", "16", "--batch-size", "8", "--workers", "0", "--accelerator", "cpu"]
SMALL += ["--log-every", "3", "--lr", "0.01"]

pytestmark = pytest.mark.filterwarnings("ignore")  # the engine's and TensorBoard's own


def small_net() -> nn.Module:
    return conv_net(4, classes=2)


def net_without_batchnorm() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(392, 8))


def fixed_view(images: Tensor) -> Tensor:
    return images[..., 1:17, 1:17] - 0.5


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of 40 pictures, light and dark, and two broken files."""
    folder = tmp_path_factory.mktemp("photos")
    draws = np.random.default_rng(0)
    for k in range(80):
        (folder / str(k % 2)).mkdir(exist_ok=True)
        pixels = draws.integers(0, 128, (20, 20 + k % 3, 3), np.uint8) + 100 * (k % 2)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / str(k % 2) / f"{k:02}.png")
    (folder / "0" / "04.png").write_bytes(b"no picture")
    (folder / "1" / "31.png").write_bytes((folder / "1" / "33.png").read_bytes()[:300])
    return folder


@pytest.fixture(autouse=True)
def paths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.syspath_prepend(str(Path(__file__).parent))


def pretrain(*arguments: Any) -> None:
    import_module("pretrain").main([str(argument) for argument in arguments])


def state_of(output: Path) -> dict[str, Any]:
    return torch.load(sorted(output.glob("step-*"))[-1] / "process-0.pt", weights_only=True)


def same(one: Any, other: Any) -> bool:
    """Whether two states are equal bit for bit."""
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


# Processes that can be killed, forked from one that has imported what takes long


def child(arguments: list[str], environment: dict[str, str], output: str) -> None:
    os.setsid()
    os.environ |= environment
    sys.path[:0] = [str(EXAMPLES), str(Path(__file__).parent)]
    torch.set_num_threads(1)
    with open(output, "a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    import_module("pretrain").main(arguments)


def start(output: Path, *arguments: Any, **environment: str) -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["kornia", "lightning.fabric", "torch.utils.tensorboard"])
    words = [str(a) for a in ("--output", output, *arguments)]
    process = context.Process(target=child, args=(words, environment, f"{output}.txt"))
    process.start()
    return process


def finish(*processes: Any, within: float = 120) -> None:
    for process in processes:
        process.join(within)
        assert process.exitcode == 0


def kill(process: Any) -> None:
    with contextlib.suppress(ProcessLookupError):  # it has no group yet
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.join()


def test_a_killed_run_goes_on_with_the_same_bits(photos: Path, tmp_path: Path) -> None:
    """Accumulated batches; the first kill is while there is nothing but the beginning."""
    run = ["--data", photos, "--epochs", 3, "--accumulate", 2, "--minutes", 0, "--resume", *SMALL]
    beside = start(tmp_path / "whole", *run)
    for least in (0, 1, 2):
        process = start(tmp_path / "killed", *run)
        until = time.monotonic() + 60
        while len(list((tmp_path / "killed").glob("step-*"))) < least:
            assert time.monotonic() < until
            time.sleep(0.002)
        time.sleep(0.05)
        kill(process)
    finish(start(tmp_path / "killed", *run), beside)
    whole, killed = state_of(tmp_path / "whole"), state_of(tmp_path / "killed")
    assert whole["step"] == 12
    assert whole["learner"]["step"] == 12
    assert whole["scheduler"]["last_epoch"] == 12
    assert same(whole, killed)
    assert re.search(r", step [1-9]", (tmp_path / "killed.txt").read_text())


@pytest.mark.slow
def test_twenty_kills_at_any_moment_lose_nothing(photos: Path, tmp_path: Path) -> None:
    """While it starts, trains, or writes one of the forty checkpoints."""
    run = ["--data", photos, "--epochs", 10, "--minutes", 0, "--resume", *SMALL, "--workers", 1]
    finish(start(tmp_path / "whole", *run), within=600)
    draws, steps = random.Random(0), [0]

    def reached() -> int:
        return max((int(p.name[5:]) for p in (tmp_path / "killed").glob("step-*")), default=0)

    for _ in range(20):
        process, checkpoints = start(tmp_path / "killed", *run), draws.choice([0, 0, 1, 2, 3])
        seen, until = {reached()}, time.monotonic() + 120
        while len(seen) <= checkpoints and time.monotonic() < until:
            time.sleep(0.001)
            seen.add(reached())
        time.sleep(draws.uniform(0, 0.2 if checkpoints else 8))
        kill(process)
        if there := sorted((tmp_path / "killed").glob("step-*")):
            steps.append(state_of(tmp_path / "killed")["step"])
            load_file(there[-1] / "backbone.safetensors")
    finish(start(tmp_path / "killed", *run), within=600)
    assert steps == sorted(steps)
    assert sum(step < 80 for step in steps) >= 15
    assert same(state_of(tmp_path / "whole"), state_of(tmp_path / "killed"))


def group(output: Path, *arguments: Any) -> list[Any]:
    """Two processes, as torchrun would start them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    both = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "test"}
    both |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GROUP_RANK": "0"}
    return [start(output, *arguments, **both, RANK=str(k), LOCAL_RANK=str(k)) for k in range(2)]


@pytest.mark.parametrize("method", ["BYOL", "SimCLR"])
def test_two_processes_equal_one(photos: Path, tmp_path: Path, method: str) -> None:
    """A net without BatchNorm, whose statistics are its own, and views without draws."""
    run = ["--data", photos, "--epochs", 2, "--method", method, *SMALL, "--lr", 0.001]
    run += ["--backbone", "test_pretrain:net_without_batchnorm"]
    run += ["--views", "test_pretrain:fixed_view", "--recipe", '{"algorithm": "SGD"}']
    processes = group(tmp_path / "two", *run)
    finish(start(tmp_path / "one", *run, "--batch-size", 16), *processes)
    one, two = (state_of(tmp_path / name) for name in ("one", "two"))
    assert one["step"] == two["step"] == 8
    for name, value in one["learner"].items():
        torch.testing.assert_close(two["learner"][name], value, rtol=1e-4, atol=1e-6)
    assert set(two["skipped"]) == {"0/04.png", "1/31.png"}


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", pytest.param("fsdp2", marks=needs_fsdp2)])
def test_torchrun_killed_and_resumed(photos: Path, tmp_path: Path, strategy: str) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--standalone", str(EXAMPLES / "pretrain.py"), "--data", str(photos), *SMALL]
    command += ["--strategy", strategy, "--minutes", "0", "--resume", "--epochs", "4"]
    here = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": here}
    options: dict[str, Any] = {"env": environment, "start_new_session": True}
    subprocess.run([*command, "--output", str(tmp_path / "whole")], **options, check=True)
    killed = [*command, "--output", str(tmp_path / "killed")]
    process = subprocess.Popen(killed, **options)
    while not list((tmp_path / "killed").glob("step-*")):
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    subprocess.run(killed, **options, check=True)
    weights = [
        load_file(tmp_path / name / "step-00000016" / "backbone.safetensors")
        for name in ("whole", "killed")
    ]
    assert same(*weights)
    small_net().load_state_dict(weights[0])


# What a run writes


def logged(output: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(output)).Reload()


@pytest.mark.parametrize("method", ["BYOL", "SimSiam", "SimCLR", "MoCo"])
def test_each_method_is_logged_and_judged(
    method: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = HEADS | ({"queue_size": 64} if method == "MoCo" else {})
    run = ["--data", photos, "--output", tmp_path / "run", "--epochs", 2, *SMALL]
    run += ["--method", method, "--method-options", json.dumps(options)]
    pretrain(*run, "--precision", "bf16-mixed" if method == "BYOL" else "32-true")
    said = capsys.readouterr().out
    log = logged(tmp_path / "run")
    names = {name.removeprefix("train/") for name in log.Tags()["scalars"]}
    figures = {"loss", "rate", "images_per_second", "skipped", "knn", "std_ratio", "rank"}
    figures |= {"projection_std_ratio", "projection_rank", "projection_participation", "uniformity"}
    if method != "MoCo":  # which sees one view a network
        figures |= {"alignment", "instance_accuracy"}
    figures |= {"tau", "updates", "target_distance"} if method in ("BYOL", "MoCo") else set()
    assert names == figures
    assert [event.step for event in log.Scalars("train/loss")] == [1, 3, 6, 8, 9, 12, 15, 16]
    assert [event.step for event in log.Scalars("train/knn")] == [8, 16]
    assert all(np.isfinite(event.value) for event in log.Scalars("train/loss"))
    picture = log.Images("views")[0]
    assert (picture.width, picture.height) == (8 * 18 - 2, 2 * 18 - 2)
    found = json.loads((tmp_path / "run" / "verdict.json").read_text())
    assert found["sentence"] in said
    assert found["images"] + len({"0/04.png", "1/31.png"} & held_out_names(photos)) == 16
    assert "2 broken files were skipped" in said
    assert said.count("skipped 0/04.png") == 1
    folders = sorted((tmp_path / "run").glob("step-*"))
    assert [folder.name for folder in folders] == ["step-00000008", "step-00000016"]
    weights = load_file(folders[-1] / "backbone.safetensors")
    small_net().load_state_dict(weights)
    learner = state_of(tmp_path / "run")["learner"]
    assert same(weights, {name: learner[f"online.net.{name}"] for name in weights})


def held_out_names(photos: Path) -> set[str]:
    from byol_wrap.data import ImageFiles, held_out

    files = ImageFiles(photos, 16)
    return {files.name(k) for k in held_out(files.labels)[1].tolist()}


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_other_logs_get_the_same(
    name: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, Any]] = []
    fake = SimpleNamespace(
        init=lambda **options: calls.append(("init", options)),
        log=lambda values, step: calls.append((str(step), values)),
        Image=lambda picture: picture,
    )
    monkeypatch.setitem(sys.modules, name, fake)  # type: ignore[arg-type]
    monkeypatch.setenv("WANDB_RUN_ID", "mine")
    run = ["--data", photos, "--output", tmp_path / "run", "--epochs", 1, *SMALL]
    pretrain(*run, "--log", name)
    options = calls[0][1]
    assert (options["name"], options["resume"]) == ("mine", "allow")
    assert options["config"]["method"] == "BYOL"
    assert {"loss", "tau", "knn"} <= calls[-1][1].keys()
    assert [step for step, _ in calls] == ["init", "1", "3", "6", "8"]
    assert calls[-1][1]["views"].shape == (34, 142, 3)
    assert calls[-1][1]["views"].dtype == np.uint8


def test_a_run_is_not_written_over_nor_gone_on_with_otherwise(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = ["--data", photos, "--output", tmp_path / "run", "--epochs", 1, *SMALL]
    pretrain(*run, "--resume")
    assert (
        "step 0 (" + str(tmp_path / "run") + " holds no checkpoint yet)" in capsys.readouterr().out
    )
    with pytest.raises(SystemExit, match="add --resume"):
        pretrain(*run)
    with pytest.raises(ValueError, match=r"made with lr = 0\.01, this run has 0\.5"):
        pretrain(*run, "--resume", "--lr", 0.5)
    capsys.readouterr()
    pretrain(*run, "--resume", "--workers", 1)
    said = capsys.readouterr().out
    assert ", step 8\n" in said
    assert "points of accuracy" in said
    saved = tmp_path / "run" / "step-00000008" / "process-0.pt"
    os.truncate(saved, saved.stat().st_size // 2)
    with pytest.raises(SystemExit, match=r"step-00000008 is damaged: remove it"):
        pretrain(*run, "--resume")


def test_figures_that_a_stop_lost_are_written_anew(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = ["--data", photos, "--output", tmp_path / "run", "--epochs", 2, *SMALL]
    script = import_module("pretrain")
    report = script.Run.report

    def stops(self: Any, step: int, *rest: Any) -> None:
        report(self, step, *rest)
        if step == 12:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(script.Run, "report", stops)
        with pytest.raises(KeyboardInterrupt):
            pretrain(*run)
    pretrain(*run, "--resume")
    steps = [event.step for event in logged(tmp_path / "run").Scalars("train/loss")]
    assert steps == [1, 3, 6, 8, 9, 12, 15, 16]


def test_the_loss_of_accumulated_batches_is_their_mean(photos: Path, tmp_path: Path) -> None:
    run = ["--data", photos, "--epochs", 1, *SMALL, "--lr", 0, "--log-every", 1]
    run += ["--views", "test_pretrain:fixed_view"]
    pretrain(*run, "--output", tmp_path / "one")
    pretrain(*run, "--output", tmp_path / "two", "--accumulate", 2)
    one, two = (
        [e.value for e in logged(tmp_path / n).Scalars("train/loss")] for n in ("one", "two")
    )
    means = [(a + b) / 2 for a, b in zip(one[::2], one[1::2], strict=True)]
    assert two == pytest.approx(means, rel=1e-5)


def test_backbones_are_found_by_name() -> None:
    script = import_module("pretrain")
    run = ["--data", ".", "--image-size", "32", "--method-options", json.dumps(HEADS)]
    named = script.parse([*run, "--backbone", "timm/mobilenetv4_conv_small_035"])
    net = script.backbone(named)
    learner, _ = script.wrapped(net, named, 10, 32)
    assert learner.total_steps == 10
    image = torch.rand(1, 3, 32, 32)
    cfg = net.pretrained_cfg
    mean, std = (torch.tensor(cfg[name])[:, None, None] for name in ("mean", "std"))
    normalised = net.eval().forward_head(
        net.forward_features((image - mean) / std), pre_logits=True
    )
    torch.testing.assert_close(learner.embed(image), normalised)
    named = script.parse([*run, "--backbone", "torchvision/squeezenet1_1"])
    named.backbone_options = '{"num_classes": 7}'
    assert type(script.backbone(named)).__name__ == "SqueezeNet"
    with pytest.raises(SystemExit, match="write timm/test_resnet, "):
        script.backbone(script.parse([*run, "--backbone", "test_resnet"]))


def test_a_pretrained_backbone_moves_as_the_recipe_has_it(photos: Path, tmp_path: Path) -> None:
    run = ["--data", photos, "--output", tmp_path / "run", "--epochs", 1, *SMALL, "--pretrained"]
    pretrain(*run)
    rates = {
        group["initial_lr"] for group in state_of(tmp_path / "run")["optimizer"]["param_groups"]
    }
    assert sorted(rates) == pytest.approx([0.002, 0.01])


def test_views_are_shown_one_above_the_other_each_at_its_own_contrast() -> None:
    one, other = torch.zeros(2, 3, 4, 5), torch.full((2, 1, 4, 5), -7.0)
    one[0, 0, 0, 0] = 3
    other[1, 0, 3, 4] = -2
    picture = sheet(one, other.expand(-1, 3, -1, -1), gap=1)
    expected = torch.zeros(9, 11, 3, dtype=torch.uint8)
    expected[4], expected[:, 5] = 255, 255
    expected[0, 0, 0], expected[8, 10] = 255, 255
    assert torch.equal(picture, expected)
    grey = torch.rand(2, 1, 4, 5)
    assert torch.equal(sheet(grey), sheet(grey.expand(-1, 3, -1, -1)))
    assert sheet(grey, gap=0).shape == (4, 10, 3)


# Checkpoints


def test_a_checkpoint_is_there_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = nn.Linear(2, 2)
    checkpoints = Checkpoints(tmp_path, {"part": part}, {"size": 2})
    assert checkpoints.resume() == 0
    for step in (1, 2, 3):
        with checkpoints.new(step) as folder:
            (folder / "more.txt").write_text(str(step))
    assert [folder.name for folder in checkpoints.whole()] == ["step-00000002", "step-00000003"]
    kept = part.weight.detach().clone()

    def no_more(*_: Any) -> None:
        raise KeyboardInterrupt

    with torch.no_grad():
        part.weight.zero_()
    for name in ("torch.save", "os.replace", "os.fsync"):
        with monkeypatch.context() as patch:
            patch.setattr(name, no_more)
            with pytest.raises(KeyboardInterrupt), checkpoints.new(4) as folder:
                (folder / "more.txt").touch()
        again = nn.Linear(2, 2)
        assert Checkpoints(tmp_path, {"part": again}, {"size": 2}).resume() == 3
        assert torch.equal(again.weight, kept)
    with checkpoints.new(4) as folder:
        pass
    assert not (checkpoints.whole()[-1] / "more.txt").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"step-00000003", "step-00000004"}
    with pytest.raises(ValueError, match="made with size = 2, this run has 3"):
        Checkpoints(tmp_path, {"part": part}, {"size": 3}).resume()


def test_files_are_on_the_disk_before_a_checkpoint_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    fsync, replace = os.fsync, os.replace

    def noted_fsync(descriptor: int) -> None:
        events.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        fsync(descriptor)

    def noted_replace(source: Path, target: Path) -> None:
        events.append("named")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "replace", noted_replace)
    with Checkpoints(tmp_path, {}, {}).new(1) as folder:
        (folder / "weights").write_text("")
    before, after = events[: events.index("named")], events[events.index("named") + 1 :]
    assert {"weights", "process-0.pt", "part"} <= set(before)
    assert after == [tmp_path.name]


def test_weights_for_others_share_no_memory() -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    net[1].weight = net[0].weight
    state = plain_state(net)
    assert state.keys() == net.state_dict().keys()
    assert state["0.weight"].data_ptr() != state["1.weight"].data_ptr()
    assert torch.equal(state["0.weight"], net[0].weight)


def test_progress_compares_with_the_beginning_and_leaves_out_what_has_no_label() -> None:
    labels = torch.arange(48) % 2
    images = torch.rand(48, 3, 8, 8) * 0.2
    images[labels == 1, 0] += 0.5
    marked = labels.clone()
    marked[0] = -1
    loader = [(images[k : k + 16], marked[k : k + 16]) for k in (0, 16, 32)]
    net = nn.Flatten()
    progress = Progress(net, lambda: loader)
    with pytest.raises(RuntimeError, match="Call begin"):
        progress.verdict()
    progress.begin()
    assert progress.knn() == 1
    found = progress.verdict()
    assert (found.images, found.outcome) == (47, "no difference")
    again = Progress(net, lambda: loader)
    again.load_state_dict(progress.state_dict())
    again.begin()
    assert again.before is progress.before
