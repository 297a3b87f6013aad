"""Whether what was chosen has a shape that is known to be features, and how it may go wrong.

What is not known is told: a list of what may be scores would never be complete.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction

from byol_wrap.backbone.branches import is_picked
from byol_wrap.backbone.classifier import ACTIVATIONS, NORMS, RESHAPES
from byol_wrap.backbone.graph import Edge, ancestors, channel_dim, dims, kind, parents, shape_of
from byol_wrap.backbone.measuring import Measure
from byol_wrap.backbone.recording import Call, Record
from byol_wrap.backbone.scores import are_scores, score_places
from byol_wrap.backbone.taps import Tap

_LEARNED = "Convolution Addmm Mm Linear NativeLayerNorm NativeGroupNorm FusedRmsNorm CudnnRnn"
_JOINED = "Add Addcmul Sub Lerp Mul Maximum Bmm Pow Sqrt Abs PreluKernel Relu6 Hardsigmoid"
GIVES_FEATURES = ACTIVATIONS | frozenset((*NORMS, *_LEARNED.split(), *_JOINED.split()))
GIVES_FEATURES_WITHIN = ("Rnn", "Lstm", "Gru", "MaxPool", "ScaledDotProduct", "Checkpoint")
SCALES = ("Add", "Sub", "Mul", "Div", "Addcmul", "Lerp")
REDUCES = ("Sum", "Max", "Amax", "Logsumexp")
PASSES = frozenset(
    (*RESHAPES.split(), *REDUCES, "Mean", "NativeDropout", "Div", "Where", "CopySlices")
)
PASSES_WITHIN = ("AvgPool", "Pad")
PERHAPS_SCORES = ("Bmm", "Maximum")  # of an output; what classifiers read may end so
MIXES = "the net mixes the images of a batch on the way to it, as mixup does"
PUTS = ("IndexAdd", "IndexCopy", "IndexPut", "IndexPutImpl")
REORDERS = ("Index", "IndexSelect", "Flip", "Roll")


def uncertainty(measure: Measure, tap: Tap, ends: Sequence[Edge], trainable: set[str]) -> str:
    """Why what was chosen may not be an image's features; "" where it has a known shape.

    Args:
        measure: of the forward on which it was found.
        tap: where it is taken.
        ends: places of the net's outputs that are made by classifiers.
        trainable: names of the parameters that the user lets be trained.
    """
    record, value = measure.record, tap.value
    if value.place is None:
        return ""
    return (
        (are_scores(measure, value) or score_places(measure, value) if tap.layer == "" else "")
        or _last_step(record, value.place, value.tensor.ndim == 2 and not ends, bool(ends))
        or _holds_what_is_fed(value.place)
        or _is_one_of_several(record, tap)
        or _mixes_images(record, value.place)
        or _is_read_detached(record, tap)
        or _is_cut_off(record, value.place, trainable)
    )


def _last_step(record: Record, place: Edge, is_output: bool, is_classified: bool) -> str:
    """Whether no last step of a value, but for what reshapes and pools, is known for features.

    Classifiers read logarithms of powers, too; as an output, they may be of probabilities.
    """
    nodes, seen, last = [place[0]], set(), []
    layers = {v.place[0] for call in record.calls for v in call.outputs if call.name and v.place}
    while nodes:
        node = nodes.pop()
        name = kind(node)
        if node in seen:
            continue
        seen.add(node)
        is_product = name.endswith(PERHAPS_SCORES) and is_output
        made_of = [parent for parent, _ in parents(node) if not hasattr(parent, "variable")]
        if name in SCALES and len(made_of) == 1:  # with a number, or a parameter
            nodes += made_of
            continue
        is_product |= name == "Convolution" and is_output and node not in layers
        if not is_product and (
            name in GIVES_FEATURES or any(word in name for word in GIVES_FEATURES_WITHIN)
        ):
            return ""
        passes = name in PASSES or any(word in name for word in PASSES_WITHIN)
        passes |= name == "Log" and is_classified
        passes |= _is_own_activation(node)
        if passes and not (name in REDUCES and _reduces_channels(node)):
            nodes += made_of
        elif not hasattr(node, "variable"):
            last.append(name)
    if not last:
        return ""
    return f"its last step, {last[0]}, is none that is known to give features"


def _is_own_activation(node: Any) -> bool:
    """Whether it is a function of the net's own that keeps the shape of the one value it reads."""
    before = parents(node)
    is_one = isinstance(node, BackwardCFunction) and len(before) == 1
    return is_one and shape_of(*before[0]) == shape_of(node)


def _holds_what_is_fed(place: Edge) -> str:
    """Whether a part of it was made by no layer, as what is left of a series between stages."""
    node = place[0]
    while kind(node) in (*RESHAPES.split(), "Mean") and kind(node) != "Cat":
        if len(parents(node)) != 1:
            return ""
        node = parents(node)[0][0]
    made = [part is not None for part, _ in getattr(node, "next_functions", ())]
    holds = kind(node) == "Cat" and len(made) > sum(made) > 0
    holds |= kind(node) in ("Add", "Sub") and made == [False, True]
    return "a part of it was made by no layer: it may be what the net is fed" if holds else ""


def _reduces_channels(node: Any) -> bool:
    before = parents(node)[:1]
    own = channel_dim(before[0]) if before else None
    return own is not None and own in dims(node)


def _is_one_of_several(record: Record, tap: Tap) -> str:
    if not tap.layer or not is_picked(record, tap.layer):
        return ""
    return "it is in one of several parts, of which not all run: other images may not reach it"


def _mixes_images(record: Record, place: Edge) -> str:
    """Whether images of a batch come into each other's values, in another order."""
    nodes = ancestors(place)
    put_back = [index for node in nodes if kind(node) in PUTS for index in _indices(node)]
    for node in nodes:
        if kind(node) in REORDERS and _reorders(node, record.batch):
            own = _indices(node)
            if not any(torch.equal(index, other) for index in own for other in put_back):
                return MIXES
        if kind(node) == "Mm" and _compares(record, node):
            return MIXES
    return ""


def _compares(record: Record, node: Any) -> bool:
    """Whether it multiplies images with images."""
    factors = parents(node)
    is_square = shape_of(node) == (record.batch, record.batch) and len(factors) == 2
    return is_square and all(record.depends_on_images(factor) for factor, _ in factors)


def _indices(node: Any) -> list[Tensor]:
    """The places that an operation takes images from, or puts them at."""
    found = [getattr(node, "_saved_index", None), *getattr(node, "_saved_indices", ())]
    return [index for index in found if isinstance(index, Tensor)]


def _reorders(node: Any, batch: int) -> bool:
    shape = shape_of(node)
    if not parents(node) or shape[:1] != (batch,) or shape != shape_of(*parents(node)[0]):
        return False
    if kind(node) == "Index":
        index = node._saved_indices[0]  # a mask keeps the order
        return index is not None and index.shape == (batch,) and index.dtype != torch.bool
    return 0 in dims(node, "_saved_dim" if kind(node) == "IndexSelect" else "_saved_dims")


def _is_read_detached(record: Record, tap: Tap) -> str:
    """Whether what it is made from is read detached, as by a probe, or given so, as a target is."""
    assert tap.value.place is not None
    behind = ancestors(tap.value.place) - {tap.value.place[0]}
    given = [(c.input, f"the input of {c.name!r}") for c in record.calls if c.input and c.name]
    # Outputs come behind inputs, and of those what contains others.
    made = [(v, f"the output of {c.name!r}") for c in record.calls if c.name for v in c.outputs]
    kept = {
        value.tensor.data_ptr(): (name, value.tensor.shape)
        for value, name in [*given, *made]
        if value.place and value.place[0] in behind and value.tensor.layout is torch.strided
    }
    readers = [
        (f"layer {call.name!r} reads", call.input)
        for call in record.calls
        if call.layer._parameters and call.input is not None
    ]
    for who, value in [*readers, *(("the net gives", output) for output in record.net_outputs)]:
        if value.place is not None or value.tensor.layout is not torch.strided:
            continue
        name, shape = kept.get(value.tensor.data_ptr(), ("", None))
        if shape == value.tensor.shape:
            return f"{who} {name}, detached, as a probe reads features, or a target is given"
    return ""


def _is_cut_off(record: Record, place: Edge, trainable: set[str]) -> str:
    """Whether layers lie before it that no output of the net trains, since a value is detached."""
    idle = _idle(record, trainable)
    if not idle:
        return ""
    behind, events = ancestors(place), record.events
    first = min(events.index((call.name, "output")) for call in idle)
    for call in sorted(record.calls, key=lambda call: events.index((call.name, "input"))):
        given = call.input
        if given is None or given.place is not None or not given.tensor.is_floating_point():
            continue
        late = events.index((call.name, "input")) > first
        on_the_way = any(v.place and v.place[0] in behind for v in call.outputs)
        if late and on_the_way and given.tensor.shape[:1] == (record.batch,):
            return (
                f"no gradient passes to what lies before layer {call.name!r}, {idle[0].name!r} "
                "among it: it will not be trained"
            )
    return ""


def _idle(record: Record, trainable: set[str]) -> list[Call]:
    """Calls of layers with own parameters to train that no output of the net depends on."""
    bits = 0
    for output in record.net_outputs:
        bits |= record.graph.bits(output.place)
    if bits & 1:
        return []
    reached = {leaf for i, leaf in enumerate(record.graph.leaves, 1) if bits >> i & 1}
    left = {n for n, p in record.net.named_parameters() if id(p) not in reached} & trainable
    return [call for call in record.calls if _owns(call.name, call.layer, left)] if left else []


def _owns(name: str, layer: nn.Module, left: set[str]) -> bool:
    own = [f"{name}.{key}" if name else key for key in layer._parameters]
    return bool(name) and any(key in left for key in own)
