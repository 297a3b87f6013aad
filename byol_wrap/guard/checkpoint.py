"""A learner's checkpoints: they fit, or they are refused before anything is changed."""

import inspect
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parameter import is_lazy

from byol_wrap.guard.settled import Settled

FED = "fed"  # in a state what training was fed, and no tensor of the module; it may be left out
WAITS = "online.projector."  # names of what waits for the representation's size
MEANING = "byol_wrap"  # in its metadata what its tensors were made for

FOREIGN = {
    "module.": "It was saved from a DistributedDataParallel: save parallel.module.state_dict(), or "
    "strip 'module.' from its keys.",
    "_orig_mod.": "It was saved from a compiled learner: save the learner's own state_dict(), or "
    "strip '_orig_mod.' from its keys.",
    "online_encoder.": "It looks like byol-pytorch's: load its keys under 'net.' into your "
    "backbone and wrap that.",
}


def check_fits(
    own: Mapping[str, Any], given: Mapping[str, Any], net_keys: Iterable[str], *, names: bool
) -> None:
    """Compare names and shapes of two states; sizes that are not known yet fit any.

    Args:
        own: the learner's state.
        given: the checkpoint's.
        net_keys: keys of the backbone's own state, to recognise one.
        names: whether names count; shapes always do.

    Raises:
        RuntimeError: they differ; the message names the first difference and how many there are.
    """
    problems = []
    for name, tensor in own.items():
        if name not in given:
            if names:
                problems.append(f"{name!r} is missing")
        elif not is_lazy(tensor) and _shape(tensor) != _shape(given[name]):
            shapes = f"{_shape(given[name])} where the learner has {_shape(tensor)}"
            problems.append(f"{name!r} has shape {shapes}")
    if names:
        problems += [f"{name!r} is not in the learner" for name in given if name not in own]
    if not problems:
        return
    hints = foreign(given)
    if given.keys() == set(net_keys):
        hints = ["It looks like the backbone's own: learner.net.load_state_dict(...)."]
    hints.append("Wrap the net, and with the arguments, that the checkpoint was saved with.")
    raise RuntimeError(
        f"The checkpoint does not fit, and the learner is left as it was: {problems[0]} "
        f"({len(problems)} in all differ). {hints[0]}"
    )


def foreign(given: Iterable[str]) -> list[str]:
    """What to do about names of others' states."""
    return [hint for prefix, hint in FOREIGN.items() if any(k.startswith(prefix) for k in given)]


def nothing_fits(given: Iterable[str]) -> str:
    """What to say where a state, loaded with strict=False, has no name in common with a learner."""
    names = ", ".join(map(repr, list(given)[:3]))
    instead = [*foreign(given), "A backbone's own is loaded by learner.net.load_state_dict(...)."]
    return (
        f"Nothing was loaded: none of the state's names, such as {names}, is the learner's. "
        f"{instead[0]}"
    )


def check_finite(own: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Refuse the state of a training that was lost; buffers of the user's net may hold anything.

    Raises:
        RuntimeError: a parameter is NaN, or what is the learner's own is not finite.
    """
    for name, value in given.items():
        if not isinstance(value, Tensor) or not value.is_floating_point() or value.is_meta:
            continue
        of_net = ".net." in name
        if of_net and not isinstance(own.get(name), nn.Parameter):
            continue
        wrong = value.isnan() if of_net else ~value.isfinite()
        if name in own and bool(wrong.any()):
            raise RuntimeError(
                f"The checkpoint's {name!r} is not finite, and the learner is left as it was: "
                "training was lost before it was saved. Go back to an earlier one."
            )


def differences(own: Mapping[str, str], saved: Mapping[str, str]) -> str:
    """What to say of a state that was made for something else; "" where it was not."""
    told = [
        f"its {name} is {saved[name]}, this learner's is {mine}"
        for name, mine in own.items()
        if saved.get(name, mine) != mine
    ]
    if not told:
        return ""
    return (
        f"The checkpoint was saved by a learner of other arguments: {'; '.join(told)}. Unless that "
        "is meant, wrap the net with the arguments that it was saved with."
    )


def sized_by_loading(module: nn.Module) -> Iterator[str]:
    """Names of buffers that get their size from a state, as observers for quantisation do it."""
    usual = (nn.Module._load_from_state_dict, _NormBase._load_from_state_dict)
    for path, part in module.named_modules():
        if not isinstance(part, Checkpointed) and type(part)._load_from_state_dict not in usual:
            yield from (f"{path}.{name}" for name, _ in part.named_buffers(recurse=False))


def _shape(value: Any) -> tuple[int, ...] | str:
    return tuple(value.shape) if hasattr(value, "shape") else f"of a {type(value).__name__}"


class Checkpointed(Settled):
    """A module whose state is loaded whole or not at all, also while parts of it have no size."""

    @property
    def net(self) -> nn.Module:
        """The user's backbone, whose own state is told from the module's."""
        raise NotImplementedError

    def _size_heads(self, size: int) -> None:
        """Give heads that wait for it the size of the representation."""
        raise NotImplementedError

    def _sized_heads(self, size: int) -> dict[str, Any]:
        """What the state of heads that wait for a size would be with it; changes nothing."""
        raise NotImplementedError

    def _state_is_loaded(self, given: Mapping[str, Any], fed: Any) -> None:
        """What was derived from the old state is out of date.

        Args:
            given: the state that is loaded.
            fed: what the state has under ``FED``, if anything.
        """

    def _meaning(self) -> dict[str, str]:
        """What the state's tensors were made for, which their shapes do not tell: names, words."""
        return {}

    def _is_meant(self, saved: Mapping[str, str]) -> None:
        """A state is loaded whose tensors were made for something; see ``_meaning``."""

    def _not_loaded(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """What of a state is left out, as this module has no use for it: names and own values."""
        return {}

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """As ``nn.Module.load_state_dict``, but a state that does not fit changes nothing.

        Raises:
            RuntimeError: names (unless ``strict`` is False) or shapes differ; the message names the
                first that does.
        """
        self._check_fits(state_dict, names=strict)
        return super().load_state_dict(state_dict, strict, assign)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        if any(is_lazy(parameter) for parameter in self.parameters()):
            raise RuntimeError(
                "The heads have no size yet, so there is no state to save: give image_size= to "
                f"{type(self).__name__}, or run one batch first."
            )
        # Where torch keeps its own versions: what holds tensors alone has no place for words.
        metadata = getattr(destination, "_metadata", {})
        metadata.setdefault(prefix[:-1], {})[MEANING] = self._meaning()
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, local_metadata: Any, *args: Any
    ) -> None:
        fed = state_dict.pop(prefix + FED, None)
        given = {k[len(prefix) :]: v for k, v in state_dict.items() if k.startswith(prefix)}
        self._check_fits(given, names=is_loaded_strictly())  # also as a part of another module
        size = self._size_in(given)
        if size is not None:
            self._size_heads(size)
        state_dict |= {prefix + name: value for name, value in self._not_loaded(given).items()}
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)
        self._state_is_loaded(given, fed)
        self._is_meant(local_metadata.get(MEANING, {}))

    def _check_fits(self, given: Mapping[str, Any], *, names: bool) -> None:
        given = {name: value for name, value in given.items() if name != FED}
        own: dict[str, Any] = {}
        nn.Module._save_to_state_dict(self, own, "", keep_vars=True)
        for name, part in self.named_children():
            own |= part.state_dict(prefix=f"{name}.", keep_vars=True)
        size = self._size_in(given)
        if size is not None:
            own |= self._sized_heads(size)
        check_finite(own, given)
        own |= {name: given[name] for name in self._not_loaded(given)}
        own |= {name: given[name] for name in sized_by_loading(self) if name in given}
        # A module that renames keys of old checkpoints in a hook knows its keys better.
        renames = any(m._load_state_dict_pre_hooks for m in (self, *self.net.modules()))
        check_fits(own, given, self.net.state_dict(), names=names and not renames)

    def _size_in(self, given: Mapping[str, Any]) -> int | None:
        """The representation's size by a state; None where no head waits for it, or none is told.

        Of what is no matrix a size that cannot fit, so that it is refused.
        """
        named = self.named_parameters()
        waiting = next((n for n, p in named if is_lazy(p) and n.startswith(WAITS)), None)
        if waiting is None or waiting not in given:
            return None
        shape = _shape(given[waiting])
        return shape[1] if isinstance(shape, tuple) and len(shape) == 2 else 1


LOADING = nn.Module.load_state_dict.__code__


def is_loaded_strictly() -> bool:
    """Whether a module that is loaded now, with all its parts, should have every name of a state.

    ``load_state_dict`` keeps that to itself, and tells parts "strict" whatever it was told: it is
    read off the call. Loaders of others that go through the parts themselves are taken as lenient.
    """
    frame = inspect.currentframe()
    while frame is not None and frame.f_code is not LOADING:
        frame = frame.f_back
    return frame is not None and bool(frame.f_locals.get("strict"))
