"""Scores that are products with what no image is in: prototypes, or another tower's features."""

from collections.abc import Callable, Mapping
from typing import Any

from byol_wrap.backbone.graph import Edge, channel_dim, dims, kind, parents, shape_of

MATRICES = {"Mm": 0, "Bmm": 0, "Addmm": 1, "Baddbmm": 1}  # and their first factor
DISTANCES = ("Cdist", "EuclideanDist")  # of rows
Found = Mapping[Any, Any]  # nodes to their heads: empty for what parameters alone make


def features_of(node: Any, found: Found, is_fed: Callable[[Any], bool]) -> Edge | None:
    """The one of two factors that holds images' features; None where a node is no such product.

    Args:
        node: of a graph.
        found: the heads of the nodes before it.
        is_fed: whether a node's value depends on the images.
    """
    if kind(node) in MATRICES:
        first = MATRICES[kind(node)]
        factors = list(node.next_functions[first : first + 2])
        is_single = not kind(node).endswith("bmm") or shape_of(node)[:1] == (1,)
        read = _other(factors, found, is_fed) if is_single else None
        return read if read is None or _contracts_channels(factors, read) else None
    if kind(node) in DISTANCES:
        return _other(list(node.next_functions[:2]), found, is_fed)
    if kind(node) == "Sum" and kind(node.next_functions[0][0]) == "Mul":
        product = node.next_functions[0][0]
        read = _other(list(product.next_functions), found, is_fed)
        return read if read is not None and _sums_channels(node, product, read) else None
    return None


def _other(factors: list[Edge], found: Found, is_fed: Callable[[Any], bool]) -> Edge | None:
    """Of two factors the one that is not fixed; None where both are, or neither is."""
    fixed = [part is None or found[part] == frozenset() for part, _ in factors]
    if not any(fixed):
        fixed = [not is_fed(part) for part, _ in factors]
    return factors[fixed.index(False)] if fixed.count(False) == 1 else None


def _contracts_channels(factors: list[Edge], read: Edge) -> bool:
    """Whether a product of matrices sums over a factor's channels, and not over its positions."""
    own, last = channel_dim(read), len(shape_of(*read)) - 1
    return own is None or own == last - factors.index(read)


def _sums_channels(node: Any, product: Any, read: Edge) -> bool:
    """Whether the channels of features are summed, and nothing else."""
    last = len(shape_of(product)) - 1
    own = channel_dim(read)
    return dims(node) == [last] and (own is None or own == len(shape_of(*read)) - 1)


def is_by_parameter(node: Any, read: Edge) -> bool:
    """Whether the other factor of a product is a parameter, perhaps transposed."""
    others = [parent for parent, index in parents(node) if (parent, index) != read]
    factor = others[-1] if others else None
    if factor is not None and kind(factor) in ("T", "Transpose", "Permute"):
        factor = parents(factor)[0][0]
    return hasattr(factor, "variable")


def is_fixed(node: Any) -> bool:
    """Whether the other factor of a product is no parameter, nor made of any."""
    product = node if kind(node) != "Sum" else parents(node)[0][0]
    return len(parents(product)) == 1
