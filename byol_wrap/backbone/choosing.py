"""Chooses the value of a forward that represents an image: the rule."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import is_dataclass, replace

from byol_wrap.backbone.bottleneck import find_bottleneck
from byol_wrap.backbone.classifier import (
    CONVOLUTIONS,
    MANY,
    Head,
    heads_of,
    is_mixing,
    main_of,
    trunk_of,
)
from byol_wrap.backbone.graph import Edge, ancestors, kind, parents, shape_of, tokens_in_front
from byol_wrap.backbone.measuring import VIEWS, is_pyramid, width
from byol_wrap.backbone.pyramid import level_before_extras, without_extras
from byol_wrap.backbone.recording import Value
from byol_wrap.backbone.representation import MAIN_FIELDS, main_tensor
from byol_wrap.backbone.rivals import SHARED, rivals
from byol_wrap.backbone.taps import Choice, Tap, Taps

FEW = 11  # numbers hardly tell one image from another: fewer, or as many as digits
FEATURES = 0.5  # of what a classifier reads: an output that hangs on as much is its features


class Chooser(Taps):
    """Chooses on one forward."""

    def choose(self) -> Choice:
        """The input of the classifiers; of maps the deepest; of a dense output the bottleneck."""
        outputs = without_extras(self, self._outputs())
        if not outputs:
            return Choice(self.of_net(main_tensor(self.record.output)))
        deepest = self._deepest(outputs)
        if deepest.tensor.ndim == 2 and deepest.tensor.numel() == self.sample.numel():
            return self._narrowest(deepest, lambda v: v.tensor[0].numel()) or self._end(
                deepest, outputs
            )
        items = [v for v in outputs if v.tensor.ndim == 2] if is_pyramid(self, outputs) else outputs
        ends = [(v, heads) for v in items if (heads := self._ends(v, outputs))]
        if ends and len(outputs) == 1 and _is_embedding(outputs[0]):
            return Choice(self.of_net(outputs[0].tensor))
        if ends:
            return self._given_beside(ends, outputs) or self._before_classifier(ends)
        found = self._narrowest(deepest, self.positions) if self.positions(deepest) > 1 else None
        return found or self._end(self._before_fusing(deepest, outputs), outputs)

    def _narrowest(self, output: Value, positions: Callable[[Value], int]) -> Choice | None:
        found = find_bottleneck(self.record, output, positions, self.channels)
        taps = [] if found is None else self.taps(found.place)
        return Choice(taps, doubt=_dense(output)) if taps else None

    def _end(self, output: Value, outputs: Sequence[Value]) -> Choice:
        """The net's output, or what gives scores for each of its places reads."""
        assert output.place is not None
        found = heads_of(self.record, output.place)
        heads = self._readable(output, found)
        if heads and all(head.narrows for head in heads):
            choice = self._before_classifier([(output, heads)], of_places=True)
            return replace(choice, doubt=_dense(output), instead=())
        choice = Choice(self.of_net(output.tensor))
        if self._is_perhaps_classifier(output, found):
            given, read = shape_of(found[0].gives)[1], shape_of(*found[0].reads)[1]
            why = f"its last convolution narrows {read} channels to {given} and has no activation "
            why += "behind it: its numbers may be scores"
            return replace(choice, doubt=why, instead=(self.first_of(found[0].reads),))
        everything = self._outputs()
        finer = level_before_extras(self, output, everything)
        if finer is not None:
            why = "it has few parameters of its own, as the coarser maps behind it have, which are "
            why += "a detector's; the backbone may end at a map before it"
            return replace(choice, doubt=why, instead=tuple(self.of_net(finer.tensor)[-1:]))
        others = [v for v in everything if v is not output]
        made = [v for v in others if v.place and output.place[0] in ancestors(v.place)]
        scores = [v for v in made if self._scores_places(v)]
        if scores:
            return replace(choice, doubt=_dense(scores[0]))
        return self._among_equals(choice, output.place, [v.place for v in outputs if v.place])

    def _scores_places(self, value: Value) -> bool:
        """Whether it is scores for each of its places."""
        heads = self._heads(value) if self.positions(value) > 1 else []
        return bool(heads) and all(head.narrows for head in heads)

    def _outputs(self) -> list[Value]:
        """The net's outputs that can represent images; the main one alone where it is named.

        Or in place of tokens, or a map, the class token that was cut off them.
        """
        output = self.record.output
        usable = [
            value
            for value in self.record.net_outputs
            if value.place and value.tensor.ndim > 1 and len(value.tensor) == self.record.batch
        ]
        if isinstance(output, Mapping) or (is_dataclass(output) and not isinstance(output, type)):
            names = {value.part[0] for value in usable if len(value.part) == 1}
            if names & set(MAIN_FIELDS):
                main = [value for value in usable if value.tensor is main_tensor(output)]
                return next(([v] for v in usable if main and self._is_its_token(v, main[0])), main)
        return usable

    def _is_its_token(self, value: Value, main: Value) -> bool:
        """Whether a value is the class token of tokens that the net gives without it."""
        shape, channels = value.tensor.shape, main.tensor.shape[self.channels(main)]
        one = value is not main and shape[-1] == value.tensor[0].numel() == channels
        if not one or self.positions(main) == 1 or value.place is None or main.place is None:
            return False
        has_own = tokens_in_front(main.place, self.positions(main))[0]
        return not has_own and tokens_in_front(value.place, 1)[0] == 1

    # Classifiers

    def _heads(self, value: Value) -> list[Head]:
        """The heads of a value that can be read before."""
        assert value.place is not None
        return self._readable(value, heads_of(self.record, value.place))

    def _readable(self, value: Value, heads: list[Head]) -> list[Head]:
        """Some heads of a value, or none where they are a backbone's, or cannot be read before."""
        behind = [head for head in heads if head.is_rectified or head.is_normed]
        if behind and not self._is_pooled(value, behind):
            return []
        if any(head.is_normed and not head.narrows_by(MANY) for head in heads):
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

    def _is_perhaps_classifier(self, value: Value, heads: Sequence[Head]) -> bool:
        """Whether a value is the mean of what a convolution narrows to, normalised."""
        is_one = len(heads) == 1 and heads[0].is_normed and heads[0].narrows
        return is_one and self._is_pooled(value, heads)

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
        place, taps = head.reads, self.taps(head.reads)
        while not (own or taps) and kind(place[0]) in ("Div", *VIEWS):  # scaled to a length of 1
            place = parents(place[0])[0]
            taps = self.taps(place)
        return own + taps

    def _before_classifier(
        self, found: Sequence[tuple[Value, list[Head]]], *, of_places: bool = False
    ) -> Choice:
        """What the classifiers read; of several that read different values, what most of it is.

        Before a classifier of several layers that narrows, or gives scores of places, what the
        first of them reads.
        """
        ends = tuple(value.place for value, _ in found if value.place)
        heads = [main_of(heads, self.mass) for _, heads in found]
        masses = [self.mass(head.reads) for head in heads] if len(heads) > 1 else [0]
        largest = heads[masses.index(max(masses))]
        places = list(dict.fromkeys(head.reads for _, each in found for head in each))
        if not of_places and len(places) > 1 and not any(map(_is_class_token, places)):
            trunk = self._trunk(places, max(map(self.mass, places)))
            if trunk:
                return Choice(trunk, ends)
        choice = Choice(self._before_narrowing(largest, of_places) or self._before(largest), ends)
        return self._among_equals(choice, largest.reads, places)

    def _given_beside(
        self, ends: Sequence[tuple[Value, list[Head]]], outputs: Sequence[Value]
    ) -> Choice | None:
        """The features that a net gives beside what several layers make of them: a projection."""
        scores = {id(value) for value, _ in ends}
        others = [v for v in outputs if id(v) not in scores and v.tensor.ndim == 2]
        of_layers = (trunk_of(self.record, head) for _, heads in ends for head in heads)
        if not others or not any(of_layers):
            return None
        most = max(self.mass(head.reads) for _, heads in ends for head in heads)
        behind = [self.record.graph.bits(value.place) for value, _ in ends]
        features = [
            v
            for v in others
            if all(self.record.graph.bits(v.place) & ~bits == 0 for bits in behind)
            and FEATURES * most <= self.mass(v.place) < most
        ]
        return Choice(self.of_net(features[0].tensor)) if len(features) == 1 else None

    def _among_equals(self, choice: Choice, place: Edge | None, others: Sequence[Edge]) -> Choice:
        """The choice, with a doubt where other values would have done as well."""
        equal = [] if place is None else rivals(self, place, others)
        if not equal:
            return choice
        taps = [self.first_of(other) for other in equal]
        named = " and ".join(tap.where for tap in taps)
        hang = "they hang" if len(taps) > 1 else "it hangs"
        why = f"{named} may do as well: {hang} on a comparable number of parameters, and none is "
        return replace(choice, doubt=why + "made from another", instead=tuple(taps))

    def _before_narrowing(self, head: Head, of_places: bool) -> list[Tap]:
        place = trunk_of(self.record, head)
        narrows = place is not None and width(head.reads) < width(place)
        if place is None or not (of_places or (narrows and not self._classifies_places(head))):
            return []
        calls = [call for call in self.record.calls if call.input and call.input.place == place]
        return [
            Tap(call.name, "input", None, call.input)
            for call in calls
            if call.input and is_mixing(call.layer) and self.record.times[call.name] == 1
        ] + self.taps(place)

    def _classifies_places(self, head: Head) -> bool:
        """Whether it is a convolution over a map: the layers before it are then a backbone's."""
        call = head.call
        is_convolution = call is not None and isinstance(call.layer, CONVOLUTIONS)
        return bool(is_convolution and call and call.input and self.positions(call.input) > 1)

    def _trunk(self, places: Sequence[Edge], largest: int) -> list[Tap]:
        """The last value on which all of several depend, where that is most of the net."""
        shared = set.intersection(*(ancestors(place) for place in places))
        for call in reversed(self.record.calls):
            for value in call.outputs:
                fits = value.place is not None and value.place[0] in shared
                if fits and self.mass(value.place) >= SHARED * largest:
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


def _dense(output: Value) -> str:
    shape = tuple(output.tensor.shape[1:])
    return (
        f"the net gives (B, {', '.join(map(str, shape))}), values for each place of an image "
        "rather than for the image"
    )


def _is_embedding(value: Value) -> bool:
    """Whether it is vectors of length 1, as no scores are, and not only a few numbers."""
    vectors = value.tensor.detach()
    if vectors.ndim != 2 or vectors.shape[1] < FEW:
        return False
    return bool(((vectors.norm(dim=1) - 1).abs() < 1e-3).all())


def _is_class_token(place: Edge) -> bool:
    return tokens_in_front(place, 1)[0] == 1


def _is_upsampled(value: Value) -> bool:
    made = ancestors(value.place) if value.place else set()
    return any(kind(node).startswith("Upsample") for node in made)
