"""What a net's code tells: whether it may call other layers in eval mode than in training."""

import ast
import builtins
import functools
import inspect
import textwrap
from collections.abc import Callable, Hashable
from typing import Any, cast

from torch import nn


def asks_for_its_mode(net: nn.Module) -> bool:
    """Whether what a net calls, or gives, may depend on its mode, as far as its classes show.

    That it hands its mode on, to a dropout say, or chooses a number by it, makes no difference.
    Layers that contain no others may do as they like: which layers are called is not theirs.
    """
    return any(
        "forward" in vars(module) or _class_asks(cast(Hashable, type(module)))
        for module in net.modules()
        if next(module.children(), None) is not None
    )


@functools.cache
def _class_asks(kind: Any) -> bool:
    if kind.train is not nn.Module.train or kind.eval is not nn.Module.eval:
        return True
    if kind.__module__.partition(".")[0] == "torch":
        return bool(kind.__module__ == "torch.nn.modules.transformer")  # skips layers when it can
    seen, names = set(), ["forward"]  # methods that it calls, and those that they call
    while names:
        function = getattr(kind, names.pop(), None)
        if function in seen or not inspect.isfunction(function):
            continue
        if function.__module__.partition(".")[0] == "torch":
            continue
        seen.add(function)
        tree = _tree(function)
        own = function.__code__.co_varnames[:1]
        if tree is None or _asks(tree, own):
            return True
        named = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
        names += [n.attr for n in named if isinstance(n.value, ast.Name) and n.value.id in own]
    return False


def _tree(function: Callable[..., Any]) -> ast.AST | None:
    """A function's code; None where it is not at hand."""
    try:
        return ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(function))))
    except (OSError, SyntaxError, TypeError):
        return None


def _asks(tree: ast.AST, own: tuple[str, ...]) -> bool:
    """Whether a method asks for the mode, or hands its module to who knows whom."""
    above = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    return any(
        not _makes_no_difference(node, above)
        if isinstance(node, ast.Attribute) and node.attr == "training"
        else isinstance(node, ast.Name) and node.id in own and _is_handed_on(above[node])
        for node in above
    )


def _is_handed_on(user: ast.AST) -> bool:
    return not isinstance(user, ast.Attribute) and not _is_builtin_call(user)


def _is_builtin_call(node: ast.AST) -> bool:
    called = node.func if isinstance(node, ast.Call) else None
    return isinstance(called, ast.Name) and hasattr(builtins, called.id)


def _makes_no_difference(node: ast.AST, above: dict[ast.AST, ast.AST]) -> bool:
    """Whether the mode is handed on, or decides about nothing that is called or returned."""
    while isinstance(above[node], ast.BoolOp | ast.UnaryOp | ast.Compare):
        node = above[node]
    user = above[node]
    if isinstance(user, ast.Call | ast.keyword):
        return True
    if not isinstance(user, ast.If | ast.IfExp) or node is not user.test:
        return False
    body = user.body if isinstance(user.body, list) else [user.body]
    rest = user.orelse if isinstance(user.orelse, list) else [user.orelse]
    inside = (part for branch in (*body, *rest) for part in ast.walk(branch))
    return not any(_may_matter(part) for part in inside)


def _may_matter(node: ast.AST) -> bool:
    """Whether it returns, or calls what may be a layer: not ``add_`` of a tensor, or ``float``."""
    if isinstance(node, ast.Call):
        in_place = isinstance(node.func, ast.Attribute) and node.func.attr.endswith("_")
        return not in_place and not _is_builtin_call(node)
    return isinstance(node, ast.Return | ast.Yield)
