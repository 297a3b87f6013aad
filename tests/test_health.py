"""Measures of collapse, against formulas by hand."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from byol_wrap import BYOL
from byol_wrap.evaluation import health
from byol_wrap.evaluation.health import (
    alignment,
    effective_rank,
    instance_accuracy,
    participation_ratio,
    relative_distance,
    std_ratio,
    uniformity,
)


def gaussian(batch, size, seed=0, dtype=torch.float32):
    return torch.randn(batch, size, generator=torch.Generator().manual_seed(seed)).to(dtype)


def by_hand(features):
    x = features.detach().double().numpy()
    unit = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
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


# Rank, alignment, uniformity, distance: each against its formula in numpy


def unit_by_hand(features):
    x = features.double().numpy()
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def rank_by_hand(features):
    values = np.linalg.svd(features.double().numpy(), compute_uv=False)
    shares = values / values.sum()
    return np.exp(-sum(share * np.log(share) for share in shares if share > 1e-12))


@pytest.mark.parametrize(("batch", "size"), [(2, 5), (64, 16), (16, 64)])
def test_effective_rank_equals_the_formula(batch, size):
    features = gaussian(batch, size) * torch.linspace(0.01, 3, size) + 0.5
    assert effective_rank(features).item() == pytest.approx(rank_by_hand(features), rel=1e-4)
    wide = effective_rank(features.double())
    assert wide.dtype == torch.float64
    assert wide.item() == pytest.approx(rank_by_hand(features), rel=1e-10)


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_effective_rank_of_equal_singular_values_is_their_number(rank):
    features = torch.zeros(16, 8)
    features[:rank, :rank] = 5 * torch.eye(rank)
    assert effective_rank(features).item() == pytest.approx(rank, rel=1e-5)


def test_effective_rank_of_nothing_and_of_nan():
    assert effective_rank(torch.zeros(4, 3)).item() == 0
    assert effective_rank(torch.tensor([[1.0, np.nan], [1.0, 2.0]])).isnan()


def test_alignment_equals_the_formula():
    one, other = gaussian(32, 8), gaussian(32, 8, seed=1)
    distances = np.linalg.norm(unit_by_hand(one) - unit_by_hand(other), axis=1)
    assert alignment(one, other).item() == pytest.approx((distances**2).mean(), abs=1e-5)
    assert alignment(one, 3 * one).item() == pytest.approx(0, abs=1e-6)
    assert alignment(one, -one).item() == pytest.approx(4, abs=1e-5)


def test_uniformity_equals_the_formula():
    x = unit_by_hand(gaussian(32, 8))
    pairs = [np.linalg.norm(x[i] - x[j]) for i in range(32) for j in range(i)]
    expected = np.log(np.mean(np.exp(-2 * np.square(pairs))))
    assert uniformity(gaussian(32, 8)).item() == pytest.approx(expected, abs=1e-5)
    opposite = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    assert uniformity(opposite).item() == pytest.approx(-8, abs=1e-5)


class Made(TorchDispatchMode):
    """Names of the functions that run, and the largest tensor that one makes."""

    def __init__(self):
        super().__init__()
        self.names, self.largest = set(), 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        self.names.add(function.overloadpacket.__name__)
        if isinstance(made, torch.Tensor):
            self.largest = max(self.largest, made.numel())
        return made


@pytest.mark.parametrize(("batch", "size"), [(2, 3), (256, 16), (1000, 64), (2000, 5)])
def test_uniformity_is_pdists_without_its_kernel_and_in_little_memory(batch, size, monkeypatch):
    monkeypatch.setattr(health, "BLOCK", 2**17)
    features = gaussian(batch, size) + 0.5
    distances = F.pdist(F.normalize(features, dim=1))
    expected = (-2 * distances.square()).exp().mean().log().item()
    with Made() as made:
        value = uniformity(features)
    assert value.item() == pytest.approx(expected, abs=1e-6)
    assert not made.names & {"_pdist_forward", "_cdist_forward", "mm"}
    assert made.largest <= max(2**17, batch * size)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert uniformity(features).item() == pytest.approx(expected, abs=1e-6)


def test_uniformity_of_equal_features_is_exactly_0_and_of_nan_nan():
    assert uniformity(torch.ones(300, 7)).item() == 0
    assert uniformity(torch.tensor([[1.0, np.nan], [1.0, 2.0]])).isnan()


def test_relative_distance_equals_the_formula_across_dtypes():
    torch.manual_seed(0)
    ours, theirs = nn.Linear(3, 2), nn.Linear(3, 2).double()
    flat = [torch.cat([m.weight.flatten(), m.bias]).detach().double() for m in (ours, theirs)]
    expected = ((flat[0] - flat[1]).norm() / flat[0].norm()).item()
    assert relative_distance(ours, theirs).item() == pytest.approx(expected, rel=1e-6)
    assert relative_distance(ours, ours).item() == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_all_measures_are_computed_in_float32(dtype):
    half, other = gaussian(64, 16, dtype=dtype), gaussian(64, 16, seed=1, dtype=dtype)
    for measure in (effective_rank, uniformity):
        assert measure(half).dtype == torch.float32
        assert measure(half).item() == pytest.approx(measure(half.float()).item(), abs=1e-6)
    assert alignment(half, other).item() == pytest.approx(
        alignment(half.float(), other.float()).item(), abs=1e-6
    )


# Of a learner


def small_learner(**kwargs):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 5))
    return BYOL(net, hidden_layer=-1, projection_size=4, projection_hidden_size=8, **kwargs)


def test_nothing_is_measured_before_the_first_batch():
    with pytest.raises(RuntimeError, match="nothing to measure"):
        small_learner().health()


def participation_by_hand(features):
    """From the eigenvalues, which the function does without."""
    x = features.double().numpy()
    x = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    values = np.linalg.eigvalsh(x.T @ x / len(x))
    return values.sum() ** 2 / (values**2).sum()


def found_by_hand(features1, features2):
    """The share of rows that are nearest to the same row of the other, one by one."""
    found = 0
    for i, one in enumerate(features1):
        cosines = [torch.cosine_similarity(one, other, dim=0).item() for other in features2]
        found += cosines.index(max(cosines)) == i
    return found / len(features1)


def test_a_participation_ratio_counts_directions():
    for features in (gaussian(40, 6), gaussian(5, 12), 3 + gaussian(40, 6)):
        ratio = participation_ratio(features).item()
        assert ratio == pytest.approx(participation_by_hand(features), rel=1e-4)
    line = torch.linspace(-1, 1, 10)[:, None] * torch.ones(10, 4)
    assert participation_ratio(line[line[:, 0] != 0]).item() == pytest.approx(1)


def test_instances_are_found_where_views_agree():
    features = gaussian(12, 6)
    other = features + 0.7 * gaussian(12, 6, 1)
    assert 0.1 < found_by_hand(features, other) < 1
    assert instance_accuracy(features, other).item() == pytest.approx(
        found_by_hand(features, other)
    )
    assert instance_accuracy(features, 5 * features).item() == 1
    assert instance_accuracy(features, features.roll(1, 0)).item() == 0


def test_health_measures_the_last_batch():
    learner = small_learner()
    for seed in range(3):
        view1, view2 = gaussian(16, 6, seed), gaussian(16, 6, seed + 100)
        loss = learner(view1, view2)
        with torch.no_grad():
            outputs1, outputs2 = learner.net(view1), learner.net(view2)
            projections = learner.online.projector(outputs1)
        health = learner.health()
        assert health == {
            "std_ratio": pytest.approx(by_hand(outputs1), abs=1e-5),
            "rank": pytest.approx(rank_by_hand(outputs1), rel=1e-4),
            "projection_std_ratio": pytest.approx(by_hand(projections), abs=1e-5),
            "projection_rank": pytest.approx(rank_by_hand(projections), rel=1e-4),
            "projection_participation": pytest.approx(participation_by_hand(projections), rel=1e-4),
            "instance_accuracy": pytest.approx(found_by_hand(outputs1, outputs2)),
            "alignment": pytest.approx(alignment(outputs1, outputs2).item(), abs=1e-5),
            "uniformity": pytest.approx(uniformity(outputs1).item(), abs=1e-5),
            "target_distance": 0,
            "tau": 0.99,
            "updates": 0,
        }
        assert all(type(value) is float for value in health.values())
    assert loss.requires_grad


def test_health_tells_how_far_the_target_is():
    learner = small_learner(moving_average_decay=0.5)
    learner(gaussian(16, 6), gaussian(16, 6, 1))
    with torch.no_grad():
        for parameter in learner.online.projector.parameters():
            parameter.mul_(3)
    assert learner.health()["target_distance"] > 0.1
    with torch.no_grad():
        for source, target in (
            (learner.online.projector, learner.target.projector),
            (learner.online.net, learner.target.net),
        ):
            for p, q in zip(source.parameters(), target.parameters(), strict=True):
                p.copy_(2 * q)
    assert learner.health()["target_distance"] == pytest.approx(0.5)
    learner.update_moving_average()
    assert learner.health()["target_distance"] == pytest.approx(0.25)


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
