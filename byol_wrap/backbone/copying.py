"""The copy of a user's net: made, and run without a trace."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from byol_wrap.backbone.modes import eval_mode


def copy_net(net: nn.Module) -> nn.Module:
    """A deep copy of a user's net, to be its moving average, or to be run in its place.

    Raises:
        RuntimeError: it cannot be copied.
    """
    try:
        with torch.no_grad():  # else the copies of a scripted module's parameters have a graph
            copied = copy.deepcopy(net, without_graph(net))
    except Exception as error:
        raise RuntimeError(
            f"net cannot be copied for the target network: copy.deepcopy(net) says {error}"
        ) from error
    named = (*copied.named_parameters(), *copied.named_buffers())
    own = {id(tensor) for tensor in (*net.parameters(), *net.buffers())}
    shared = [name for name, tensor in named if id(tensor) in own]
    if shared:
        raise RuntimeError(
            f"net cannot be copied for the target network: copy.deepcopy(net) shares {shared[0]!r} "
            "with it. Let __deepcopy__ copy what it holds."
        )
    return copied


def without_graph(module: nn.Module) -> dict[int, Tensor]:
    """A memo for ``deepcopy``: values that a forward has left on a module, by their ids.

    Such as a cached output, or an old-style weight norm's weight. They belong to a graph, which
    cannot be copied: the copy gets them without it.
    """
    return {
        id(value): value.detach().clone()
        for part in module.modules()
        for value in vars(part).values()
        if isinstance(value, Tensor) and not value.is_leaf
    }


@contextmanager
def undisturbed(net: nn.Module, device: torch.device) -> Iterator[None]:
    """Let all parameters ask for a gradient for a moment; put back all that a forward changes."""
    snapshot = Snapshot(net)
    asked = [(parameter, parameter.requires_grad) for parameter in net.parameters()]
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []), eval_mode(net):
            for parameter, _ in asked:
                if parameter.is_floating_point() or parameter.is_complex():
                    parameter.requires_grad_(True)
            yield
    finally:
        for parameter, gradient in asked:
            parameter.requires_grad = gradient
        snapshot.restore()


class Snapshot:
    """The buffers and attributes of a net's modules, to be put back."""

    def __init__(self, net: nn.Module) -> None:
        modules = [m for m in net.modules() if not isinstance(m, torch.jit.ScriptModule)]
        self._attributes = [(module, dict(vars(module))) for module in modules]
        self._buffers = [
            (path, module, name, buffer, buffer.clone())
            for path, module in net.named_modules()
            for name, buffer in _own_buffers(module)
        ]

    def written(self) -> list[str]:
        """Names of the buffers that have other values now."""
        written = (b for b in self._buffers if not same(*b[3:]))
        return [f"{path}.{name}" if path else name for path, _, name, *_ in written]

    def restore(self) -> None:
        """Put them back."""
        for module, before in self._attributes:
            vars(module).clear()
            vars(module).update(before)
        with torch.no_grad():
            for _, module, name, buffer, values in self._buffers:
                if buffer.shape != values.shape:  # as a cache that is sized by the first forward
                    buffer.data = values
                setattr(module, name, buffer.copy_(values) if is_whole(buffer) else buffer)


def is_whole(tensor: Tensor) -> bool:
    """Whether each value has its own place: what is expanded cannot be written to."""
    return tensor.untyped_storage().nbytes() >= tensor.numel() * tensor.element_size()


def same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors of a kind have the same values, bit for bit."""
    bits = (tensor.detach().contiguous().flatten().view(torch.uint8) for tensor in (one, other))
    return one.shape == other.shape and torch.equal(*bits)


def _own_buffers(module: nn.Module) -> list[tuple[str, Tensor]]:
    if isinstance(module, torch.jit.ScriptModule):
        return list(module.named_buffers(recurse=False))
    return [(name, buffer) for name, buffer in module._buffers.items() if buffer is not None]


def on_host(net: nn.Module) -> nn.Module:
    """A copy on the host of a net that has no values, with zeros."""
    copied = copy_net(net).to_empty(device="cpu")
    with torch.no_grad():
        for tensor in (*copied.parameters(), *copied.buffers()):
            tensor.zero_()
    return copied
