"""The loops of examples/: each runs, and those that should agree do."""

import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest
import torch
from devices import needs_fsdp2
from nets import conv_net
from torch import Tensor, nn

from byol_wrap import BYOL

EXAMPLES = Path(__file__).parents[1] / "examples"
SMALL = {"projection_size": 8, "projection_hidden_size": 16}

ONE_EPOCH = {
    "plain_loop": ["--device", "cpu", "--epochs", "1"],
    "plain_loop (float32)": ["--device", "cpu", "--epochs", "1", "--precision", "float32"],
    "lightning_loop": ["--epochs", "1", "--accelerator", "cpu"],
    "accelerate_loop": ["--epochs", "1", "--cpu"],
    "fabric_loop": ["--epochs", "1", "--accelerator", "cpu"],
    "transformers_trainer": ["--epochs", "1", "--cpu"],
}


@pytest.fixture(autouse=True)
def examples(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.chdir(tmp_path)


@pytest.mark.filterwarnings("ignore")  # the engines' own
@pytest.mark.parametrize("name", ONE_EPOCH)
def test_loops_update_the_target_and_improve(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    import_module(name.split()[0]).main(ONE_EPOCH[name])
    said = capsys.readouterr().out
    updates = int(re.search(r"(\d+) updates", said)[1])  # type: ignore[index]
    assert updates == (22 if name == "fabric_loop" else 11)  # two batches a step, or one
    before, after = map(float, re.findall(r"([\d.]+) %", said))
    assert after > before + 1


def test_float16_scales_the_loss(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Small batches, as halves are slow on a CPU; the first steps overflow, and are skipped."""
    plain = import_module("plain_loop")
    monkeypatch.setattr(plain, "training_loader", lambda: [(torch.rand(2, 1, 32, 32), None)] * 28)
    plain.main(["--precision", "float16", "--accumulate", "2", "--device", "cpu", "--epochs", "1"])
    updates = int(re.search(r"(\d+) updates", capsys.readouterr().out)[1])  # type: ignore[index]
    assert 1 <= updates < 14


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_compiled_plain_loop(capsys: pytest.CaptureFixture[str]) -> None:
    import_module("plain_loop").main(["--device", "cpu", "--epochs", "1", "--compile"])
    assert "11 updates" in capsys.readouterr().out


@pytest.mark.parametrize("options", [[], pytest.param(["--shard"], marks=needs_fsdp2)])
def test_torchrun(tmp_path: Path, options: list[str]) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--standalone", str(EXAMPLES / "torchrun_loop.py"), "--epochs", "1", *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, cwd=tmp_path, timeout=180
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "22 updates" in done.stdout
    state = torch.load(tmp_path / "backbone.pt", weights_only=True)
    import_module("quickstart").backbone(channels=1).load_state_dict(state)


def test_the_loop_of_several_processes_says_how_it_is_started(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        import_module("torchrun_loop").main([])
    assert "torchrun --nproc-per-node 2" in capsys.readouterr().err


@pytest.mark.parametrize("weight", ["0", "0.5"])
def test_auxiliary_loss_trains_one_backbone_with_both(
    weight: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The backbone learns by either loss, the predictor by BYOL's alone."""
    auxiliary = import_module("auxiliary_loss")
    learner = auxiliary.small_learner()
    before = [p.detach().clone() for p in learner.predictor.parameters()]
    monkeypatch.setattr(auxiliary, "small_learner", lambda: learner)
    auxiliary.main(["--epochs", "2", "--weight", weight])
    assert float(re.search(r"([\d.]+) % right", capsys.readouterr().out)[1]) > 60  # type: ignore[index]
    after = learner.predictor.parameters()
    assert all(map(torch.equal, before, after)) == (weight == "0")


# Accumulation: attach, by hand, and one large batch


def frozen_statistics(learner: BYOL) -> BYOL:
    for module in learner.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
    return learner


def accumulated(parts: int, attach: bool) -> BYOL:
    """Six steps on the same images, each in so many parts."""
    torch.manual_seed(0)
    learner = frozen_statistics(BYOL(conv_net(6, classes=5), 32, total_steps=6, **SMALL))
    optimizer = torch.optim.SGD(learner.parameters(), lr=0.1, momentum=0.9)
    if attach:
        learner.attach(optimizer)
    generator = torch.Generator().manual_seed(1)
    for _ in range(6):
        view1, view2 = torch.rand(2, 12, 3, 32, 32, generator=generator)
        for one, other in zip(view1.chunk(parts), view2.chunk(parts), strict=True):
            (learner(one, other) / parts).backward()
        torch.nn.utils.clip_grad_norm_(learner.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if not attach:
            learner.update_moving_average()
    return learner


def test_accumulated_batches_equal_a_large_one() -> None:
    expected = accumulated(1, attach=False)
    assert int(expected.step) == 6
    for parts, attach in ((1, True), (3, True), (3, False)):
        found = accumulated(parts, attach)
        assert int(found.step) == 6
        for one, other in zip(expected.parameters(), found.parameters(), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


# Threads


def losses_of(seed: int) -> list[float]:
    torch.manual_seed(seed)
    return trained(BYOL(conv_net(6, classes=5), 32, **SMALL), seed)


def trained(learner: BYOL, seed: int) -> list[float]:
    optimizer = torch.optim.SGD(learner.parameters(), lr=0.1)
    generator = torch.Generator().manual_seed(seed)
    losses = []
    for _ in range(15):
        loss = learner(*torch.rand(2, 8, 3, 32, 32, generator=generator))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        learner.update_moving_average()
        losses.append(loss.item())
    return losses


def in_threads(*tasks: Callable[[], object]) -> list[object]:
    results: list[object] = [None] * len(tasks)

    def run(place: int) -> None:
        results[place] = tasks[place]()

    threads = [threading.Thread(target=run, args=(place,)) for place in range(len(tasks))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_two_learners_train_in_two_threads() -> None:
    expected = [losses_of(seed) for seed in (0, 1)]
    learners = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        learners.append(BYOL(conv_net(6, classes=5), 32, **SMALL))
    tasks = [lambda k=k: trained(learners[k], k) for k in (0, 1)]
    assert in_threads(*tasks) == [pytest.approx(losses, rel=1e-4) for losses in expected]


def test_one_backbone_in_two_learners_is_read_by_each_at_its_own_layer() -> None:
    """Also at the same time: the threads take turns."""
    torch.manual_seed(0)
    net = conv_net(16, classes=5)
    early, late = BYOL(net, 32, "3", **SMALL), BYOL(net, 32, **SMALL)
    for learner in (early, late):
        trained(learner, 0)
    for learner in (early, late):  # which puts the net of both in eval mode
        learner.eval()
    images = torch.rand(64, 3, 32, 32)
    expected = [early.embed(images), late.embed(images)]

    def embeddings(learner: BYOL) -> list[Tensor]:
        return [learner.embed(images) for _ in range(60)]

    found = in_threads(lambda: embeddings(early), lambda: embeddings(late))
    for own, wanted in zip(found, expected, strict=True):
        assert own is not None, "a thread ended in an error"
        assert all(torch.equal(one, wanted) for one in own)  # type: ignore[attr-defined]


# Faults


class Faulty(nn.Module):
    """A backbone that runs out of memory, or gives NaN, when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.fc = conv_net(6), nn.Linear(6, 5)
        self.fault: str | None = None

    def forward(self, x: Tensor) -> Tensor:
        features = self.body(x)
        if self.fault == "memory":
            raise torch.OutOfMemoryError("CUDA out of memory (as if)")
        return self.fc(features * (float("nan") if self.fault == "nan" else 1))


@pytest.mark.parametrize("fault", ["memory", "nan"])
def test_training_goes_on_after_a_fault(fault: str) -> None:
    torch.manual_seed(0)
    net = Faulty()
    learner = BYOL(net, 32, **SMALL)
    optimizer = torch.optim.SGD(learner.parameters(), lr=0.1)
    before = [p.clone() for p in learner.parameters()]
    net.fault = fault
    if fault == "memory":
        with pytest.raises(torch.OutOfMemoryError):
            learner(torch.rand(8, 3, 32, 32))
    else:
        with pytest.warns(UserWarning, match="The loss ceased to be finite at about step 1"):
            assert learner(torch.rand(8, 3, 32, 32)).isnan()
    net.fault = None
    assert all(torch.equal(a, b) for a, b in zip(before, learner.parameters(), strict=True))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
    assert all(module.training for module in net.modules())
    loss = learner(torch.rand(8, 3, 32, 32))
    assert loss.isfinite()
    loss.backward()
    optimizer.step()
    learner.update_moving_average()
    assert all(p.isfinite().all() for p in learner.parameters())
