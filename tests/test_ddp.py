"""Two processes: DistributedDataParallel(learner) and fully_shard(learner), with no flag.

Against one process that has the whole batch: a classifier that is not used, BatchNorm included.
"""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from each_method import METHODS
from nets import conv_net
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from byol_wrap import BYOL, Learner, MoCo
from byol_wrap.methods.processes import SharedBatchNorm1d

SMALL = {"projection_size": 8, "projection_hidden_size": 16}


def batch(step: int) -> tuple[Tensor, Tensor]:
    view1, view2 = torch.rand(2, 8, 3, 32, 32, generator=torch.Generator().manual_seed(step))
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


def share_batchnorm(net: nn.Module) -> None:
    for name, child in net.named_children():
        if isinstance(child, nn.modules.batchnorm._BatchNorm):
            setattr(net, name, SharedBatchNorm(child))
        share_batchnorm(child)


@dataclass(frozen=True)
class Case:
    """How a method is trained."""

    method: str
    engine: str = "ddp"
    build_first: bool = False  # rather than at construction
    in_halves: bool = False

    def __str__(self) -> str:
        halves = ", in halves" if self.in_halves else ""
        return f"{self.method}, {self.engine}{', lazy' if self.build_first else ''}{halves}"


CASES = [
    Case("BYOL"),
    Case("BYOL", build_first=True),
    Case("BYOL", in_halves=True),
    Case("BYOL", "fsdp"),
    Case("BYOL", "fsdp", build_first=True, in_halves=True),
    Case("SimSiam", build_first=True),
    Case("SimSiam", "fsdp"),
    Case("SimCLR"),
    Case("SimCLR", "fsdp", build_first=True),
    Case("MoCo"),
    Case("MoCo", "fsdp", build_first=True),
    Case("MoCo, symmetric", build_first=True, in_halves=True),
    Case("MoCo, symmetric", "fsdp"),
    Case("MoCo, keys in parts"),
]


def make(case: Case) -> Learner:
    torch.manual_seed(0)
    net = conv_net(6, classes=5)
    if case.method == "MoCo, keys in parts":  # whose statistics are of other parts in two processes
        net[1] = net[4] = nn.Identity()
    learner = METHODS[case.method](net, None if case.build_first else 32)
    if case.build_first:
        learner.embed(torch.rand(2, 3, 32, 32))
    return learner


def train(
    learner: nn.Module, inner: Learner, share: slice, in_halves: bool = False
) -> list[Tensor]:
    optimizer = torch.optim.SGD(inner.parameters(), lr=0.05, momentum=0.9)
    inner.attach(optimizer)
    losses = []
    for k in range(4):
        view1, view2 = batch(k)
        views = view1[share], view2[share]
        optimizer.zero_grad()
        total = torch.zeros(())
        for loss in inner.halves(*views, parallel=learner) if in_halves else [learner(*views)]:
            loss.backward()
            total += loss.detach()
        optimizer.step()
        losses.append(total)
    return losses


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    for case in CASES:
        torch.save(trained_in_a_group(case, rank), f"{folder}/{case}, {rank}.pt")
    dist.destroy_process_group()


def trained_in_a_group(case: Case, rank: int) -> dict[str, Any]:
    learner = make(case)
    for encoder in (learner.online, *([learner.target] if learner.has_target else [])):
        share_batchnorm(encoder.net)
        norms = [m for m in encoder.projector if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        assert all(isinstance(norm, SharedBatchNorm1d) for norm in norms)
    torch.manual_seed(rank)
    if case.engine == "ddp":
        parallel: nn.Module = DistributedDataParallel(learner)
    else:
        mesh = init_device_mesh("cpu", (2,))
        parallel = fully_shard(learner, mesh=mesh)
        assert all(isinstance(p, DTensor) for p in learner.parameters())
    losses = train(parallel, learner, slice(rank * 4, rank * 4 + 4), case.in_halves)
    state = get_model_state_dict(learner, options=StateDictOptions(full_state_dict=True))
    found = {
        "losses": losses,
        "state": copy.deepcopy(state) if case.engine == "ddp" or rank == 0 else {},
        "queue": learner.queue.clone() if isinstance(learner, MoCo) else None,
    }
    parallel(torch.rand(4, 3, 32, 32)).backward()  # images, too
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes have made of each case, one after the other."""
    folder = tmp_path_factory.mktemp("group")
    torch.multiprocessing.spawn(worker, (str(folder),), nprocs=2)
    return folder


@pytest.mark.parametrize("case", CASES, ids=str)
def test_two_processes_train_as_one_with_the_whole_batch(folder: Path, case: Case) -> None:
    found0, found1 = (
        torch.load(folder / f"{case}, {rank}.pt", weights_only=True) for rank in range(2)
    )
    state0 = found0["state"]
    if case.engine == "ddp":
        assert state0.keys() == found1["state"].keys()
        for name, tensor in state0.items():
            assert torch.equal(tensor, found1["state"][name]), name

    learner = make(case)
    losses = train(learner, learner, slice(0, 8))
    for whole, half0, half1 in zip(losses, found0["losses"], found1["losses"], strict=True):
        torch.testing.assert_close(whole, (half0 + half1) / 2, rtol=1e-4, atol=1e-5)
    own = learner.state_dict()
    assert own.keys() == state0.keys()
    if learner.has_target:
        assert int(state0["step"]) == 4
    if isinstance(learner, MoCo):
        assert torch.equal(found0["queue"], found1["queue"])
        assert torch.equal(found0["queue"], state0["queue"])
        if learner.symmetric:  # of each process the first views' keys, then the second views'
            for state in (own, state0):
                state["queue"] = state["queue"][state["queue"][:, 0].argsort()]
    for name, tensor in own.items():
        torch.testing.assert_close(state0[name], tensor, rtol=1e-3, atol=1e-5)


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
