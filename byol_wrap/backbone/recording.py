"""Runs a net once, and writes down which layers are called, with what, and what they give."""

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn

from byol_wrap.backbone.graph import Edge, Graph, ancestors, edge
from byol_wrap.backbone.representation import Part, fields_of, main_tensor

Side = Literal["input", "output"]


@dataclass(frozen=True, eq=False)
class Value:
    """A tensor of a forward: where it was found in what a layer gave, and in the graph."""

    part: Part
    tensor: Tensor
    place: Edge | None

    @classmethod
    def of(cls, tensor: Tensor | None, part: Part = ()) -> "Value":
        """A tensor as it is in the graph now; for None one that holds nothing."""
        tensor = torch.empty(0) if tensor is None else tensor
        return cls(part, tensor, edge(tensor))


@dataclass(eq=False)
class Call:
    """One call of a layer.

    Attributes:
        name: of the layer; "" is the net.
        layer: itself.
        caller: the call within which it happened; None for the net's own.
        input: the main tensor it was given.
        outputs: the tensors of floats that it gave.
        output: all that it gave.
    """

    name: str
    layer: nn.Module
    caller: "Call | None"
    input: Value | None = None
    outputs: list[Value] = field(default_factory=list)
    output: Any = None


@dataclass
class Record:
    """A forward of a net.

    Attributes:
        net: the net.
        batch: how many items it was fed.
        calls: those that came to their end, in that order.
        events: layers as they got their input and gave their output.
        output: of the net; None where it failed.
        error: which error then.
        differ: whether it was fed images that are not all the same.
    """

    net: nn.Module
    batch: int
    calls: list[Call] = field(default_factory=list)
    events: list[tuple[str, Side]] = field(default_factory=list)
    output: Any = None
    error: Exception | None = None
    differ: bool = True

    @cached_property
    def times(self) -> Counter[str]:
        """How often each layer was called."""
        return Counter(call.name for call in self.calls)

    @cached_property
    def graph(self) -> Graph:
        """The graph behind all that layers gave."""
        return Graph(v.place for v in self.values() if v.place)

    @cached_property
    def idle(self) -> list[str]:
        """Parts of lists and dicts of layers that did not run, though another part did."""
        ran = {name[:end] for name in self.times for end in _ends(name)}
        found = []
        for name, module in self.net.named_modules():
            if isinstance(module, nn.ModuleList | nn.ModuleDict):
                parts = [f"{name}.{key}" if name else key for key, _ in module.named_children()]
                idle = [part for part in parts if part not in ran]
                found += idle if len(idle) < len(parts) else []
        return found

    def depends_on_images(self, node: Any) -> bool:
        """Whether a layer behind a node's value gave something of its own for each image.

        The embedding of a time or a class is the same for all of them.
        """
        return not self._of_images.isdisjoint(ancestors((node, 0)))

    @cached_property
    def _of_images(self) -> set[Any]:
        every = (value for call in self.calls for value in call.outputs)
        given = [v for v in every if v.place and v.tensor.shape[:1] == (self.batch,)]
        differ = [v for v in given if self.differ and v.place and not _is_constant(v.tensor)]
        return {v.place[0] for v in differ or given if v.place}

    def values(self) -> Iterator[Value]:
        """All values that layers gave, the net's own last."""
        for call in self.calls:
            yield from call.outputs
        if not self.calls or self.calls[-1].name:  # a scripted net has no hooks
            yield from self.net_outputs

    @cached_property
    def net_outputs(self) -> list[Value]:
        """The tensors of floats that the net gave."""
        return [Value.of(t, part) for part, t in tensors(self.output)]

    def outputs_alike(self, other: "Record") -> bool:
        """Whether two forwards called the same layers and gave the same kinds of values."""
        kinds = [
            [(value.part, value.tensor.shape[1:]) for value in record.net_outputs]
            for record in (self, other)
        ]
        return kinds[0] == kinds[1] and self.events == other.events

    def once(self, name: str) -> Call | None:
        """The only call of a layer; None where there was none, or another."""
        called = [call for call in self.calls if call.name == name]
        return called[0] if len(called) == 1 else None


def _is_constant(values: Tensor) -> bool:
    """Whether the first and the last of a batch are the same, but for rounding."""
    if values.layout is not torch.strided:
        return False
    first, last = values.detach()[0], values.detach()[-1]
    return torch.allclose(first, last, rtol=1e-5, atol=1e-7)


def _ends(name: str) -> Iterator[int]:
    """Where the names of a layer, and of those that it is in, end in its own."""
    yield from (i for i, letter in enumerate(name) if letter == ".")
    yield len(name)


def tensors(output: Any, part: Part = ()) -> Iterator[tuple[Part, Tensor]]:
    """The tensors of floats in a structured output, each with its place in it."""
    if isinstance(output, Tensor):
        if output.is_floating_point():
            yield part, output
        return
    items: Any = ()
    held = fields_of(output)
    if held is not None:
        items = held.items()
    elif isinstance(output, list | tuple):
        items = enumerate(output)
    for key, value in items:
        yield from tensors(value, (*part, key))


def record(net: nn.Module, sample: Tensor) -> Record:
    """Run a net on ``sample`` in the mode it is in, with or without gradient as that is set.

    A failure is written down, but for a lack of memory.
    """
    made = Record(net, len(sample))
    made.differ = len(sample) > 1 and not torch.equal(sample[0], sample[-1])
    stack: list[Call | None] = [None]

    def enter(name: str, layer: nn.Module) -> None:
        stack.append(Call(name, layer, stack[-1]))
        made.events.append((name, "input"))

    def leave(layer: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        while (call := stack.pop()) is not None and call.layer is not layer:
            pass  # a call that failed, and whose error the net caught
        assert call is not None
        made.events.append((call.name, "output"))
        given = main_tensor((*args, *kwargs.values()))
        call.input = None if given is None else Value.of(given)
        call.outputs = [Value.of(t, part) for part, t in tensors(output)]
        call.output = output
        made.calls.append(call)

    with ExitStack() as hooks:
        for name, layer in net.named_modules():
            if not isinstance(layer, torch.jit.ScriptModule):
                hooks.callback(_on_enter(name, layer, enter))
                hooks.callback(layer.register_forward_hook(leave, with_kwargs=True).remove)
        try:
            made.output = net(sample)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            made.error = error
    return made


def _on_enter(name: str, layer: nn.Module, enter: Any) -> Any:
    return layer.register_forward_pre_hook(lambda layer, args: enter(name, layer)).remove
