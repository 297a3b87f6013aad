"""Which values represent an image about as well as another: of two towers, say, the other's."""

from collections.abc import Sequence

from byol_wrap.backbone.classifier import EQUAL
from byol_wrap.backbone.graph import Edge, ancestors, shape_of
from byol_wrap.backbone.measuring import Measure

SHARED = 0.75  # of them: what two values share is then most of both


def rivals(measure: Measure, chosen: Edge, others: Sequence[Edge]) -> list[Edge]:
    """Those of some values that are as good as the chosen one.

    They have its shape, and depend on about as many parameters; neither is made from the other, and
    no value from which both are made holds most of the net.
    """
    shape = shape_of(*chosen)
    alike = [p for p in dict.fromkeys(others) if p != chosen and shape_of(*p) == shape]
    if not alike:
        return []
    most, behind, found = measure.mass(chosen), ancestors(chosen), []
    for place in alike:
        own = ancestors(place)
        apart = place[0] not in behind and chosen[0] not in own
        equal = apart and measure.mass(place) >= EQUAL * most
        if equal and shared(measure, behind & own) < SHARED * most:
            found.append(place)
    return found


def shared(measure: Measure, nodes: set[object]) -> int:
    """How many numbers of the net the value that depends on most of them does, of some nodes.

    Parameters themselves do not count: a tower that is run twice shares no more than those.
    """
    graph = measure.record.graph
    kinds = {bits for node in nodes if (bits := graph.bits((node, 0))).bit_count() > 1}
    return max((graph.size(bits, measure.sizes) for bits in kinds), default=0)
