"""Features, kNN and linear probe, against scikit-learn."""

import inspect
import math
from itertools import chain

import numpy as np
import pytest
import torch
from devices import cuda_only
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader, TensorDataset

from byol_wrap import BYOL, extract_features, knn_accuracy, linear_probe
from byol_wrap.evaluation import knn, linear, linear_probe_sgd


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def clusters(classes=4, train=120, test=400, size=12, spread=2.5, seed=0, names=None):
    """Overlapping clusters: (train features, labels, test features, labels)."""
    generator = torch.Generator().manual_seed(seed)
    centres = 2 * torch.randn(classes, size, generator=generator)
    parts = []
    for count in (train, test):
        labels = torch.randint(classes, (count,), generator=generator)
        noise = torch.randn(count, size, generator=generator)
        features = centres[labels] + spread * noise
        parts += [features, labels if names is None else torch.tensor(names)[labels]]
    return parts


# kNN


def sklearn_knn(data, k, temperature):
    x, y, test_x, test_y = (part.double().numpy() for part in data)
    model = KNeighborsClassifier(
        k,
        metric="cosine",
        algorithm="brute",
        # Shifted by each query's own nearest, which changes no vote and underflows for none.
        weights=lambda d: np.exp((d.min(axis=1, keepdims=True) - d) / temperature),
    )
    return model.fit(x, y).score(test_x, test_y)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("temperature", [0.005, 0.07, 1.0])  # exp(1 / 0.005) overflows
@pytest.mark.parametrize("k", [1, 5, 20, 120])
def test_knn_equals_scikit_learn(k, temperature, seed):
    data = clusters(seed=seed)
    expected = sklearn_knn(data, k, temperature)
    assert 0.3 < expected < 0.95
    assert knn_accuracy(*data, k=k, temperature=temperature) == pytest.approx(expected, abs=1e-9)


def test_votes_are_weighted_by_similarity():
    # Two neighbours of class 0 at a distance against one of class 1 nearby.
    angles = torch.tensor([0.5, -0.5, 0.1])
    train = torch.stack([angles.cos(), angles.sin()], dim=1)
    data = (train, torch.tensor([0, 0, 1]), torch.tensor([[1.0, 0.0]]), torch.tensor([1]))
    assert knn_accuracy(*data, k=3, temperature=0.07) == 1
    assert knn_accuracy(*data, k=3, temperature=10.0) == 0


def test_knn_defaults_are_20_neighbours_and_007():
    data = clusters(classes=6, spread=3.5)
    assert knn_accuracy(*data) == knn_accuracy(*data, k=20, temperature=0.07)
    assert knn_accuracy(*data) == pytest.approx(sklearn_knn(data, 20, 0.07), abs=1e-9)


def test_low_temperature_does_not_lose_the_votes_of_distant_neighbours():
    # Similarities near 0: exp((0 - 1) / 0.005) is 0 in float32, and all classes would tie.
    generator = torch.Generator().manual_seed(0)
    data = clusters(classes=3, size=16, seed=1)
    data[0] = torch.cat([data[0], 30 * torch.randn(120, 400, generator=generator)], dim=1)
    data[2] = torch.cat([data[2], 30 * torch.randn(400, 400, generator=generator)], dim=1)
    expected = sklearn_knn(data, 1, 0.005)
    assert knn_accuracy(*data, k=1, temperature=0.005) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("chunk_size", [1, 7, 399, 400, 401])
def test_chunks_change_nothing(chunk_size):
    data = clusters()
    assert knn_accuracy(*data, k=5, chunk_size=chunk_size) == knn_accuracy(*data, k=5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_knn_takes_any_float_and_any_scale(dtype):
    data = clusters(spread=0.1)
    data[0], data[2] = 100 * data[0].to(dtype), 0.01 * data[2].to(dtype)
    assert knn_accuracy(*data) == 1


# Labels and features: all evaluations treat them alike

EVALUATIONS = [knn_accuracy, linear_probe, linear_probe_sgd]
PROBES = EVALUATIONS[1:]


def independent_accuracy(evaluate, data):
    """By scikit-learn, or by hand."""
    if evaluate is linear_probe_sgd:
        return nesterov_by_hand(data, epochs=80, lr=0.2, weight_decay=0.0)
    return sklearn_knn(data, 20, 0.07) if evaluate is knn_accuracy else sklearn_probe(data, 1.0)


@pytest.mark.parametrize("evaluate", EVALUATIONS)
def test_labels_may_be_any_integers(evaluate):
    plain = clusters(spread=2.0)
    named = clusters(spread=2.0, names=[700, -3, 12, 0])
    assert evaluate(*named) == evaluate(*plain)
    assert evaluate(*named) == pytest.approx(independent_accuracy(evaluate, named), abs=0.003)


@pytest.mark.parametrize("evaluate", EVALUATIONS)
@pytest.mark.parametrize("missing", [1, 9, 30])
@pytest.mark.parametrize("part", ["train", "test"])
def test_class_without_images_in_one_part(evaluate, missing, part):
    x, y, test_x, test_y = clusters(names=[5, 1, 9, 30])
    if part == "train":
        x, y = x[y != missing], y[y != missing]
    else:
        test_x, test_y = test_x[test_y != missing], test_y[test_y != missing]
    data = [x, y, test_x, test_y]
    accuracy = evaluate(*data)
    assert accuracy == pytest.approx(independent_accuracy(evaluate, data), abs=0.006)
    assert accuracy <= 1 - (test_y == missing).float().mean().item()  # never seen, never right


@pytest.mark.parametrize("evaluate", EVALUATIONS)
@pytest.mark.parametrize(
    ("train", "test"),
    [
        (torch.int64, torch.int32),
        (torch.uint8, torch.int64),
        (torch.float32, torch.int64),  # as a table with gaps gives them
        (torch.int64, torch.float64),
        (torch.bool, torch.bool),
        (torch.bool, torch.int64),
    ],
)
def test_labels_may_be_whole_numbers_of_any_type(evaluate, train, test):
    x, y, test_x, test_y = clusters(classes=2 if train == torch.bool else 4)
    expected = evaluate(x, y, test_x, test_y)
    assert 0.5 < expected < 1
    assert evaluate(x, y.to(train), test_x, test_y.to(test)) == expected


@pytest.mark.parametrize("evaluate", EVALUATIONS)
@pytest.mark.parametrize(("part", "name"), [(1, "train"), (3, "test")])
@pytest.mark.parametrize("value", [2.5, math.nan, math.inf])
def test_labels_that_are_not_whole_are_refused(evaluate, part, name, value):
    data = clusters()
    data[part] = data[part].float()
    data[part][7] = value
    with pytest.raises(ValueError, match=f"{name}_labels should be whole numbers.* got {value}"):
        evaluate(*data)


@pytest.mark.parametrize("evaluate", EVALUATIONS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int16])
def test_features_may_be_of_any_precision(evaluate, dtype):
    x, y, test_x, test_y = clusters()
    x, test_x = (2 * x).to(dtype), (2 * test_x).to(dtype)
    expected = evaluate(x.float(), y, test_x.float(), test_y)
    assert 0.5 < expected < 1
    assert evaluate(x, y, test_x, test_y) == expected
    assert evaluate(x, y, test_x.float(), test_y) == expected


@pytest.mark.parametrize("evaluate", EVALUATIONS)
def test_precision_does_not_follow_the_global_default(evaluate):
    data = clusters()
    expected = evaluate(*data)
    torch.set_default_dtype(torch.float64)
    try:
        assert evaluate(*data) == expected
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("evaluate", EVALUATIONS)
def test_one_test_image(evaluate):
    x, y, test_x, test_y = clusters(spread=0.1)
    assert evaluate(x, y, test_x[:1], test_y[:1]) == 1
    assert evaluate(x, y, test_x[:1], test_y[:1] + 1) == 0


@pytest.mark.parametrize("evaluate", EVALUATIONS)
@pytest.mark.parametrize("count", [1, 30])
def test_one_class_in_training_is_what_all_are_taken_for(evaluate, count):
    x, y, test_x, test_y = clusters(names=[5, 1, 9, 30])
    x, y = x[y == 9][:count], y[y == 9][:count]
    options = {"k": count} if evaluate is knn_accuracy else {}
    expected = (test_y == 9).double().mean().item()
    assert evaluate(x, y, test_x, test_y, **options) == pytest.approx(expected, abs=1e-9)


@cuda_only
@pytest.mark.parametrize("evaluate", EVALUATIONS)
@pytest.mark.parametrize("elsewhere", [(1, 3), (2, 3), (0, 1), ()])
def test_parts_may_be_on_two_devices(evaluate, elsewhere):
    data = clusters()
    expected = evaluate(*data)
    data = [part.cpu() if n in elsewhere else part.cuda() for n, part in enumerate(data)]
    assert evaluate(*data) == pytest.approx(expected, abs=0.006)


# Memory


class NewTensors(TorchDispatchMode):
    """Sizes in bytes of all tensors that are made, views left out."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        def storages(tree):
            tensors = [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]
            return {tensor.untyped_storage()._cdata: tensor for tensor in tensors}

        before = storages([args, kwargs])
        results = function(*args, **(kwargs or {}))
        made = [made for key, made in storages(results).items() if key not in before]
        self.sizes += [tensor.untyped_storage().nbytes() for tensor in made]
        return results


@pytest.mark.parametrize("evaluate", EVALUATIONS)
def test_no_tensor_is_larger_than_the_limit(evaluate, monkeypatch):
    # 6,000 x 1,024 similarities, 6,000 x 100 logits: both far more than 2**15.
    for module in (knn, linear):
        monkeypatch.setattr(module, "LARGEST", 2**15)
    data = clusters(classes=100, train=6000, test=6000, size=2, spread=0.1)
    with NewTensors() as new:
        evaluate(*data, **({} if evaluate is knn_accuracy else {PACE[evaluate]: 2}))
    assert 4 * 2**14 < max(new.sizes) <= 4 * 2**15


PACE = {linear_probe: "max_iter", linear_probe_sgd: "epochs"}


def test_the_limit_is_128_megabytes():
    data = clusters(train=2**16, test=1024, size=2)
    with NewTensors() as new:
        knn_accuracy(*data)
    assert max(new.sizes) == 2**27
    with NewTensors() as new:
        knn_accuracy(*data, chunk_size=10)
    assert max(new.sizes) == 4 * 10 * 2**16


@pytest.mark.parametrize(
    ("evaluate", "dtype", "copies"),
    [
        (knn_accuracy, torch.float32, 0),
        (knn_accuracy, torch.float16, 1),
        (linear_probe, torch.float32, 1),
        (linear_probe, torch.float16, 1),
        (linear_probe_sgd, torch.float32, 0),
        (linear_probe_sgd, torch.float16, 0),
    ],
)
def test_training_features_are_not_copied_more_than_needed(evaluate, dtype, copies):
    data = clusters(train=2000, test=50, size=400)
    data[0] = data[0].to(dtype)
    with NewTensors() as new:
        evaluate(*data)
    assert len([size for size in new.sizes if size >= data[0].numel()]) == copies


@pytest.mark.parametrize("evaluate", EVALUATIONS)
@pytest.mark.parametrize("largest", [1, 1000])
def test_limit_changes_nothing(evaluate, largest, monkeypatch):
    data = clusters()
    expected = evaluate(*data)
    for module in (knn, linear):
        monkeypatch.setattr(module, "LARGEST", largest)
    assert evaluate(*data) == pytest.approx(expected, abs=0.003)


@pytest.fixture
def every_warning():
    """Warnings that PyTorch gives once in a process, each time."""
    before = torch.is_warn_always_enabled()
    torch.set_warn_always(True)
    yield
    torch.set_warn_always(before)


@pytest.mark.parametrize("evaluate", EVALUATIONS)
@pytest.mark.usefixtures("every_warning")
def test_labels_may_be_a_column_of_a_table(evaluate):
    x, y, test_x, test_y = clusters()
    table, test_table = (torch.stack([labels, labels], dim=1) for labels in (y, test_y))
    expected = evaluate(x, y, test_x, test_y)
    assert evaluate(x, table[:, 0], test_x, test_table[:, 1]) == expected


@pytest.mark.parametrize("evaluate", EVALUATIONS)
@pytest.mark.parametrize("part", [0, 2])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_features_that_are_not_finite_are_refused(evaluate, part, value):
    data = clusters()
    data[part][3, 4] = value
    name = "train" if part == 0 else "test"
    with pytest.raises(ValueError, match=f"{name}_features hold NaN or infinity"):
        evaluate(*data)


@pytest.mark.parametrize("evaluate", EVALUATIONS)
@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        (0, lambda x: x[:0], r"train_features should be \(N, D\) .*\(0, 12\) and \(120,\)"),
        (1, lambda y: y[:-1], r"train_features should be .*\(120, 12\) and \(119,\)"),
        (1, lambda y: y[:, None], r"train_features should be .*\(120, 1\)"),
        (2, lambda x: x[0], r"test_features should be .*\(12,\) and \(400,\)"),
        (2, lambda x: x[:, :5], "train_features have 12 dimensions, test_features 5"),
        (3, lambda y: y[:7], r"test_features should be .*\(7,\)"),
        (0, lambda x: x[:, :0], r"train_features should be .*\(120, 0\)"),
    ],
)
def test_shapes_that_do_not_match_are_refused(evaluate, part, change, message):
    data = clusters()
    data[part] = change(data[part])
    with pytest.raises(ValueError, match=message):
        evaluate(*data)


@pytest.mark.parametrize("evaluate", EVALUATIONS)
@pytest.mark.parametrize(("first", "name"), [(0, "train"), (2, "test")])
def test_nothing_to_compare_is_refused(evaluate, first, name):
    data = clusters()
    data[first], data[first + 1] = data[first][:0], data[first + 1][:0]
    with pytest.raises(ValueError, match=f"{name}_features should be .* N and D at least 1"):
        evaluate(*data)


@pytest.mark.parametrize(
    "arguments",
    [
        {"k": 0},
        {"k": -1},
        {"k": 121},
        {"temperature": 0},
        {"temperature": -1.0},
        {"temperature": math.nan},
    ],
)
def test_k_and_temperature_out_of_range_are_refused(arguments):
    name, value = next(iter(arguments.items()))
    with pytest.raises(ValueError, match=f"the 120 training features.*{name}={value}"):
        knn_accuracy(*clusters(), **arguments)


@pytest.mark.parametrize("chunk_size", [0, -5])
def test_chunk_size_that_is_not_positive_is_refused(chunk_size):
    with pytest.raises(ValueError, match="chunk_size"):
        knn_accuracy(*clusters(), chunk_size=chunk_size)


def test_all_training_images_may_be_neighbours():
    data = clusters()
    assert knn_accuracy(*data, k=120) == pytest.approx(sklearn_knn(data, 120, 0.07), abs=1e-9)


# Linear probe


def sklearn_probe(data, penalty):
    x, y, test_x, test_y = (part.double().numpy() for part in data)
    model = LogisticRegression(C=penalty, tol=1e-10, max_iter=20000)
    return make_pipeline(StandardScaler(), model).fit(x, y).score(test_x, test_y)


@pytest.mark.parametrize("penalty", [1e-2, 0.1, 1.0, 100.0])
@pytest.mark.parametrize(
    "problem",
    [
        {"classes": 3, "train": 60, "size": 4},
        {"classes": 5, "train": 200, "size": 16, "spread": 4.0, "seed": 1},
        {"classes": 4, "train": 40, "size": 30, "spread": 4.0, "seed": 2},  # more than images
    ],
    ids=["few", "many", "wide"],
)
def test_probe_equals_scikit_learn(problem, penalty):
    data = clusters(test=2000, **problem)
    # Different scales, so that standardising matters.
    scale = torch.logspace(-2, 2, data[0].shape[1])
    data[0], data[2] = data[0] * scale + 3, data[2] * scale + 3
    expected = sklearn_probe(data, penalty)
    assert 0.3 < expected < 0.99
    assert linear_probe(*data, C=penalty) == pytest.approx(expected, abs=0.0011)


@pytest.mark.parametrize("penalty", [1e-3, 1e-2, 1.0])
def test_probe_of_two_classes_equals_scikit_learn(penalty):
    x, y, test_x, test_y = clusters(2, train=150, test=4000, size=6, spread=4.0, seed=3)
    kept = torch.arange(150)[(y == 0) | (torch.arange(150) % 3 == 0)]  # one class is rare
    data = [x[kept], y[kept], test_x, test_y]
    assert linear_probe(*data, C=penalty) == pytest.approx(sklearn_probe(data, penalty), abs=0.0011)


def test_probe_is_penalised_by_c():
    data = clusters(classes=4, train=40, size=30, spread=6.0, seed=2, test=2000)
    assert linear_probe(*data, C=1e-3) != linear_probe(*data, C=100.0)
    assert linear_probe(*data) == linear_probe(*data, C=1.0)


@pytest.mark.parametrize("value", [0.0, 0.1, 3e4])
def test_constant_feature_changes_nothing_even_if_it_varies_in_the_test(value):
    data = clusters(train=121)
    expected = linear_probe(*data)
    constant = torch.full((121, 1), value)
    data[0] = torch.cat([data[0], constant], dim=1)
    data[2] = torch.cat([data[2], value + 0.1 * torch.rand(400, 1)], dim=1)
    assert linear_probe(*data) == pytest.approx(expected, abs=0.003)


@pytest.mark.parametrize("probe", PROBES)
def test_probe_leaves_features_and_gradient_mode_alone(probe):
    data = clusters()
    data[0].requires_grad_()
    before = data[0].detach().clone()
    probe(*data)
    assert torch.equal(data[0], before)
    assert data[0].grad is None
    assert torch.is_grad_enabled()
    with torch.no_grad():
        probe(*data)
        assert not torch.is_grad_enabled()


@pytest.mark.parametrize("penalty", [0, -1.0, math.nan])
def test_penalty_that_is_not_positive_is_refused(penalty):
    with pytest.raises(ValueError, match=f"C should be positive, got {penalty}"):
        linear_probe(*clusters(), C=penalty)


# Linear probe by SGD


def nesterov_by_hand(data, epochs, lr, weight_decay):
    """All features in each step, in float64: Sutskever et al. 2013 as PyTorch writes it."""
    x, y, test_x, test_y = (part.double().numpy() for part in data)
    x, test_x = (np.concatenate([part, np.ones((len(part), 1))], axis=1) for part in (x, test_x))
    wanted = y[:, None] == np.unique(y)
    weight = np.zeros((wanted.shape[1], x.shape[1]))
    velocity = np.zeros_like(weight)
    for step in range(epochs):
        odds = np.exp(x @ weight.T - (x @ weight.T).max(axis=1, keepdims=True))
        gradient = (odds / odds.sum(axis=1, keepdims=True) - wanted).T @ x / len(x)
        gradient[:, :-1] += weight_decay * weight[:, :-1]  # the bias is not decayed
        velocity = 0.9 * velocity + gradient
        rate = lr * (1 + math.cos(math.pi * step / epochs)) / 2
        weight -= rate * (gradient + 0.9 * velocity)
    return (np.unique(y)[(test_x @ weight.T).argmax(axis=1)] == test_y).mean()


@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
@pytest.mark.parametrize("lr", [1e-3, 0.02])
@pytest.mark.parametrize("epochs", [1, 2, 7, 30])
def test_sgd_is_nesterov_momentum_along_a_cosine(epochs, lr, weight_decay):
    data = clusters(classes=5, train=200, test=4000, size=8, spread=3.0)
    data[0], data[2] = data[0] + 1.5, data[2] + 1.5  # raw features: the bias has work to do
    expected = nesterov_by_hand(data, epochs, lr, weight_decay)
    options = {"epochs": epochs, "lr": lr * 256 / 1000, "weight_decay": weight_decay}
    accuracy = linear_probe_sgd(*data, batch_size=1000, **options)
    assert accuracy == pytest.approx(expected, abs=0.0004)


@pytest.mark.parametrize("weight_decay", [0.0, 0.02])
def test_sgd_comes_close_to_the_optimum(weight_decay):
    data = clusters(classes=5, train=2000, test=4000, size=8, spread=2.0)
    x, y, test_x, test_y = (part.double().numpy() for part in data)
    penalty = 1 / (weight_decay * len(x)) if weight_decay else 1e6
    optimum = LogisticRegression(C=penalty, max_iter=20000).fit(x, y).score(test_x, test_y)
    assert 0.6 < optimum < 0.98
    accuracy = linear_probe_sgd(*data, weight_decay=weight_decay)
    assert accuracy == pytest.approx(optimum, abs=0.004)


def test_sgd_defaults_are_the_references():
    data = clusters(train=700, test=4000, spread=4.0)
    given = {"epochs": 80, "batch_size": 256, "lr": 0.2, "weight_decay": 0.0, "seed": 0}
    parameters = inspect.signature(linear_probe_sgd).parameters
    assert {name: parameters[name].default for name in given} == given
    for name, value in {"epochs": 8, "batch_size": 64, "lr": 3e-4, "weight_decay": 1.0}.items():
        assert linear_probe_sgd(*data, **given | {name: value}) != linear_probe_sgd(*data), name


def test_sgd_depends_on_its_seed_alone():
    data = clusters(train=300, spread=4.0)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    accuracies = [linear_probe_sgd(*data, batch_size=4, epochs=1, seed=seed) for seed in range(5)]
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    again = [linear_probe_sgd(*data, batch_size=4, epochs=1, seed=seed) for seed in range(5)]
    assert again == accuracies
    assert len(set(accuracies)) > 1


def test_an_epoch_of_sgd_is_all_features_in_even_batches(monkeypatch):
    seen = []

    def recorded(scores, targets, **options):
        seen.append(targets.tolist())
        return cross_entropy(scores, targets, **options)

    cross_entropy = nn.functional.cross_entropy
    monkeypatch.setattr(linear.F, "cross_entropy", recorded)
    linear_probe_sgd(torch.eye(11), torch.arange(11), torch.eye(11), torch.arange(11), batch_size=4)
    assert [len(batch) for batch in seen] == [4, 4, 3] * 80
    epochs = [list(chain.from_iterable(seen[n : n + 3])) for n in range(0, 240, 3)]
    assert all(sorted(epoch) == list(range(11)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 80


class Waits(TorchDispatchMode):
    """How often a value is read from its device."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **(kwargs or {}))


def test_sgd_does_not_wait_for_the_device_in_its_steps():
    counts = []
    for epochs in (1, 20):
        with Waits() as waits:
            linear_probe_sgd(*clusters(), epochs=epochs, batch_size=10)
        counts.append(waits.count)
    assert counts[0] == counts[1] > 0


@cuda_only
def test_sgd_is_the_same_on_cuda():
    data = clusters(train=1000, spread=4.0)
    accuracy = linear_probe_sgd(*[part.cuda() for part in data], epochs=5)
    assert accuracy == pytest.approx(linear_probe_sgd(*data, epochs=5), abs=0.006)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("epochs", [0, -1]),
        ("batch_size", [0]),
        ("lr", [0.0, -0.1, math.nan, math.inf]),
        ("weight_decay", [-1e-4, math.nan, math.inf]),
    ],
)
def test_settings_of_sgd_out_of_range_are_refused(name, values):
    for value in values:
        with pytest.raises(ValueError, match=f"should be .* got .*{name}={value}"):
            linear_probe_sgd(*clusters(), **{name: value})


def test_sgd_that_diverges_says_so():
    data = clusters()
    data[0] = data[0] * 1e25
    with pytest.raises(ValueError, match=r"diverged at lr=0.2; lower it"):
        linear_probe_sgd(*data)


# Features


def net_with_frozen_norm():
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.AdaptiveAvgPool2d(2)
    )
    net[1].running_mean.normal_()
    net[1].eval()
    return net


def wrapped():
    return BYOL(net_with_frozen_norm(), 16, projection_size=4, projection_hidden_size=8)


def pixels(count=10):
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def labelled(count=10, batch_size=4):
    return DataLoader(TensorDataset(pixels(count), torch.arange(count) * 3), batch_size)


def training_flags(model):
    return [module.training for module in model.modules()]


def test_features_of_a_learner_are_its_embeddings_in_order():
    learner = wrapped()
    flags = training_flags(learner)
    features, labels = extract_features(learner, labelled())
    assert training_flags(learner) == flags
    assert features.shape == (10, 4)
    torch.testing.assert_close(features, learner.embed(pixels()))
    assert labels.tolist() == [3 * i for i in range(10)]
    assert not features.requires_grad


def test_features_of_a_plain_net_are_its_flat_outputs_in_eval_mode():
    net = net_with_frozen_norm()
    flags = training_flags(net)
    state = {name: value.clone() for name, value in net.state_dict().items()}
    features, labels = extract_features(net, labelled())
    assert training_flags(net) == flags
    assert flags == [True, True, False, True, True]
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    with torch.no_grad():
        expected = net.eval()(pixels()).flatten(1)
    torch.testing.assert_close(features, expected)
    assert labels.tolist() == [3 * i for i in range(10)]
    assert not features.requires_grad


@pytest.mark.parametrize("build", [wrapped, net_with_frozen_norm])
def test_bytes_are_taken_as_pixels_over_255(build):
    model = build()
    batch = (pixels() * 255).to(torch.uint8)
    features, _ = extract_features(model, [batch])
    expected, _ = extract_features(model, [batch.float() / 255])
    torch.testing.assert_close(features, expected)


@pytest.mark.parametrize("build", [wrapped, net_with_frozen_norm])
def test_loader_without_labels_gives_none(build):
    model = build()
    features, labels = extract_features(model, DataLoader(pixels(), 4))
    assert labels is None
    torch.testing.assert_close(features, extract_features(model, labelled())[0])


def test_data_set_of_images_alone_gives_no_labels():
    # A TensorDataset of one tensor yields [images].
    features, labels = extract_features(wrapped(), DataLoader(TensorDataset(pixels()), 4))
    assert labels is None
    assert features.shape == (10, 4)


def test_labels_may_be_lists():
    loader = [(pixels(2), [4, 5]), (pixels(1), [6])]
    assert extract_features(wrapped(), loader)[1].tolist() == [4, 5, 6]


@pytest.mark.parametrize("build", [wrapped, net_with_frozen_norm])
def test_flags_are_put_back_after_an_error_in_the_loader(build):
    def loader():
        yield pixels(2)
        raise OSError("broken file")

    model = build()
    flags = training_flags(model)
    with pytest.raises(OSError, match="broken file"):
        extract_features(model, loader())
    assert training_flags(model) == flags


def test_flags_are_put_back_after_an_error_in_the_learner():
    learner = wrapped()
    flags = training_flags(learner)
    with pytest.raises(ValueError, match="NaN"):
        extract_features(learner, [pixels(2), pixels(2) * math.nan])
    assert training_flags(learner) == flags


def test_model_in_eval_mode_stays_so():
    learner = wrapped().eval()
    extract_features(learner, labelled())
    assert not any(training_flags(learner))


@pytest.mark.parametrize("loader", [[], DataLoader(TensorDataset(pixels(3)), 4, drop_last=True)])
def test_empty_loader_is_refused(loader):
    with pytest.raises(ValueError, match="yields no batch"):
        extract_features(wrapped(), loader)


@pytest.mark.parametrize("order", [1, -1])
def test_labels_for_some_batches_only_are_refused(order):
    loader = [pixels(2), (pixels(2), torch.tensor([0, 1]))][::order]
    with pytest.raises(ValueError, match="labels for some batches and none for others"):
        extract_features(wrapped(), loader)


def test_model_that_returns_no_tensor_is_refused():
    class Pair(nn.Module):
        def forward(self, x):
            return x, x

    with pytest.raises(TypeError, match="should return a tensor, got tuple"):
        extract_features(Pair(), [pixels(2)])


def test_features_and_labels_are_gathered_on_the_given_device():
    learner = wrapped()
    features, labels = extract_features(learner, labelled(), device="meta")
    assert features.device.type == labels.device.type == "meta"
    features, labels = extract_features(learner, labelled())
    assert features.device == labels.device == next(learner.parameters()).device


def test_features_go_straight_into_both_evaluations():
    images, labels = pixels(40), torch.arange(40) % 2
    images[labels == 1] *= 0.3  # two classes that any features tell apart
    features, gathered = extract_features(wrapped(), DataLoader(list(zip(images, labels)), 16))  # noqa: B905
    assert torch.equal(gathered, labels)
    assert knn_accuracy(features, gathered, features, gathered, k=5) == 1
    assert linear_probe(features, gathered, features, gathered) == 1


@pytest.mark.parametrize("probe", PROBES)
def test_probe_works_in_inference_mode(probe):
    data = clusters()
    expected = probe(*data)
    with torch.inference_mode():
        assert probe(*[part.clone() for part in data]) == expected


@pytest.mark.parametrize("evaluate", EVALUATIONS)
def test_accuracies_take_lists_of_labels(evaluate):
    x, y, test_x, test_y = clusters()
    expected = evaluate(x, y, test_x, test_y)
    assert evaluate(x, y.tolist(), test_x, test_y.tolist()) == expected


@pytest.mark.parametrize("evaluate", EVALUATIONS)
@pytest.mark.parametrize("kind", [list, tuple, np.array])
def test_labels_may_be_class_names(evaluate, kind):
    x, y, test_x, test_y = clusters()
    names = ["wren", "auk", "owl", "crow"]
    named = [kind([names[label] for label in part]) for part in (y, test_y)]
    expected = evaluate(x, y, test_x, test_y)
    assert evaluate(x, named[0], test_x, named[1]) == pytest.approx(expected, abs=0.003)
    without = [name if name != "owl" else "gull" for name in named[1]]  # a class never taught
    accuracy = evaluate(x, named[0], test_x, without)
    assert accuracy <= 1 - (test_y == 2).float().mean().item()


@pytest.mark.parametrize("evaluate", EVALUATIONS)
def test_classes_of_which_none_is_common_are_refused(evaluate):
    x, y, test_x, test_y = clusters()
    wrong = (
        "in common: the former are 0, 1, 2, 3, the latter 4, 5, 6, 7",
        "are 'train/0', 'train/1', 'train/2', .* 'val/0'",
        r"the latter 100, 101, 102, 103, 104 and \d+ more",
    )
    parts = ("train", y), ("val", test_y)
    named = [[f"{part}/{k}" for k in labels.tolist()] for part, labels in parts]
    pairs = (y, test_y + 4), named, (y, 100 + torch.arange(len(test_y)))
    for message, (train, test) in zip(wrong, pairs, strict=True):
        with pytest.raises(ValueError, match=message):
            evaluate(x, train, test_x, test)


@pytest.mark.parametrize("evaluate", EVALUATIONS)
def test_labels_that_are_a_matrix_are_told_how_to_be_a_vector(evaluate):
    x, y, test_x, test_y = clusters()
    with pytest.raises(ValueError, match=r"\(120, 1\); of the labels take labels.squeeze\(1\)"):
        evaluate(x, y[:, None], test_x, test_y)
    one_hot = torch.nn.functional.one_hot(test_y)
    with pytest.raises(ValueError, match=r"labels.argmax\(1\), if they are one-hot"):
        evaluate(x, y, test_x, one_hot)


@pytest.mark.parametrize("evaluate", EVALUATIONS)
def test_names_beside_numbers_are_refused(evaluate):
    x, y, test_x, test_y = clusters()
    with pytest.raises(TypeError, match="names in one of train and test"):
        evaluate(x, [str(label) for label in y.tolist()], test_x, test_y)
    with pytest.raises(TypeError, match=r"whole numbers or names, .* got list of 120: int"):
        evaluate(x, [1, "a", *y.tolist()[2:]], test_x, test_y)


def in_ddp(model):
    """As ``DistributedDataParallel(model)`` looks from outside, without a process group."""
    wrapper = nn.parallel.DistributedDataParallel.__new__(nn.parallel.DistributedDataParallel)
    nn.Module.__init__(wrapper)
    wrapper.module = model
    return wrapper


def compiled(model):
    return torch.compile(model, backend="eager")


def in_fabric(model):
    """As ``Fabric.setup(model)`` looks from outside where its strategy wraps the model, too."""
    wrapper = nn.Module()
    wrapper._forward_module, wrapper._original_module = in_ddp(model), model
    return wrapper


@pytest.mark.parametrize("wrap", [AveragedModel, in_ddp, compiled, in_fabric])
def test_learner_is_found_inside_its_wrapper(wrap):
    learner = wrapped()
    outer = wrap(learner)
    flags = training_flags(outer)
    features, labels = extract_features(outer, labelled())
    torch.testing.assert_close(features, learner.embed(pixels()))
    assert len(labels) == 10
    assert training_flags(outer) == flags


@pytest.mark.parametrize("wrap", [AveragedModel, in_ddp, compiled])
def test_plain_net_inside_its_wrapper(wrap):
    net = net_with_frozen_norm()
    expected = extract_features(net, labelled())[0]
    torch.testing.assert_close(extract_features(wrap(net), labelled())[0], expected)


def test_net_with_a_part_called_module_or_embed_is_run_whole():
    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            self.module = self.embed = nn.Conv2d(3, 2, 3)
            self.head = nn.Linear(2, 4)

        def forward(self, x):
            return self.head(self.embed(x).mean((2, 3)))

    assert extract_features(Whole(), labelled())[0].shape == (10, 4)


def test_module_that_holds_a_learner_is_named():
    class Holds(nn.Module):
        def __init__(self):
            super().__init__()
            self.learner = wrapped()
            self.other = nn.Linear(1, 1)

        def forward(self, x):
            return self.learner(x)

    with pytest.raises(ValueError, match=r"one row for each of the 10 images, got shape \(\)"):
        extract_features(Holds(), [pixels()])


@pytest.mark.parametrize(
    "loader",
    [
        [{"image": pixels(), "label": torch.arange(10), "path": ["x"] * 10}],
        [{"pixel_values": pixels(), "labels": torch.arange(10)}],
        [{"x": pixels().numpy(), "target": np.arange(10)}],
        [(pixels().numpy(), np.arange(10))],
        [(pixels().flip(0).numpy()[::-1], list(range(10)), "an index")],
        [(list(pixels()), tuple(range(10)))],
        TensorDataset(pixels(), torch.arange(10)),
        [(pixels()[k : k + 1], k) for k in range(10)],
    ],
    ids=["mapping", "transformers", "numpy mapping", "numpy", "three", "lists", "data set", "ones"],
)
def test_loaders_of_many_kinds(loader):
    learner = wrapped()
    features, labels = extract_features(learner, loader)
    torch.testing.assert_close(features, learner.embed(pixels()))
    assert labels.tolist() == list(range(10))


def test_images_in_lists_may_differ_in_size():
    learner, images = wrapped(), [pixels(1)[0], torch.rand(3, 20, 18)]
    features, labels = extract_features(learner, [images])
    assert labels is None
    expected = torch.cat([learner.embed(image[None]) for image in images])
    torch.testing.assert_close(features, expected)


@pytest.mark.parametrize("nested", [True, False])
def test_first_of_several_views_is_taken_with_a_word(nested):
    learner, other = wrapped(), torch.rand(10, 3, 16, 16)
    batch = ([pixels(), other], torch.arange(10)) if nested else [pixels(), other]
    with pytest.warns(UserWarning, match="2 views of each image: features are those of the first"):
        features, labels = extract_features(learner, [batch])
    torch.testing.assert_close(features, learner.embed(pixels()))
    assert (labels is not None) == nested


@pytest.mark.parametrize(
    "others",
    [
        {"fine_label": torch.arange(10), "coarse_label": torch.arange(10)},
        {"species": ["auk", "owl"] * 5},
        {"digit": np.arange(10)},
    ],
)
def test_what_may_be_labels_under_another_name_is_told(others):
    named = f"would be called label, .*{next(iter(others))!r}: "
    with pytest.warns(UserWarning, match=named) as told:
        _, labels = extract_features(wrapped(), [{"img": pixels(), **others}])
    assert labels is None
    assert told[0].filename == __file__
    others = {"path": ["x"] * 10, "image_id": torch.arange(10), "width": 16.0}
    assert extract_features(wrapped(), [{"img": pixels(), **others}])[1] is None
    extract_features(wrapped(), [{"img": pixels(), "label": torch.arange(10), "digit": [1] * 10}])


def test_labels_behind_views_are_taken():
    batch = (pixels(), pixels().flip(3), torch.arange(10))
    with pytest.warns(UserWarning, match="2 views of each image"):
        _, labels = extract_features(wrapped(), [batch])
    assert labels.tolist() == list(range(10))


@pytest.mark.parametrize("model", [None, "resnet18", len])
def test_what_is_no_net_is_refused(model):
    with pytest.raises(TypeError, match=r"a learner or an nn\.Module, got .*the learner itself"):
        extract_features(model, [pixels()])


def test_class_names_come_as_a_list():
    loader = [(pixels(3)[:2], ("owl", "auk")), (pixels(3)[2:], ["wren"])]
    features, labels = extract_features(wrapped(), loader)
    assert labels == ["owl", "auk", "wren"]
    assert knn_accuracy(features, labels, features, labels, k=1) == 1
    with pytest.raises(TypeError, match="numbers in some batches and names in others"):
        extract_features(wrapped(), [(pixels(1), ["owl"]), (pixels(1), [3])])


@pytest.mark.parametrize(
    ("batch", "error", "message"),
    [
        ({"picture": pixels(2)}, ValueError, r"one of image, .*'picture': Tensor \(2, 3, 16, 16\)"),
        ({"image": pixels(2), "x": pixels(2)}, ValueError, "one of image, .*'x': Tensor"),
        ("photo.png", TypeError, r"numpy array \(B, \.\.\.\), .* got str"),
        ((["a.png", "b.png"], [1, 2]), TypeError, "got list of 2: str, str"),
        ([], TypeError, "got list of 0"),
        ((pixels(2), {"boxes": pixels(2)}), TypeError, "names, one for each image, got .*boxes"),
        ((pixels(2), [0, 1, 2]), ValueError, "2 images, but 3 labels"),
        (torch.arange(4), TypeError, r"got Tensor \(4,\)"),
    ],
)
def test_batches_that_cannot_be_taken_are_named(batch, error, message):
    with pytest.raises(error, match=message):
        extract_features(wrapped(), [batch])
