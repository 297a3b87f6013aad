"""Reads a net at its representation: runs it as far as that layer, and leaves nothing on it.

Hooks live on a user's net only while a forward runs. The forward stops at the layer: what lies
behind it (a classifier, say) is not computed.
"""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, Literal
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from byol_wrap.backbone.modes import is_recorded, outside_graph

Pool = str | Callable[[Tensor], Tensor]
Part = tuple[Any, ...]  # keys, names and indices that lead to a tensor in a structured output

Entries = Literal["together", "apart"]  # an image's follow each other; or are a batch apart

MAIN_FIELDS = ("logits", "image_embeds", "pooler_output", "last_hidden_state", "out")


@dataclass(frozen=True)
class Representation:
    """Which values of a net represent an image: ``learner.representation``.

    Attributes:
        layer: dotted name of the layer in the net; "" is the net itself.
        side: whether the layer's input or its output is taken.
        pool: how it becomes one vector an image: "none", "mean", "max", "class_token", "flatten"
            or the user's callable.
        channel_dim: which dimension holds the channels: 1, or -1 for the last, mostly.
        size: length D of that vector.
        part: of a layer that gives several tensors, the keys, names and indices that lead to the
            one that is taken; None for the main one.
        entries: None where an image has one entry in the layer's value. Of several, as of the
            frames of a clip that are one batch, where they lie. Their vectors are averaged.
    """

    layer: str
    side: Literal["input", "output"]
    pool: Pool
    channel_dim: int = field(repr=False)
    size: int
    part: Part | None = field(default=None, repr=False)
    entries: Entries | None = field(default=None, repr=False)

    @property
    def channels_last(self) -> bool:
        """Whether channels are the last dimension (tokens, NHWC maps)."""
        return self.channel_dim == -1

    @property
    def where(self) -> str:
        """Which values are taken, in words."""
        of = " for each entry of an image" if self.entries else ""
        return f"the {self.side} of layer {self.layer!r}{of}" if self.layer else "the net's output"

    def read(self, net: nn.Module, x: Tensor) -> Tensor:
        """Run ``net`` on ``x`` as far as the layer: (B, ...) in, (B, D) out, with gradient.

        Raises:
            RuntimeError: the layer was not reached, or gave no tensor of the expected size.
        """
        value = take(self.part, net(x)) if self.layer == "" else _capture(net, self, x)
        if value is None:
            raise RuntimeError(
                f"The representation layer {self.layer!r} was not reached in this forward, or gave "
                "no tensor. A layer that only some inputs reach, or one inside a module compiled "
                "after wrapping, cannot be the representation: choose another hidden_layer, and "
                "compile the learner rather than its net."
            )
        vector = averaged(pooled(value, self.pool, self.channel_dim), self.entries, x.shape[0])
        if not is_recorded() and vector.shape != (x.shape[0], self.size):
            raise RuntimeError(
                f"The representation {self} should give ({x.shape[0]}, {self.size}) for a batch of "
                f"{x.shape[0]}, but gave {tuple(vector.shape)}. Feed images of the size that the "
                "heads were built for, or choose pool='mean'."
            )
        return vector


class _Reached(BaseException):
    """Carries the tapped value out of a net's forward; no ``except Exception`` may swallow it."""


def _stop_at_input(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    raise _Reached(main_tensor((*args, *kwargs.values())))


def _stop_at_output(part: Part | None) -> Callable[..., None]:
    def stop(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        raise _Reached(take(part, output))

    return stop


def take(part: Part | None, output: Any) -> Tensor | None:
    """The tensor at ``part`` of an output, or the main one; None where there is none."""
    if part is None:
        return main_tensor(output)
    for key in part:
        held = fields_of(output)
        try:
            output = output[key] if held is None else held[key]
        except (AttributeError, IndexError, KeyError, TypeError):
            return None
    return output if isinstance(output, Tensor) else None


# A hook stops whoever runs the net: two threads with one net take turns.
_one_at_a_time: WeakKeyDictionary[nn.Module, threading.RLock] = WeakKeyDictionary()


# Under torch.compile the hook comes and goes between graphs: attached inside one it breaks it (and
# older compilers), and left on the net it would break the promise to leave nothing there.
@outside_graph(recursive=False)
def _capture(net: nn.Module, tap: Representation, x: Tensor) -> Tensor | None:
    layer = net.get_submodule(tap.layer)
    if is_recorded():
        return _run_to_the_end(net, layer, tap, x)
    with _one_at_a_time.setdefault(net, threading.RLock()):
        handle = (
            layer.register_forward_pre_hook(_stop_at_input, with_kwargs=True)
            if tap.side == "input"
            else layer.register_forward_hook(_stop_at_output(tap.part))
        )
        try:
            return _run_until_reached(net, x)
        finally:
            handle.remove()


def _run_to_the_end(
    net: nn.Module, layer: nn.Module, tap: Representation, x: Tensor
) -> Tensor | None:
    """The same for a record, which loses track of a module that is left early.

    What lies behind the layer leads nowhere, and an exporter drops it.
    """
    values: list[Tensor | None] = []

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: Any, output: Any = None) -> None:
        given = (*args, *kwargs.values())
        values.append(main_tensor(given) if tap.side == "input" else take(tap.part, output))

    handle = (
        layer.register_forward_pre_hook(note, with_kwargs=True)
        if tap.side == "input"
        else layer.register_forward_hook(note, with_kwargs=True)
    )
    try:
        net(x)
    finally:
        handle.remove()
    return values[0] if values else None


def _run_until_reached(net: nn.Module, x: Tensor) -> Tensor | None:
    try:
        net(x)
    except _Reached as reached:
        value: Tensor | None = reached.args[0]
        return value
    return None


def pooled(value: Tensor, pool: Pool, channel_dim: int) -> Tensor:
    """Turn tokens (B, T, C), maps (B, C, ...) or (B, ..., C) and the like into vectors (B, D).

    Raises:
        TypeError: a callable ``pool`` returned something else than a tensor.
    """
    if callable(pool):
        vector = pool(value)
        if not isinstance(vector, Tensor):
            raise TypeError(f"pool should return a tensor (B, D), got {type(vector).__name__}.")
        return vector
    if value.ndim == 2:
        return value
    if pool == "flatten":
        return value.flatten(1)
    if pool == "class_token":
        return value[:, 0]
    positions = tuple(dim for dim in range(1, value.ndim) if dim != channel_dim % value.ndim)
    return value.amax(positions) if pool == "max" else value.mean(positions)


def averaged(vectors: Tensor, entries: Entries | None, batch: int) -> Tensor:
    """The mean of the vectors (k B, D) of each of B images; as they are where they are no such."""
    if entries is None:
        return vectors
    sizes, dim = ((batch, -1), 1) if entries == "together" else ((-1, batch), 0)
    return vectors.reshape(*sizes, vectors.shape[1]).mean(dim)


def fields_of(output: Any) -> Mapping[Any, Any] | None:
    """What a mapping, a dataclass or another object with attributes holds, by its names.

    Of an object of another kind its tensors. None for a tensor, a sequence and the like.
    """
    if isinstance(output, Mapping):
        return output
    if isinstance(output, type | Tensor | list | tuple):
        return None
    if is_dataclass(output):
        return {f.name: getattr(output, f.name) for f in fields(output)}
    held = {key: v for key, v in getattr(output, "__dict__", {}).items() if isinstance(v, Tensor)}
    return held or None


def main_tensor(output: Any) -> Tensor | None:
    """The tensor that stands for a structured output.

    Of a mapping, a dataclass or another object the field that holds logits or a pooled output, or
    else the first with a tensor; of a tuple the first; of a list (a pyramid of maps) the last.
    """
    if isinstance(output, Tensor):
        return output
    parts: list[Any] = []
    held = fields_of(output)
    if held is not None:
        parts = [held[key] for key in MAIN_FIELDS if key in held] + list(held.values())
    elif isinstance(output, tuple):
        parts = list(output)
    elif isinstance(output, list):
        parts = output[::-1]
    for part in parts:
        if (tensor := main_tensor(part)) is not None:
            return tensor
    return None
