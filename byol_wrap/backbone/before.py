"""Where what classifiers read can be taken from a net."""

from collections.abc import Sequence

from byol_wrap.backbone.branches import branch_of, is_picked
from byol_wrap.backbone.classifier import (
    CONVOLUTIONS,
    MANY,
    NORMS,
    Head,
    heads_of,
    is_mixing,
    layers_of,
    trunk_of,
)
from byol_wrap.backbone.graph import Edge, ancestors, is_bypassed, kind, parents, shape_of
from byol_wrap.backbone.measuring import VIEWS, width
from byol_wrap.backbone.products import DISTANCES, is_fixed
from byol_wrap.backbone.recording import Call, Value
from byol_wrap.backbone.rivals import SHARED
from byol_wrap.backbone.taps import Tap, Taps

NORMALIZES = ("Div", "Expand", *NORMS)
DECISIONS = ("Sigmoid", "Hardsigmoid", "Softmax")
SCALED = ("Div", "Mul", "T", "NativeDropout", *VIEWS)


class Before(Taps):
    """Finds what the classifiers of one forward read."""

    def heads(self, value: Value) -> list[Head]:
        """The heads of a value that can be read before."""
        assert value.place is not None
        return self.readable(value, heads_of(self.record, value.place))

    def readable(self, value: Value, heads: list[Head]) -> list[Head]:
        """Some heads of a value, or none where they are a backbone's, or cannot be read before."""
        behind = [head for head in heads if head.is_rectified or head.is_normed]
        if behind and not self._is_pooled(value, behind):
            return []
        if any(head.is_normed and not head.narrows_by(MANY) for head in heads):
            return []
        return heads if all(map(self.before, heads)) or self.shared(heads) else []

    def _is_pooled(self, value: Value, heads: Sequence[Head]) -> bool:
        """Whether a value is the mean of maps of scores, or gives probabilities of places."""
        node = value.place[0] if value.place else None
        while node is not None and kind(node) in (*VIEWS, "Permute", "Transpose"):
            node = parents(node)[0][0]
        if self.positions(value) > 1:
            return node is not None and kind(node) in ("Softmax", "LogSoftmax", "Sigmoid")
        return all(self.positions(tap.value) > 1 for head in heads for tap in self.before(head)[:1])

    def is_perhaps_classifier(self, value: Value, heads: Sequence[Head]) -> bool:
        """Whether a value is the mean of what a convolution narrows to, normalised."""
        is_one = len(heads) == 1 and heads[0].is_normed and heads[0].narrows
        return is_one and self._is_pooled(value, heads)

    def before(self, head: Head) -> list[Tap]:
        """Where what a head reads can be taken in each forward."""
        own = []
        call = head.call
        if call is None:
            call = self._giving(head)
        if call is not None and call.input is not None and self.record.times[call.name] == 1:
            own = [Tap(call.name, "input", None, call.input)]
        place, taps = head.reads, self._given_or_read(head.reads, head)
        through = ("Div", *VIEWS) if head.call or head.is_projection else SCALED
        while not (own or taps) and kind(place[0]) in through:  # as to a length of 1
            place = max(parents(place[0]), key=self.mass)
            taps = self._given_or_read(place, head)
        return [tap for tap in own + taps if not is_picked(self.record, tap.layer)]

    def teller(self, value: Value, products: Sequence[Head]) -> Head | None:
        """The layer that gives what some products read, where that may be what the net tells.

        As it squashes it, or multiplies it with fixed numbers; and not a normalised embedding.
        """
        given = heads_of(self.record, value.place) if value.place and products else []
        if len(given) != 1 or given[0].call is None:
            return None
        kinds = set()
        for head in products:
            nodes = ancestors(head.reads, {given[0].gives})
            kinds |= {kind(node) for node in nodes if given[0].gives in ancestors((node, 0))}
        is_normed = not kinds.isdisjoint(NORMALIZES)
        matrices = all(kind(head.gives) not in DISTANCES for head in products)
        by_numbers = matrices and not is_normed and all(is_fixed(head.gives) for head in products)
        return given[0] if by_numbers or not kinds.isdisjoint(DECISIONS) else None

    def _giving(self, head: Head) -> Call | None:
        """The layer of another kind that multiplies what it reads itself."""
        return next(
            (
                call
                for call in self.record.calls
                if call.input and call.input.place == head.reads
                if call.outputs and call.outputs[0].place
                if call.outputs[0].place[0] is head.gives
            ),
            None,
        )

    def is_direct(self, head: Head) -> bool:
        """Whether what a head reads can be taken, with an entry for each image."""
        return any(len(tap.value.tensor) == self.record.batch for tap in self.before(head))

    def before_projection(self, vectors: Edge | None) -> list[Tap]:
        """What the first of several layers reads that make vectors of vectors, normalised at last.

        Empty where it is a single layer, or no norm is behind them.
        """
        node = vectors[0] if vectors else None
        while node is not None and kind(node) in NORMALIZES and parents(node):
            node = max(parents(node), key=self.mass)[0]
        head = layers_of(self.record).get(node) if vectors and node != vectors[0] else None
        place = None if head is None else trunk_of(self.record, head)
        return [] if place is None or len(shape_of(*place)) != 2 else self._read_at(place)

    def shared(self, heads: Sequence[Head]) -> list[Tap]:
        """Where what all heads read comes from, which run often, or not all, or for some images.

        Not before a product with a parameter, as the last step of an embedding is.
        """
        if not heads or any(head.is_projection for head in heads):
            return []
        places = [self._entry(head) for head in heads]
        if any(place is None for place in places):
            return []
        given = [place for place in dict.fromkeys(places) if place is not None]
        return self.trunk(given, max(map(self.mass, given)))

    def _entry(self, head: Head) -> Edge | None:
        """What the part that a head is in reads, where it is one of several; else what it reads."""
        branch = None if head.call is None else branch_of(self.record, head.call.name)
        if branch is None or branch.input is None:
            return head.reads
        return branch.input.place

    def before_narrowing(self, head: Head, of_places: bool) -> list[Tap]:
        """What the first layer of a head of several reads, where they narrow it."""
        place = trunk_of(self.record, head)
        narrows = place is not None and width(head.reads) < width(place)
        if place is None or not (of_places or (narrows and not self._classifies_places(head))):
            return []
        return [] if self._closes_a_part(head.reads, place) else self._read_at(place)

    def _closes_a_part(self, last: Edge, first: Edge) -> bool:
        """Whether a value ends a part of the net, as its author divided it, that made another."""
        behind = ancestors(first)
        parts = [
            f"{call.name}."
            for call in self.record.calls
            if call.name and any(value.place == last for value in call.outputs)
        ]
        return any(
            call.name.startswith(part) and call.layer._parameters
            for part in parts
            for call in self.record.calls
            if any(value.place and value.place[0] in behind for value in call.outputs)
        )

    def _read_at(self, place: Edge) -> list[Tap]:
        """Where a value can be taken: as the input of a layer that mixes, or as an output."""
        calls = [call for call in self.record.calls if call.input and call.input.place == place]
        return [
            Tap(call.name, "input", None, call.input)
            for call in calls
            if call.input and is_mixing(call.layer) and self.record.times[call.name] == 1
        ] + self.taps(place)

    def _given_or_read(self, place: Edge, head: Head) -> list[Tap]:
        """Where what a head reads can be taken: as an output, or as the input of another layer.

        Or of that which multiplies, but for an attention's own last one.
        """
        read = [
            Tap(call.name, "input", None, call.input)
            for call in self.called_once()
            if call.name and call.input and call.input.place == place
            if not (is_mixing(call.layer) and _gives(call, head.gives))
        ]
        return self.taps(place) or sorted(read, key=lambda tap: tap.layer.count("."))

    def _classifies_places(self, head: Head) -> bool:
        """Whether it is a convolution over a map: the layers before it are then a backbone's."""
        call = head.call
        is_convolution = call is not None and isinstance(call.layer, CONVOLUTIONS)
        return bool(is_convolution and call and call.input and self.positions(call.input) > 1)

    def trunk(self, places: Sequence[Edge], largest: int) -> list[Tap]:
        """The last value on which all of several depend, where that is most of the net.

        One that a layer gives, or else a vector that a layer reads.
        """
        shared = set.intersection(*(ancestors(place) for place in places))

        def is_trunk(value: Value) -> bool:
            fits = value.place is not None and value.place[0] in shared
            fits &= value.tensor.shape[:1] == (self.record.batch,)
            fits = fits and self.mass(value.place) >= SHARED * largest
            return fits and not any(is_bypassed(value.place, place) for place in places)

        calls = self.record.calls[::-1]
        for value in (value for call in calls for value in call.outputs):
            if is_trunk(value) and (taps := self.taps(value.place)):
                return taps
        for value in (call.input for call in calls if call.input and call.input.tensor.ndim == 2):
            if is_trunk(value) and value.place and (taps := self._read_at(value.place)):
                return taps
        return []


def _gives(call: Call, node: object) -> bool:
    """Whether what a layer gives first is a node's value, perhaps in another shape."""
    place = call.outputs[0].place if call.outputs else None
    while place is not None and place[0] is not node and kind(place[0]) in VIEWS:
        place = parents(place[0])[0]
    return place is not None and place[0] is node
