"""The copy of a user's net: made, probed for its representation, shown to be independent."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from byol_wrap.backbone.candidates import Candidates, candidates, doubt
from byol_wrap.backbone.encoder import as_input
from byol_wrap.backbone.finding import Found, at, find_representation, held_behind
from byol_wrap.backbone.graph import ancestors
from byol_wrap.backbone.modes import eval_mode
from byol_wrap.backbone.reading import Pool, Representation
from byol_wrap.backbone.recording import Record, record


@dataclass(frozen=True)
class Finding:
    """What a probe found.

    Attributes:
        representation: what represents an image.
        unused: names of the parameters that it does not depend on.
        behind: those among them whose layers are reached behind it alone.
        doubt: what to warn of; "" for nothing.
    """

    representation: Representation
    unused: frozenset[str]
    behind: frozenset[str]
    doubt: str


def copy_net(net: nn.Module) -> nn.Module:
    """A deep copy of a user's net, to be its moving average, or to be run in its place.

    Raises:
        RuntimeError: it cannot be copied.
    """
    # Values that a forward left on a module (a cached output, an old-style weight norm's weight)
    # belong to a graph, which cannot be copied: the copy gets them without it.
    cached = {
        id(value): value.detach().clone()
        for module in net.modules()
        for value in vars(module).values()
        if isinstance(value, Tensor) and not value.is_leaf
    }
    try:
        with torch.no_grad():  # else the copies of a scripted module's parameters have a graph
            return copy.deepcopy(net, cached)
    except Exception as error:
        raise RuntimeError(
            f"net cannot be copied for the target network: copy.deepcopy(net) says {error}"
        ) from error


def probe(
    net: nn.Module,
    sample: Tensor,
    hidden_layer: str | None,
    pool: Pool | None,
    original: nn.Module | None = None,
) -> Finding:
    """Find the representation of ``net`` by running it in both modes, and leave no trace.

    It is run with gradient in training mode, in which it will be trained, and without in eval mode,
    in which it will be used; with gradient there, too, where the two do not call the same layers.
    Training flags, buffers, attributes and the random state are afterwards what they were.

    Args:
        net: a copy of the user's net.
        sample: (B, ...), an input of the net.
        hidden_layer: see ``find_representation``.
        pool: see ``find_representation``.
        original: the user's net, which tells what is to be trained.

    Raises:
        ValueError, TypeError: see ``find_representation``; or no place is reached in both modes.
    """
    sample = as_input(net, sample)
    pair = sample if len(sample) > 1 else torch.cat([sample, sample])  # BatchNorm needs two
    asked = {n for n, p in (original or net).named_parameters() if p.requires_grad}
    with _undisturbed(net, sample.device):
        training = _run(net, pair, training=True, gradient=True)
        using = _run(net, pair[:1], training=False, gradient=False)
        if training.error is using.error is None and training.outputs_alike(using):
            found = find_representation(training, pair, hidden_layer, pool)
            return _finding(training, pair, found, found.unused, "", asked, hidden_layer)
        using = _run(net, pair, training=False, gradient=True)
        _check_runs(using, pair)
        if training.error is not None:
            found = find_representation(using, pair, hidden_layer, pool)
            found = _reached_in(training, found, training.error)
            return _finding(using, pair, found, found.unused, "", asked, hidden_layer)
        found = find_representation(training, pair, hidden_layer, pool)
        other = find_representation(using, pair, hidden_layer, pool)
        found = _reached_in(using, found, None)
        why = _disagreement(using, found, other)
        unused = found.unused & other.unused
        return _finding(training, pair, found, unused, why, asked, hidden_layer)


def takes(net: nn.Module, sample: Tensor) -> bool:
    """Whether a copy of a net runs on a batch."""
    with _undisturbed(net, sample.device):
        return _run(net, as_input(net, sample), training=False, gradient=False).error is None


def list_candidates(net: nn.Module, sample: Tensor) -> Candidates:
    """What could represent an image in a copy of a net; see ``representation_candidates``."""
    sample = as_input(net, sample)
    with _undisturbed(net, sample.device):
        training = _run(net, sample, training=True, gradient=True)
        _check_runs(training, sample)
        try:
            found = find_representation(training, sample, None, None)
        except ValueError:
            return Candidates(candidates(training, sample, None), None)
        rows = candidates(training, sample, found.choice.taps[0])
        return Candidates(rows, found.representation)


def _finding(
    record: Record,
    sample: Tensor,
    found: Found,
    unused: frozenset[str],
    why: str,
    asked: set[str],
    hidden_layer: str | None,
) -> Finding:
    behind = frozenset(held_behind(record, found)) & unused
    told = doubt(record, sample, found, why, asked) if hidden_layer is None else ""
    return Finding(found.representation, unused, behind, told)


def _run(net: nn.Module, sample: Tensor, *, training: bool, gradient: bool) -> Record:
    net.train(training)
    with torch.set_grad_enabled(gradient):
        return record(net, sample.clone())


@contextmanager
def _undisturbed(net: nn.Module, device: torch.device) -> Iterator[None]:
    """Let all parameters ask for a gradient for a moment; put back all that a forward changes."""
    modules = [m for m in net.modules() if not isinstance(m, torch.jit.ScriptModule)]
    attributes = [(module, dict(vars(module))) for module in modules]
    buffers = [
        (module, name, buffer, buffer.clone())
        for module in net.modules()
        for name, buffer in module.named_buffers(recurse=False)
    ]
    asked = [(parameter, parameter.requires_grad) for parameter in net.parameters()]
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []), eval_mode(net):
            for parameter, _ in asked:
                if parameter.is_floating_point():
                    parameter.requires_grad_(True)
            yield
    finally:
        for parameter, gradient in asked:
            parameter.requires_grad = gradient
        for module, before in attributes:
            vars(module).clear()
            vars(module).update(before)
        with torch.no_grad():
            for module, name, buffer, values in buffers:
                setattr(module, name, buffer.copy_(values))


def _check_runs(using: Record, sample: Tensor) -> None:
    if using.error is not None:
        raise ValueError(
            f"The net cannot take a batch of shape {tuple(sample.shape)}, {sample.dtype}: "
            f"{str(using.error).rstrip('.')}. Do image_size and channels suit it?"
        ) from using.error


def _reached_in(record: Record, found: Found, error: Exception | None) -> Found:
    """The same value, taken where it is reached in another forward, too.

    Raises:
        ValueError: it is reached nowhere there.
    """
    for tap in found.choice.taps:
        value = tap.find(record)
        if value is not None and value.tensor.shape[1:] == tap.value.tensor.shape[1:]:
            return at(found, tap)
    mode = "eval" if error is None else "training"
    tap = found.choice.taps[0]
    why = "" if error is None else f" It fails there: {str(error).rstrip('.')}."
    where = f"layer {tap.layer!r}" if tap.layer else "the net's output"
    raise ValueError(
        f"What represents an image, the {tap.side} of {where}, is not reached in {mode} mode, or "
        f"is another there.{why} Choose a hidden_layer that is reached once in both modes."
    ) from error


def _disagreement(using: Record, found: Found, other: Found) -> str:
    """What to say where eval mode leads to another value than training; "" where it does not.

    What lies between the two may have no parameters, and must keep the size.
    """
    tap = next(t for t in found.choice.taps if t.is_at(found.representation))
    value = tap.find(using)
    here, there = found.representation, other.representation
    if value is not None and value.place and other.value.place:
        behind = value.place[0] in ancestors(other.value.place)
        same = using.graph.bits(value.place) == using.graph.bits(other.value.place)
        if behind and same and here.size == there.size:
            return ""
    return (
        f"in eval mode the net leads to {there.where} (size {there.size}) instead, since it calls "
        "other layers or gives other values then"
    )
