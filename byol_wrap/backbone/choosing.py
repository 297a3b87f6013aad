"""Chooses the value of a forward that represents an image: the rule."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, is_dataclass, replace

from torch import Tensor

from byol_wrap.backbone.bottleneck import find_bottleneck
from byol_wrap.backbone.classifier import Head, heads_of, is_mixing, last_of, trunk_of
from byol_wrap.backbone.graph import (
    Edge,
    ancestors,
    channel_dim,
    kind,
    parents,
    shape_of,
    tokens_in_front,
)
from byol_wrap.backbone.reading import MAIN_FIELDS, Part, Representation, main_tensor, take
from byol_wrap.backbone.recording import Call, Record, Side, Value

SHARED_TRUNK = 0.75  # of what the largest of several heads reads: they are tasks, not depths


@dataclass(frozen=True)
class Tap:
    """Where a value can be taken from a net while it runs."""

    layer: str
    side: Side
    part: Part | None
    value: Value

    def find(self, record: Record) -> Value | None:
        """What is there in another forward; None where that does not reach it, or twice."""
        if self.layer == "":
            taken = take(self.part, record.output)
            return next((v for v in record.net_outputs if v.tensor is taken), None)
        call = record.once(self.layer)
        if call is None or self.side == "input":
            return None if call is None else call.input
        taken = take(self.part, call.output)
        return next((v for v in call.outputs if v.tensor is taken), None)

    def is_at(self, representation: Representation) -> bool:
        """Whether a representation is taken here."""
        r = representation
        return (self.layer, self.side, self.part) == (r.layer, r.side, r.part)


@dataclass(frozen=True)
class Choice:
    """What represents an image.

    Attributes:
        taps: where it can be taken, the best place first.
        ends: places of the net's outputs that are made by classifiers.
        doubt: why it may not be what is wanted; "" for no doubt.
    """

    taps: list[Tap]
    ends: tuple[Edge, ...] = ()
    doubt: str = ""


class Chooser:
    """Chooses on one forward.

    Args:
        record: of the forward.
        sample: what the net was fed.
    """

    def __init__(self, record: Record, sample: Tensor) -> None:
        self.record, self.sample = record, sample
        self.sizes = {id(p): p.numel() for p in record.net.parameters()}

    def choose(self) -> Choice:
        """The input of the classifiers; of maps the deepest; of a dense output the bottleneck."""
        outputs = self._outputs()
        if not outputs:
            return Choice(self._net_output(main_tensor(self.record.output)))
        deepest = self._deepest(outputs)
        if deepest.tensor.ndim == 2 and deepest.tensor.numel() == self.sample.numel():
            return self._narrowest(deepest, lambda v: v.tensor[0].numel()) or self._end(deepest)
        ends = [(v, heads) for v in outputs if (heads := self._ends(v, outputs))]
        if ends:
            return self._before_classifier(ends)
        if self.positions(deepest) == 1:
            return self._end(deepest)
        return self._narrowest(deepest, self.positions) or self._end(deepest)

    def _narrowest(self, output: Value, positions: Callable[[Value], int]) -> Choice | None:
        found = find_bottleneck(self.record, output, positions, self.channels)
        taps = [] if found is None else self.taps(found.place)
        return Choice(taps, doubt=self._dense(output)) if taps else None

    def _end(self, output: Value) -> Choice:
        """The net's output, or what gives scores for each of its places reads."""
        heads = self._heads(output)
        if heads and all(head.narrows for head in heads):
            choice = self._before_classifier([(output, heads)], of_places=True)
            return replace(choice, doubt=self._dense(output))
        return Choice(self._net_output(output.tensor))

    def _outputs(self) -> list[Value]:
        """The net's outputs that can represent images; the main one alone where it is named."""
        output = self.record.output
        usable = [
            value
            for value in self.record.net_outputs
            if value.place and value.tensor.ndim > 1 and len(value.tensor) == self.record.batch
        ]
        if isinstance(output, Mapping) or (is_dataclass(output) and not isinstance(output, type)):
            names = {value.part[0] for value in usable if len(value.part) == 1}
            if names & set(MAIN_FIELDS):
                main = main_tensor(output)
                return [value for value in usable if value.tensor is main]
        return usable

    def channels(self, value: Value) -> int:
        """Which dimension holds the channels: 1, -1 for the last, or one in between."""
        tensor = value.tensor
        if tensor.ndim == 2:
            return 1
        found = None if value.place is None else channel_dim(value.place)
        if not found or found >= tensor.ndim:
            found = tensor.ndim - 1 if tensor.ndim == 3 or self._is_channels_last(tensor) else 1
        return -1 if found == tensor.ndim - 1 else found

    def _is_channels_last(self, tensor: Tensor) -> bool:
        """Whether a map is (B, H, W, C): its aspect is then that of the images in dims 1 and 2."""
        if tensor.ndim != 4 or self.sample.ndim != 4:
            return False
        _, a, b, c = tensor.shape
        aspect = self.sample.shape[2] / self.sample.shape[3]
        return abs(math.log(a / b / aspect)) < abs(math.log(b / c / aspect))

    def positions(self, value: Value) -> int:
        """How many positions of a map, or tokens, a value has; 1 for a vector.

        A class token and what joined with it do not count.
        """
        shape, channels = value.tensor.shape, self.channels(value)
        count = math.prod(shape[1:]) // max(1, shape[channels])
        if len(shape) == 3 and channels == -1 and value.place:
            count -= min(count - 1, tokens_in_front(value.place, count))
        return count

    def mass(self, place: Edge | None) -> int:
        """How many numbers of the net a value depends on."""
        graph = self.record.graph
        return graph.size(graph.bits(place), self.sizes)

    # Classifiers

    def _heads(self, value: Value) -> list[Head]:
        """The heads of a value that can be read before."""
        assert value.place is not None
        heads = heads_of(self.record, value.place)
        return heads if all(self._before(head) for head in heads) else []

    def _ends(self, value: Value, outputs: Sequence[Value]) -> list[Head]:
        """The heads that give an item's scores, and not what a map is made from.

        As the code of an autoencoder is. Scores may be folded, (B, 2, 3), but are no more than
        what they are made from.
        """
        heads = self._heads(value)
        if self.positions(value) > 1:
            reads = [self._before(head)[0].value for head in heads]
            if any(self.positions(r) > 1 or r.tensor.numel() < value.tensor.numel() for r in reads):
                return []
        gives = {head.gives for head in heads}
        maps = [o for o in outputs if o is not value and o.place and self.positions(o) > 1]
        return [] if any(gives & ancestors(o.place) for o in maps if o.place) else heads

    def _before(self, head: Head) -> list[Tap]:
        """Where what a head reads can be taken."""
        call = head.call
        own = []
        if call is not None and call.input is not None and self.record.times[call.name] == 1:
            own = [Tap(call.name, "input", None, call.input)]
        return own + self.taps(head.reads)

    def _before_classifier(
        self, found: Sequence[tuple[Value, list[Head]]], *, of_places: bool = False
    ) -> Choice:
        """What the classifiers read; of several that read different values, what most of it is.

        Before a classifier of several layers that narrows, or gives scores of places, what the
        first of them reads.
        """
        ends = tuple(value.place for value, _ in found if value.place)
        reads = [last_of(heads) for _, heads in found]
        masses = [self.mass(head.reads) for head in reads]
        largest = reads[masses.index(max(masses))]
        if len({self.record.graph.bits(head.reads) for head in reads}) > 1:
            trunk = self._trunk([head.reads for head in reads], max(masses))
            if trunk:
                return Choice(trunk, ends)
        trunk = self._before_narrowing(largest, of_places)
        return Choice(trunk or self._before(largest), ends)

    def _before_narrowing(self, head: Head, of_places: bool) -> list[Tap]:
        place = trunk_of(self.record, head)
        if place is None or not (of_places or shape_of(*head.reads)[-1] < _width(place)):
            return []
        calls = [call for call in self.record.calls if call.input and call.input.place == place]
        return [
            Tap(call.name, "input", None, call.input)
            for call in calls
            if call.input and is_mixing(call.layer) and self.record.times[call.name] == 1
        ] + self.taps(place)

    def _trunk(self, places: Sequence[Edge], largest: int) -> list[Tap]:
        """The last value on which all of several depend, where that is most of the net."""
        shared = set.intersection(*(ancestors(place) for place in places))
        for call in reversed(self.record.calls):
            for value in call.outputs:
                fits = value.place is not None and value.place[0] in shared
                if fits and self.mass(value.place) >= SHARED_TRUNK * largest:
                    taps = self.taps(value.place)
                    if taps:
                        return taps
        return []

    # Maps

    def _deepest(self, outputs: Sequence[Value]) -> Value:
        """Of several outputs that on which most parameters work; of equals a vector, the coarsest.

        The net's main output comes before others like it.
        """
        main = main_tensor(self.record.output)
        return max(
            outputs,
            key=lambda v: (self.mass(v.place), -self.positions(v), v.tensor is main),
        )

    def _dense(self, output: Value) -> str:
        shape = tuple(output.tensor.shape[1:])
        return (
            f"the net gives (B, {', '.join(map(str, shape))}), values for each place of an image "
            "rather than for the image"
        )

    # Taps

    def taps(self, place: Edge | None) -> list[Tap]:
        """Where a value can be taken: layers called once whose output it is, the outermost first.

        Layers that give it alone come before those that give it among others.
        """
        if place is None:
            return []
        given = [
            (bool(value.part), call.name.count("."), Tap(call.name, "output", part, value))
            for call in self._called_once()
            for value in call.outputs
            if value.place == place
            for part in [None if main_tensor(call.output) is value.tensor else value.part]
        ]
        return [tap for *_, tap in sorted(given, key=lambda found: found[:2])]

    def _called_once(self) -> list[Call]:
        return [call for call in self.record.calls if self.record.times[call.name] == 1]

    def _net_output(self, tensor: Tensor | None) -> list[Tap]:
        main = main_tensor(self.record.output)
        value = next((v for v in self.record.net_outputs if v.tensor is tensor), None)
        value = Value.of(tensor) if value is None else value
        part = None if tensor is main else value.part
        return [Tap("", "output", part, value), *self.taps(value.place)]


def _width(place: Edge) -> int:
    """The channels of a value, or those of the map that it is, flattened."""
    shape = shape_of(*place)
    while kind(place[0]) in ("View", "UnsafeView", "Reshape", "ReshapeAlias") and len(shape) == 2:
        place = parents(place[0])[0]
        if len(shape_of(*place)) > 2:
            dim = channel_dim(place)
            return shape_of(*place)[1 if dim is None else dim]
        shape = shape_of(*place)
    return shape[-1]
