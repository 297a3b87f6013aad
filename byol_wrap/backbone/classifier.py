"""Follows a net's output back to what its classifiers read.

Past what only reshapes, scales, squashes, adds, stacks or selects, to the last layers that mix
features.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from byol_wrap.backbone.graph import Edge, ancestors, in_order, kind, parents, shape_of
from byol_wrap.backbone.products import features_of, is_by_parameter, is_fixed
from byol_wrap.backbone.recording import Call, Record
from byol_wrap.backbone.slices import cut_out

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
RESHAPES = (
    "View UnsafeView Reshape ReshapeAlias Squeeze Unsqueeze Permute Transpose T Expand AsStrided "
    "Clone Alias ToCopy Slice Select Index IndexSelect Gather Unbind Split SplitWithSizes "
    "UnsafeSplit Cat Stack Flip Roll Repeat ConstantPadNd PixelShuffle UpsampleBilinear2D "
    "UpsampleNearest1D UpsampleNearest2D UpsampleNearest3D UpsampleTrilinear3D UpsampleLinear1D "
    "UpsampleBicubic2D Col2Im Im2Col IndexPut IndexPutImpl IndexAdd IndexCopy Scatter ScatterAdd "
    "MaskedScatter"
)
SCALES = "Mul Div Add Sub Rsub Neg Addcmul Pow Sqrt Rsqrt Reciprocal Where MaskedFill NativeDropout"
SQUASHES = (
    "Softmax LogSoftmax Tanh Sigmoid LogSigmoid Hardsigmoid Clamp ClampMin ClampMax Softplus "
    "Exp Log Abs Cos Sin"
)
CLAMPS = ("Hardtanh", "Relu6")  # of vectors; in maps they are activations
REDUCES = (
    "Mean Sum Max Amax Min Logsumexp LinalgVectorNorm Norm AvgPool2D AvgPool3D AdaptiveAvgPool2D "
    "AdaptiveAvgPool3D MkldnnAdaptiveAvgPool2D"
)
PASSED = frozenset(" ".join((RESHAPES, SCALES, SQUASHES, REDUCES)).split())
_ACTIVATIONS = "Relu Gelu Silu LeakyRelu Elu Hardswish Hardtanh Mish Prelu Tanh Sigmoid Softplus"
_BETWEEN = "NativeBatchNorm CudnnBatchNorm NativeLayerNorm NativeDropout Mul View"
ACTIVATIONS, BETWEEN = frozenset(_ACTIVATIONS.split()), frozenset(_BETWEEN.split())
RECTIFIERS = ("Relu", "LeakyRelu", "Elu", "Hardtanh", "Silu", "Gelu", "Prelu")
NORMS = ("NativeBatchNorm", "CudnnBatchNorm", "MiopenBatchNorm")
EQUAL = 0.8  # of the parameters that the largest depends on: about as many
MANY = 8  # times as many channels read as given: more than a block of a backbone narrows
ATTENTION = ("Bmm", "ScaledDotProduct")  # what gives a weighted sum of values


@dataclass(frozen=True, eq=False)
class Head:
    """A last layer that mixes features.

    Attributes:
        reads: the value that it reads.
        gives: the node of what it gives.
        call: of the layer; None where the net multiplies with a parameter of its own.
        is_projection: whether it is a product with a parameter as it is: of no layer's,
            and not with what was computed, as the features of another tower are.
        is_rectified: whether it is a convolution whose scores go through an activation.
        is_normed: whether it is a convolution whose scores go through a BatchNorm.
    """

    reads: Edge
    gives: Any
    call: Call | None
    is_projection: bool = False
    is_rectified: bool = False
    is_normed: bool = False

    @property
    def narrows(self) -> bool:
        """Whether it gives at most half as many channels as it reads."""
        return self.narrows_by(2)

    def narrows_by(self, times: int) -> bool:
        """Whether it is no convolution, or reads that many times as many channels as it gives."""
        layer = None if self.call is None else self.call.layer
        if not isinstance(layer, CONVOLUTIONS):
            return True
        return layer.out_channels * times <= layer.in_channels


def is_mixing(layer: nn.Module) -> bool:
    """Whether it is a Linear, or the convolution that some nets have in its place."""
    return isinstance(layer, nn.Linear) or (
        isinstance(layer, CONVOLUTIONS) and all(size == 1 for size in layer.kernel_size)
    )


def heads_of(record: Record, place: Edge, *, is_last: bool = False) -> list[Head]:
    """The heads that a value is made of, and of nothing else, in the order in which they ran.

    Empty where it is made of something else, too.

    Args:
        record: of a forward.
        place: of the value.
        is_last: whether vectors that are added to themselves, at a net's very end, are followed,
            too: scores are refined so, as well as features.
    """
    layers, attended = layers_of(record), _ends_of_attentions(record)
    found: dict[Any, frozenset[Head] | None] = {}
    for node in in_order([place[0]]):
        if node in layers:
            found[node] = frozenset([layers[node]])
        elif hasattr(node, "variable"):
            found[node] = frozenset()  # a scale, or a shift
        elif node in attended:
            found[node] = None  # features, as of a residual block
        else:
            found[node] = _activated(node, found) or _passed(record, node, found, is_last)
    rank = {node: i for i, node in enumerate(found)}
    heads = sorted(found[place[0]] or (), key=lambda head: rank[head.gives])
    return sorted(heads, key=_order(record))


def layers_of(record: Record) -> dict[Any, Head]:
    """The layers that mix features, by the nodes of what they give."""
    layers = {}
    for call in record.calls:
        given = call.input.place if call.input is not None else None
        if (is_mixing(call.layer) or _sees_all(call)) and given is not None and call.outputs:
            place = call.outputs[0].place
            if place is not None and not _is_of_attention(call.layer, given):
                layers[place[0]] = Head(given, place[0], call)
    return layers


def _ends_of_attentions(record: Record) -> set[Any]:
    """The nodes of what an attention's own last layer gives."""
    return {
        call.outputs[0].place[0]
        for call in record.calls
        if call.input and call.input.place and call.outputs and call.outputs[0].place
        if _is_of_attention(call.layer, call.input.place)
    }


def _sees_all(call: Call) -> bool:
    """Whether a convolution's kernel is as large as the map that it reads."""
    layer, given = call.layer, call.input
    if not isinstance(layer, CONVOLUTIONS) or given is None:
        return False
    return given.tensor.shape[2:] == torch.Size(layer.kernel_size) and layer.groups == 1


def _is_of_attention(layer: nn.Module, given: Edge) -> bool:
    """Whether a layer is an attention's own last one, which keeps the size of what was summed."""
    is_square = isinstance(layer, nn.Linear) and layer.in_features == layer.out_features
    return is_square and is_attended(given)


def is_attended(place: Edge) -> bool:
    """Whether a value is what an attention sums up."""
    node = place[0]
    while kind(node) in (*RESHAPES.split(), "Mean") and len(parents(node)) == 1:
        node = parents(node)[0][0]
    return kind(node).startswith(ATTENTION)


def trunk_of(record: Record, head: Head) -> Edge | None:
    """What the first layer of a head of several reads.

    None where the head is a single layer, or all layers of a net that has no others: a plain MLP.
    """
    layers, trunk = layers_of(record), None
    node, is_activated = head.reads[0], False
    while True:
        before = parents(node)
        if node in layers and is_activated and _is_in_place(layers[node]):
            trunk, is_activated = layers[node].reads, False
            node = trunk[0]
        elif len(before) and (kind(node) in ACTIVATIONS or kind(node) in BETWEEN):
            is_activated |= kind(node) in ACTIVATIONS
            node = before[0][0]
        else:
            return None if _reads_what_is_fed(node) else trunk


def _is_in_place(head: Head) -> bool:
    """Whether it reads vectors, or maps place by place: no convolution over all of a map."""
    return head.call is not None and is_mixing(head.call.layer)


def _reads_what_is_fed(node: Any) -> bool:
    """Whether a Linear gave it that has nothing but the net's input to read."""
    return {kind(each) for each in in_order([node])} <= {"Addmm", "Mm", "T", "AccumulateGrad"}


def _activated(node: Any, found: dict[Any, frozenset[Head] | None]) -> frozenset[Head] | None:
    """The convolution whose scores a node rectifies, where it has a bias, or normalises.

    A backbone's last convolution has no bias, a norm and an activation behind it.
    """
    before = [found[parent] for parent, _ in parents(node)]
    if not before or not before[0] or len(before[0]) > 1:
        return None
    head = next(iter(before[0]))
    layer = None if head.call is None else head.call.layer
    if not isinstance(layer, CONVOLUTIONS):
        return None
    if kind(node) in NORMS:
        return frozenset([replace(head, is_normed=True)])
    if kind(node) in RECTIFIERS and layer.bias is not None and not head.is_normed:
        return frozenset([replace(head, is_rectified=True)])
    return None


def _adds_to_itself(parts: Sequence[frozenset[Head]]) -> bool:
    """Whether, as in a residual block, one part is what another reads."""
    behind = [set().union(*(ancestors(head.reads) for head in part)) for part in parts]
    return any(
        head.gives in nodes
        for i, part in enumerate(parts)
        for j, nodes in enumerate(behind)
        if i != j
        for head in part
    )


def _passed(
    record: Record, node: Any, found: dict[Any, frozenset[Head] | None], is_last: bool
) -> frozenset[Head] | None:
    before = [found[parent] for parent, _ in parents(node)]
    read = features_of(node, found, record.depends_on_images)
    if read is not None and _is_expectation(node, read):
        return found[read[0]]
    if read is not None:
        return frozenset([Head(read, node, None, is_projection=is_by_parameter(node, read))])
    if kind(node) in ("Mm", "Addmm") and set(before) == {frozenset()}:
        return frozenset()  # it reads what the net is fed, or parameters alone
    if kind(node) == "Slice":
        before = [found[parent] for parent in cut_out(node)]
    is_vector = shape_of(node)[:1] == (record.batch,) and len(shape_of(node)) == 2
    is_passed = kind(node) in PASSED or (is_vector and kind(node) in CLAMPS)
    if not is_passed or None in before or not before:
        return None
    parts = [part for part in before if part]
    is_shared = kind(node) == "Mul" and len(parts) == 2 and bool(parts[0] & parts[1])
    if is_shared and not (is_vector and not _is_activation(node)):
        return None
    is_sum = kind(node) in ("Add", "Sub") and len(parts) > 1
    if is_sum and not (is_last and is_vector) and _adds_to_itself(parts):
        return None
    return frozenset().union(*parts)


def _is_activation(product: Any) -> bool:
    """Whether a value is multiplied with what is made of each of its elements: x * sigmoid(x)."""
    one, other = parents(product)
    return one != other and (_is_made_of(one, other) or _is_made_of(other, one))


def _is_made_of(place: Edge, value: Edge) -> bool:
    mixes = {*RESHAPES.split(), *REDUCES.split(), "Softmax", "LogSoftmax"}
    while place != value:
        before = parents(place[0])
        if len(before) != 1 or kind(place[0]) in mixes:
            return False
        place = before[0]
    return True


def _is_expectation(node: Any, read: Edge) -> bool:
    """Whether it weighs fixed numbers, no parameters, by probabilities."""
    while kind(read[0]) in RESHAPES.split():
        read = parents(read[0])[0]
    return kind(read[0]) == "Softmax" and is_fixed(node)


def _order(record: Record) -> Any:
    calls = {id(call): i for i, call in enumerate(record.calls)}
    return lambda head: calls.get(id(head.call), len(calls))


def main_of(heads: Sequence[Head], mass: Callable[[Edge], int]) -> Head:
    """Of several classifiers that are combined: of those that read vectors, or else of all.

    The one that reads what most parameters work on; of about equals the widest, and the first, as
    the class token is; or the last, if they classify places, which stage after stage refines.
    """
    vectors = [h for h in heads if h.call and h.call.input and h.call.input.tensor.ndim == 2]
    if len(vectors or heads) == 1:
        return (vectors or heads)[0]
    masses = [(mass(head.reads), head) for head in vectors or heads]
    least = EQUAL * max(most for most, _ in masses)
    equal = [head for most, head in masses if most >= least]
    return max(equal if vectors else reversed(equal), key=lambda head: shape_of(*head.reads)[-1:])
