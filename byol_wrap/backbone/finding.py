"""Finds the layer whose values represent an image, on a recorded forward."""

import difflib
from dataclasses import dataclass, replace

from torch import Tensor, nn

from byol_wrap.backbone.choosing import Chooser
from byol_wrap.backbone.classifier import CONVOLUTIONS
from byol_wrap.backbone.entries import entries_of
from byol_wrap.backbone.graph import dims, kind, shape_of, tokens_in_front
from byol_wrap.backbone.recording import Record, Value
from byol_wrap.backbone.representation import Pool, Representation, averaged, main_tensor, pooled
from byol_wrap.backbone.taps import Choice, Tap

POOLS = ("mean", "max", "class_token", "flatten")


@dataclass(frozen=True)
class Found:
    """What a forward tells.

    Attributes:
        representation: what represents an image.
        choice: where else it could be taken; what classifies behind it; doubts.
        unused: names of the parameters that it does not depend on.
    """

    representation: Representation
    choice: Choice
    unused: frozenset[str]

    @property
    def value(self) -> Value:
        """The layer's value in that forward."""
        return self.choice.taps[0].value


def find_representation(
    record: Record, sample: Tensor, hidden_layer: str | None, pool: Pool | None
) -> Found:
    """Settle what represents an image.

    Args:
        record: a forward with gradient, all parameters of the net requiring it.
        sample: (B, ...), what the net was fed.
        hidden_layer: None for what the net's classifiers read; of several maps, the deepest of the
            backbone; of a dense output, the narrowest place before it; else the net's output. A
            dotted name for that layer's output; "" for the net's output.
        pool: None for a choice by what made the value and what the net reads of it, or one of
            ``POOLS``, or a callable from the layer's value to (B, D).

    Raises:
        ValueError: no such layer; it is never reached, reached twice, or gives no float tensor with
            one entry an image; nothing that can be trained lies before it.
        TypeError: ``pool`` returned something else than a tensor.
    """
    chooser = Chooser(record, sample)
    choice = chooser.choose() if hidden_layer is None else _given(record, hidden_layer)
    tap = choice.taps[0]
    value = tap.value.tensor
    where = f"The {tap.side} of layer {tap.layer!r}" if tap.layer else "The net's output"
    lower = where[0].lower() + where[1:]
    if not value.is_floating_point() or (value.ndim == 1 and not len(value)):
        raise ValueError(f"{where} holds no tensor of floats; choose another hidden_layer.")
    entries = entries_of(record, tap.value)
    is_known = value.shape[:1] == (record.batch,) or entries is not None or callable(pool)
    if value.ndim < 2 or not is_known:
        raise ValueError(
            f"{where} has shape {tuple(value.shape)}, but a representation needs one entry for "
            f"each of the {record.batch} images and at least one more dimension; choose another "
            "hidden_layer."
        )
    used = record.graph.trained_by(tap.value.place)
    if used is not None and not used:
        raise ValueError(
            f"No gradient flows from {lower} to any parameter of the net: it is detached, or "
            "nothing that can be trained lies before it. Choose another hidden_layer."
        )
    if pool == "class_token" and value.ndim != 3:
        raise ValueError(
            f"pool='class_token' needs tokens (B, T, C), but {lower} has shape "
            f"{tuple(value.shape)}; choose 'mean', or a layer that gives tokens."
        )
    channel_dim = _channels(chooser, record.net, tap)
    pool = _choose_pool(record, tap.value, channel_dim) if pool is None else pool
    vector = averaged(pooled(value, pool, channel_dim), entries, record.batch)
    if vector.ndim != 2 or vector.shape[0] != record.batch:
        raise ValueError(
            f"pool={pool!r} should turn {tuple(value.shape)} into ({record.batch}, D), but gave "
            f"{tuple(vector.shape)}."
        )
    named = record.net.named_parameters()
    unused = frozenset(n for n, p in named if used is not None and id(p) not in used)
    size = vector.shape[1]
    representation = Representation(tap.layer, tap.side, pool, channel_dim, size, tap.part, entries)
    return Found(representation, choice, unused)


def at(found: Found, tap: Tap) -> Found:
    """The same value, taken at another place."""
    representation = replace(found.representation, layer=tap.layer, side=tap.side, part=tap.part)
    return replace(found, representation=representation)


def held_behind(record: Record, found: Found) -> set[str]:
    """Of the unused parameters those whose layers are reached behind the representation alone."""
    name, side = found.representation.layer, found.representation.side
    if name == "":
        return set()
    reached = record.events.index((name, side))
    early = {label for label, _ in record.events[:reached]}
    late = {label for label, _ in record.events[reached:]} - early
    behind, before = set(), set()
    for label, module in record.net.named_modules():
        own = {id(p) for p in module._parameters.values()}
        above = label.split(".")
        if label in early:
            before |= own
        elif any(".".join(above[:i]) in late for i in range(1, len(above) + 1)):
            behind |= own
    named = record.net.named_parameters()
    return {n for n, p in named if n in found.unused and id(p) in behind - before}


def _given(record: Record, name: str) -> Choice:
    """The layer that the user chose."""
    value = main_tensor(record.output)
    if name:
        called = record.times[name]
        if called != 1:
            times = "never reached" if not called else f"reached {called} times"
            raise ValueError(
                f"The layer {name!r} is {times} in a forward; the representation needs a layer "
                "that is reached once. Choose the layer that contains it, or one behind it."
            )
        value = main_tensor(next(c.output for c in record.calls if c.name == name))
    return Choice([Tap(name, "output", None, Value.of(value))])


def _channels(chooser: Chooser, net: nn.Module, tap: Tap) -> int:
    if tap.side == "output":
        return chooser.channels(tap.value)
    return 1 if isinstance(net.get_submodule(tap.layer), CONVOLUTIONS) else -1


def _choose_pool(record: Record, value: Value, channel_dim: int) -> str:
    """What the net does with tokens, or else their class token where they have one, or their mean.

    Maps are averaged.
    """
    if value.tensor.ndim == 2:
        return "none"
    if value.tensor.ndim != 3 or channel_dim != -1 or value.place is None:
        return "mean"
    count = value.tensor.shape[1]
    read = _read_by_the_net(record, value, count)
    if read is None:
        first, _ = tokens_in_front(value.place, count)
        read = "class_token" if first == 1 else "mean"
    return read


def _read_by_the_net(record: Record, value: Value, count: int) -> str | None:
    """Whether the net goes on with the first of its tokens, or with their mean."""
    assert value.place is not None
    nodes, seen = [value.place[0]], set()
    while nodes:
        node = nodes.pop(0)
        for user in record.graph.users(node):
            shape = shape_of(user)
            if user in seen:
                continue
            seen.add(user)
            if kind(user) == "Select" and dims(user) == [1] and user._saved_index == 0:
                return "class_token"
            if kind(user) in ("Mean", "Sum") and dims(user) == [1] and len(shape) < 4:
                return "mean"
            sliced = kind(user) == "Slice" and dims(user) == [1]
            folded = shape[:-1] == (len(value.tensor) * count,)  # as a Linear does
            if folded or (len(shape) == 3 and (shape[1] == count or sliced)):
                nodes.append(user)
    return None


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
