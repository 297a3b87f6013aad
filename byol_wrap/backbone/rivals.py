"""Which values represent an image about as well as another: of two towers, say, the other's."""

from collections.abc import Sequence

from byol_wrap.backbone.classifier import EQUAL
from byol_wrap.backbone.graph import Edge, ancestors, shape_of
from byol_wrap.backbone.measuring import Measure

SHARED = 0.75  # of the parameters that a value depends on: what is shared is most of it
OWN = 0.25  # of them: two values that share less are made by parts of their own
LARGE = 0.5  # of them: such a part is then as good, whatever its shape


def rivals(measure: Measure, chosen: Edge, others: Sequence[Edge]) -> list[Edge]:
    """Those of some values that are as good as the chosen one.

    No value from which both are made, nor one of the two, holds most of the net. They have its
    shape, and depend on about as many parameters; or on not much less, and on others.
    """
    others = [place for place in dict.fromkeys(others) if place != chosen]
    if not others:
        return []
    most, behind, found = measure.mass(chosen), ancestors(chosen), []
    for place in others:
        alike = shape_of(*place) == shape_of(*chosen)
        if measure.mass(place) < (EQUAL if alike else LARGE) * most:
            continue
        common = shared(measure, behind & ancestors(place))
        if common < (SHARED if alike else OWN) * most:
            found.append(place)
    return found


def shared(measure: Measure, nodes: set[object]) -> int:
    """How many numbers of the net the value that depends on most of them does, of some nodes.

    Parameters themselves do not count: a tower that is run twice shares no more than those.
    """
    graph = measure.record.graph
    kinds = {bits for node in nodes if (bits := graph.bits((node, 0))).bit_count() > 1}
    return max((graph.size(bits, measure.sizes) for bits in kinds), default=0)
