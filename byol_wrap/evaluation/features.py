"""Frozen features of all images of a loader."""

import inspect
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from byol_wrap.backbone.modes import eval_mode
from byol_wrap.data import ImageFiles, collate
from byol_wrap.evaluation.batches import Labels, describe, read_batch

BATCH_SIZE = 64  # of a data set that comes without a loader
# What PyTorch's wrappers, its compiler's and Fabric's call what they wrap; Fabric may keep both.
WRAPPED = {"module", "_orig_mod", "_forward_module", "_original_module"}


def extract_features(
    model: nn.Module, loader: Iterable[Any], *, device: torch.device | str | None = None
) -> tuple[Tensor, Labels | None]:
    """Features of all images of a loader, in its order.

    Args:
        model: a learner, whose ``embed`` is used (it normalises), or any net from a batch to
            (B, ...), which is fed the images as they come, in eval mode; uint8 is divided by 255.
            Either may be inside ``DistributedDataParallel``, ``AveragedModel`` or
            ``torch.compile``. Training flags are put back.
        loader: yields images, (images, labels, ...) or a mapping of both, images being (B, C, H, W)
            as a tensor or numpy array, or a list of (C, H, W). Of several views the first is taken,
            with a warning; a mapping's labels are left out under unusual names, with another. A
            data set is loaded in batches of 64.
        device: where features and labels are gathered; None for the model's device.

    Returns:
        Features (N, D), and labels (N,), or None where the loader yields no labels. Class names
        come as a list, which ``knn_accuracy`` and the probes take, too.

    Raises:
        ValueError: the loader yields nothing, or labels for some batches only; the model returns
            something else than one row an image.
        TypeError: the model is no module, or returns something else than a tensor; a batch cannot
            be understood.
    """
    (features,), labels = gather([reader(model)], loader, device)
    return features, labels


class Reader(NamedTuple):
    """How features come out of a model."""

    module: nn.Module
    run: Callable[[Tensor], Any]

    def __call__(self, images: Tensor) -> Tensor:
        """(B, ...) in, (B, D) out, on the module's device."""
        tensors = chain(self.module.parameters(), self.module.buffers())
        home = next((tensor.device for tensor in tensors), torch.device("cpu"))
        # Elsewhere than on CUDA a copy that is not waited for may read what has been freed.
        output = self.run(images.to(home, non_blocking=home.type == "cuda"))
        if not isinstance(output, Tensor):
            raise TypeError(
                f"The model should return a tensor, got {type(output).__name__}; use "
                "BYOL(net, ...).embed, which understands other outputs."
            )
        if output.ndim == 0 or len(output) != len(images):
            raise ValueError(
                f"The model should return one row for each of the {len(images)} images, got shape "
                f"{tuple(output.shape)}; if it holds a learner, give that one."
            )
        return output.flatten(1)


def reader(model: nn.Module) -> Reader:
    """A learner is read by its ``embed``, any other net by its output."""
    inner = unwrapped(model)
    if is_learner(inner):
        return Reader(inner, inner.embed)
    if not isinstance(inner, nn.Module):
        raise TypeError(
            f"The model should be a learner or an nn.Module, got {type(inner).__name__}; of a "
            "learner give the learner itself."
        )
    model = inner if isinstance(model, nn.parallel.DistributedDataParallel) else model
    return Reader(model, lambda x: model(x.float() / 255 if x.dtype == torch.uint8 else x))


def is_learner(model: Any) -> bool:
    """Whether a model has a net and an ``embed`` that is a method, not a layer of that name."""
    return inspect.ismethod(getattr(model, "embed", None)) and isinstance(
        getattr(model, "net", None), nn.Module
    )


def unwrapped(model: Any) -> Any:
    """What is inside ``DistributedDataParallel``, ``AveragedModel``, ``torch.compile``, Fabric's.

    They hold nothing but what they wrap; a net that has a part called ``module`` beside others is
    no wrapper.
    """
    while isinstance(model, nn.Module):
        children = dict(model.named_children())
        if not children or children.keys() - WRAPPED or [*model.parameters(recurse=False)]:
            break
        model = children.get("_original_module", next(iter(children.values())))
    return model


@torch.no_grad()
def gather(
    readers: Sequence[Reader], loader: Iterable[Any], device: torch.device | str | None
) -> tuple[list[Tensor], Labels | None]:
    """Features of each of several models, from one pass over a loader; and the labels."""
    if isinstance(loader, Dataset) and not isinstance(loader, IterableDataset):
        together = collate if isinstance(loader, ImageFiles) else None
        loader = DataLoader(loader, BATCH_SIZE, collate_fn=together)
    features: list[list[Tensor]] = [[] for _ in readers]
    labels: list[Labels] = []
    batches = 0
    with ExitStack() as modes:
        for model in readers:
            modes.enter_context(eval_mode(model.module))
        for batch in loader:
            parts, label = read_batch(batch)
            batches += 1
            for rows, model in zip(features, readers, strict=True):
                rows += [(row := model(part)).to(device or row.device) for part in parts]
            if label is not None:
                home = device or (features[0][-1].device if readers else "cpu")
                labels.append(label.to(home) if isinstance(label, Tensor) else label)
    if not batches:
        raise ValueError("The loader yields no batch: is the data set empty, or drop_last set?")
    if labels and len(labels) != batches:
        raise ValueError("The loader yields labels for some batches and none for others.")
    return [torch.cat(rows) for rows in features], _joined(labels)


def _joined(labels: list[Labels]) -> Labels | None:
    tensors = [part for part in labels if isinstance(part, Tensor)]
    names = [part for part in labels if not isinstance(part, Tensor)]
    if tensors and names:
        raise TypeError(
            f"Labels are numbers in some batches and names in others: {describe(labels)}."
        )
    if names:
        return list(chain.from_iterable(names))
    return torch.cat(tensors) if tensors else None
