"""What the host knows of a batch, sent to a device in one copy that nothing waits for."""

from collections.abc import Sequence

import torch
from torch import Tensor


def send(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Tensors on the CPU, as they are on ``device``, in one copy from pinned memory.

    Elsewhere than on CUDA the copy is a blocking one: a copy from memory that is freed meanwhile
    is not safe there.
    """
    if device.type == "cpu":
        return list(tensors)
    order = sorted(range(len(tensors)), key=lambda i: -tensors[i].element_size())  # all aligned
    packed = torch.cat([tensors[i].contiguous().view(-1).view(torch.uint8) for i in order])
    if device.type == "cuda":
        packed = packed.pin_memory().to(device, non_blocking=True)
    else:
        packed = packed.to(device)
    parts = packed.split([tensors[i].nbytes for i in order])
    sent = dict(zip(order, parts, strict=True))
    return [sent[i].view(of.dtype).view(of.shape) for i, of in enumerate(tensors)]
