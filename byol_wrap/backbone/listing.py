"""The public way to see what could represent an image."""

from torch import Tensor, nn

from byol_wrap.backbone.candidates import Candidates
from byol_wrap.backbone.channels import on_noise, possible_channels
from byol_wrap.backbone.copying import copy_net
from byol_wrap.backbone.encoder import check_net
from byol_wrap.backbone.probing import list_candidates


def representation_candidates(
    net: nn.Module, images: Tensor | int | tuple[int, int], *, channels: int | None = None
) -> Candidates:
    """What could represent an image: the layers of a net that are reached once in a forward.

    Runs a copy of the net in training mode; the net itself is left alone.

    Args:
        net: the backbone.
        images: an input of the net (B, ...), B at least 2; or images' side, or (height, width).
        channels: how many those have; None finds what the net takes.

    Returns:
        A sequence of ``Candidate`` in the order in which they are reached, which prints as a table;
        what a learner would take comes last, marked with a star. Where it would refuse the net, its
        attribute ``representation`` is None.

    Raises:
        TypeError, ValueError: what a learner cannot wrap, or the net cannot take.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        ...     nn.Flatten(), nn.Linear(16, 10))
        >>> print(representation_candidates(net, 8))
           name  side    shape          size  share
           '0'   output  (B, 16, 6, 6)  16    72.5 %
           '1'   output  (B, 16, 6, 6)  16    72.5 %
           '2'   output  (B, 16, 1, 1)  16    72.5 %
           '3'   output  (B, 16)        16    72.5 %
           '4'   output  (B, 10)        10    100.0 %
        *  '4'   input   (B, 16)        16    72.5 %
    """
    check_net(net)
    if isinstance(images, Tensor):
        return list_candidates(copy_net(net), images)
    size = (images, images) if isinstance(images, int) else images
    guesses = possible_channels(net) if channels is None else [channels]
    return on_noise(net, guesses, size, lambda noise: list_candidates(copy_net(net), noise))[1]
