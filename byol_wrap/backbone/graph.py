"""What the autograd graph of a forward tells."""

from typing import Any

from torch import Tensor


def trained_by(value: Tensor) -> set[int] | None:
    """Ids of the parameters that a gradient of ``value`` reaches, read off its graph.

    None where the graph does not tell: reentrant checkpoints hide what they ran.
    """
    if value.grad_fn is None:
        return {id(value)} if value.requires_grad else set()
    reached: set[int] = set()
    seen = set()
    nodes: list[Any] = [value.grad_fn]
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if "CheckpointFunction" in node.name():
            return None
        if (variable := getattr(node, "variable", None)) is not None:
            reached.add(id(variable))
        nodes.extend(parent for parent, _ in node.next_functions)
    return reached
