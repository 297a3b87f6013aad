"""Whether a net's output may be scores rather than features."""

from byol_wrap.backbone.classifier import (
    ACTIVATIONS,
    CONVOLUTIONS,
    RESHAPES,
    SQUASHES,
    Head,
    heads_of,
    is_attended,
)
from byol_wrap.backbone.graph import Edge, ancestors, kind, parents, shape_of
from byol_wrap.backbone.measuring import Measure
from byol_wrap.backbone.recording import Call, Record, Value

ROUND = 8  # what the channels of backbones are multiples of


def are_scores(measure: Measure, value: Value) -> str:
    """Whether the net's output is what layers give that cannot be read before."""
    record = measure.record
    heads = heads_of(record, value.place, is_last=True) if value.place else []
    is_backbone = any(head.is_rectified or head.is_normed for head in heads)
    if measure.positions(value) > 1:  # as a decoder's last layer gives, step after step
        heads = [head for head in heads if head.call and record.times[head.call.name] > 1]
    if not heads or is_backbone or is_embedding(value):
        return ""
    if all(head.is_projection for head in heads):
        is_plain = any(_is_projected(value, head) for head in heads)
        return "" if is_plain else "its numbers are a product with a parameter: they may be scores"
    names = dict.fromkeys(head.call.name for head in heads if head.call)
    often = [
        f"layer {name!r}"
        + (f", which runs {times} times" if (times := record.times[name]) > 1 else "")
        for name in names
    ]
    return f"its numbers may be scores of {' and '.join(often[:2]) or 'a product'}"


def score_places(measure: Measure, value: Value) -> str:
    """Whether a map is what a convolution with a bias gives, with nothing behind it, as scores are.

    A backbone's keep or widen the channels, to a round number, and have a map for themselves.
    """
    record = measure.record
    call = _convolution(record, value.place) if measure.positions(value) > 1 else None
    if call is None or call.input is None:
        return ""
    layer = call.layer
    assert isinstance(layer, CONVOLUTIONS)
    gives, reads = layer.out_channels, layer.in_channels
    others = [_convolution(record, output.place) for output in record.net_outputs]
    siblings = [o for o in others if o and o is not call and o.input]
    is_alone = all(o.input and o.input.place != call.input.place for o in siblings)
    if gives >= reads and gives % ROUND == 0 and is_alone:
        return ""
    return (
        f"layer {call.name!r} gives {gives} numbers for each place of a map, with no norm or "
        "activation behind it: they may be scores"
    )


def _convolution(record: Record, place: Edge | None) -> Call | None:
    """The call of the convolution with a bias that gave a value, which was only reshaped since."""
    node = place[0] if place else None
    while node is not None and kind(node) in RESHAPES.split() and len(parents(node)) == 1:
        node = parents(node)[0][0]
    for call in record.calls:
        if isinstance(call.layer, CONVOLUTIONS) and call.layer.bias is not None and call.outputs:
            given = call.outputs[0].place
            if given is not None and given[0] is node:
                return call
    return None


def _is_projected(value: Value, head: Head) -> bool:
    """Whether a product is known to end an embedding: without a bias, or of an attention.

    Not where it is the last layer of several, or what it gives is squashed.
    """
    wider = shape_of(head.gives)[-1] > shape_of(*head.reads)[-1]
    is_plain = not (wider or kind(head.gives) == "Addmm" or _is_activated(head.reads))
    return is_attended(head.reads) or (is_plain and not _is_squashed(value, head))


def _is_activated(place: Edge) -> bool:
    """Whether a value is an activation's, perhaps behind dropout."""
    node = place[0]
    while kind(node) in (*RESHAPES.split(), "NativeDropout", "Mul") and len(parents(node)) == 1:
        node = parents(node)[0][0]
    return kind(node) in ACTIVATIONS and len(shape_of(node)) == 2


def _is_squashed(value: Value, head: Head) -> bool:
    """Whether something is between a value and the product that gave it, but for a scale."""
    between = ancestors(value.place, {head.gives}) if value.place else set()
    squashes = [node for node in between if kind(node) in SQUASHES.split()]
    return any(head.gives in ancestors((node, 0)) for node in squashes)


def is_embedding(value: Value) -> bool:
    """Whether it is vectors of length 1, as no scores are."""
    vectors = value.tensor.detach()
    return vectors.ndim == 2 and bool(((vectors.norm(dim=1) - 1).abs() < 1e-3).all())
