"""Probes a net for its representation: runs it in both modes and leaves no trace."""

from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from byol_wrap.backbone.candidates import Candidates, candidates, doubt, what_there_is
from byol_wrap.backbone.certainty import MIXES
from byol_wrap.backbone.code import asks_for_its_mode
from byol_wrap.backbone.copying import copy_net, on_host, undisturbed
from byol_wrap.backbone.encoder import as_input
from byol_wrap.backbone.finding import Found, at, find_representation, held_behind
from byol_wrap.backbone.graph import ancestors, picks_tokens
from byol_wrap.backbone.independence import (
    dependence,
    detached_dependence,
    foreign,
    watched,
)
from byol_wrap.backbone.prepared import preparation
from byol_wrap.backbone.recording import Record, record
from byol_wrap.backbone.representation import Pool, Representation


@dataclass(frozen=True)
class Finding:
    """What a probe found.

    Attributes:
        representation: what represents an image.
        unused: names of the parameters that it does not depend on.
        behind: those among them whose layers are reached behind it alone.
        doubt: what to warn of; "" for nothing.
        slopes: how much the net itself scales each channel of what it is fed; None for not at all.
    """

    representation: Representation
    unused: frozenset[str]
    behind: frozenset[str]
    doubt: str
    slopes: tuple[float, ...] | None = None


def probe(
    net: nn.Module,
    sample: Tensor,
    hidden_layer: str | None,
    pool: Pool | None,
    target: nn.Module | None = None,
) -> Finding:
    """Find the representation of ``net`` by running a copy in both modes, and leave no trace.

    It is run in training mode, in which it will be trained; and in eval mode, in which it will be
    used, unless its code shows that this makes no difference.
    Training flags, buffers, attributes and the random state are afterwards what they were.

    Args:
        net: the user's net. Run itself only where it cannot be copied.
        sample: (B, ...), an input of the net.
        hidden_layer: see ``find_representation``.
        pool: see ``find_representation``.
        target: the copy that is to be the target network; None for a method without.

    Raises:
        ValueError, TypeError: see ``find_representation``; or no place is reached in both modes.
        RuntimeError: ``target`` depends on ``net``, or would not follow all that is trained.
    """
    if sample.is_meta:  # a copy on the host tells the same of a net without values
        host = on_host(net)
        drawn = torch.Generator("cpu")
        noise = torch.rand(sample.shape, generator=drawn, dtype=torch.float32, device="cpu").to(
            sample.dtype
        )
        return _Probe(host, host, noise, hidden_layer, pool).find()
    copied = target
    if copied is None:
        try:
            copied = copy_net(net)
        except RuntimeError:
            return _Probe(net, net, sample, hidden_layer, pool).find()
    with watched(net) as touched:
        tried = _Probe(net, copied, sample, hidden_layer, pool)
    why = dependence(net, touched, tried.training)
    if target is None:
        return (_Probe(net, net, sample, hidden_layer, pool) if why else tried).find()
    with watched(net):
        why = why or detached_dependence(net, copied, partial(tried.again, gradient=False))
    why = why or foreign(copied, tried.training.graph, partial(tried.again, gradient=True))
    if why:
        raise RuntimeError(why)
    return tried.find()


class _Probe:
    """Two runs of a copy, and what they tell."""

    def __init__(
        self,
        net: nn.Module,
        copied: nn.Module,
        sample: Tensor,
        hidden_layer: str | None,
        pool: Pool | None,
    ) -> None:
        self.asked = {name for name, p in net.named_parameters() if p.requires_grad}
        sample = as_input(copied, sample)
        self.sample = sample if len(sample) > 1 else torch.cat([sample, sample])  # for BatchNorm
        self.hidden_layer, self.pool, self.copied = hidden_layer, pool, copied
        with undisturbed(copied, sample.device):
            self.training = _run(copied, self.sample, training=True, gradient=True)
            self.alike = self.training.error is None and self._is_alike(copied)
            self.using = self.training
            if not self.alike:
                self.using = _run(copied, self.sample, training=False, gradient=True)

    def again(self, *, gradient: bool) -> Record:
        """Another run in training mode, from the same random state."""
        with undisturbed(self.copied, self.sample.device):
            return _run(self.copied, self.sample, training=True, gradient=gradient)

    def _is_alike(self, copied: nn.Module) -> bool:
        """Whether eval mode calls the same layers and gives the same kinds of values.

        Told by the net's code, or else by a run on a single item, which costs less.
        """
        if not asks_for_its_mode(copied):
            return True
        using = _run(copied, self.sample[:1], training=False, gradient=False)
        return using.error is None and self.training.outputs_alike(using)

    def find(self) -> Finding:
        """What represents an image in both modes."""
        _check_runs(self.using, self.sample)
        if self.alike:
            found = self._found(self.training)
            return self._finding(self.training, found, found.unused, "")
        if self.training.error is not None:
            found = self._reached_in(self.training, self._found(self.using), self.using)
            return self._finding(self.using, found, found.unused, "")
        found, other = self._found(self.training), self._found(self.using)
        found = self._reached_in(self.using, found, self.training)
        why = _disagreement(self.using, found, other)
        if found.choice.instead and not other.choice.instead:  # what is only there in training
            found = replace(found, choice=replace(found.choice, doubt="", instead=()))
        return self._finding(self.training, found, found.unused & other.unused, why)

    def _found(self, run: Record) -> Found:
        try:
            return find_representation(run, self.sample, self.hidden_layer, self.pool)
        except ValueError as error:
            if self.hidden_layer is not None:
                raise
            raise ValueError(f"{error} {what_there_is(run, self.sample)}") from error

    def _finding(self, run: Record, found: Found, unused: frozenset[str], why: str) -> Finding:
        behind = unused & held_behind(run, found)
        told, prepared = "", preparation(run, self.sample)
        if self.hidden_layer is None:
            if not why and prepared is not None and prepared.mixes:
                why = MIXES
            told = doubt(run, self.sample, found, why or self._draws(found), self.asked)
        slopes = None if prepared is None else prepared.slopes
        return Finding(found.representation, unused, behind, told, slopes)

    def _reached_in(self, run: Record, found: Found, first: Record) -> Found:
        """The same value, taken where it is reached in another forward than the first, too.

        Raises:
            ValueError: it is reached nowhere there.
        """
        for tap in found.choice.taps:
            value = tap.find(run)
            if value is not None and value.tensor.shape[1:] == tap.value.tensor.shape[1:]:
                return at(found, tap)
        error, tap = run.error, found.choice.taps[0]
        mode = "eval" if error is None else "training"
        why = "" if error is None else f" It fails there: {str(error).rstrip('.')}."
        where = f"layer {tap.layer!r}" if tap.layer else "the net's output"
        raise ValueError(
            f"What represents an image, the {tap.side} of {where}, is not reached in {mode} mode, "
            f"or is another there.{why} Choose a hidden_layer that is reached once in both modes. "
            + what_there_is(first, self.sample, run)
        ) from error

    def _draws(self, found: Found) -> str:
        """Whether it is drawn anew in each forward in eval mode, too, as some of the tokens are."""
        if found.value.place is None or not picks_tokens(found.value.place):
            return ""
        tap = next(t for t in found.choice.taps if t.is_at(found.representation))
        with undisturbed(self.copied, self.sample.device):
            run = partial(_run, self.copied, self.sample, training=False, gradient=False)
            values = [tap.find(run()), tap.find(run())]
        one, other = (torch.empty(0) if value is None else value.tensor for value in values)
        if one.shape == other.shape and torch.allclose(one, other, rtol=1e-3, atol=1e-5):
            return ""
        return "it is another in each call, in eval mode, too: the net draws which tokens it keeps"


def takes(net: nn.Module, sample: Tensor) -> bool:
    """Whether a copy of a net runs on a batch."""
    with undisturbed(net, sample.device):
        return _run(net, as_input(net, sample), training=False, gradient=False).error is None


def list_candidates(net: nn.Module, sample: Tensor) -> Candidates:
    """What could represent an image in a copy of a net; see ``representation_candidates``."""
    sample = as_input(net, sample)
    with undisturbed(net, sample.device):
        training = _run(net, sample, training=True, gradient=True)
        _check_runs(training, sample)
        try:
            found = find_representation(training, sample, None, None)
        except ValueError:
            return Candidates(candidates(training, sample, None), None)
        rows = candidates(training, sample, found.choice.taps[0])
        return Candidates(rows, found.representation)


def _run(net: nn.Module, sample: Tensor, *, training: bool, gradient: bool) -> Record:
    net.train(training)
    with torch.set_grad_enabled(gradient):
        return record(net, sample.clone())


def _check_runs(using: Record, sample: Tensor) -> None:
    if using.error is not None:
        raise ValueError(
            f"The net cannot take a batch of shape {tuple(sample.shape)}, {sample.dtype}: "
            f"{str(using.error).rstrip('.')}. {_advice(using, sample)}"
        ) from using.error


def _advice(using: Record, sample: Tensor) -> str:
    """What to do about a net that failed."""
    if isinstance(using.error, TypeError) and "required positional argument" in str(using.error):
        return (
            "Wrap it in a module whose forward takes images alone and gives it what else it needs."
        )
    if sample.ndim == 4 and takes(using.net, sample.permute(0, 2, 3, 1)):
        return (
            "It takes (B, H, W, C): wrap it in a module whose forward gives it "
            "x.permute(0, 2, 3, 1)."
        )
    return "Do image_size and channels suit it? Other images need image_size= and channels=."


def _disagreement(using: Record, found: Found, other: Found) -> str:
    """What to say where eval mode leads to another value than training; "" where it does not.

    What lies between the two may have no parameters, and must keep the size. What was chosen may
    be what the net gives then.
    """
    tap = next(t for t in found.choice.taps if t.is_at(found.representation))
    value = tap.find(using)
    if value is not None and value.place and value.place in [v.place for v in using.net_outputs]:
        return ""
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
