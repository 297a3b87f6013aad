"""Ways to run a user's code: in eval mode for a moment, outside a compiled graph, for a record."""

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
    """Put a module in eval mode, and every submodule back in its own mode afterwards.

    Both as a user would, by ``eval()`` and ``train()``: nets drop caches there, or merge weights.
    Where a ``train()`` leaves a flag otherwise than it was, the flag itself is put back.
    """
    flags = [(submodule, submodule.training) for submodule in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for submodule, training in flags:  # parents come before their children
            if submodule.training != training:
                submodule.train(training)
        for submodule, training in flags:
            submodule.training = training


def is_recorded() -> bool:
    """Whether ``torch.export`` or ``torch.jit.trace`` write down what is run.

    Values are then none that could be looked at, and all there is must come into the record.
    """
    exporting = getattr(torch.compiler, "is_exporting", None)  # new in PyTorch 2.7
    tracing: bool = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    return tracing or (exporting is not None and exporting())


def outside_graph(*, recursive: bool) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """``torch.compiler.disable``, but the compiler (a second to import) waits for the first call.

    What is recorded for export is not kept out.

    Args:
        recursive: False keeps only the function itself out of the graph; what it calls is
            compiled as a graph of its own.
    """

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        disabled: list[Callable[P, T]] = []

        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> T:
            if is_recorded():
                return function(*args, **kwargs)
            if not disabled:
                disabled.append(torch.compiler.disable(function, recursive=recursive))
            return disabled[0](*args, **kwargs)

        return call

    return decorate
