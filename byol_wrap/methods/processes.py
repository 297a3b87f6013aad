"""What the processes of a group share: rows, with gradient, and BatchNorm's statistics."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd import Function


def processes() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def in_group() -> bool:
    """Whether there are several."""
    return processes() > 1


def gather(rows: Tensor) -> Tensor:
    """The rows of all processes, in their order: (B, ...) in, (W B, ...) out, with gradient.

    All processes must give as many rows. In a single process the rows themselves.
    """
    if not in_group():
        return rows
    gathered: Tensor = _Gather.apply(rows.contiguous())
    return gathered


def own_share(rows: Tensor) -> Tensor:
    """Of the rows of all processes this one's: what ``gather`` was given."""
    return rows.chunk(dist.get_world_size())[dist.get_rank()] if in_group() else rows


def same_permutation(count: int, device: torch.device) -> Tensor:
    """A random order of ``count`` rows, drawn on the host, the same in all processes."""
    # Elsewhere than on CUDA a copy that is not waited for may read what has been freed.
    order = torch.randperm(count, device="cpu").to(device, non_blocking=device.type == "cuda")
    if in_group():
        dist.broadcast(order, 0)
    return order


class _Gather(Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, rows)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous().clone()
        dist.all_reduce(gradient)
        return gradient.chunk(dist.get_world_size())[dist.get_rank()]


class _Sum(Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        values = values.clone()
        dist.all_reduce(values)
        return values

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.clone()
        dist.all_reduce(gradient)
        return gradient


class SharedBatchNorm1d(nn.BatchNorm1d):
    """BatchNorm over the batches of all processes, on any backend, without a wait for the device.

    One sum over all processes, with gradient, of each feature's values and squares and of the
    number of rows. In a single process, and in eval mode, it is ``nn.BatchNorm1d``.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(B, C) in and out."""
        if not self.training or not in_group():
            return super().forward(input)
        assert self.running_mean is not None
        assert self.running_var is not None
        x = input.to(torch.promote_types(input.dtype, torch.float32))
        # Around the running mean, the same in all processes, squares lose fewer digits.
        shift = self.running_mean.detach().clone()
        centred = x - shift
        count = x.new_full((1,), len(x))
        total: Tensor = _Sum.apply(torch.cat([centred.sum(0), centred.square().sum(0), count]))
        sums, squares, rows = total.split([x.shape[1], x.shape[1], 1])
        mean = sums / rows
        variance = squares / rows - mean.square()
        with torch.no_grad():
            momentum = 0.1 if self.momentum is None else self.momentum
            self.running_mean.lerp_((shift + mean).to(shift.dtype), momentum)
            unbiased = variance * rows / (rows - 1)
            self.running_var.lerp_(unbiased.to(shift.dtype), momentum)
            if self.num_batches_tracked is not None:
                self.num_batches_tracked.add_(1)
        out = (centred - mean) * (variance.clamp(min=0) + self.eps).rsqrt()
        if self.affine:
            out = out * self.weight + self.bias
        shared: Tensor = out.to(input.dtype)
        return shared
