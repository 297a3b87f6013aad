"""What a learner is trained on, in shape and preparation, is what it embeds."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from nets import Function, conv_net
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from byol_wrap import BYOL, extract_features

SMALL = {"projection_size": 8, "projection_hidden_size": 16}


def volumes() -> nn.Module:
    return nn.Sequential(
        nn.Conv3d(2, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(6, 5)
    )


def series() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(2, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(6, 5)
    )


def table() -> nn.Module:
    return nn.Sequential(nn.Linear(7, 6), nn.ReLU(), nn.Linear(6, 5))


def clips() -> nn.Module:
    """(B, T, C, H, W): a 2-D net on each frame."""
    body = conv_net(6)
    return Function(
        lambda self, x: self.fc(self.body(x.flatten(0, 1)).view(*x.shape[:2], -1).mean(1)),
        body=body,
        fc=nn.Linear(6, 5),
    )


ITEMS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "volumes": (volumes, (2, 8, 8, 8)),
    "series": (series, (2, 20)),
    "table": (table, (7,)),
    "clips": (clips, (4, 3, 16, 16)),
    "images": (lambda: conv_net(6, classes=5), (3, 16, 16)),
}


def step(learner: BYOL, *batch: Tensor) -> None:
    optimizer = torch.optim.SGD(learner.parameters(), lr=0.01)
    learner(*batch).backward()
    optimizer.step()
    learner.update_moving_average()


@pytest.mark.parametrize("kind", ITEMS)
def test_what_was_trained_on_own_views_is_embedded_as_it_is(kind: str) -> None:
    torch.manual_seed(0)
    build, shape = ITEMS[kind]
    learner = BYOL(build(), **SMALL)
    batch = torch.rand(4, *shape) * 5 - 2
    step(learner, batch, batch + 0.1 * torch.randn_like(batch))

    embedded = learner.embed(batch)
    learner.eval()
    expected = learner.online.represent(batch).detach()
    assert torch.equal(embedded, expected)
    assert torch.equal(learner(batch, return_embedding=True, return_projection=False), expected)
    features, labels = extract_features(learner, [(batch, torch.arange(4))])
    assert torch.equal(features, expected)
    assert labels is not None
    assert embedded.shape == (4, 6)


def test_own_views_that_are_images_are_not_normalised_again() -> None:
    torch.manual_seed(0)
    learner = BYOL(conv_net(6), 16, **SMALL)
    batch = torch.rand(4, 3, 16, 16)
    as_images = learner.embed(batch)
    step(learner, batch, batch.flip(-1))
    twin = copy.deepcopy(learner)  # a copy knows it, too
    as_fed = learner.embed(batch)
    assert not torch.allclose(as_fed, learner.embed(batch, prepared=False), atol=1e-3)
    assert torch.equal(as_fed, learner.embed(batch, prepared=True))
    assert torch.equal(as_fed, twin.embed(batch))
    assert as_images.shape == as_fed.shape


@pytest.mark.parametrize("held", [False, True])
def test_a_checkpoint_knows_what_was_fed(held: bool) -> None:
    """In another process, too, where features are extracted from what was saved."""
    torch.manual_seed(0)
    batch = torch.rand(4, 3, 16, 16)
    learner, other = (BYOL(conv_net(6), 16, **SMALL) for _ in range(2))
    step(learner, batch, batch.flip(-1))
    modules = [nn.ModuleDict({"method": x}) if held else x for x in (learner, other)]
    modules[1].load_state_dict(modules[0].state_dict())
    assert torch.equal(other.embed(batch), learner.embed(batch, prepared=True))
    step(other, batch)  # from now on images, and no word of both
    assert torch.equal(other.embed(batch), other.embed(batch, prepared=False))
    other.load_state_dict({k: v for k, v in learner.state_dict().items() if k != "fed"})
    assert not torch.equal(other.embed(batch), learner.embed(batch))  # an earlier version's


def test_an_average_embeds_what_its_original_was_trained_on() -> None:
    torch.manual_seed(0)
    learner = BYOL(conv_net(6), 16, **SMALL)
    averaged = AveragedModel(learner)
    batch = torch.rand(4, 3, 16, 16)
    step(learner, batch, batch.flip(-1))
    averaged.update_parameters(learner)
    embedded = averaged.module.embed(batch)
    assert torch.equal(embedded, averaged.module.embed(batch, prepared=True))
    assert torch.equal(embedded, extract_features(averaged, [batch])[0])


def test_own_views_count_in_eval_mode_until_there_is_training() -> None:
    torch.manual_seed(0)
    learner = BYOL(conv_net(6), 16, **SMALL)
    batch = torch.rand(4, 3, 16, 16)
    learner.eval()
    step(learner, batch, batch.flip(-1))
    assert torch.equal(learner.embed(batch), learner.embed(batch, prepared=True))
    step(learner.train(), batch)
    with torch.no_grad():
        learner(batch, batch)
    learner.eval()(batch, batch)  # a validation
    assert torch.equal(learner.embed(batch), learner.embed(batch, prepared=False))


def test_images_stay_normalised() -> None:
    torch.manual_seed(0)
    learner = BYOL(conv_net(6), 16, **SMALL)
    batch = (torch.rand(4, 3, 16, 16) * 255).to(torch.uint8)
    step(learner, batch)
    assert torch.equal(learner.embed(batch), learner.embed(batch, prepared=False))
    assert torch.equal(learner.embed(batch), learner.embed(batch / 255))


def test_what_was_prepared_otherwise_is_told() -> None:
    learner = BYOL(conv_net(6), 16, **SMALL)
    batch = torch.rand(4, 3, 16, 16)
    step(learner, batch, batch)
    with pytest.raises(TypeError, match=r"fed as they are, and got torch\.uint8.*prepared=False"):
        learner.embed((batch * 255).to(torch.uint8))
    step(learner, batch)
    with pytest.warns(UserWarning, match="taken as the latest of them") as caught:
        embedded = learner.embed(batch)
    assert len(caught) == 1
    assert torch.equal(embedded, learner.embed(batch, prepared=False))


@pytest.mark.parametrize("kind", ["volumes", "series"])
def test_a_pipeline_of_one_s_own_takes_other_shapes(kind: str) -> None:
    torch.manual_seed(0)
    build, shape = ITEMS[kind]
    mean: Any = {"mean": (0.4, 0.5), "std": (0.2, 0.3), "channels": 2}
    learner = BYOL(build(), augment_fn=lambda x: x + 0.01 * torch.randn_like(x), **mean, **SMALL)
    batch = torch.rand(4, *shape)
    step(learner, batch)
    flat = (1, 2, *[1] * (batch.ndim - 2))
    normalised = (batch - torch.tensor([0.4, 0.5]).view(flat)) / torch.tensor([0.2, 0.3]).view(flat)
    embedded = learner.embed(batch)
    torch.testing.assert_close(embedded, learner.eval().online.represent(normalised).detach())
    with pytest.raises(ValueError, match="holds NaN"):
        learner(torch.full_like(batch, torch.nan))


def test_the_default_views_take_images_alone() -> None:
    learner = BYOL(volumes(), **SMALL, channels=2)
    with pytest.raises(ValueError, match=r"should have shape \(B, C, H, W\)"):
        learner(torch.rand(4, 2, 8, 8, 8))
