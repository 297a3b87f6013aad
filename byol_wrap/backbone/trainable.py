"""What a net must be to be trained by its own modes, and to be averaged."""

import inspect
from collections.abc import Mapping
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

PLAIN = (Tensor, nn.Parameter, nn.UninitializedParameter)
PREPARED = "FloatFunctional"  # an addition in floats, of a net that may be quantised later
NARROW = (torch.int8, torch.uint8, torch.int16, torch.int32)
QUANTISED = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized", "torch.nn.quantized")


def check_module(net: Any, method: str) -> None:
    """Raise TypeError for what is no net but holds one, or has a ``train`` that is no mode.

    Some libraries hand out an object around a net; its ``train`` may start a training of its own.
    """
    if not isinstance(net, nn.Module):
        way = _way_to_net(net, method)
        raise TypeError(f"net should be an nn.Module, got {type(net).__name__}{way}.")
    for name, module in net.named_modules():
        if type(module).train is not nn.Module.train and not _switches(module.train):
            inner = _inner(module)
            if inner is not None:
                path = ".".join(part for part in ("net", name, inner) if part)
                way = f"Wrap the net in it: {method}({path})."
                if not _holds_all(module, inner):
                    way = "Give that method another name, such as fit, and keep nn.Module's train."
                raise TypeError(
                    f"{type(module).__name__}.train{inspect.signature(module.train)} is not that "
                    "of an nn.Module, which sets a mode, and may start a training of its own. "
                    f"{way}"
                )


def _way_to_net(thing: Any, method: str) -> str:
    """How what is no net becomes one, for the end of a message; empty where that is not known."""
    inner = _inner(thing)
    if inspect.isclass(thing) or inspect.isroutine(thing):
        return f"; if it makes one, call it: {thing.__name__}()"
    if isinstance(thing, str):
        makers = f"torchvision.models.get_model({thing!r}) or timm.create_model({thing!r})"
        return f"; make the net first: {makers}"
    if isinstance(thing, Mapping):
        return "; load the weights into a net first: net.load_state_dict(weights)"
    return "" if inner is None else f"; the net in it is net.{inner}: {method}(net.{inner})"


def _inner(holder: Any) -> str | None:
    """The name of a module among a thing's attributes, the likeliest first."""
    parts = {**getattr(holder, "__dict__", {}), **getattr(holder, "_modules", {})}
    names = [name for name, part in parts.items() if isinstance(part, nn.Module)]
    return min(names, key=lambda name: name != "model", default=None)


def _holds_all(module: nn.Module, inner: str) -> bool:
    """Whether a module has no parameters but those of the one that it holds under a name."""
    within = {id(parameter) for parameter in getattr(module, inner).parameters()}
    return all(id(parameter) in within for parameter in module.parameters())


def _switches(train: Any) -> bool:
    """Whether a method takes a mode as ``nn.Module.train`` does, and may take more."""
    parameters = list(inspect.signature(train).parameters.values())
    variable = any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters)
    return bool(parameters) and (parameters[0].name == "mode" or not (variable or parameters[1:]))


def check_not_quantised(net: nn.Module) -> None:
    """Raise TypeError for weights that can be neither trained nor averaged.

    Whole numbers beside adapters, where something was frozen on purpose, are another thing.
    """
    for name, module in net.named_modules():
        kind = type(module)
        if kind.__module__.startswith(QUANTISED) and not kind.__name__.endswith(PREPARED):
            raise TypeError(_message(f"Layer {name!r}", kind.__name__))
    whole, real, chosen = 0, 0, False
    for name, parameter in net.named_parameters():
        if parameter.is_floating_point() or parameter.is_complex():
            real += parameter.numel()
            chosen |= not parameter.requires_grad
            if type(parameter) not in PLAIN and not _can_be_averaged(parameter):
                raise TypeError(_message(repr(name), type(parameter).__name__))
        else:
            whole += parameter.numel()
    if whole > real and not chosen:
        found = (n for n, p in net.named_parameters() if not p.is_floating_point())
        names = ", ".join(map(repr, islice(found, 3)))
        raise TypeError(_message(names, "whole numbers"))
    if not chosen and (packed := next(filter(None, map(_packed, net.named_modules())), None)):
        raise TypeError(_message(repr(packed), "whole numbers"))


def _packed(named: tuple[str, nn.Module]) -> str:
    """The name of a layer's weights in whole numbers, which outnumber its floats; "" without."""
    path, layer = named
    parameters = dict(layer.named_parameters(recurse=False))
    own = {**parameters, **dict(layer.named_buffers(recurse=False))}
    packed = {name: tensor for name, tensor in own.items() if _is_packed(tensor)}
    floats = sum(tensor.numel() for tensor in own.values() if tensor.is_floating_point())
    is_scaled = floats > 0 or not packed.keys().isdisjoint(parameters)  # else it is a table
    if not is_scaled or sum(tensor.numel() for tensor in packed.values()) <= floats:
        return ""
    return f"{path}.{next(iter(packed))}" if path else next(iter(packed))


def _is_packed(tensor: Tensor) -> bool:
    """Whether whole numbers fill their range as weights do: neither positions nor masks."""
    if tensor.dtype not in NARROW or tensor.is_meta or not tensor.numel():
        return False
    low, high = (int(bound) for bound in tensor.aminmax())
    return high - low >= 1 << torch.iinfo(tensor.dtype).bits - 1


def _can_be_averaged(parameter: nn.Parameter) -> bool:
    try:
        with torch.no_grad():
            value = parameter.detach()
            torch._foreach_lerp_([value.clone()], [value], 0.5)
    except Exception:
        return False
    return True


def _message(what: str, kind: str) -> str:
    return (
        f"{what} of the net is quantised ({kind}), and quantised weights are neither trained nor "
        "averaged: wrap the net as it is before quantisation, and quantise it after training."
    )
