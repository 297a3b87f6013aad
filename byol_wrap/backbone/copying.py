"""The copy of a user's net: made, run without a trace, and shown to be independent."""

import copy
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from byol_wrap.backbone.modes import eval_mode
from byol_wrap.backbone.recording import Record


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
    snapshot = _Snapshot(net)
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


class _Snapshot:
    """The buffers and attributes of a net's modules, to be put back."""

    def __init__(self, net: nn.Module) -> None:
        modules = [m for m in net.modules() if not isinstance(m, torch.jit.ScriptModule)]
        self._attributes = [(module, dict(vars(module))) for module in modules]
        self._buffers = [
            (module, name, buffer, buffer.clone())
            for module in net.modules()
            for name, buffer in _own_buffers(module)
        ]

    def restore(self) -> None:
        for module, before in self._attributes:
            vars(module).clear()
            vars(module).update(before)
        with torch.no_grad():
            for module, name, buffer, values in self._buffers:
                setattr(module, name, buffer.copy_(values))


def _own_buffers(module: nn.Module) -> list[tuple[str, Tensor]]:
    if isinstance(module, torch.jit.ScriptModule):
        return list(module.named_buffers(recurse=False))
    return [(name, buffer) for name, buffer in module._buffers.items() if buffer is not None]


@contextmanager
def watched(net: nn.Module) -> Iterator[list[str]]:
    """Names of a net's layers that are run while its copy is; what they change is put back."""
    names = {id(module): name for name, module in net.named_modules()}
    thread = threading.get_ident()
    called: list[str] = []

    def note(module: nn.Module, args: object) -> None:
        if id(module) in names and threading.get_ident() == thread:
            if not called:
                snapshots.append(_Snapshot(net))
            called.append(names[id(module)])

    snapshots: list[_Snapshot] = []
    handle = register_module_forward_pre_hook(note)
    try:
        yield called
    finally:
        handle.remove()
        for snapshot in snapshots:
            snapshot.restore()


def dependence(net: nn.Module, called: list[str], run: Record) -> str:
    """Why what a copy of a net gave is not its own, read off its recorded run; "" where it is."""
    named = [name for name, parameter in net.named_parameters() if run.graph.has_leaf(parameter)]
    if not named and not called:
        return ""
    what = f"parameter {named[0]!r}" if named else f"layer {called[-1]!r}"
    return (
        f"A copy of net, as the target network is one, would still run net's own {what}. Was a "
        "forward patched, or a hook set, with a function that holds net, its layers or its old "
        "forward? A function is not copied with the net. Define forward in a class, or patch it "
        "with types.MethodType(function, net) and use self in it; use the module that a hook is "
        "given. SimSiam and SimCLR need no copy."
    )


def on_host(net: nn.Module) -> nn.Module:
    """A copy on the host of a net that has no values, with zeros."""
    copied = copy_net(net).to_empty(device="cpu")
    with torch.no_grad():
        for tensor in (*copied.parameters(), *copied.buffers()):
            tensor.zero_()
    return copied
