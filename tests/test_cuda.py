"""On a GPU as on the CPU: each test is run on both, here on those that there are."""

import copy
import io
import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from devices import CUDA_1, DEVICES, cuda_only, needs_cuda, no_waits
from methods import IN_HALVES, METHODS, PAPERS, make
from nets import conv_net
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from byol_wrap import BYOL, Learner
from byol_wrap.evaluation.health import Outputs
from byol_wrap.guard.collapse import LOOK_EVERY, LOOKS, CollapseWatch

CHECKED = 10  # batches whose values are read
every_device = pytest.mark.parametrize("device", DEVICES)
every_place = pytest.mark.parametrize("device", [*DEVICES, CUDA_1])
each_method = pytest.mark.parametrize("name", METHODS)


def images(batch: int = 8, size: int = 32, seed: int = 0) -> Tensor:
    return torch.rand(batch, 3, size, size, generator=torch.Generator().manual_seed(seed))


def train(
    learner: Learner, device: str, steps: int = 4, *, model: nn.Module | None = None, seed: int = 0
) -> list[float]:
    optimizer = torch.optim.SGD(learner.parameters(), lr=0.05, momentum=0.9)
    handle = learner.attach(optimizer)
    losses = []
    for k in range(steps):
        torch.manual_seed(seed + k)
        loss = (model or learner)(images(seed=k).to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    handle.remove()
    return [loss.item() for loss in losses]


def close(found: list[float], expected: list[float]) -> None:
    assert found == pytest.approx(expected, rel=0.02, abs=0.02)


# As on the CPU


@every_place
@each_method
def test_training_is_as_on_the_cpu(name: str, device: str) -> None:
    learner = make(name)
    expected = train(copy.deepcopy(learner), "cpu")
    learner.to(device)
    close(train(learner, device), expected)
    state = learner.state_dict().values()
    assert {tensor.device for tensor in state} == {torch.empty(0, device=device).device}


@every_place
def test_lazy_heads_are_those_of_the_cpu(device: str) -> None:
    heads = []
    for where in ("cpu", device):
        learner = make("SimCLR", None).to(where)
        torch.manual_seed(3)
        state = torch.get_rng_state()
        learner.embed(images().to(where))
        assert torch.equal(torch.get_rng_state(), state)
        heads.append([p.detach().cpu() for p in learner.online.projector.parameters()])
    assert all(map(torch.equal, *heads))


@every_device
@pytest.mark.parametrize("name", IN_HALVES)
def test_halves_give_the_gradients_of_the_whole(name: str, device: str) -> None:
    whole = make(name).to(device)
    parts = copy.deepcopy(whole)
    views = [images(seed=k).to(device) for k in (1, 2)]
    whole(*views).backward()
    for loss in parts.halves(*views):
        loss.backward()
    for p, q in zip(whole.parameters(), parts.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None)
        if p.grad is not None:
            torch.testing.assert_close(q.grad, p.grad, rtol=1e-3, atol=1e-4)


@every_device
@pytest.mark.parametrize("sizes", [(40, 32), (200, 96)])
def test_views_of_larger_images_are_those_of_the_cpu(sizes: tuple[int, int], device: str) -> None:
    side, size = sizes
    learner, views = BYOL(conv_net(4), size), []
    for where in ("cpu", device):
        torch.manual_seed(5)
        views.append([view.cpu() for view in learner.to(where).views(images(4, side).to(where))])
    for one, other in zip(*views, strict=True):
        assert one.shape == (4, 3, size, size)
        torch.testing.assert_close(other, one, rtol=0, atol=2e-3)


@every_device
def test_a_default_device_is_where_nothing_is_made(device: str) -> None:
    expected = train(make("BYOL"), "cpu")
    torch.manual_seed(0)
    net = conv_net(6, classes=5)
    with torch.device(device):
        close(train(METHODS["BYOL"](net, 32), "cpu"), expected)


@every_place
def test_health_is_measured(device: str) -> None:
    learner = make("BYOL")
    figures = []
    for where in ("cpu", device):
        one = copy.deepcopy(learner).to(where)
        train(one, where, steps=2)
        figures.append(one.health())
    assert figures[1].keys() == figures[0].keys()
    for name, figure in figures[0].items():
        assert figures[1][name] == pytest.approx(figure, rel=0.02, abs=1e-3), name


@every_place
@pytest.mark.parametrize("name", PAPERS)
def test_a_learner_saved_whole_is_moved(name: str, device: str) -> None:
    learner = make(name).to(device)
    train(learner, device, steps=2)
    expected = learner.embed(images().to(device)).cpu()
    file = io.BytesIO()
    torch.save(learner, file)
    for saved_to, then_to in (("cpu", device), (device, "cpu")):
        file.seek(0)
        other = torch.load(file, map_location=saved_to, weights_only=False)
        for where in (saved_to, then_to):
            other.to(where)
            features = other.embed(images().to(where)).cpu()
            torch.testing.assert_close(features, expected, rtol=1e-3, atol=1e-4)
            assert math.isfinite(train(other, where, steps=1)[0])
            other.load_state_dict(learner.state_dict())


# Without a wait


@every_place
@each_method
def test_from_the_eleventh_batch_a_step_does_not_wait(name: str, device: str) -> None:
    learner = METHODS[name](conv_net(6, classes=5).to(device), 32)
    optimizer = torch.optim.SGD(learner.parameters(), lr=0.1)
    learner.attach(optimizer)
    batch = images().to(device)

    def step() -> None:
        optimizer.zero_grad()
        learner(batch).backward()
        optimizer.step()

    for _ in range(CHECKED):
        step()
    with no_waits(device):
        for _ in range(LOOK_EVERY + 2 - CHECKED):  # a look at the features included
            step()


@every_device
def test_the_watch_never_waits(device: str) -> None:
    generator = torch.Generator().manual_seed(0)
    flat = 1 + 0.001 * torch.randn(32, 8, generator=generator)
    seen = Outputs(*[flat.to(device)] * 3)
    watch = CollapseWatch()
    with no_waits(device):
        for _ in range(LOOK_EVERY * (LOOKS + 100)):
            watch.look(seen)
    assert watch.is_collapsed


@every_device
@pytest.mark.parametrize("total_steps", [None, 20])
def test_a_fused_optimizer_under_a_scaler_does_not_wait(
    device: str, total_steps: int | None
) -> None:
    if device == "mps":
        pytest.skip("has no float16 autocast with a scaler")
    learner = make("BYOL", moving_average_decay=0.5, total_steps=total_steps).to(device)
    optimizer = torch.optim.Adam(learner.parameters(), lr=1e-2, fused=True)
    scaler = torch.amp.GradScaler(device, init_scale=16.0)
    learner.attach(optimizer)
    views = [images(seed=k).to(device) for k in (1, 2)]
    half = torch.autocast(device, torch.bfloat16)

    def step(scale: float = 1.0) -> None:
        optimizer.zero_grad()
        with half:
            loss = learner(*views)
        scaler.scale(scale * loss).backward()
        scaler.step(optimizer)
        scaler.update()

    for _ in range(CHECKED):
        step()
    assert learner.step.item() == CHECKED
    before = [p.clone() for p in learner.target.parameters()]
    with no_waits(device):
        step(math.inf)  # is skipped
    assert all(map(torch.equal, before, learner.target.parameters()))
    with no_waits(device):
        step()
    assert learner.step.item() == CHECKED + 1
    assert not all(map(torch.equal, before, learner.target.parameters()))


def test_a_test_that_waits_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[str] = []

    def set_mode(mode: str) -> None:
        modes.append(mode)
        warnings.warn("a prototype feature", UserWarning, stacklevel=2)

    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", set_mode)
    with pytest.raises(RuntimeError, match="waits"), no_waits("cuda"):
        raise RuntimeError("it waits")
    assert modes == ["error", "default"]


# Several processes


@pytest.fixture
def one_of_a_group(device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A group of one process, of which the library is told that it is not alone."""
    dist.init_process_group(init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    for room in ("processes", "heads", "moco"):
        monkeypatch.setattr(f"byol_wrap.methods.{room}.in_group", lambda: True)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("one_of_a_group")
@pytest.mark.parametrize("device", [d for d in DEVICES if "mps" not in str(d)])
@pytest.mark.parametrize("name", PAPERS)
def test_distributed_training_shares_without_a_wait(name: str, device: str) -> None:
    learner = make(name)
    kinds = {type(layer).__name__ for layer in learner.online.projector}
    assert ("SharedBatchNorm1d" in kinds) == (name != "MoCo")  # which has none
    parallel = DistributedDataParallel(learner.to(device))
    alone = copy.deepcopy(learner)
    for layer in alone.modules():
        if type(layer).__name__ == "SharedBatchNorm1d":
            layer.__class__ = nn.BatchNorm1d
    close(train(learner, device, model=parallel), train(alone, device))
    batch = images().to(device)
    for _ in range(CHECKED):
        parallel(batch).backward()
    with no_waits(device):
        parallel(batch).backward()


def without_norm() -> nn.Module:
    """A net whose statistics are nobody's, so that only the heads' are shared."""
    return nn.Sequential(nn.Conv2d(3, 6, 3, stride=4), nn.ReLU(), nn.Flatten(), nn.Linear(384, 5))


def two_views(step: int) -> Tensor:
    return torch.rand(2, 8, 3, 32, 32, generator=torch.Generator().manual_seed(step)).double()


def on_views(name: str, rank: int, world: int, device: str) -> list[Tensor]:
    """A process's share of a training; the learner's weights in the end."""
    torch.manual_seed(0)
    learner = make(name, net=without_norm().double())
    model = DistributedDataParallel(learner.to(device)) if world > 1 else learner
    optimizer = torch.optim.SGD(learner.parameters(), lr=0.05)
    for k in range(3):
        views = (view.chunk(world)[rank].to(device) for view in two_views(k))
        optimizer.zero_grad()
        model(*views).backward()
        optimizer.step()
        learner.update_moving_average()
    return [p.detach().cpu() for p in learner.parameters()]


def process(rank: int, folder: str, kind: str) -> None:
    torch.set_num_threads(1)
    device = "cpu" if kind == "cpu" else f"cuda:{rank}"
    if kind != "cpu":
        torch.cuda.set_device(rank)
    dist.init_process_group(init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.save({name: on_views(name, rank, 2, device) for name in PAPERS}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("kind", [pytest.param("cuda", marks=needs_cuda(2))])
def test_two_gpus_train_as_one(kind: str, tmp_path: Path) -> None:
    torch.multiprocessing.spawn(process, (str(tmp_path), kind), nprocs=2)
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for name in PAPERS:
            for p, q in zip(found[name], on_views(name, 0, 1, "cpu"), strict=True):
                torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-8)


# CUDA alone


@cuda_only
def test_a_captured_graph_is_refused() -> None:
    learner = make("BYOL").to("cuda")
    batch = images().to("cuda")
    for _ in range(CHECKED + 1):
        learner(batch).backward()
    graph = torch.cuda.CUDAGraph()
    with pytest.raises(RuntimeError, match="CUDA graph"), torch.cuda.graph(graph):
        learner(batch)


@cuda_only
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_a_compiled_learner_trains_as_the_plain_one(mode: str) -> None:
    torch._dynamo.reset()
    plain = make("BYOL").to("cuda")
    inner = copy.deepcopy(plain)
    expected = train(plain, "cuda", steps=6)
    found = train(inner, "cuda", steps=6, model=torch.compile(inner, mode=mode))
    close(found, expected)
    assert inner.health().keys() == plain.health().keys()
