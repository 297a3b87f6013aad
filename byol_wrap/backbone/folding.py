"""Outputs in the shape of a map that are one vector an image, folded: landmarks, boxes, poses."""

import math
from collections.abc import Sequence

from byol_wrap.backbone.classifier import PASSED, REDUCES, Head, trunk_of
from byol_wrap.backbone.graph import ancestors, is_bypassed, kind, parents, shape_of
from byol_wrap.backbone.measuring import Measure
from byol_wrap.backbone.recording import Value


def is_folded(measure: Measure, value: Value) -> bool:
    """Whether all that a value holds was one vector an image, or several, before it got its shape.

    Given so by what mixes features, or averages, in as many numbers: what was a map or tokens
    before it was flattened is none, nor a vector that is repeated for each place.
    """
    nodes, seen = [value.place[0]] if value.place else [], set()
    numbers = 0
    while nodes:
        node = nodes.pop()
        if node in seen or hasattr(node, "variable"):
            continue
        seen.add(node)
        gives = kind(node) not in PASSED or kind(node) in REDUCES.split()
        if gives and _is_vector(shape_of(node), measure.record.batch):
            numbers += math.prod(shape_of(node))
            continue
        if kind(node) not in PASSED:
            return False
        nodes += [parent for parent, _ in parents(node)]
    return numbers >= value.tensor.numel()


def reads_one_value(measure: Measure, heads: Sequence[Head]) -> bool:
    """Whether all heads read the same, some perhaps by layers of their own.

    None of them a product with fixed numbers, as a basis of shapes is: what that reads are numbers
    that were told.
    """
    if any(head.call is None and not head.is_projection for head in heads):
        return False
    places = {trunk_of(measure.record, head) or head.reads for head in heads}
    return len(places) == 1


def is_decoded(measure: Measure, value: Value, read: Value) -> bool:
    """Whether a value may be an image that a decoder makes of a code.

    It is as large as what the net is fed; or larger than what is read, and that is made of less.
    """
    own, fed = value.tensor.shape, measure.sample.shape
    has_its_places = len(own) == len(fed) > 3 and own[2:] == fed[2:]
    if has_its_places or value.tensor.numel() == measure.sample.numel():
        return True
    if value.tensor.numel() <= read.tensor.numel() or read.place is None:
        return False
    behind = ancestors(read.place) - {read.place[0]}
    return any(
        given.place is not None
        and given.place[0] in behind
        and given.tensor.shape[:1] == own[:1]
        and given.tensor.numel() < read.tensor.numel()
        and not is_bypassed(given.place, read.place)
        for given in measure.record.values()
    )


def _is_vector(shape: Sequence[int], batch: int) -> bool:
    return len(shape) > 1 and shape[0] == batch and sum(size > 1 for size in shape[1:]) <= 1
