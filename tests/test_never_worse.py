"""A pretrained net: how it is told, and how it is treated."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from byol_wrap import BYOL, VIEW1, VIEW2, Learner, MoCo, SimCLR, SimSiam
from byol_wrap.backbone.pretrained import is_pretrained

SMALL = {"projection_hidden_size": 16, "projection_size": 8}
METHODS = [BYOL, SimSiam, SimCLR, MoCo]


def conv_net(norm: Any = nn.BatchNorm2d) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 8, 3), norm(8), nn.ReLU(), nn.Conv2d(8, 8, 3), norm(8))


def seen(net: nn.Module, batches: int) -> nn.Module:
    """A net whose BatchNorm layers have seen some batches in training mode."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _ in range(batches):
            net(2 + torch.randn(4, 3, 8, 8, generator=generator))
    return net


def spread(net: nn.Module, by: float) -> nn.Module:
    """A net whose normalisation weights training has spread."""
    for layer in net.modules():
        if isinstance(layer, nn.LayerNorm | nn.GroupNorm):
            with torch.no_grad():
                layer.weight += by * torch.randn_like(layer.weight)
    return net


def test_a_net_is_pretrained_where_its_statistics_are_settled() -> None:
    assert not is_pretrained(conv_net())
    assert not is_pretrained(seen(conv_net(), 3))
    assert is_pretrained(seen(conv_net(), 120))


def test_a_checkpoint_without_counts_is_of_a_pretrained_net() -> None:
    state = {n: v for n, v in seen(conv_net(), 5).state_dict().items() if "num_batches" not in n}
    net = conv_net()
    net.load_state_dict(state, strict=False)
    assert int(net[1].num_batches_tracked) == 0
    assert is_pretrained(net)


@pytest.mark.parametrize("norm", [lambda size: nn.GroupNorm(2, size)])
def test_a_net_without_statistics_is_pretrained_where_its_weights_are_spread(norm: Any) -> None:
    torch.manual_seed(0)
    assert not is_pretrained(conv_net(norm))
    assert not is_pretrained(spread(conv_net(norm), 0.005))
    assert is_pretrained(spread(conv_net(norm), 0.3))


def test_nothing_is_told_of_a_net_without_normalisation_layers() -> None:
    assert not is_pretrained(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten()))


def test_zero_initialised_weights_are_none_of_a_pretrained_net() -> None:
    net = nn.Sequential(nn.LayerNorm(8), nn.LayerNorm(8))
    nn.init.zeros_(net[1].weight)
    assert not is_pretrained(net)


@pytest.mark.parametrize("method", METHODS)
def test_statistics_of_a_pretrained_net_are_kept(method: type[Learner]) -> None:
    torch.manual_seed(0)
    net = seen(conv_net(), 120)
    before = [value.clone() for value in net.buffers()]
    learner = method(net, 16, **SMALL)
    assert learner.pretrained
    assert all(module.training for module in net.modules()), "construction changes no flag"
    for _ in range(2):
        learner.train()  # as after a validation pass
        loss = learner(torch.rand(8, 3, 16, 16))
        loss.backward()
        learner.update_moving_average()
    assert all(torch.equal(a, b) for a, b in zip(before, net.buffers(), strict=True))
    assert net.training
    assert not net[1].training
    if learner.has_target:
        assert torch.equal(learner.target.net[1].running_mean, net[1].running_mean)


@pytest.mark.parametrize("method", METHODS)
def test_statistics_of_a_new_net_are_trained(method: type[Learner]) -> None:
    net = conv_net()
    learner = method(net, 16, **SMALL)
    learner(torch.rand(8, 3, 16, 16))
    assert not learner.pretrained
    assert net[1].training
    assert int(net[1].num_batches_tracked) > 0


def test_the_user_may_say_otherwise() -> None:
    net = seen(conv_net(), 120)
    learner = BYOL(net, 16, pretrained=False, **SMALL)
    learner(torch.rand(8, 3, 16, 16))
    assert int(net[1].num_batches_tracked) > 120
    assert BYOL(conv_net(), 16, pretrained=True, **SMALL).pretrained


def test_what_training_feeds_a_pretrained_net_is_what_eval_mode_makes_of_it() -> None:
    torch.manual_seed(0)
    net = seen(conv_net(), 120)
    learner = SimSiam(net, 16, augment_fn=lambda images: images, mean=(0,) * 3, std=(1,) * 3)
    images = torch.rand(8, 3, 16, 16)
    given: list[Tensor] = []
    net[4].register_forward_hook(lambda module, inputs, output: given.append(output.detach()))
    learner(images)
    net.eval()
    assert torch.allclose(given[0], net(images))


@pytest.mark.parametrize("method", METHODS)
def test_the_default_views_of_a_pretrained_net_crop_from_half_of_the_area(
    method: type[Learner],
) -> None:
    gentle, usual = (
        method(seen(conv_net(), 120), 16, pretrained=known, **SMALL)._views.augment1.recipe
        for known in (True, False)
    )
    assert gentle.crop_area == (0.5, 1.0)
    assert replace(gentle, crop_area=usual.crop_area) == usual
    assert usual.crop_area[0] < 0.5


def test_views_of_ones_own_are_left_alone() -> None:
    own = lambda images: images  # noqa: E731
    learner = BYOL(conv_net(), 16, pretrained=True, augment_fn=own, **SMALL)
    assert learner._views.augment1 is own
    assert VIEW1.crop_area == VIEW2.crop_area == (0.08, 1.0)
