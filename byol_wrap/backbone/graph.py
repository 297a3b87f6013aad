"""What the autograd graph of a forward tells: what a value depends on, and how it is laid out."""

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor
from torch.autograd.graph import get_gradient_edge

Edge = tuple[Any, int]  # a node, and which of its outputs: identifies a value

OPAQUE = 1  # the bit of a reentrant checkpoint, which hides what it ran
# What made a value tells where its channels are: in the second dimension, or in the last.
SECOND = ("Convolution", "BatchNorm", "GroupNorm", "PixelShuffle", "GridSampler")
SECOND_WITHIN = ("Pool", "Upsample")  # whose names go on with 2D and the like
LAST = ("Addmm", "Mm", "Bmm", "Linear", "LayerNorm", "RmsNorm", "Embedding", "ScaledDotProduct")
RESHAPES = ("View", "UnsafeView", "Reshape", "ReshapeAlias", "Squeeze", "Unsqueeze")
MOVES = ("Add", "Alias", "Clone", "Select", "Slice", "ToCopy")
REDUCES = ("Select", "Mean", "Sum", "Max", "Amax", "Unbind")
IN_PLACE = "CopySlices"  # a view was written to, as by x += y behind a Linear
SPLITS = ("Split", "SplitWithSizes", "UnsafeSplit", "UnsafeSplitWithSizes", "Unbind")
MOST_TOKENS_IN_FRONT = 16  # a class token and what some nets put beside it


def edge(value: Tensor | None) -> Edge | None:
    """The place of a value in its graph; None where it has none."""
    if value is None or not value.requires_grad:
        return None
    if value.grad_fn is not None:
        return value.grad_fn, value.output_nr
    return get_gradient_edge(value).node, 0


def kind(node: Any) -> str:
    """The name of the operation that a node undoes, without its number."""
    name: str = node.name().rpartition("::")[2]
    return name.rstrip("0123456789").removesuffix("Backward")


def shape_of(node: Any, index: int = 0) -> tuple[int, ...]:
    """The shape of a node's value; empty where it is not told."""
    try:
        return tuple(node._input_metadata[index].shape)
    except (AttributeError, IndexError, RuntimeError):
        return ()


def parents(node: Any) -> list[Edge]:
    """What a node's value was made of, as far as it has a gradient."""
    return [(parent, index) for parent, index in node.next_functions if parent is not None]


def dims(node: Any, name: str = "_saved_dim") -> list[int]:
    """The dimensions that an operation worked on, counted from the front; empty for all."""
    saved = getattr(node, name, ())
    saved = [saved] if isinstance(saved, int) else list(saved or ())
    size = len(shape_of(*parents(node)[0])) if parents(node) else 0
    signed = [dim - 2**64 if dim >= 2**63 else dim for dim in saved]
    return [dim % size for dim in signed] if size else signed


class Graph:
    """The graph behind some values, walked once.

    Attributes:
        tensors: at its ends, parameters mostly, in the order of their bits.
        leaves: their ids.
    """

    def __init__(self, places: Iterable[Edge]) -> None:
        self.tensors: list[Tensor] = []
        self.leaves: list[int] = []
        self._behind: dict[Any, int] = {}
        self._users: dict[Any, list[Any]] = {}
        self._ids: set[int] = set()
        for node in in_order([place[0] for place in places]):
            self._behind[node] = self._own_bit(node)
            for parent, _ in parents(node):
                self._behind[node] |= self._behind[parent]
                self._users.setdefault(parent, []).append(node)

    def users(self, node: Any) -> list[Any]:
        """Nodes that work on a node's value."""
        return self._users.get(node, [])

    def __contains__(self, place: Edge | None) -> bool:
        return place is not None and place[0] in self._behind

    def _own_bit(self, node: Any) -> int:
        if "CheckpointFunction" in node.name():
            return OPAQUE
        variable = getattr(node, "variable", None)
        if variable is None:
            return 0
        self.tensors.append(variable)
        self.leaves.append(id(variable))
        self._ids.add(id(variable))
        return 1 << len(self.leaves)

    def has_leaf(self, tensor: Tensor) -> bool:
        """Whether any of the values depends on a tensor."""
        return id(tensor) in self._ids

    def bits(self, place: Edge | None) -> int:
        """The leaves that a value depends on, a bit each."""
        return 0 if place is None else self._behind.get(place[0], 0)

    def trained_by(self, place: Edge | None) -> set[int] | None:
        """Ids of the leaves that a gradient of a value reaches.

        None where the graph does not tell: reentrant checkpoints hide what they ran.
        """
        bits = self.bits(place)
        if bits & OPAQUE:
            return None
        return {leaf for i, leaf in enumerate(self.leaves, 1) if bits >> i & 1}

    def size(self, bits: int, sizes: dict[int, int]) -> int:
        """How many numbers some leaves hold; ``sizes`` tells it by their ids."""
        return sum(sizes.get(leaf, 0) for i, leaf in enumerate(self.leaves, 1) if bits >> i & 1)


def ancestors(place: Edge, stop: Iterable[Any] = ()) -> set[Any]:
    """All nodes that a value depends on, its own among them; not past those of ``stop``."""
    return set(in_order([place[0]], set(stop)))


def is_bypassed(place: Edge | None, by: Edge) -> bool:
    """Whether a later value depends on what made a value otherwise than through it, too.

    Parameters themselves do not count.
    """
    if place is None or place[0] is by[0]:
        return False
    made_of = ancestors(place) - {place[0]}
    return any(
        node in made_of and not hasattr(node, "variable") for node in ancestors(by, {place[0]})
    )


def leaves(nodes: Iterable[Any]) -> set[int]:
    """Ids of the tensors at the ends of a graph that are among some nodes."""
    return {id(node.variable) for node in nodes if hasattr(node, "variable")}


def in_order(roots: Iterable[Any], stop: set[Any] | None = None) -> list[Any]:
    """Nodes behind some others, those first on which others depend."""
    order, seen = [], set(stop or ())
    stack = [(node, False) for node in roots]
    while stack:
        node, is_done = stack.pop()
        if is_done:
            order.append(node)
        elif node not in seen:
            seen.add(node)
            stack.append((node, True))
            stack += [(parent, False) for parent, _ in parents(node) if parent not in seen]
    return order


def channel_dim(place: Edge) -> int | None:
    """Which dimension of a value holds its channels, told by the layer that made it.

    Followed back past what moves dimensions or works on each element; None where that ends without
    such a layer, or channels were split or merged.
    """
    node, index = place
    name, shape = kind(node), shape_of(node, index)
    before = _followed(node, shape)
    over = before is not None and name.endswith("LayerNorm") and len(node._saved_normalized_shape)
    if name.endswith(SECOND) or any(word in name for word in SECOND_WITHIN):
        return 1
    if any(name.endswith(last) or name.startswith(last) for last in LAST) and not over > 1:
        return len(shape) - 1
    if name.endswith(RESHAPES) and before is not None and (unfolded := _instance_norm(before)):
        return channel_dim(unfolded)
    if before is None or (dim := channel_dim(before)) is None:
        return None
    if name.endswith(RESHAPES):
        return _after_reshape(dim, shape_of(*before), shape)
    if name == "Permute":
        return dims(node, "_saved_dims").index(dim)
    if name in ("Transpose", "T"):
        swap = [0, 1] if name == "T" else dims(node, "_saved_dim0") + dims(node, "_saved_dim1")
        return swap[1 - swap.index(dim)] if dim in swap else dim
    if name.startswith(REDUCES) and len(shape) < len(shape_of(*before)):
        gone = dims(node)
        return None if dim in gone or not gone else dim - sum(d < dim for d in gone)
    if name == "Stack":
        return dim + (dims(node)[0] <= dim)
    return dim if len(shape) == len(shape_of(*before)) else None


def _followed(node: Any, shape: Sequence[int]) -> Edge | None:
    """Which of a node's inputs has its layout: one of the same shape, or of as many dimensions."""
    found = parents(node)
    same = [p for p in found if shape_of(*p) == tuple(shape)]
    alike = [p for p in found if len(shape_of(*p)) == len(shape)]
    return next(iter(same or alike or found), None)


def _instance_norm(place: Edge) -> Edge | None:
    """What an InstanceNorm normalised, which folds the batch into the channels for BatchNorm."""
    node, index = place
    if kind(node).endswith("BatchNorm") and shape_of(node, index)[:1] == (1,):
        folded = parents(node)[:1]
        return next(iter(parents(folded[0][0])), None) if folded else None
    return None


def _after_reshape(dim: int, before: Sequence[int], after: Sequence[int]) -> int | None:
    left, size = math.prod(before[:dim]), before[dim]
    fits = [i for i, n in enumerate(after) if n == size and math.prod(after[:i]) == left]
    return fits[0] if fits else None


def tokens_in_front(place: Edge, count: int) -> tuple[int, int]:
    """How many of ``count`` tokens were put in front of the others, parameters for each item.

    The first token is followed back to where that happened.

    Returns:
        How many the first of these parameters holds, 1 for a class token; and all of them.
    """
    seen: set[Any] = set()
    # A place, its tokens, and what joined on the way to it.
    states = [(place, count, (0, 0))]
    while states:
        (node, index), tokens, joined = states.pop()
        if node in seen:
            continue
        seen.add(node)
        if joined[0] and kind(node) in ("Expand", "Repeat") and _is_leaf(parents(node)):
            return joined
        along = dims(node)[:1]
        if kind(node) == "Cat" and along and shape_of(node)[along[0]] == tokens:
            front = node.next_functions
            size = _tokens(front[0], along[0])
            if len(front) > 1 and size <= MOST_TOKENS_IN_FRONT:
                learned = itertools.takewhile(lambda p: _is_learned(p[0]), front)
                together = sum(_tokens(p, along[0]) for p in learned)
                states.append((front[0], size, (size, max(joined[1], together, size))))
            continue
        first = kind(node) == "Select" and node._saved_index == 0
        first = first or (kind(node) == "Slice" and node._saved_start == 0)
        first = first or (kind(node) in SPLITS and index == 0)
        for parent, of in parents(node):
            shape = shape_of(parent, of)
            written = kind(parent) == IN_PLACE  # is as its base was, perhaps folded
            if first and along == [1] and len(shape) == 3:
                states.append(((parent, of), shape[1], joined))
            elif (
                written
                or (len(shape) == 3 and tokens in shape[:2])
                or (len(shape) == 2 and tokens == 1)
            ):
                states.append(((parent, of), tokens, joined))
    return 0, 0


def picks_tokens(place: Edge) -> bool:
    """Whether only some of the tokens (B, T, C) of a value before are gone on with."""
    for node in ancestors(place):
        if kind(node) in ("Gather", "Index", "IndexSelect") and parents(node):
            before, after = shape_of(*parents(node)[0]), shape_of(node)
            is_one = len(after) == 2 and after[:1] == before[:1]  # a token of each item
            if len(before) == 3 and after[-1:] == before[-1:] and not is_one and after != before:
                return True
    return False


def _tokens(place: Edge, along: int) -> int:
    shape = () if place[0] is None else shape_of(*place)
    return shape[along] if along < len(shape) else MOST_TOKENS_IN_FRONT + 1


def _is_leaf(places: Sequence[Edge]) -> bool:
    """Whether a value was made of parameters alone, by what only moves or changes their shape."""
    nodes = [node for place in places for node in ancestors(place)]
    made = {kind(node) for node in nodes}
    return bool(nodes) and made <= {"AccumulateGrad", *MOVES, *RESHAPES}


def _is_learned(node: Any) -> bool:
    return node is not None and kind(node) in ("Expand", "Repeat") and _is_leaf(parents(node))
