"""Several processes, each with its share of every batch; the weights whole, or sharded (FSDP2).

    torchrun --nproc-per-node 2 torchrun_loop.py
    torchrun --nproc-per-node 2 torchrun_loop.py --shard

On GPUs the heads' BatchNorm shares its statistics between the processes. For the backbone's,
convert it before: ``torch.nn.SyncBatchNorm.convert_sync_batchnorm(net)``.

Needs ``pip install "byol_wrap[examples]"``.
"""

import argparse
import gc
import os
from collections.abc import Sequence

import torch
import torch.distributed as dist
from digits import accuracy, small_learner, training_set
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler


def sharded(learner: nn.Module) -> nn.Module:
    """FSDP2, which is public since PyTorch 2.6."""
    from torch.distributed.fsdp import fully_shard

    return fully_shard(learner)


def train(device: torch.device, shard: bool, epochs: int, output: str) -> None:
    """One process's part: train on digits, write the backbone, and say what it was worth."""
    rank, world = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(0)  # the same weights everywhere
    learner = small_learner().to(device)
    torch.manual_seed(1 + rank)  # views of its own for each process
    model = sharded(learner) if shard else DistributedDataParallel(learner)
    optimizer = torch.optim.AdamW(learner.parameters(), lr=2e-3)
    sampler = DistributedSampler(training_set(), drop_last=True)
    loader = DataLoader(training_set(), 64 // world, sampler=sampler, drop_last=True)
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        for images, _ in loader:
            loss = model(images.to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            learner.update_moving_average()

    whole = StateDictOptions(full_state_dict=True, cpu_offload=True)
    state = get_model_state_dict(learner, options=whole)
    if rank == 0:
        trained = small_learner()
        trained.load_state_dict(state)
        torch.save(trained.net.state_dict(), output)
        print(f"loss {loss.item():.3f}, {int(trained.step)} updates of the target")
        print(f"nearest neighbours: {accuracy(trained):.1f} % after")


def main(arguments: Sequence[str] | None = None) -> None:
    """Set the processes up, train, and take them down."""
    parser = argparse.ArgumentParser(description="DDP and FSDP2.")
    parser.add_argument("--shard", action="store_true", help="fully_shard instead of DDP")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--output", default="backbone.pt")
    args = parser.parse_args(arguments)
    if not dist.is_torchelastic_launched():
        parser.error("start it with torchrun --nproc-per-node 2 torchrun_loop.py")

    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if on_gpu else "gloo")
    train(device, args.shard, args.epochs, args.output)
    gc.collect()  # a sharded model holds on to the group, whose threads must end before Python does
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
