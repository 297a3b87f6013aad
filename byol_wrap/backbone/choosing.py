"""Chooses the value of a forward that represents an image: the rule."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from torch import Tensor

from byol_wrap.backbone.before import NORMALIZES, Before
from byol_wrap.backbone.bottleneck import find_bottleneck
from byol_wrap.backbone.classifier import RECTIFIERS, Head, heads_of, main_of, trunk_of
from byol_wrap.backbone.folding import is_decoded, is_folded, reads_one_value
from byol_wrap.backbone.graph import Edge, ancestors, kind, parents, shape_of, tokens_in_front
from byol_wrap.backbone.measuring import is_pyramid
from byol_wrap.backbone.pyramid import level_before_extras, without_extras
from byol_wrap.backbone.recording import Value
from byol_wrap.backbone.representation import MAIN_FIELDS, fields_of, main_tensor
from byol_wrap.backbone.rivals import rivals
from byol_wrap.backbone.scores import is_embedding
from byol_wrap.backbone.taps import Choice

End = tuple[Value, list[Head]]  # one of a net's outputs, and the classifiers that give it
FEW = 11  # numbers hardly tell one image from another: fewer, or as many as digits
PROJECTED = (
    "the net goes on from it, by several layers, to vectors that it normalises: they are mostly "
    "made for a loss, but may be what is wanted"
)
FEATURES = 0.5  # of what a classifier reads: an output that hangs on as much is its features


class Chooser(Before):
    """Chooses on one forward."""

    def choose(self) -> Choice:
        """The input of the classifiers; of maps the deepest; of a dense output the bottleneck."""
        every = self._outputs()
        folded = [v for v in every if self._is_folded(v)]
        kept = without_extras(self, every)
        outputs = [v for v in every if v in folded or v in kept]
        if not outputs:
            return self._of_numbers() or Choice(self.of_net(main_tensor(self.record.output)))
        deepest = self._deepest(outputs)
        if deepest.tensor.ndim == 2 and deepest.tensor.numel() == self.sample.numel():
            return self._narrowest(deepest, lambda v: v.tensor[0].numel()) or self._end(
                deepest, outputs
            )
        vectors = [v for v in outputs if v.tensor.ndim == 2 or v in folded]
        items = vectors if is_pyramid(self, outputs) else outputs
        ends = [(v, h) for v in items if (h := self._ends(v, outputs, is_folded=v in folded))]
        if len(outputs) == 1 and outputs[0].tensor.ndim == 2:
            projected = self._projected(outputs[0])
            if projected:
                return projected
        ends = self._read_by_none(ends)
        if ends:
            choice = self._given_beside(ends, outputs) or self._before_classifier(ends)
            return choice if choice.doubt else self._unless_told(choice, ends)
        found = self._narrowest(deepest, self.positions) if self.positions(deepest) > 1 else None
        return found or self._end(self._before_fusing(deepest, outputs), outputs)

    def _of_numbers(self) -> Choice | None:
        """What is read for scores of which each image gets one."""
        usable = [v for v in self.record.net_outputs if v.tensor.shape == (self.record.batch,)]
        ends = [(v, self.heads(v)) for v in usable if v.place]
        ends = [(v, heads) for v, heads in ends if heads]
        return self._before_classifier(ends) if ends else None

    def _projected(self, value: Value) -> Choice | None:
        """What several layers project for a loss, to what they normalise; or an embedding."""
        given, features = Choice(self.of_net(value.tensor)), self.before_projection(value.place)
        if value.tensor.shape[1] < FEW:
            return None
        if not features:
            return given if is_embedding(value) else None
        return Choice(features, doubt=PROJECTED, instead=tuple(given.taps[:1]))

    def _narrowest(self, output: Value, positions: Callable[[Value], int]) -> Choice | None:
        found = find_bottleneck(self.record, output, positions, self.channels)
        taps = [] if found is None else self.taps(found.place)
        return Choice(taps, doubt=_dense(output, self.sample)) if taps else None

    def _end(self, output: Value, outputs: Sequence[Value]) -> Choice:
        """The net's output, or what gives scores for each of its places reads."""
        assert output.place is not None
        found = heads_of(self.record, output.place)
        heads = self.readable(output, found)
        if heads and all(head.narrows for head in heads):
            choice = self._before_classifier([(output, heads)], of_places=True)
            return replace(choice, doubt=_dense(output, self.sample), instead=())
        choice = Choice(self.of_net(output.tensor))
        if self.is_perhaps_classifier(output, found):
            given, read = shape_of(found[0].gives)[1], shape_of(*found[0].reads)[1]
            why = f"its last convolution narrows {read} channels to {given} and has no activation "
            why += "behind it: its numbers may be scores"
            return replace(choice, doubt=why, instead=tuple(self.first_of(found[0].reads)))
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
            return replace(choice, doubt=_dense(scores[0], self.sample))
        return self._among_equals(choice, output.place, [v.place for v in outputs if v.place])

    def _scores_places(self, value: Value) -> bool:
        """Whether it is scores for each of its places."""
        heads = self.heads(value) if self.positions(value) > 1 else []
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
        if fields_of(output) is not None:
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

    def _is_folded(self, value: Value) -> bool:
        """Whether it is folded, and no image that a decoder makes."""
        if self.positions(value) == 1 or not is_folded(self, value):
            return False
        heads = self.heads(value)
        reads = [tap.value for head in heads for tap in self.before(head)[:1]]
        return reads_one_value(self, heads) and not any(is_decoded(self, value, r) for r in reads)

    def _ends(self, value: Value, outputs: Sequence[Value], *, is_folded: bool) -> list[Head]:
        """The heads that give an item's scores, and not what a map is made from.

        As the code of an autoencoder is. Scores may be folded, (B, 2, 3), but are no more than
        what they are made from.
        """
        heads = self.heads(value)
        if self.positions(value) > 1 and not is_folded:
            reads = [tap.value for head in heads for tap in self.before(head)[:1]]
            if any(self.positions(r) > 1 or r.tensor.numel() < value.tensor.numel() for r in reads):
                return []
        gives = {head.gives for head in heads}
        maps = [o for o in outputs if o is not value and o.place and self.positions(o) > 1]
        made = [o.place for o in maps if o.place and gives & ancestors(o.place)]
        return heads if all(gives == self._given_for(place) for place in made) else []

    def _read_by_none(self, ends: Sequence[End]) -> list[End]:
        """Those of several outputs with heads that are not vectors compared for another one."""
        compared = [
            (value, head.reads)
            for value, heads in ends
            for head in heads
            if head.call is None or kind(head.reads[0]) in NORMALIZES
        ]
        return [
            (value, heads)
            for value, heads in ends
            if value.tensor.shape[-1] < FEW
            or not any(
                other is not value and {h.gives for h in heads} <= ancestors(reads)
                for other, reads in compared
            )
        ]

    def _given_for(self, place: Edge) -> set[object]:
        """What the heads of a map give, which may be rectified."""
        if kind(place[0]) in RECTIFIERS:
            place = parents(place[0])[0]
        return {head.gives for head in heads_of(self.record, place)}

    def _before_classifier(self, found: Sequence[End], *, of_places: bool = False) -> Choice:
        """What the classifiers read; of several that read different values, what most of it is.

        Before a classifier of several layers that narrows, or gives scores of places, what the
        first of them reads.
        """
        ends = tuple(value.place for value, _ in found if value.place)
        every = [head for _, each in found for head in each]
        common = [] if all(map(self.is_direct, every)) else self.shared(every)
        if common:
            return Choice(common, ends)
        heads = [main_of(heads, self.mass) for _, heads in found]
        masses = [self.mass(head.reads) for head in heads] if len(heads) > 1 else [0]
        largest = heads[masses.index(max(masses))]
        places = list(dict.fromkeys(head.reads for _, each in found for head in each))
        if not of_places and len(places) > 1 and not any(map(_is_class_token, places)):
            trunk = self.trunk(places, max(map(self.mass, places)))
            if trunk:
                return Choice(trunk, ends)
        choice = Choice(self.before_narrowing(largest, of_places) or self.before(largest), ends)
        for place in (choice.taps[0].value.place, largest.reads):
            features = self.before_projection(place)
            if features:
                return Choice(features, ends, PROJECTED, tuple(choice.taps[:1]))
        return self._among_equals(choice, largest.reads, places)

    def _unless_told(self, choice: Choice, ends: Sequence[End]) -> Choice:
        """The choice, with a doubt where it may be numbers that the net tells, not features."""
        products = [head for _, heads in ends for head in heads if head.call is None]
        head = self.teller(choice.taps[0].value, products)
        if head is None:
            return choice
        why = "the net squashes it, or multiplies it with fixed numbers: it may be scores"
        return replace(choice, doubt=why, instead=tuple(self.before(head)[:1]))

    def _given_beside(self, ends: Sequence[End], outputs: Sequence[Value]) -> Choice | None:
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
        taps = [tap for other in equal for tap in self.first_of(other)]
        named = " and ".join(tap.where for tap in taps) or "a value that no layer gives"
        hang = "they hang" if len(taps) > 1 else "it hangs"
        why = f"{named} may do as well: {hang} on a comparable number of parameters, and none is "
        return replace(choice, doubt=why + "made from another", instead=tuple(taps))

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


def _dense(output: Value, fed: Tensor) -> str:
    shape = f"the net gives (B, {', '.join(map(str, output.tensor.shape[1:]))}), "
    if output.tensor.ndim == 2:
        is_as_fed = output.tensor.numel() == fed.numel()
        what = "as many numbers as it is fed" if is_as_fed else "scores pooled over places"
        return f"{shape}{what} rather than features"
    parts = "place or part" if output.tensor.ndim == 3 else "place"
    return f"{shape}values for each {parts} of an image rather than for the image"


def _is_class_token(place: Edge) -> bool:
    return tokens_in_front(place, 1)[0] == 1


def _is_upsampled(value: Value) -> bool:
    made = ancestors(value.place) if value.place else set()
    return any(kind(node).startswith("Upsample") for node in made)
