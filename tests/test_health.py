"""Measures of collapse, against formulas by hand."""

import numpy as np
import pytest
import torch
from torch import nn

from byol_wrap import BYOL
from byol_wrap.health import std_ratio


def gaussian(batch, size, seed=0, dtype=torch.float32):
    return torch.randn(batch, size, generator=torch.Generator().manual_seed(seed)).to(dtype)


def by_hand(features):
    x = features.detach().double().numpy()
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    return unit.std(axis=0, ddof=1).mean() * np.sqrt(x.shape[1])


@pytest.mark.parametrize(("batch", "size"), [(2, 1), (2, 5), (64, 16), (16, 64)])
def test_std_ratio_equals_the_formula(batch, size):
    features = gaussian(batch, size) * torch.linspace(0.1, 3, size) + 0.5
    assert std_ratio(features).item() == pytest.approx(by_hand(features), abs=1e-5)
    wide = std_ratio(features.double())
    assert wide.dtype == torch.float64
    assert wide.item() == pytest.approx(by_hand(features), abs=1e-12)


@pytest.mark.parametrize("size", [2, 32, 512])
def test_isotropic_features_give_one(size):
    assert std_ratio(gaussian(4096, size)).item() == pytest.approx(1, abs=0.03)


def test_collapsed_features_give_zero():
    direction = gaussian(1, 16)
    lengths = torch.linspace(0.1, 10, 32)[:, None]
    assert std_ratio(lengths * direction).item() == pytest.approx(0, abs=1e-6)
    assert std_ratio(torch.zeros(32, 16)).item() == 0


def test_features_in_one_of_many_dimensions_lie_between():
    features = torch.zeros(64, 16)
    features[:, 0] = torch.tensor([1.0, -1.0]).repeat(32)
    assert std_ratio(features).item() == pytest.approx(4 / 16 * (64 / 63) ** 0.5, abs=1e-6)


@pytest.mark.parametrize("scale", [1e-4, 1e4])
def test_scale_of_each_image_does_not_matter(scale):
    features = gaussian(64, 16)
    scales = scale * torch.linspace(1, 2, 64)[:, None]
    assert std_ratio(scales * features).item() == pytest.approx(std_ratio(features).item(), 1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype):
    features = gaussian(64, 16, dtype=dtype)
    ratio = std_ratio(features)
    assert ratio.dtype == torch.float32
    assert ratio.item() == pytest.approx(by_hand(features), abs=1e-6)


def test_std_ratio_has_no_gradient():
    assert not std_ratio(gaussian(8, 4).requires_grad_()).requires_grad


# Of a learner


def small_learner(**kwargs):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 5))
    return BYOL(net, hidden_layer=-1, projection_size=4, projection_hidden_size=8, **kwargs)


def test_nothing_is_measured_before_the_first_batch():
    with pytest.raises(RuntimeError, match="nothing to measure"):
        small_learner().health()


def test_health_measures_the_first_view_of_the_last_batch():
    learner = small_learner()
    for seed in range(3):
        view1, view2 = gaussian(16, 6, seed), gaussian(16, 6, seed + 100)
        with torch.no_grad():
            expected = by_hand(learner.net(view1))
        loss = learner(view1, view2)
        health = learner.health()
        assert health.keys() == {"std_ratio", "tau", "updates"}
        assert health["std_ratio"] == pytest.approx(expected, abs=1e-5)
        assert all(type(value) is float for value in health.values())
    assert loss.requires_grad


def test_health_gives_the_decay_of_the_next_update():
    learner = small_learner(moving_average_decay=0.9, total_steps=2)
    learner(gaussian(16, 6), gaussian(16, 6, 1))
    taus = []
    for _ in range(4):
        taus.append(learner.health()["tau"])
        learner.update_moving_average()
    assert taus == pytest.approx([0.9, 0.95, 1.0, 1.0], abs=1e-12)


def test_health_sees_a_collapse():
    learner = small_learner()
    with torch.no_grad():
        learner.net[2].weight.zero_()
    learner(gaussian(16, 6), gaussian(16, 6, 1))
    assert learner.health()["std_ratio"] == pytest.approx(0, abs=1e-6)
