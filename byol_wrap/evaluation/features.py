"""Frozen features of all images of a loader."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from byol_wrap.backbone.modes import eval_mode


@torch.no_grad()
def extract_features(
    model: nn.Module, loader: Iterable[Any], *, device: torch.device | str | None = None
) -> tuple[Tensor, Tensor | None]:
    """Features of all images of a loader, in its order.

    Args:
        model: a learner, whose ``embed`` is used (it normalises), or any net from a batch to
            (B, ...), which is fed the images as they come, in eval mode; uint8 is divided by 255.
            Training flags are put back.
        loader: yields (images, labels) or images, images being (B, C, H, W).
        device: where features and labels are gathered; None for the model's device.

    Returns:
        Features (N, D), and labels (N,), or None where the loader yields no labels.

    Raises:
        ValueError: the loader yields nothing, or labels for some batches only.
        TypeError: the model returns something else than a tensor.
    """
    home = next((p.device for p in model.parameters()), torch.device("cpu"))
    features, labels = [], []
    embed = getattr(model, "embed", None)
    with eval_mode(model):
        for batch in loader:
            images, label, *_ = (*batch, None) if isinstance(batch, tuple | list) else (batch, None)
            images = images.to(home, non_blocking=True)
            if callable(embed):
                output = embed(images)
            else:
                output = model(images.float() / 255 if images.dtype == torch.uint8 else images)
            if not isinstance(output, Tensor):
                raise TypeError(
                    f"The model should return a tensor, got {type(output).__name__}; use "
                    "BYOL(net, ...).embed, which understands other outputs."
                )
            features.append(output.flatten(1).to(device or home))
            if label is not None:
                labels.append(torch.as_tensor(label).to(device or home))
    if not features:
        raise ValueError("The loader yields no batch: is the data set empty, or drop_last set?")
    if labels and len(labels) != len(features):
        raise ValueError("The loader yields labels for some batches and none for others.")
    return torch.cat(features), torch.cat(labels) if labels else None
