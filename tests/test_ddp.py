"""Two processes: DistributedDataParallel(learner), with no flag for an unused classifier."""

import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from nets import conv_net
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from byol_wrap import BYOL

SMALL = {"projection_size": 8, "projection_hidden_size": 16}


def batch(step: int) -> tuple[Tensor, Tensor]:
    view1, view2 = torch.rand(2, 8, 3, 32, 32, generator=torch.Generator().manual_seed(step))
    return view1, view2


def without_batchnorm(learner: BYOL) -> BYOL:
    """BatchNorm in eval mode, whose statistics the processes would not share on the CPU."""
    for module in learner.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.eval()
    return learner


def train(learner: torch.nn.Module, inner: BYOL, share: slice) -> list[Tensor]:
    optimizer = torch.optim.SGD(inner.parameters(), lr=0.2, momentum=0.9)
    inner.attach(optimizer)
    losses = []
    for k in range(4):
        view1, view2 = batch(k)
        loss = learner(view1[share], view2[share])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return losses


def worker(rank: int, folder: str, build_first: bool) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    torch.manual_seed(0)
    net = conv_net(6, classes=5)
    learner = BYOL(net, None if build_first else 32, **SMALL)
    if build_first:
        learner.embed(torch.rand(2, 3, 32, 32))
    torch.manual_seed(rank)
    parallel = DistributedDataParallel(without_batchnorm(learner))
    losses = train(parallel, learner, slice(rank * 4, rank * 4 + 4))
    learner.train()
    parallel(torch.rand(4, 3, 32, 32)).backward()  # images and BatchNorm in training, too
    torch.save((losses, learner.state_dict()), os.path.join(folder, f"{rank}.pt"))
    dist.destroy_process_group()


@pytest.mark.parametrize("build_first", [False, True])
def test_two_processes_train_as_one_with_the_whole_batch(tmp_path: Path, build_first: bool) -> None:
    torch.multiprocessing.spawn(worker, (str(tmp_path), build_first), nprocs=2)
    (losses0, state0), (losses1, state1) = (
        torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)
    )
    for name, tensor in state0.items():
        if "running" not in name and "batches" not in name:
            assert torch.equal(tensor, state1[name]), name

    torch.manual_seed(0)
    learner = BYOL(conv_net(6, classes=5), None if build_first else 32, **SMALL)
    if build_first:
        learner.embed(torch.rand(2, 3, 32, 32))
    losses = train(without_batchnorm(learner), learner, slice(0, 8))
    for whole, half0, half1 in zip(losses, losses0, losses1, strict=True):
        torch.testing.assert_close(whole, (half0 + half1) / 2)
    for name, parameter in learner.named_parameters():
        torch.testing.assert_close(parameter.detach(), state0[name], rtol=1e-4, atol=1e-6)


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
