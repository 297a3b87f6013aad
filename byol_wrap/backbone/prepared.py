"""What a net does with its images before its first layer: whether it scales, or mixes them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from byol_wrap.backbone.recording import Record

EXACT = 1e-4  # of the spread: what is left of a fit that explains all


@dataclass(frozen=True)
class Preparation:
    """What the first layer with parameters is fed, told by what the net is fed.

    Attributes:
        slopes: how much each channel is scaled by.
        mixes: whether the other image of a pair is in it.
    """

    slopes: tuple[float, ...]
    mixes: bool


def preparation(record: Record, sample: Tensor) -> Preparation | None:
    """How a net prepares images (B, C, H, W); None where it does not, or not so simply.

    Args:
        record: of a forward.
        sample: two images that it was fed.
    """
    given = _first_input(record)
    if given is None or sample.ndim != 4 or given.shape != sample.shape or len(sample) != 2:
        return None
    given, fed = given.detach().double(), sample.detach().double()
    if torch.equal(given, fed):
        return None
    slopes, mixes = [], False
    for channel in range(fed.shape[1]):
        own, other = fed[:, channel], fed.flip(0)[:, channel]
        known = torch.stack([own.flatten(), other.flatten(), torch.ones_like(own).flatten()], 1)
        wanted = given[:, channel].flatten()
        try:
            found = torch.linalg.solve(known.t() @ known, known.t() @ wanted)
        except RuntimeError:  # both images are alike
            return None
        left = (known @ found - wanted).std()
        if not bool(left <= EXACT * wanted.std()):
            return None
        slopes.append(abs(float(found[0])))
        mixes |= abs(float(found[1])) > EXACT * slopes[-1]
    return Preparation(tuple(slopes), mixes)


def _first_input(record: Record) -> Tensor | None:
    """What the first layer with parameters of its own is fed."""
    order = {event: i for i, event in reversed(list(enumerate(record.events)))}
    with_own = [
        call for call in record.calls if call.name and call.layer._parameters and call.input
    ]
    first = min(with_own, key=lambda call: order[call.name, "input"], default=None)
    return None if first is None or first.input is None else first.input.tensor
