"""The heads on top of the encoder: projector and predictor have one architecture."""

from typing import cast

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parameter import is_lazy


def mlp(
    in_features: int | None,
    hidden_features: int,
    out_features: int,
    *,
    sync_batchnorm: bool | None = False,
) -> nn.Sequential:
    """Linear, BatchNorm1d, ReLU, Linear without bias.

    Args:
        in_features: size of the input, or None where it is not known yet: the first layer is then
            an ``nn.LazyLinear``, whose parameters keep their identity when their size is found.
        hidden_features: width of the hidden layer (4096 in the paper).
        out_features: size of the output (256 in the paper).
        sync_batchnorm: whether statistics are shared between processes (PyTorch does so on GPUs
            only); None does so in a group of several processes on nccl.

    Returns:
        A module from (B, in_features) to (B, out_features).

    Raises:
        ValueError: a size that is not a positive integer.

    Reference:
        Grill et al. 2020, section 3.3; no BatchNorm follows the last layer. The reference code
        draws weights from a truncated normal; here they are PyTorch's default.
    """
    sizes = {"hidden": hidden_features, "output": out_features}
    if in_features is not None:
        sizes["input"] = in_features
    for name, size in sizes.items():
        if not isinstance(size, int) or size < 1:
            raise ValueError(
                f"The {name} size of a head should be a positive integer, got {size!r}."
            )
    first = (
        nn.LazyLinear(hidden_features)
        if in_features is None
        else nn.Linear(in_features, hidden_features)
    )
    if sync_batchnorm is None:
        sync_batchnorm = (
            dist.is_available()
            and dist.is_initialized()
            and dist.get_world_size() > 1
            and "nccl" in dist.get_backend()
        )
    norm = nn.SyncBatchNorm if sync_batchnorm else nn.BatchNorm1d
    return nn.Sequential(
        first,
        norm(hidden_features),
        nn.ReLU(inplace=True),
        nn.Linear(hidden_features, out_features, bias=False),
    )


def in_features(head: nn.Sequential) -> int | None:
    """The size of a head's input; None while it is not known."""
    first = cast(nn.Linear, head[0])
    return None if is_lazy(first.weight) else first.weight.shape[1]


def set_in_features(head: nn.Sequential, size: int) -> None:
    """Give a head that was built without one the size of its input; its weights are drawn now."""
    last = cast(nn.Linear, head[-1]).weight
    with torch.no_grad():
        head[0](torch.empty(1, size, device=last.device, dtype=last.dtype))
