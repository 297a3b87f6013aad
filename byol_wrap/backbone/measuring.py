"""What a value of a forward is: its channels, its positions, how much of the net works on it."""

import math
from collections.abc import Sequence

from torch import Tensor

from byol_wrap.backbone.graph import (
    Edge,
    channel_dim,
    kind,
    parents,
    shape_of,
    tokens_in_front,
)
from byol_wrap.backbone.recording import Record, Value

VIEWS = ("View", "UnsafeView", "Reshape", "ReshapeAlias", "Squeeze")


class Measure:
    """Measures the values of one forward.

    Args:
        record: of the forward.
        sample: what the net was fed.
    """

    def __init__(self, record: Record, sample: Tensor) -> None:
        self.record, self.sample = record, sample
        self.sizes = {id(p): p.numel() for p in record.net.parameters()}

    def channels(self, value: Value) -> int:
        """Which dimension holds the channels: 1, -1 for the last, or one in between."""
        tensor = value.tensor
        if tensor.ndim == 2:
            return 1
        found = None if value.place is None else channel_dim(value.place)
        if not found or found >= tensor.ndim:
            found = tensor.ndim - 1 if tensor.ndim == 3 or self._is_channels_last(tensor) else 1
        return -1 if found == tensor.ndim - 1 else found

    def _is_channels_last(self, tensor: Tensor) -> bool:
        """Whether a map is (B, H, W, C): its aspect is then that of the images in dims 1 and 2."""
        if tensor.ndim != 4 or self.sample.ndim != 4:
            return False
        _, a, b, c = tensor.shape
        aspect = self.sample.shape[2] / self.sample.shape[3]
        return abs(math.log(a / b / aspect)) < abs(math.log(b / c / aspect))

    def positions(self, value: Value) -> int:
        """How many positions of a map, or tokens, a value has; 1 for a vector.

        A class token and what joined with it do not count.
        """
        shape, channels = value.tensor.shape, self.channels(value)
        count = math.prod(shape[1:]) // max(1, shape[channels])
        if len(shape) == 3 and channels == -1 and value.place:
            count -= min(count - 1, tokens_in_front(value.place, count)[1])
        return count

    def mass(self, place: Edge | None) -> int:
        """How many numbers of the net a value depends on."""
        graph = self.record.graph
        return graph.size(graph.bits(place), self.sizes)


def width(place: Edge) -> int:
    """The channels of a value, or those of the map that it is, flattened."""
    through = (*VIEWS, "Mul", "NativeDropout")
    while kind(place[0]) in through and len(shape_of(*place)) == 2 and parents(place[0]):
        place = parents(place[0])[0]
    shape, dim = shape_of(*place), channel_dim(place)
    return shape[(1 if len(shape) > 3 else -1) if dim is None else dim]


def is_pyramid(measure: Measure, outputs: Sequence[Value]) -> bool:
    """Whether some outputs are maps of several sizes, one of which may be a single pixel."""
    maps = [value for value in outputs if value.tensor.ndim > 2]
    return len({measure.positions(value) for value in maps}) > 1
