"""Has a net been trained before? And the BatchNorm statistics that it brought."""

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

SETTLED = 100  # batches after which running statistics at PyTorch's momentum are those of the data
SPREAD = 0.05  # of a normalisation layer's weights, relative to their size, that training leaves

Normalisation = (_BatchNorm, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


@torch.no_grad()
def is_pretrained(net: nn.Module) -> bool:
    """Whether a net's normalisation layers show that it was trained for long.

    Nets are made with one value for all weights of such a layer, and training spreads them; the
    running statistics of BatchNorm are made as 0 and 1. A net that saw a few batches does not
    count, nor does one without such layers, of which nothing can be told.
    """
    layers = [layer for layer in net.modules() if isinstance(layer, Normalisation)]
    told = [_was_trained(layer) for layer in layers]
    known = [trained for trained in told if trained is not None]
    return 2 * sum(known) > len(known)


def batch_norms(net: nn.Module) -> list[_BatchNorm]:
    """The layers whose running statistics training replaces."""
    return [
        layer
        for layer in net.modules()
        if isinstance(layer, _BatchNorm) and layer.running_mean is not None
    ]


def keep_statistics(net: nn.Module) -> None:
    """Put BatchNorm layers alone in eval mode: they use the statistics that they have."""
    for layer in batch_norms(net):
        if layer.training:
            layer.eval()


def _was_trained(layer: nn.Module) -> bool | None:
    """None where a layer cannot tell."""
    mean, variance = getattr(layer, "running_mean", None), getattr(layer, "running_var", None)
    if mean is not None and variance is not None:
        if not _is_readable(mean) or not ((mean != 0).any() or (variance != 1).any()):
            return False
        count = layer.num_batches_tracked  # 0 where a checkpoint came without counts
        return count is None or int(count) == 0 or int(count) >= SETTLED
    weight = getattr(layer, "weight", None)
    if weight is None or weight.numel() < 2:
        return None
    if not _is_readable(weight):
        return False
    return bool(weight.std() > SPREAD * weight.abs().mean())


def _is_readable(tensor: Tensor) -> bool:
    return not (tensor.is_meta or nn.parameter.is_lazy(tensor) or hasattr(tensor, "device_mesh"))
