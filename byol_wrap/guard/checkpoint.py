"""Whether a checkpoint fits a learner, asked before anything is loaded."""

from collections.abc import Iterable, Mapping
from typing import Any

from torch.nn.parameter import is_lazy

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
    hints = [hint for prefix, hint in FOREIGN.items() if any(k.startswith(prefix) for k in given)]
    if given.keys() == set(net_keys):
        hints = ["It looks like the backbone's own: learner.net.load_state_dict(...)."]
    hints.append("Wrap the net, and with the arguments, that the checkpoint was saved with.")
    raise RuntimeError(
        f"The checkpoint does not fit, and the learner is left as it was: {problems[0]} "
        f"({len(problems)} in all differ). {hints[0]}"
    )


def _shape(value: Any) -> tuple[int, ...] | str:
    return tuple(value.shape) if hasattr(value, "shape") else f"of a {type(value).__name__}"
