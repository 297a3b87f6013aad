"""What could represent an image, as a table; and why what was chosen may be wrong."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from byol_wrap.backbone.branches import not_picked
from byol_wrap.backbone.certainty import uncertainty
from byol_wrap.backbone.choosing import FEW, Chooser
from byol_wrap.backbone.classifier import RECTIFIERS, RESHAPES
from byol_wrap.backbone.entries import entries_of, per_image
from byol_wrap.backbone.finding import Found
from byol_wrap.backbone.graph import Edge, ancestors, kind, parents
from byol_wrap.backbone.measuring import Measure
from byol_wrap.backbone.recording import Record, Side, Value
from byol_wrap.backbone.representation import Representation, main_tensor, pooled
from byol_wrap.backbone.taps import Tap

LINEAR = {"Addmm", "Mm", "T", "Transpose", "View", "Add", "Sub", "Mul", "AccumulateGrad"}
MUCH = 0.5  # of the parameters that could be trained
NAMED = 4  # candidates in a warning


@dataclass(frozen=True)
class Candidate:
    """A layer whose output, or input, may represent an image.

    Attributes:
        name: of the layer; to be given as ``hidden_layer`` where the side is "output".
        side: "output", or "input".
        shape: of the value, without the batch.
        size: of the vector that averaging all but its channels gives.
        share: in [0, 1], of the net's parameters that a gradient of it reaches.
        chosen: whether it is what a learner takes.
        entries: how many there are for each image, as of the frames of a clip that are one batch.
    """

    name: str
    side: Side
    shape: tuple[int, ...]
    size: int
    share: float
    chosen: bool
    entries: int = 1

    def __str__(self) -> str:
        return f"hidden_layer={self.name!r} {self.whole_shape}, {self.size} numbers"

    @property
    def whole_shape(self) -> str:
        """The shape in words, for a batch of B."""
        return in_words(self.shape, self.entries)


class Candidates(Sequence[Candidate]):
    """Candidates in the order in which a net reaches them; printed as a table.

    Attributes:
        representation: what a learner takes; None where it refuses the net.
    """

    def __init__(self, rows: Sequence[Candidate], representation: Representation | None) -> None:
        self._rows, self.representation = tuple(rows), representation

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        return self._rows[index]

    def __len__(self) -> int:
        return len(self._rows)

    def __str__(self) -> str:
        heads = ("", "name", "side", "shape", "size", "share")
        lines = [heads] + [
            (
                "*" if row.chosen else "",
                repr(row.name),
                row.side,
                row.whole_shape,
                str(row.size),
                f"{100 * row.share:.1f} %",
            )
            for row in self._rows
        ]
        widths = [max(len(line[i]) for line in lines) for i in range(len(heads))]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
            for line in lines
        )

    def __repr__(self) -> str:
        return f"<{len(self)} candidates; print them>"


def in_words(shape: Sequence[int], entries: int) -> str:
    """The shape of a batch of B, each with so many entries."""
    batch = "B" if entries == 1 else f"{entries} B"
    return f"({', '.join([batch, *map(str, shape)])})"


def candidates(record: Record, sample: Tensor, chosen: Tap | None) -> list[Candidate]:
    """The outputs of layers that are reached once, each value once, and what was chosen."""
    chooser = Chooser(record, sample)
    whole = max(1, sum(chooser.sizes.values()))
    rows: list[Candidate] = []

    def add(name: str, side: Side, value: Value, is_chosen: bool) -> None:
        tensor = value.tensor
        size = tensor.shape[chooser.channels(value)]
        share = chooser.mass(value.place) / whole
        entries, shape = per_image(record, value), tuple(tensor.shape[1:])
        rows.append(Candidate(name, side, shape, size, share, is_chosen, entries))

    own = None if chosen is None else (chosen.layer, chosen.side)
    for name, value in _outermost(record):
        is_known = per_image(record, value) == 1 or entries_of(record, value) is not None
        if is_known and (name, "output") != own:
            add(name, "output", value, False)
    if chosen is not None:
        add(chosen.layer, chosen.side, chosen.value, True)
    return rows


def _outermost(record: Record) -> Iterator[tuple[str, Value]]:
    """The main outputs of layers called once, of those that give the same the outermost."""
    found: dict[Edge, tuple[str, Value]] = {}
    for call in record.calls:
        main = main_tensor(call.output)
        value = next((v for v in call.outputs if v.tensor is main), None)
        usable = value is not None and per_image(record, value) > 0
        if value is None or value.place is None or not usable or record.times[call.name] != 1:
            continue
        if not (call.name == "" and value.place in found):
            found[value.place] = (call.name, value)
    yield from found.values()


def doubt(record: Record, sample: Tensor, found: Found, also: str, trainable: set[str]) -> str:
    """What to warn of, and which other layers there are; "" where nothing looks odd.

    Args:
        record: of the forward on which it was found.
        sample: what the net was fed.
        found: what was chosen.
        also: a reason that is known already, or "".
        trainable: names of the parameters that the user lets be trained.
    """
    size, value = found.representation.size, found.value
    why = also or found.choice.doubt or _sums_to_one(found) or _leaves_out(record, found, trainable)
    tap = next(t for t in found.choice.taps if t.is_at(found.representation))
    strange = why or _keeps_all_places(found, sample) or _keeps_all_numbers(found, sample)
    strange = strange or uncertainty(Measure(record, sample), tap, found.choice.ends, trainable)
    if not strange and size >= FEW:
        return ""
    others = [row for row in candidates(record, sample, tap) if not row.chosen]
    first = _names(record, sample, found)
    others = sorted(others, key=lambda row: (row.name not in first, -row.size, -row.share))[:NAMED]
    is_all = size == 1 and not others
    if (
        not why
        and size < FEW
        and (is_all or _is_linear(found) or any(r.size >= 2 * size for r in others[:1]))
    ):
        numbers = f"{size} numbers hardly tell" if size > 1 else "1 number hardly tells"
        why = f"{numbers} one image from another"
    why = why or strange
    if not why:
        return ""
    shape = in_words(value.tensor.shape[1:], per_image(record, value))
    pool = found.representation.pool
    how = f", pooled by {pool!r} to {size} numbers" if pool != "none" else ""
    how += ", averaged over the entries of an image" if found.representation.entries else ""
    choose = f", such as {'; '.join(map(str, others))}" if others else " by hidden_layer="
    return (
        f"An image is represented by {tap.where}, {shape}{how}, but {why}. "
        f"If that is not what you want, choose another layer{choose}. "
        "byol_wrap.representation_candidates lists all."
    )


def what_there_is(record: Record, sample: Tensor, other: Record | None = None) -> str:
    """Which layers can be chosen where the rule finds nothing, the last first.

    Those that run once in another forward, too, if there is one.
    """
    rows = [row for row in candidates(record, sample, None) if row.name and row.share]
    rows = [row for row in rows if other is None or other.once(row.name)]
    several = [] if rows or other else [v for v in _outermost(record) if v[0]]
    if several:
        return _of_several(record, several)
    if not rows:
        return (
            "No layer gives an entry for each image, at one call alone: wrap the part of the net "
            "that sees each image once."
        )
    last = sorted(rows, key=lambda row: (-row.share, -row.size))[:NAMED]
    return f"There are {'; '.join(map(str, last))}."


def _of_several(record: Record, given: Sequence[tuple[str, Value]]) -> str:
    """What to do where layers give several entries for each image, in an unknown order."""
    last = [
        (name, v.tensor.shape[1:], per_image(record, v)) for name, v in given[: -NAMED - 1 : -1]
    ]
    listed = (f"hidden_layer={name!r} {in_words(shape, each)}" for name, shape, each in last)
    return (
        f"There are {'; '.join(listed)}, with several entries for each image, as of frames or "
        "crops that are one batch. Choose one with a pool= that makes (B, D) of them: "
        f"lambda x: x.unflatten(0, (-1, {last[0][2]})).mean(1) where those of an image follow each "
        "other."
    )


def _names(record: Record, sample: Tensor, found: Found) -> set[str]:
    """The layers that give what may be wanted instead."""
    chooser = Chooser(record, sample)
    taps = [chooser.taps(tap.value.place) for tap in found.choice.instead]
    return {tap.layer for each in taps for tap in each[:1]}


def _sums_to_one(found: Found) -> str:
    r = found.representation
    vector = pooled(found.value.tensor.detach(), r.pool, r.channel_dim)
    one = vector.shape[1] > 1 and bool((vector >= 0).all())
    if one and bool(((vector.sum(1) - 1).abs() < 1e-3).all()):
        return "its numbers are never negative and always sum to 1, as probabilities do"
    return ""


def _keeps_all_places(found: Found, sample: Tensor) -> str:
    """Whether it is a map with as many places as the images have: a value for each of them."""
    shape, r = found.value.tensor.shape, found.representation
    if r.channel_dim != 1 or not 2 < len(shape) == sample.ndim:
        return ""
    if any(own < fed for own, fed in zip(shape[2:], sample.shape[2:], strict=True)):
        return ""
    return "it has as many places as what the net is fed: it may tell of each rather than of all"


def _keeps_all_numbers(found: Found, sample: Tensor) -> str:
    """Whether it is an output of as many numbers as the net is fed: another form of that, perhaps.

    None that a norm or a rectifier ends.
    """
    value = found.value
    is_output = found.representation.layer == "" and not found.choice.ends
    if not is_output or value.place is None or value.tensor.numel() != sample.numel():
        return ""
    node = value.place[0]
    while kind(node) in RESHAPES.split() and len(parents(node)) == 1:
        node = parents(node)[0][0]
    if kind(node) in RECTIFIERS or "Norm" in kind(node):
        return ""
    return "it has as many numbers as what the net is fed: it may be that in another form"


def _is_linear(found: Found) -> bool:
    """Whether it is a linear function of what the net is fed: no layer is hidden."""
    nodes = ancestors(found.value.place) if found.value.place else ()
    return {kind(node) for node in nodes} <= LINEAR


def _leaves_out(record: Record, found: Found, trainable: set[str]) -> str:
    """Whether much could be trained, lies before no classifier, and gets no gradient."""
    bits = record.graph.bits(found.value.place)
    for head in found.choice.ends:
        bits |= record.graph.bits(head)
    reached = {leaf for i, leaf in enumerate(record.graph.leaves, 1) if bits >> i & 1}
    trainable = trainable - not_picked(record)
    named = [(n, p) for n, p in record.net.named_parameters() if n in trainable]
    whole = sum(p.numel() for _, p in named)
    left = sum(p.numel() for _, p in named if id(p) not in reached)
    if bits & 1 or left <= MUCH * whole:
        return ""
    return f"{100 * left / whole:.0f} % of the net's parameters get no gradient from it"
