"""Chooses the value of a forward that represents an image: the rule."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, is_dataclass, replace

from torch import Tensor

from byol_wrap.backbone.bottleneck import find_bottleneck
from byol_wrap.backbone.classifier import Head, heads_of, is_mixing, last_of, trunk_of
from byol_wrap.backbone.graph import (
    Edge,
    ancestors,
    kind,
    parents,
)
from byol_wrap.backbone.measuring import VIEWS, Measure, is_pyramid, width, without_extras
from byol_wrap.backbone.recording import Call, Record, Side, Value
from byol_wrap.backbone.representation import MAIN_FIELDS, Part, Representation, main_tensor, take

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


class Chooser(Measure):
    """Chooses on one forward."""

    def choose(self) -> Choice:
        """The input of the classifiers; of maps the deepest; of a dense output the bottleneck."""
        outputs = without_extras(self, self._outputs())
        if not outputs:
            return Choice(self._net_output(main_tensor(self.record.output)))
        deepest = self._deepest(outputs)
        if deepest.tensor.ndim == 2 and deepest.tensor.numel() == self.sample.numel():
            return self._narrowest(deepest, lambda v: v.tensor[0].numel()) or self._end(deepest)
        items = [v for v in outputs if v.tensor.ndim == 2] if is_pyramid(self, outputs) else outputs
        ends = [(v, heads) for v in items if (heads := self._ends(v, outputs))]
        if ends:
            return self._before_classifier(ends)
        found = self._narrowest(deepest, self.positions) if self.positions(deepest) > 1 else None
        return found or self._end(self._before_fusing(deepest, outputs))

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

    # Classifiers

    def _heads(self, value: Value) -> list[Head]:
        """The heads of a value that can be read before."""
        assert value.place is not None
        heads = heads_of(self.record, value.place)
        rectified = [head for head in heads if head.is_rectified]
        if rectified and not self._is_pooled(value, rectified):
            return []
        return heads if all(self._before(head) for head in heads) else []

    def _is_pooled(self, value: Value, heads: Sequence[Head]) -> bool:
        """Whether a value is the mean of maps of scores, or gives probabilities of places."""
        node = value.place[0] if value.place else None
        while node is not None and kind(node) in (*VIEWS, "Permute", "Transpose"):
            node = parents(node)[0][0]
        if self.positions(value) > 1:
            return node is not None and kind(node) in ("Softmax", "LogSoftmax", "Sigmoid")
        return all(self.positions(self._before(head)[0].value) > 1 for head in heads)

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
        if place is None or not (of_places or width(head.reads) < width(place)):
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

    def _before_fusing(self, deepest: Value, outputs: Sequence[Value]) -> Value:
        """In place of a map that others were scaled up for, one as coarse that was not."""
        if not _is_upsampled(deepest):
            return deepest
        coarse = [v for v in outputs if self.positions(v) <= self.positions(deepest)]
        return self._deepest([v for v in coarse if not _is_upsampled(v)] or [deepest])

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


def _is_upsampled(value: Value) -> bool:
    made = ancestors(value.place) if value.place else set()
    return any(kind(node).startswith("Upsample") for node in made)
