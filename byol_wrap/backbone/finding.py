"""Finds the layer whose values represent an image."""

import difflib
import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from byol_wrap.backbone.graph import trained_by
from byol_wrap.backbone.reading import Pool, Representation, main_tensor, pooled

CLASS_TOKENS = {"cls_token", "class_token", "class_embedding", "cls_embedding"}
POOLS = ("mean", "max", "class_token", "flatten")


def find_representation(
    net: nn.Module, sample: Tensor, hidden_layer: str | int | None, pool: Pool | None
) -> tuple[Representation, set[str], set[str]]:
    """Run ``net`` once on ``sample`` and settle what represents an image.

    The net should be a copy in eval mode: it is run with gradient, and its parameters are left
    requiring gradient.

    Args:
        net: the net to look into.
        sample: (B, ...), a batch that the net takes.
        hidden_layer: None for the input of the last Linear (or 1 x 1 convolution of a 1 x 1 map)
            whose output is the net's output, or one of several that it is the mean, sum or maximum
            of, and before which something can be trained; where there is none, the net's output. A
            dotted name or a child's index for that layer's output; "" for the net's output.
        pool: None for a choice by the shape, or one of ``POOLS``, or a callable from the layer's
            value to (B, D).

    Returns:
        The representation; the names of the parameters that it does not depend on; and of those
        among them whose layers are reached behind it alone.

    Raises:
        ValueError: no such layer; it is never reached, reached twice, or gives no float tensor with
            one entry an image; nothing that can be trained lies before it.
        TypeError: ``pool`` returned something else than a tensor.
    """
    for parameter in net.parameters():
        if parameter.is_floating_point():
            parameter.requires_grad_(True)
    name = None if hidden_layer is None else layer_name(net, hidden_layer)
    calls, events, output = _record(net, sample, name)

    if name is None:
        name, side, value = _before_classifier(calls, output)
    else:
        side, value = "output", output
        if name:
            _check_reached_once(name, calls)
            value = main_tensor(calls[0].output)

    where = f"The {side} of layer {name!r}" if name else "The net's output"
    if value is None or not value.is_floating_point():
        raise ValueError(f"{where} holds no tensor of floats; choose another hidden_layer.")
    if value.ndim < 2 or value.shape[0] != sample.shape[0]:
        raise ValueError(
            f"{where} has shape {tuple(value.shape)}, but a representation needs one entry for "
            f"each of the {sample.shape[0]} images and at least one more dimension; choose another "
            "hidden_layer."
        )
    used = trained_by(value)
    if used is not None and not used:
        raise ValueError(
            f"No gradient flows from {where[0].lower()}{where[1:]} to any parameter of the net: it "
            "is detached, or nothing that can be trained lies before it. Choose another "
            "hidden_layer."
        )
    if pool == "class_token" and value.ndim != 3:
        raise ValueError(
            f"pool='class_token' needs tokens (B, T, C), but {where[0].lower()}{where[1:]} has "
            f"shape {tuple(value.shape)}; choose 'mean', or a layer that gives tokens."
        )
    channels_last = (
        value.ndim == 3
        or (side == "input" and isinstance(net.get_submodule(name), nn.Linear))
        or _is_channels_last(value, sample)
    )
    pool = _choose_pool(net, value) if pool is None else pool
    vector = pooled(value, pool, channels_last)
    if vector.ndim != 2 or vector.shape[0] != sample.shape[0]:
        raise ValueError(
            f"pool={pool!r} should turn {tuple(value.shape)} into ({sample.shape[0]}, D), but gave "
            f"{tuple(vector.shape)}."
        )
    unused = {n for n, p in net.named_parameters() if used is not None and id(p) not in used}
    behind = unused & _held_behind(net, events, name, side)
    return Representation(name, side, pool, channels_last, vector.shape[1]), unused, behind


def check_pool(pool: Pool | None) -> Pool | None:
    """Raise ValueError for a ``pool`` that is neither a name nor a callable nor None."""
    if pool is None or callable(pool) or pool in POOLS:
        return pool
    raise ValueError(f"pool expects a callable or one of {', '.join(POOLS)}, got {pool!r}.")


def layer_name(net: nn.Module, hidden_layer: str | int) -> str:
    """The dotted name of a layer given by name or by its index among the net's children.

    Raises:
        ValueError: no such layer; the message lists the closest names.
        TypeError: neither a name nor an index.
    """
    if isinstance(hidden_layer, int) and not isinstance(hidden_layer, bool):
        children = [name for name, _ in net.named_children()]
        if not -len(children) <= hidden_layer < len(children):
            raise ValueError(
                f"hidden_layer={hidden_layer} is out of range: the net has {len(children)} "
                f"children: {', '.join(children) or 'none'}."
            )
        return children[hidden_layer]
    if not isinstance(hidden_layer, str):
        raise TypeError(
            "hidden_layer expects a layer's dotted name, a child's index or None, got "
            f"{type(hidden_layer).__name__}."
        )
    names = [name for name, _ in net.named_modules(remove_duplicate=False)]
    if hidden_layer not in names:
        close = difflib.get_close_matches(hidden_layer, names, n=5, cutoff=0.4)
        hint = ", ".join(close or [n for n, _ in net.named_children()][:10])
        raise ValueError(
            f"The net has no layer named {hidden_layer!r}. Closest: {hint}. "
            "All names: [name for name, _ in net.named_modules()]."
        )
    return hidden_layer


@dataclass(frozen=True)
class _Call:
    name: str
    input: Tensor | None
    output: Any
    version: int


_Event = tuple[str, Literal["input", "output"]]


def _record(
    net: nn.Module, sample: Tensor, name: str | None
) -> tuple[list[_Call], list[_Event], Tensor | None]:
    """Run ``net`` and write down what happens.

    Returns:
        Every call of the layer ``name`` (of what may classify where it is None); the order in which
        layers got their input and gave their output; and the net's output.
    """
    calls: list[_Call] = []
    events: list[_Event] = []

    def came(label: str) -> Callable[..., None]:
        return lambda layer, args: events.append((label, "input"))

    def left(label: str) -> Callable[..., None]:
        return lambda layer, args, output: events.append((label, "output"))

    def recorder(label: str) -> Callable[..., None]:
        def record(layer: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
            if name is None and isinstance(layer, nn.Conv2d) and output.shape[2:].numel() > 1:
                return  # a map of classes
            version = output._version if isinstance(output, Tensor) else 0
            calls.append(_Call(label, main_tensor((*args, *kwargs.values())), output, version))

        return record

    with ExitStack() as hooks:
        for label, layer in net.named_modules():
            if not isinstance(layer, torch.jit.ScriptModule):
                hooks.callback(layer.register_forward_pre_hook(came(label)).remove)
                hooks.callback(layer.register_forward_hook(left(label)).remove)
            if _may_classify(layer) if name is None else label == name != "":
                handle = layer.register_forward_hook(recorder(label), with_kwargs=True)
                hooks.callback(handle.remove)
        try:
            return calls, events, main_tensor(net(sample))
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            raise ValueError(
                f"The net cannot take a batch of shape {tuple(sample.shape)}, {sample.dtype}: "
                f"{str(error).rstrip('.')}. Do image_size and channels suit it?"
            ) from error


def _held_behind(
    net: nn.Module, events: list[_Event], name: str, side: Literal["input", "output"]
) -> set[str]:
    """Names of the parameters of layers that are reached, but not before the representation."""
    if name == "":
        return set()
    reached = events.index((name, side))
    early = {label for label, _ in events[:reached]}
    late = {label for label, _ in events[reached:]} - early
    modules = list(net.named_modules())
    behind = {id(p) for label, module in modules if label in late for p in module.parameters()}
    for label, module in modules:
        if label in early:
            behind -= {id(p) for p in module.parameters(recurse=False)}
    return {n for n, p in net.named_parameters() if id(p) in behind}


def _may_classify(layer: nn.Module) -> bool:
    """A Linear, or the convolution that some nets have in its place."""
    return isinstance(layer, nn.Linear) or (
        isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1)
    )


def _before_classifier(
    calls: list[_Call], output: Tensor | None
) -> tuple[str, Literal["input", "output"], Tensor | None]:
    names = [call.name for call in calls]
    readable = [
        call
        for call in calls
        if names.count(call.name) == 1 and call.input is not None and call.input.requires_grad
    ]
    last = next((call for call in reversed(readable) if _same_values(call, output)), None)
    last = last or _last_of_combined(readable, output)
    return ("", "output", output) if last is None else (last.name, "input", last.input)


COMBINING = {
    f"{name}Backward{k}" for name in ("Add", "Div", "Max", "Mean", "Mul", "Stack") for k in (0, 1)
}


def _last_of_combined(calls: list[_Call], output: Tensor | None) -> _Call | None:
    """The last of several calls whose mean, sum or maximum, and nothing else, is the net's output.

    One that reads a vector comes before those that read tokens.
    """
    parts = {
        call.output.grad_fn: call
        for call in calls
        if isinstance(call.output, Tensor) and call.output._version == call.version
    }
    found: list[_Call] = []
    nodes = [] if output is None or output.grad_fn is None else [output.grad_fn]
    while nodes:
        node = nodes.pop()
        if node in parts:
            found.append(parts[node])
        elif node.name() in COMBINING:
            nodes.extend(parent for parent, _ in node.next_functions if parent is not None)
        else:
            return None
    vectors = [call for call in found if call.input is not None and call.input.ndim == 2]
    return max(vectors or found, key=calls.index, default=None)


def _same_values(call: _Call, output: Tensor | None) -> bool:
    """Whether a layer's output is the net's output: itself or a view of all of it, unmodified."""
    return (
        output is not None
        and isinstance(call.output, Tensor)
        and call.output.numel() == output.numel()
        and call.output.untyped_storage().data_ptr() == output.untyped_storage().data_ptr()
        and call.output._version == call.version
    )


def _check_reached_once(name: str, calls: list[_Call]) -> None:
    if len(calls) != 1:
        times = "never reached" if not calls else f"reached {len(calls)} times"
        raise ValueError(
            f"The layer {name!r} is {times} in a forward; the representation needs a layer that is "
            "reached once. Choose the layer that contains it, or one behind it."
        )


def _is_channels_last(value: Tensor, sample: Tensor) -> bool:
    """Whether a map is (B, H, W, C): its aspect is then that of the images in dimensions 1, 2."""
    if value.ndim != 4 or sample.ndim != 4:
        return False
    _, a, b, c = value.shape
    aspect = sample.shape[2] / sample.shape[3]
    return abs(math.log(a / b / aspect)) < abs(math.log(b / c / aspect))


def _choose_pool(net: nn.Module, value: Tensor) -> str:
    if value.ndim == 2:
        return "none"
    names = {name.rpartition(".")[2] for name, _ in net.named_parameters()}
    return "class_token" if value.ndim == 3 and names & CLASS_TOKENS else "mean"
