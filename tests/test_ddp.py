"""Two processes: DistributedDataParallel(learner) and fully_shard(learner), with no flag.

Against one process that has the whole batch: a classifier that is not used, BatchNorm included. The
heads' is the library's own; the nets' is shared here.
"""

import copy
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from devices import needs_fsdp2
from leaving import leave
from methods import METHODS, make
from nets import conv_net
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from byol_wrap import BYOL, Learner

SMALL = {"projection_size": 8, "projection_hidden_size": 16}


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    view1, view2 = torch.rand(2, 8, 3, 32, 32, generator=generator).double()
    return view1, view2


class SharedBatchNorm(nn.Module):
    """BatchNorm over all processes' items, for the CPU, where SyncBatchNorm does not run."""

    def __init__(self, norm: nn.modules.batchnorm._BatchNorm) -> None:
        super().__init__()
        self.weight, self.bias, self.eps, self.momentum = norm.weight, norm.bias, norm.eps, 0.1
        self.register_buffer("running_mean", norm.running_mean)
        self.register_buffer("running_var", norm.running_var)
        self.register_buffer("num_batches_tracked", norm.num_batches_tracked)
        assert norm.momentum == self.momentum

    def forward(self, x: Tensor) -> Tensor:
        over = [0, *range(2, x.ndim)]
        count = dist.get_world_size() * x.numel() // x.shape[1]
        mean = SharedSum.apply(x.sum(over)) / count
        centred = x - mean.view(1, -1, *[1] * (x.ndim - 2))
        variance = SharedSum.apply((centred**2).sum(over)) / count
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
            self.num_batches_tracked += 1
        shape = (1, -1, *[1] * (x.ndim - 2))
        scale = self.weight / (variance + self.eps).sqrt()
        return centred * scale.view(shape) + self.bias.view(shape)


class SharedSum(torch.autograd.Function):
    """The sum over processes, through which gradients flow."""

    @staticmethod
    def forward(_: Any, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> Tensor:
        return SharedSum.forward(None, gradient)


def share_batchnorm(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.modules.batchnorm._BatchNorm):
            setattr(module, name, SharedBatchNorm(child))
        share_batchnorm(child)


@dataclass(frozen=True)
class Case:
    """One training in two processes, to be compared with that of one."""

    method: str
    build_first: bool = False
    in_halves: bool = False


ONES = [Case(name) for name in METHODS if name != "MoCo, keys in parts"]  # whose statistics differ
CASES = {
    "ddp": [
        *ONES,
        Case("BYOL", build_first=True),
        Case("BYOL", in_halves=True),
        Case("MoCo, symmetric", in_halves=True),
    ],
    "fsdp": [*ONES, Case("BYOL", build_first=True, in_halves=True)],
}
ALL = [
    pytest.param(engine, case, id=f"{engine} {case}", marks=[needs_fsdp2] * (engine == "fsdp"))
    for engine, cases in CASES.items()
    for case in cases
]


def built(case: Case) -> Learner:
    torch.manual_seed(0)
    net = conv_net(6, classes=5).double()  # for the small differences to stay small
    learner = make(case.method, None if case.build_first else 32, net)
    if case.build_first:
        learner.embed(torch.rand(2, 3, 32, 32))
    return learner


def train(model: nn.Module, inner: Learner, share: slice, in_halves: bool = False) -> list[Tensor]:
    optimizer = torch.optim.SGD(inner.parameters(), lr=0.05, momentum=0.9)
    inner.attach(optimizer)
    losses = []
    for k in range(4):
        view1, view2 = batch(k)
        views = view1[share], view2[share]
        optimizer.zero_grad()
        total = torch.zeros((), dtype=torch.float64)
        for loss in inner.halves(*views, parallel=model) if in_halves else [model(*views)]:
            loss.backward()
            total += loss.detach()
        optimizer.step()
        losses.append(total)
    return losses


def worker(rank: int, folder: str, engine: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    results = []
    for case in CASES[engine]:
        learner = built(case)
        share_batchnorm(learner.net)
        if learner.has_target:
            share_batchnorm(learner.target.net)
        torch.manual_seed(rank)
        if engine == "ddp":
            parallel: nn.Module = DistributedDataParallel(learner)
        else:
            from torch.distributed.fsdp import fully_shard

            parallel = fully_shard(learner, mesh=init_device_mesh("cpu", (2,)))
            assert all(isinstance(p, DTensor) for p in learner.parameters())
        losses = train(parallel, learner, slice(rank * 4, rank * 4 + 4), case.in_halves)
        state = get_model_state_dict(learner, options=StateDictOptions(full_state_dict=True))
        state = copy.deepcopy(state) if engine == "ddp" or rank == 0 else {}
        results.append((losses, state))
        parallel(torch.rand(4, 3, 32, 32)).backward()  # images, too
    torch.save(results, f"{folder}/{rank}.pt")
    leave()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What each of two processes has after each case."""

    @cache
    def run(engine: str) -> list[list[Any]]:
        folder = tmp_path_factory.mktemp(engine)
        torch.multiprocessing.spawn(worker, (str(folder), engine), nprocs=2)
        return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]

    return run


@pytest.mark.parametrize(("engine", "case"), ALL)
def test_two_processes_train_as_one_with_the_whole_batch(
    trained: Any, engine: str, case: Case
) -> None:
    (losses0, state0), (losses1, state1) = (
        results[CASES[engine].index(case)] for results in trained(engine)
    )
    if engine == "ddp":
        assert state0.keys() == state1.keys()
        for name, tensor in state0.items():  # the queue, too
            assert torch.equal(tensor, state1[name]), name

    learner = built(case)
    losses = train(learner, learner, slice(0, 8))
    for whole, half0, half1 in zip(losses, losses0, losses1, strict=True):
        torch.testing.assert_close(whole, (half0 + half1) / 2, rtol=1e-8, atol=1e-9)
    own = learner.state_dict()
    assert own.keys() == state0.keys()
    assert int(state0.get("step", 4)) == 4
    for name, tensor in own.items():
        torch.testing.assert_close(state0[name], tensor, rtol=1e-6, atol=1e-8)


def test_ddp_of_unbuilt_heads_says_what_to_do(tmp_path: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/one", rank=0, world_size=1)
    try:
        with pytest.raises(RuntimeError, match="dummy forward"):
            DistributedDataParallel(BYOL(conv_net(6), **SMALL))
    finally:
        dist.destroy_process_group()


def test_a_backbone_in_ddp_is_refused(tmp_path: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/one", rank=0, world_size=1)
    try:
        with pytest.raises(TypeError, match="DistributedDataParallel\\(learner\\)"):
            BYOL(DistributedDataParallel(conv_net(6)), 32)
    finally:
        dist.destroy_process_group()
