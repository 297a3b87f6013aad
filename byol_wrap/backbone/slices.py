"""What a slice is cut out of."""

from typing import Any

from byol_wrap.backbone.graph import dims, kind, parents, shape_of


def cut_out(node: Any) -> list[Any]:
    """What a slice is taken from: of parts that were joined, those that it overlaps."""
    before = [parent for parent, _ in parents(node)]
    along = dims(node)
    if len(before) != 1 or kind(before[0]) != "Cat" or dims(before[0]) != along:
        return before
    whole = before[0].next_functions
    if any(part is None or not shape_of(part, index) for part, index in whole):
        return before
    size = shape_of(before[0])[along[0]]
    start, end = (_place(getattr(node, f"_saved_{name}"), size) for name in ("start", "end"))
    found, at = [], 0
    for part, index in whole:
        length = shape_of(part, index)[along[0]]
        if at < end and start < at + length:
            found.append(part)
        at += length
    return found


def _place(saved: int, size: int) -> int:
    """A slice's bound, counted from the front."""
    signed = saved - 2**64 if saved >= 2**63 else saved
    return min(max(signed + size if signed < 0 else signed, 0), size)
