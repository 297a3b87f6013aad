"""Shows that a copy of a net, as a target network is one, depends on nothing of the net's."""

import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from types import FunctionType, MethodType
from typing import Any

from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from byol_wrap.backbone.copying import Snapshot, is_whole, same
from byol_wrap.backbone.graph import Graph
from byol_wrap.backbone.recording import Record


@dataclass
class Touched:
    """What of a net was run or written while its copy was run.

    Attributes:
        layers: names of the layers that were called.
        buffers: names of the buffers that were written.
    """

    layers: list[str] = field(default_factory=list)
    buffers: list[str] = field(default_factory=list)


@contextmanager
def watched(net: nn.Module) -> Iterator[Touched]:
    """Tells what of a net its copy touches while it is run, and puts it back afterwards."""
    names = {id(module): name for name, module in net.named_modules()}
    thread = threading.get_ident()
    touched, snapshot = Touched(), Snapshot(net)

    def note(module: nn.Module, args: object) -> None:
        if id(module) in names and threading.get_ident() == thread:
            touched.layers.append(names[id(module)])

    handle = register_module_forward_pre_hook(note)
    try:
        yield touched
    finally:
        handle.remove()
        touched.buffers = snapshot.written()
        snapshot.restore()


def dependence(net: nn.Module, touched: Touched, run: Record) -> str:
    """Why what a copy of a net gave is not its own, read off its recorded run; "" where it is."""
    named = [name for name, parameter in net.named_parameters() if run.graph.has_leaf(parameter)]
    if named:
        return _still(f"run net's own parameter {named[0]!r}")
    if touched.layers:
        return _still(f"run net's own layer {touched.layers[-1]!r}")
    return _still(f"write net's own buffer {touched.buffers[0]!r}") if touched.buffers else ""


def _still(does: str) -> str:
    return (
        f"A copy of net, as the target network is one, would still {does}. Was a forward patched, "
        "or a hook set, with a function that holds net, its layers or its old forward? A function "
        "is not copied with the net. Define forward in a class, or patch it with "
        "types.MethodType(function, net) and use self in it; use the module that a hook is given. "
        "SimSiam and SimCLR need no copy."
    )


def detached_dependence(net: nn.Module, copied: nn.Module, run: Callable[[], Record]) -> str:
    """Why a copy of a net is not independent of it, though no graph leads there; "" where it is.

    It may read a buffer, or a detached weight. Net's floats are changed for a moment, and then put
    back bit for bit: what the copy gives must stay. Only a function or a weak reference can lead a
    copy back to its net; others are not run.

    Args:
        net: the net.
        copied: its copy.
        run: runs the copy once more, from the same random state.
    """
    if not any(
        _leads_back(value) for module in copied.modules() for value in vars(module).values()
    ):
        return ""
    first = run()
    if not _is_alike(first, run()):
        return ""  # it draws from a state of its own
    with _changed(net):
        other = run()
    return "" if _is_alike(first, other) else _still("read values of net's own")


def foreign(copied: nn.Module, graph: Graph, run: Callable[[], Record]) -> str:
    """What is trained with a net, though it is no part of it; "" where there is nothing.

    Args:
        copied: a copy of the net, which does not depend on it.
        graph: of a run of the copy.
        run: runs it once more: what a forward makes anew is not trained.
    """
    registered = {id(tensor) for tensor in chain(copied.parameters(), copied.buffers())}
    strange = [tensor for tensor in graph.tensors if id(tensor) not in registered]
    lasting = run().graph if strange else graph
    kept = next((tensor for tensor in strange if lasting.has_leaf(tensor)), None)
    if kept is None:
        return ""
    return (
        f"net computes with a parameter of shape {tuple(kept.shape)} that asks for a gradient but "
        "is not registered in it, so that the target network, a copy of net, would not follow it: "
        "it would run the online one, or never change. Make it, or its layer, an attribute of a "
        "module of net, with nn.ModuleList for a list of layers, and let a hook use the module "
        "that it is given; or freeze it, requires_grad_(False). SimSiam and SimCLR need no copy."
    )


@contextmanager
def _changed(net: nn.Module) -> Iterator[None]:
    """Other values in a net's parameters and buffers, for a moment; not in indices."""
    floats = (t for t in chain(net.parameters(), net.buffers()) if t.is_floating_point())
    values = [tensor for tensor in floats if is_whole(tensor) and not tensor.is_inference()]
    kept = [tensor.detach().clone() for tensor in values]
    try:
        for tensor in values:
            tensor.data.mul_(-1.7).add_(0.3)
        yield
    finally:
        for tensor, value in zip(values, kept, strict=True):
            tensor.data.copy_(value)


def _is_alike(run: Record, other: Record) -> bool:
    values, others = ([value.tensor for value in r.net_outputs] for r in (run, other))
    return len(values) == len(others) and all(map(same, values, others))


def _leads_back(value: Any) -> bool:
    """Whether a copy of an attribute holds the very things that it held."""
    if isinstance(value, dict | list | tuple):  # as hooks are in
        return any(map(_is_kept, value.values() if isinstance(value, dict) else value))
    return _is_kept(value)


def _is_kept(value: Any) -> bool:
    while isinstance(value, partial | MethodType):
        value = value.func if isinstance(value, partial) else value.__func__
    return isinstance(value, FunctionType | weakref.ref | weakref.ProxyType)
