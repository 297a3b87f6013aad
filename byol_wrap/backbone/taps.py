"""Where the values of a forward can be taken from a net while it runs."""

from dataclasses import dataclass

from torch import Tensor

from byol_wrap.backbone.classifier import is_mixing
from byol_wrap.backbone.graph import Edge
from byol_wrap.backbone.measuring import Measure
from byol_wrap.backbone.recording import Call, Record, Side, Value
from byol_wrap.backbone.representation import Part, Representation, main_tensor, take


@dataclass(frozen=True)
class Tap:
    """Where a value can be taken from a net while it runs."""

    layer: str
    side: Side
    part: Part | None
    value: Value

    def find(self, record: Record) -> Value | None:
        """What is there in another forward; None where that does not reach it, or twice."""
        if self.layer == "":
            taken = take(self.part, record.output)
            return next((v for v in record.net_outputs if v.tensor is taken), None)
        call = record.once(self.layer)
        if call is None or self.side == "input":
            return None if call is None else call.input
        taken = take(self.part, call.output)
        return next((v for v in call.outputs if v.tensor is taken), None)

    def is_at(self, representation: Representation) -> bool:
        """Whether a representation is taken here."""
        r = representation
        return (self.layer, self.side, self.part) == (r.layer, r.side, r.part)

    @property
    def where(self) -> str:
        """Which value is taken, in words."""
        if self.layer:
            return f"the {self.side} of layer {self.layer!r}"
        part = "" if not self.part else f"part {'.'.join(map(str, self.part))} of "
        return f"{part}the net's output"


@dataclass(frozen=True)
class Choice:
    """What represents an image.

    Attributes:
        taps: where it can be taken, the best place first.
        ends: places of the net's outputs that are made by classifiers.
        doubt: why it may not be what is wanted; "" for no doubt.
        instead: where that may be taken, as far as the doubt tells.
    """

    taps: list[Tap]
    ends: tuple[Edge, ...] = ()
    doubt: str = ""
    instead: tuple[Tap, ...] = ()


class Taps(Measure):
    """Finds where the values of one forward can be taken."""

    def taps(self, place: Edge | None) -> list[Tap]:
        """Where a value can be taken: layers called once whose output it is, the outermost first.

        Layers that give it alone come before those that give it among others.
        """
        if place is None:
            return []
        given = [
            (bool(value.part), call.name.count("."), Tap(call.name, "output", part, value))
            for call in self.called_once()
            for value in call.outputs
            if value.place == place
            for part in [None if main_tensor(call.output) is value.tensor else value.part]
        ]
        return [tap for *_, tap in sorted(given, key=lambda found: found[:2])]

    def called_once(self) -> list[Call]:
        """Calls of layers that are not called again."""
        return [call for call in self.record.calls if self.record.times[call.name] == 1]

    def of_net(self, tensor: Tensor | None) -> list[Tap]:
        """Where one of the net's outputs can be taken, or the main one for another tensor."""
        main = main_tensor(self.record.output)
        value = next((v for v in self.record.net_outputs if v.tensor is tensor), None)
        value = Value.of(tensor) if value is None else value
        part = None if tensor is main else value.part
        return [Tap("", "output", part, value), *self.taps(value.place)]

    def first_of(self, place: Edge) -> list[Tap]:
        """Where a value is taken, for a message; empty where no layer gives it, or reads it."""
        reads = [c for c in self.called_once() if c.input and c.input.place == place]
        mixing = [c for c in reads if is_mixing(c.layer)]
        given = next((v for v in self.record.net_outputs if v.place == place), None)
        if given is not None:
            return [Tap("", "output", given.part, given)]
        if mixing and mixing[0].input:
            return [Tap(mixing[0].name, "input", None, mixing[0].input)]
        others = [Tap(c.name, "input", None, c.input) for c in reads if c.name and c.input]
        return (self.taps(place) or others)[:1]
