"""Notices where a net's layers are no longer those that its target network has."""

from collections.abc import Collection
from weakref import WeakSet

from torch import nn

LOOK_EVERY = 20  # training steps

MESSAGE = (
    "Layer {!r} of the net was replaced after the net was wrapped: it is {} now, where the target "
    "network has {}. Change a backbone before wrapping it, and wrap it anew after a change, with a "
    "new optimizer."
)


class AlikeWatch:
    """Compares a net's layers with those of its copy, now and then."""

    def __init__(self) -> None:
        self._wrapped: WeakSet[nn.Module] | None = None  # layers that the net had then
        self._steps = 0

    def wrapped(self, net: nn.Module) -> None:
        """Note the layers that the copy was made of."""
        self._wrapped = WeakSet(net.modules())

    def replaced(self, learner: nn.Module, net: nn.Module) -> str:
        """What to say, when a training step begins, of a layer that was replaced; "" of none."""
        self._steps += 1
        if (self._steps - 1) % LOOK_EVERY:
            return ""
        if self._wrapped is None:
            self.wrapped(net)
        assert self._wrapped is not None
        copied = learner.get_submodule("target").get_submodule("net")
        behind = set(getattr(learner, "_ddp_params_and_buffers_to_ignore", ()))
        return difference(net, copied, self._wrapped, behind)


def difference(
    net: nn.Module, copied: nn.Module, wrapped: Collection[nn.Module], behind: Collection[str]
) -> str:
    """Of two nets, the first layer that is another; "" where all are alike.

    Layers that were there when the net was wrapped, and are of another class by now, are what
    engines make of them. Layers behind the representation may be replaced: nobody reads them.
    """
    own, theirs = dict(net.named_modules()), dict(copied.named_modules())
    if any(name.endswith("_orig_mod") for name in own):
        return ""  # compiled layer by layer, of which the copy has the originals
    passed = ""
    for name in (*own, *(name for name in theirs if name not in own)):
        if passed and name.startswith(passed):
            continue
        now, before = own.get(name), theirs.get(name)
        if (now is not None and now in wrapped and before is not None) or _alike(now, before):
            continue
        if _is_behind(name, now, behind) or _is_behind(name, before, behind):
            passed = f"{name}."
            continue
        return MESSAGE.format(name, _named(now), _named(before))
    return ""


def _alike(now: nn.Module | None, before: nn.Module | None) -> bool:
    return type(now) is type(before) and _named(now) == _named(before)


def _named(layer: nn.Module | None) -> str:
    return "none" if layer is None else f"{type(layer).__name__}({layer.extra_repr()})"


def _is_behind(name: str, layer: nn.Module | None, behind: Collection[str]) -> bool:
    parameters = [] if layer is None else [n for n, _ in layer.named_parameters()]
    return bool(parameters) and all(f"online.net.{name}.{n}" in behind for n in parameters)
