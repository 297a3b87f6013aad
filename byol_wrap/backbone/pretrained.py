"""Has a net been trained before? And the BatchNorm statistics that it brought."""

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

LONG = 1000  # batches that BatchNorm layers counted
SPREAD = 0.05  # of other layers' weights, relative to their size, that training leaves

Normalisation = (_BatchNorm, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


@torch.no_grad()
def is_pretrained(net: nn.Module) -> bool:
    """Whether a net's normalisation layers show that it was trained for long.

    BatchNorm counts its batches: ``LONG`` of them are meant, or statistics from a checkpoint that
    came without a count. Where there is no BatchNorm, training shows in the weights of the layers,
    which start with one value and spread. Of a net without such layers nothing can be told.
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
        count = int(getattr(layer, "num_batches_tracked", None) or 0)
        return count == 0 or count >= LONG  # 0 where a checkpoint came without counts
    weight = getattr(layer, "weight", None)
    if weight is None or weight.numel() < 2:
        return None
    if not _is_readable(weight):
        return False
    return bool(weight.std() > SPREAD * weight.abs().mean())


def _is_readable(tensor: Tensor) -> bool:
    return not (tensor.is_meta or nn.parameter.is_lazy(tensor) or hasattr(tensor, "device_mesh"))
