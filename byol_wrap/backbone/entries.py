"""Values with several entries an image, as of frames of a clip, or crops, that are one batch."""

from typing import Any

from byol_wrap.backbone.graph import Graph, dims, kind, shape_of
from byol_wrap.backbone.measuring import VIEWS
from byol_wrap.backbone.recording import Record, Value
from byol_wrap.backbone.representation import Entries

AVERAGES = ("Mean", "Sum", "Max", "Amax", "Logsumexp")

SWAPS = ("Transpose", "Permute")  # dimensions, of one size perhaps


def per_image(record: Record, value: Value) -> int:
    """How many entries of a value there are for each image; 0 where that is no whole number."""
    entries = value.tensor.shape[0] if value.tensor.ndim > 1 else 0
    return 0 if entries % record.batch else entries // record.batch


def entries_of(record: Record, value: Value) -> Entries | None:
    """How the entries of an image lie in a value that has several.

    Told by how the net itself takes them apart; None where it does not, or by several ways.
    """
    each = per_image(record, value)
    if each < 2 or value.place is None:
        return None
    graph, batch, rows = record.graph, record.batch, each * record.batch
    found: set[Entries] = set()
    nodes, seen = [value.place[0]], set()
    while nodes:
        for user in graph.users(nodes.pop()):
            after = shape_of(user)
            if user in seen or len(after) < 2:
                continue
            seen.add(user)
            if after[0] % rows == 0:  # still one batch, perhaps with tokens folded into it
                nodes.append(user)
            elif kind(user) in VIEWS and each != batch:
                found |= {"together"} if after[:2] == (batch, each) else set()
                found |= {"apart"} if after[:2] == (each, batch) else set()
            elif kind(user) in VIEWS and after[:2] == (batch, batch):
                found |= _averaged_along(graph, user)
    return found.pop() if len(found) == 1 else None


def _averaged_along(graph: Graph, node: Any) -> set[Entries]:
    """By which of the first two dimensions, of one size, a value is averaged."""
    found: set[Entries] = set()
    nodes, seen, size = [node], set(), shape_of(node)[:2]
    while nodes:
        for user in graph.users(nodes.pop()):
            if user in seen:
                continue
            seen.add(user)
            if kind(user) in AVERAGES and dims(user) in ([0], [1]):
                found.add("together" if dims(user) == [1] else "apart")
            elif shape_of(user)[:2] == size and kind(user) not in SWAPS:
                nodes.append(user)
    return found
