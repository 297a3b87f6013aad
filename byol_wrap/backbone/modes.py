"""Ways to run a user's code: in eval mode for a moment, or outside a compiled graph."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

import torch
from torch import nn

P = ParamSpec("P")
T = TypeVar("T")


@contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """Put a module in eval mode, and every submodule's own training flag back afterwards."""
    flags = [(submodule, submodule.training) for submodule in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for submodule, training in flags:
            submodule.training = training


def outside_graph(*, recursive: bool) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """``torch.compiler.disable``, but the compiler (a second to import) waits for the first call.

    Args:
        recursive: False keeps only the function itself out of the graph; what it calls is
            compiled as a graph of its own.
    """

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        disabled: list[Callable[P, T]] = []

        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> T:
            if not disabled:
                disabled.append(torch.compiler.disable(function, recursive=recursive))
            return disabled[0](*args, **kwargs)

        return call

    return decorate
