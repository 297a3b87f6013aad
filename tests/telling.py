"""What tests of warnings share: views that learn, the heads' parameters, and one warning alone."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from byol_wrap import Learner


def told(run: Callable[[], Any], match: str) -> str:
    """Run; the one warning that comes, which is to match."""
    with pytest.warns(UserWarning, match=match) as caught:
        run()
    assert len(caught) == 1
    return str(caught[0].message)


def views(size: int = 16) -> tuple[Tensor, Tensor]:
    """Two of each of eight images of noise."""
    images = torch.rand(8, 3, size, size)
    return images, images + 0.1 * torch.randn_like(images)


def heads(learner: Learner) -> list[nn.Parameter]:
    """What is trained beside the net."""
    net = set(learner.net.parameters())
    return [p for p in learner.parameters() if p.requires_grad and p not in net]
