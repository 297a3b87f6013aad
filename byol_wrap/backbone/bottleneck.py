"""Finds the narrowest place of a net whose output is dense, or fused of several levels."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from byol_wrap.backbone.classifier import heads_of
from byol_wrap.backbone.graph import Edge, ancestors, leaves
from byol_wrap.backbone.recording import Call, Record, Value

RISE = 1.5  # times as many positions: more than a class token or padding adds
HEAVY = 0.5  # of a net's parameters: a part in which to look further
EXTENDS = 0.05  # of a part's parameters: a norm behind it belongs to it


@dataclass(frozen=True)
class _Step:
    """What a part of a net gives to the rest, at its coarsest."""

    value: Value
    place: Edge
    positions: int
    new: int  # how many numbers of the net come in with it
    are_scores: bool  # of places, by a classifier


def find_bottleneck(
    record: Record,
    output: Value,
    positions: Callable[[Value], int],
    channels: Callable[[Value], int],
) -> Value | None:
    """The last value at the narrowest place before an output of more positions.

    Looked for among the parts of the net as its author divided it, and further within one that
    holds most of it; so that what happens within a block (a gate, a pyramid of pooled maps) counts
    for nothing.

    Args:
        record: of a forward with gradient.
        output: one of its values, a map or tokens.
        positions: how many positions of a map, or tokens, a value has.
        channels: which dimension holds a value's channels.

    Returns:
        None where the net does not narrow and widen again.
    """
    whole = sum(p.numel() for p in record.net.parameters())
    part = next((call for call in reversed(record.calls) if call.caller is None), None)
    while part is not None and output.place is not None:
        behind = ancestors(output.place)
        inside = [call for call in record.calls if call.caller is part]
        steps = _steps(record, inside, output, behind, positions)
        narrow = _narrow(steps, positions(output), output.place)
        if narrow:
            return _last_of_largest(narrow, channels)
        part = max(inside, key=lambda call: _mass(call), default=None)
        if part is None or _mass(part) < HEAVY * whole:
            return None
        given = [v for v in part.outputs if v.place and v.place[0] in behind]
        output = max(given, key=positions, default=output)
        if not given:
            return None
    return None


def _mass(call: Call) -> int:
    return sum(p.numel() for p in call.layer.parameters())


def _steps(
    record: Record,
    inside: Sequence[Call],
    output: Value,
    behind: set[object],
    positions: Callable[[Value], int],
) -> list[_Step]:
    """What each part gives that the output depends on; not the output itself, and no gate."""
    steps: list[_Step] = []
    sizes = {id(p): p.numel() for p in record.net.parameters()}
    seen = 0
    for call in inside:
        given = [
            (positions(v), v)
            for v in call.outputs
            if v.place
            and v.place[0] in behind
            and v.place != output.place
            and len(v.tensor) == record.batch
            and v.tensor.ndim > 1
            and record.depends_on_images(v.place[0])
        ]
        given = [(count, v) for count, v in given if count > 1 or v.tensor.ndim == 2]
        if not given or record.times[call.name] > 1:
            continue
        least = min(count for count, _ in given)
        value = [v for count, v in given if count == least][-1]
        bits = record.graph.bits(value.place)
        assert value.place is not None
        new = record.graph.size(bits & ~seen, sizes)
        steps.append(
            _Step(value, value.place, least, new, least > 1 and _are_scores(record, value))
        )
        seen |= bits
    return steps


def _are_scores(record: Record, value: Value) -> bool:
    """Whether a map comes from a classifier of its places."""
    heads = heads_of(record, value.place) if value.place else []
    return bool(heads) and all(head.narrows and not head.is_rectified for head in heads)


def _narrow(steps: list[_Step], end: int, output: Edge) -> list[_Step]:
    """The steps at the narrowest place before the first rise; none without a rise."""
    maps = [step for step in steps if step.positions > 1]
    vectors = [step for step in steps if step.positions == 1]
    if vectors and not _bypassed(vectors, output):
        maps = steps
    before: list[_Step] = []
    for step in maps:
        least = min(before, key=lambda s: s.positions, default=None)
        rises = least is not None and step.positions > RISE * least.positions
        if rises and least is not None and least.place[0] in ancestors(step.place):
            break
        before.append(step)
    else:
        if not before or end <= RISE * min(step.positions for step in before):
            return []
    before = [step for step in before if not step.are_scores]
    least_positions = min((step.positions for step in before), default=0)
    return [step for step in before if step.positions == least_positions]


def _bypassed(vectors: Sequence[_Step], output: Edge) -> bool:
    """Whether the output depends on maps also past the vectors: those are gates then."""
    stop = {step.place[0] for step in vectors}
    return bool(leaves(ancestors(output, stop)) & leaves(ancestors(vectors[0].place)))


def _last_of_largest(narrow: Sequence[_Step], channels: Callable[[Value], int]) -> Value:
    """The part that brings in most parameters, and what follows it with hardly any of its own."""
    if narrow[0].positions == 1:
        return min(narrow, key=lambda step: step.value.tensor.shape[-1]).value
    largest = max(step.new for step in narrow)
    last = max(i for i, step in enumerate(narrow) if step.new == largest)
    width = narrow[last].value.tensor.shape[channels(narrow[last].value)]
    for step in narrow[last + 1 :]:
        same = step.value.tensor.shape[channels(step.value)] == width
        if not same or step.new > EXTENDS * largest:
            break
        last += 1
    return narrow[last].value
