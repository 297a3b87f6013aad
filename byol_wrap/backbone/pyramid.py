"""Which of the maps of a pyramid are a backbone's, and which a detector's extra levels."""

from collections.abc import Sequence

from byol_wrap.backbone.graph import ancestors
from byol_wrap.backbone.measuring import Measure
from byol_wrap.backbone.recording import Value

EXTRA = 0.2  # of the parameters of a pyramid's largest level: less is no level of a backbone
DOUBTFUL = 0.5  # of them: less may be none, where such levels follow


def without_extras(measure: Measure, outputs: Sequence[Value]) -> list[Value]:
    """Outputs but for the extra levels of a pyramid: coarser, and with hardly any parameters.

    Each is made from another level, as a detector's last are. A pooling that closes a stage of a
    backbone is none, but one that only takes every other pixel is.
    """
    maps, new = _levels(measure, outputs)
    few = EXTRA * max(new.values(), default=0)
    extra: set[int] = set()
    for i, value in enumerate(maps):
        made_from = _made_from(measure, value, maps[:i])
        brings = new[id(value)]
        closes = not brings and not _is_subsampled(value)
        if made_from and brings < few and (not closes or id(made_from[-1]) in extra):
            extra.add(id(value))
    return [value for value in outputs if id(value) not in extra]


def level_before_extras(measure: Measure, chosen: Value, outputs: Sequence[Value]) -> Value | None:
    """The level before the chosen one, where that may be the first of extra levels behind it."""
    if chosen.tensor.ndim < 3 or len(outputs) < 3:
        return None
    maps, new = _levels(measure, outputs)
    before = _made_from(measure, chosen, maps)
    kept = {id(value) for value in without_extras(measure, outputs)}
    behind = [v for v in maps if id(v) not in kept and chosen in _made_from(measure, v, maps)]
    few = new[id(chosen)] < DOUBTFUL * max(new.values())
    return before[-1] if few and behind and before else None


def _levels(measure: Measure, outputs: Sequence[Value]) -> tuple[list[Value], dict[int, int]]:
    """The maps, as they are reached, and how many numbers of the net come in with each."""
    graph, seen, new = measure.record.graph, 0, {}
    maps = [value for value in outputs if value.tensor.ndim > 2]
    maps = sorted(maps, key=lambda v: (measure.mass(v.place), -measure.positions(v)))
    for value in maps:
        bits = graph.bits(value.place)
        new[id(value)], seen = graph.size(bits & ~seen, measure.sizes), seen | bits
    return maps, new


def _made_from(measure: Measure, value: Value, maps: Sequence[Value]) -> list[Value]:
    """The finer levels that a level is made from."""
    behind = ancestors(value.place) if value.place else set()
    finer = [v for v in maps if measure.positions(v) > measure.positions(value)]
    return [v for v in finer if v.place and v.place[0] in behind]


def _is_subsampled(value: Value) -> bool:
    """Whether it is every other pixel of a map: a pooling of single pixels."""
    node = value.place[0] if value.place else None
    kernel = getattr(node, "_saved_kernel_size", (2,))
    return all(size == 1 for size in kernel)
