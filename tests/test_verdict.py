"""The verdict: right in simulation, by hand, and for whatever a user holds."""

import copy
import json
import sys
from collections import Counter
from itertools import product

import pytest
import torch
from PIL import Image
from scipy import stats
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader, TensorDataset

from byol_wrap import BYOL, knn_accuracy, linear_probe
from byol_wrap.data import ImageFiles, decoding
from byol_wrap.evaluation import Verdict, comparison, extract_features, verdict
from byol_wrap.evaluation.draws import jackknife_interval, partition, student_quantile


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


# Simulation


def pair(labels, seed, *, size=8, gain=0.0, heavy=False, signal=1.0):
    """Features of one signal before and after, with independent noise; ``gain`` strengthens it."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(int(labels.max()) + 1, size, generator=torch.Generator().manual_seed(7))
    shape = (len(labels), size)
    common = 0.7 * torch.randn(shape, generator=generator)
    noise = torch.randn(2, *shape, generator=generator)
    if heavy:  # Student's t with three degrees of freedom
        chi = torch.randn(2, *shape, 3, generator=generator).square().sum(dim=-1)
        noise = noise / chi.sqrt()
    clean = signal * centres[labels]
    return clean + common + noise[0], (1 + gain) * clean + common + noise[1]


def outcomes(trials, classes, a_class, *, draws, **options):
    labels = torch.arange(classes * a_class) % classes
    data = [pair(labels, seed, **options) for seed in range(trials)]
    return Counter(verdict(*features, labels, draws=draws).outcome for features in data)


def by_neighbours_alone(monkeypatch):
    """The same without the linear classifier, which takes nearly all the time."""
    monkeypatch.setattr(comparison, "linear_hits", lambda *task: comparison.knn_hits(*task, k=3))


def test_without_a_difference_none_is_seen(monkeypatch):
    by_neighbours_alone(monkeypatch)
    found = outcomes(200, 2, 24, draws=8)
    assert 200 - found["no difference"] <= 10


def test_a_difference_is_seen(monkeypatch):
    by_neighbours_alone(monkeypatch)
    for gain, outcome in ((0.4, "helped"), (-0.4, "harmed")):
        assert outcomes(40, 4, 40, draws=8, gain=gain)[outcome] >= 36


NULLS = {
    "4 classes of 40": {"classes": 4, "a_class": 40, "draws": 8},
    "2 classes of 25, heavy tails": {"classes": 2, "a_class": 25, "draws": 8, "heavy": True},
    "3 classes of 100, 20 draws": {"classes": 3, "a_class": 100, "draws": 20},
    "4 classes of 50, hardly an error": {"classes": 4, "a_class": 50, "draws": 8, "signal": 3.0},
}


@pytest.mark.slow
@pytest.mark.parametrize("case", NULLS)
def test_at_most_5_percent_of_1000_trials_are_wrong(case):
    found = outcomes(1000, **NULLS[case])
    print(f"\n{case}: {dict(found)}")
    assert 1000 - found["no difference"] <= 50


@pytest.mark.slow
@pytest.mark.parametrize(("gain", "least"), [(0.1, 0.05), (0.2, 0.5), (0.4, 0.95)])
def test_power(gain, least):
    found = outcomes(200, 4, 40, draws=8, gain=gain)
    labels = torch.arange(160) % 4
    rise = [verdict(*pair(labels, s, gain=gain), labels, draws=8) for s in range(20)]
    points = 100 * sum(v.measures["mean"].difference for v in rise) / 20
    print(f"\ngain {gain}, {points:.1f} points: {dict(found)}")
    assert found["helped"] >= 200 * least
    assert found["harmed"] + found["mixed"] <= 2


# Draws and interval


@pytest.mark.parametrize("freedom", [1, 2, 3, 7, 20, 101])
@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.95, 0.999])
def test_students_quantile_is_scipys(freedom, confidence):
    expected = stats.t.ppf((1 + confidence) / 2, freedom)
    assert student_quantile(confidence, freedom) == pytest.approx(expected, rel=1e-9)


def test_blocks_are_disjoint_even_and_hold_every_image():
    targets = torch.tensor([0] * 13 + [1] * 8 + [2] * 30)[torch.randperm(51)]
    block, trains = partition(targets, 2, 4, torch.Generator().manual_seed(0))
    for b, target in product(range(4), range(3)):
        assert int(((block == b) & trains & (targets == target)).sum()) == 2
    assert int(trains.sum()) == 2 * 4 * 3
    assert max(block.bincount()) - min(block.bincount()) <= 1


def test_interval_equals_the_jackknife_by_hand():
    generator = torch.Generator().manual_seed(0)
    off = 1 - torch.eye(5, dtype=torch.double)
    counts = 20 * off.repeat(2, 1, 1)
    d = torch.randint(-6, 9, (2, 5, 5), generator=generator) * off
    variances, means = [], []
    for p in range(2):
        without = []
        for left_out in range(5):
            kept = [b for b in range(5) if b != left_out]
            pairs = [d[p, r, s].item() / 20 for r in kept for s in kept if r != s]
            without.append(sum(pairs) / len(pairs))
        mean = (d[p].sum() / 400).item()
        means.append(mean)
        variances.append(4 / 5 * sum((w - mean) ** 2 for w in without))
    difference, half = sum(means) / 2, stats.t.ppf(0.95, 8) * (sum(variances) / 2) ** 0.5
    interval = jackknife_interval(d, counts, 0.9)
    assert interval.difference == pytest.approx(difference)
    assert interval.low == pytest.approx(difference - half)
    assert interval.high == pytest.approx(difference + half)


def test_equal_wins_in_all_blocks_are_not_certain():
    off = 1 - torch.eye(4)
    interval = jackknife_interval(off[None], 10 * off[None], 0.95)  # one of ten, everywhere
    assert interval.low < 0.1 < interval.high


# The verdict


def test_accuracies_are_those_of_the_two_evaluations_on_other_images(monkeypatch):
    labels = torch.arange(48) % 3
    before, after = pair(labels, 0, gain=0.5)
    seen = []

    def recorded(*task):
        seen.append(task)
        return hits(*task)

    hits = comparison.linear_hits
    monkeypatch.setattr(comparison, "linear_hits", recorded)
    v = verdict(before, after, labels, draws=8, k=3)
    assert len(seen) == 16
    assert v.labels_per_class == 2
    for measure, evaluate in ((v.measures["linear"], linear_probe), (v.measures["knn"], None)):
        knn = evaluate is None
        by_hand = [knn_accuracy(*t, k=3) if knn else linear_probe(*t) for t in seen]
        for mean, std, scores in (
            (measure.before, measure.before_std, by_hand[::2]),
            (measure.after, measure.after_std, by_hand[1::2]),
        ):
            assert mean == pytest.approx(sum(scores) / 8, abs=1e-6)
            assert std == pytest.approx(torch.tensor(scores).std().item(), abs=1e-6)
    for x, y, test_x, test_y in seen:
        assert len(x) == 6
        assert len(test_x) == 42
        assert y.bincount().tolist() == [2, 2, 2]
        assert test_y.bincount().tolist() == [14, 14, 14]
        taught = {tuple(row) for row in x.tolist()}
        assert not taught & {tuple(row) for row in test_x.tolist()}
    for one, other in zip(seen[::2], seen[1::2], strict=True):  # before and after: the same draw
        assert torch.equal(one[1], other[1])
        assert torch.equal(one[3], other[3])


def test_the_same_features_differ_by_nothing():
    labels = torch.arange(60) % 3
    features = pair(labels, 0)[0]
    v = verdict(features, features.clone(), labels, draws=8)
    assert v.outcome == "no difference"
    assert v.measures["mean"][4:] == (0, 0, 0)


def test_measures_that_contradict_are_said_to():
    up = comparison.Measure(0.5, 0.1, 0.6, 0.1, 0.1, 0.05, 0.15)
    down = comparison.Measure(0.5, 0.1, 0.4, 0.1, -0.05, -0.08, -0.02)
    mean = comparison.Measure(0.5, 0.1, 0.52, 0.1, 0.025, 0.01, 0.04)
    measures = {"knn": up, "linear": down, "mean": mean}
    assert comparison._outcome(measures) == "mixed"
    v = Verdict("mixed", measures, 10, 2, 1, 5, 0.95)
    assert "nearest neighbours +10.0, linear classifier -5.0" in v.sentence


def test_text_dict_and_picture_tell_the_same(tmp_path):
    labels = torch.arange(120) % 3
    v = verdict(*pair(labels, 0, gain=1.0), labels, draws=8)
    assert v.outcome == "helped"
    m = v.measures["linear"]
    assert str(v).startswith(f"It helped: {100 * v.measures['mean'].difference:+.1f} points")
    assert f"{100 * m.before:.1f} ± {100 * m.before_std:.1f}" in str(v)
    assert "8 draws of 5 labels a class, 120 images of 3 classes" in str(v)
    numbers = json.loads(json.dumps(v.as_dict()))
    assert numbers["measures"]["linear"]["after"] == m.after
    assert numbers["sentence"] == v.sentence
    figure = v.plot(tmp_path / "v.png")
    bars = [bar.get_height() for bar in figure.axes[0].patches]
    assert bars == pytest.approx(
        [100 * getattr(v.measures[n], w) for w in ("before", "after") for n in v.measures]
    )
    spread = figure.axes[0].containers[0].lines[2][0].get_segments()[0]
    assert (spread[1, 1] - spread[0, 1]) / 200 == pytest.approx(v.measures["knn"].before_std)
    with Image.open(tmp_path / "v.png") as picture:
        assert picture.size[0] > 800


def test_without_matplotlib_the_picture_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    labels = torch.arange(24) % 2
    with pytest.raises(ImportError, match="pip install matplotlib"):
        verdict(*pair(labels, 0), labels, draws=8).plot()


def test_draws_depend_on_the_seed_alone():
    labels = torch.arange(48) % 3
    features = pair(labels, 0)
    state = torch.get_rng_state()
    runs = [verdict(*features, labels, draws=8, seed=seed) for seed in (0, 0, 1)]
    assert torch.equal(torch.get_rng_state(), state)
    assert runs[0] == runs[1] != runs[2]


# What a user holds


def small_net(classes=7):
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        nn.Linear(24, classes),
    )  # fmt: skip


@pytest.fixture
def held():
    """(before, learner, images, labels), the learner's net being another than before."""
    before = small_net()
    net = copy.deepcopy(before)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    learner = BYOL(net, 12, projection_size=4, projection_hidden_size=8)
    return before, learner, torch.rand(24, 3, 12, 12), torch.arange(24) % 2


def test_net_state_and_features_are_read_as_the_learner_reads(held):
    before, learner, images, labels = held
    normalised = (images - torch.tensor([0.485, 0.456, 0.406])[:, None, None]) / torch.tensor(
        [0.229, 0.224, 0.225]
    )[:, None, None]
    with torch.no_grad():
        expected = verdict(before[:-1].eval()(normalised), learner.embed(images), labels, draws=8)
    before.train()
    loader = DataLoader(TensorDataset(images, labels), 5)
    features = extract_features(BYOL(copy.deepcopy(before), 12, projection_size=4), loader)[0]
    averaged = AveragedModel(learner)
    for b, a, data in (
        (before, learner, (images, labels)),
        (before, averaged, loader),
        (before.state_dict(), learner, TensorDataset(images, labels)),
        (features, learner, [{"image": images, "label": labels}]),
    ):
        got = verdict(b, a, data, draws=8)
        for name, measure in got.measures.items():
            assert measure == pytest.approx(expected.measures[name], abs=1e-6)
    back = verdict(learner, before, images, labels.tolist(), draws=8)
    assert back.measures["knn"].before == pytest.approx(expected.measures["knn"].after, abs=1e-6)


def test_nets_and_learner_are_left_alone(held):
    before, learner, images, labels = held
    states = [copy.deepcopy(m.state_dict()) for m in (before, learner)]
    flags = [m.training for model in (before, learner) for m in model.modules()]
    verdict(before, learner, images, labels, draws=8)
    assert [m.training for model in (before, learner) for m in model.modules()] == flags
    for model, state in zip((before, learner), states, strict=True):
        assert all(torch.equal(v, state[n]) for n, v in model.state_dict().items())


def test_two_classifiers_are_read_before_their_last_layer(held):
    before, learner, images, labels = held
    after = learner.net
    with torch.no_grad():
        features = [net[:-1].eval()(images) for net in (before, after)]
    expected = verdict(*features, labels, draws=8)
    assert verdict(before, after, images, labels, draws=8) == expected


def test_shuffled_loader_is_read_once_for_both(held):
    before, learner, images, labels = held
    loader = DataLoader(TensorDataset(images, labels), 24, shuffle=True)
    v = verdict(before, learner, loader, draws=8)
    assert v.images == 24
    with pytest.raises(ValueError, match="shuffle=False"):
        verdict(torch.rand(24, 3), learner, loader)


def test_folder_of_classes(held, tmp_path):
    before, learner, images, labels = held
    for n, (image, label) in enumerate(zip(images, labels, strict=True)):
        folder = tmp_path / ("cats", "dogs")[label]
        folder.mkdir(exist_ok=True)
        pixels = (255 * image).byte().permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(folder / f"{n:02}.png")
    order = labels.argsort(stable=True)
    got = verdict(before, learner, tmp_path, image_size=12, draws=8)
    expected = verdict(before, learner, (255 * images[order]).byte(), labels[order], draws=8)
    assert got == expected
    assert verdict(before, learner, str(tmp_path), image_size=12, draws=8) == expected
    with pytest.raises(ValueError, match="need image_size="):
        verdict(before, learner, tmp_path)
    with pytest.raises(ValueError, match="subfolder of images for each class; there are none"):
        verdict(before, learner, tmp_path / "cats", image_size=12)
    (tmp_path / "cats" / "zz.png").write_bytes(b"no picture")
    with pytest.warns(UserWarning, match=r"cannot be read: .*cats/zz\.png"):
        assert verdict(before, learner, tmp_path, image_size=12, draws=8) == expected


def own_size(image, size):
    """A picture as wide as it is."""
    return decoding.pixels(image)


def test_files_of_classes_are_read_as_a_folder_is(held, tmp_path):
    before, learner, images, labels = held
    sizes = []
    for n, (image, label) in enumerate(zip(images, labels, strict=True)):
        folder = tmp_path / ("cats", "dogs")[label]
        folder.mkdir(exist_ok=True)
        pixels = (255 * image).byte().permute(1, 2, 0)[:, : 12 - n % 2].numpy()
        Image.fromarray(pixels).save(folder / f"{n:02}.png")
        sizes.append(pixels.shape)
    expected = verdict(before, learner, tmp_path, image_size=12, draws=8)
    files = ImageFiles(tmp_path, 12)
    given = [0] * 12 + [1] * 12
    assert verdict(before, learner, files, draws=8) == expected
    assert verdict(before, learner, ImageFiles(tmp_path, 16), image_size=12, draws=8) == expected
    by_number = verdict(before, learner, ImageFiles(tmp_path, 16), given, image_size=12, draws=8)
    assert by_number == expected
    with pytest.raises(ValueError, match="There are 24 images, but 23 labels"):
        verdict(before, learner, files, given[:-1])
    (tmp_path / "cats" / "zz.png").write_bytes(b"no picture")
    of_all = [*given[:12], 1, *given[12:]]  # the broken one's is left out with it
    with pytest.warns(UserWarning, match=r"cannot be read: .*cats/zz\.png"):
        assert verdict(before, learner, ImageFiles(tmp_path, 12), of_all, draws=8) == expected
    Image.new("RGB", (12, 12)).save(tmp_path / "of no class.png")
    with pytest.warns(UserWarning, match=r"cannot be read: .*cats/zz\.png"):
        assert verdict(before, learner, ImageFiles(tmp_path, 12), draws=8) == expected
    assert len(set(sizes)) == 2
    each = ImageFiles(tmp_path, 12, prepare=own_size)
    with pytest.warns(UserWarning, match="cannot be read"):
        assert verdict(before, learner, each, draws=8).images == 24
    features, found = extract_features(learner, each)
    assert len(features) == len(found) == 26
    with pytest.raises(ValueError, match="have no classes"):
        verdict(before, learner, ImageFiles(tmp_path / "cats", 12))


@pytest.mark.parametrize("kind", ["net", "state", "learner"])
def test_weights_that_training_changed_in_place_are_refused(held, kind):
    _, learner, images, labels = held
    net = learner.net
    before = {"net": net, "state": net.state_dict(), "learner": learner}[kind]
    with pytest.raises(ValueError, match=r"share their weights.*deepcopy"):
        verdict(before, learner, images, labels)


def test_another_architecture_is_refused(held):
    _, learner, images, labels = held
    with pytest.raises(ValueError, match="weights of before do not fit"):
        verdict(small_net(classes=3), learner, images, labels)
    with pytest.raises(ValueError, match="before is a Linear, and the learner's net a Sequential"):
        verdict(nn.Linear(3, 2), learner, images, labels)
    with pytest.raises(TypeError, match=r"before should be a learner, a net.* got int"):
        verdict(3, learner, images, labels)


FEATURES = torch.rand(24, 5)
NAN = torch.full((24, 5), torch.nan)


@pytest.mark.parametrize(
    ("before", "after", "labels", "options", "message"),
    [
        (FEATURES, NAN, torch.arange(24) % 2, {}, "Features after hold NaN"),
        (FEATURES[:9], FEATURES, torch.arange(24) % 2, {}, r"before should be .* 24 .* \(9, 5\)"),
        (FEATURES, FEATURES[:, 0], torch.arange(24) % 2, {}, r"after should be .* \(24,\)"),
        (FEATURES, FEATURES, torch.zeros(24), {}, "of one class"),
        (FEATURES, FEATURES, torch.arange(24) % 8, {}, "needs 4 .* class 0 has 3"),
        (FEATURES, FEATURES, ["a"] * 22 + ["b"] * 2, {}, "class 'b' has 2"),
        (FEATURES, FEATURES, torch.arange(24) % 2, {"labels_per_class": 4}, "needs 16 .* has 12"),
        (FEATURES, FEATURES, torch.arange(24) % 2, {"labels_per_class": 0}, "at least 1, got 0"),
        (FEATURES, FEATURES, torch.arange(24) % 2, {"draws": 0}, "draws=0"),
        (FEATURES, FEATURES, torch.arange(24) % 2, {"confidence": 95}, "confidence=95"),
        (FEATURES, FEATURES, torch.arange(24) / 2, {}, "whole numbers or names"),
    ],
)
def test_what_cannot_be_judged_is_named(before, after, labels, options, message):
    with pytest.raises(ValueError, match=message):
        verdict(before, after, labels, **options)


def test_images_without_labels_are_refused(held):
    before, learner, images, _ = held
    with pytest.raises(ValueError, match="need labels="):
        verdict(before, learner, images)
    with pytest.raises(ValueError, match="There are no labels"):
        verdict(before, learner, [images])
    with pytest.raises(TypeError, match="should be their labels, got NoneType"):
        verdict(FEATURES, FEATURES)
    with pytest.raises(TypeError, match=r"labelled images should be .* got int"):
        verdict(before, learner, 3)
