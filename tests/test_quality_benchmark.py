"""The race runs, resumes, and judges as it says; peers take part where they are installed."""

import io
import json
import math
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from fake_cuda_step import Elsewhere, plays_a_gpu
from PIL import Image

from byol_wrap import byol_loss

BENCHMARKS = Path(__file__).parent / "benchmarks"


@pytest.fixture(scope="module")
def quality():
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import quality
    finally:
        sys.path.remove(str(BENCHMARKS))
    return quality


@pytest.fixture(scope="module")
def npz(tmp_path_factory):
    """300 + 50 images in an .npz; the brightness of each tells its class."""
    path = tmp_path_factory.mktemp("data") / "tiny.npz"
    generator = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", 300), ("test", 50)):
        labels = np.arange(count) % 10
        pixels = 25 * labels[:, None, None, None] + generator.integers(0, 20, (count, 32, 32, 3))
        files = []
        for image in pixels.astype(np.uint8):
            buffer = io.BytesIO()
            Image.fromarray(image).save(buffer, "png")
            files.append(buffer.getvalue())
        arrays[f"{split}_bytes"] = np.frombuffer(b"".join(files), np.uint8)
        arrays[f"{split}_ends"] = np.cumsum([len(file) for file in files])
        arrays[f"{split}_labels"] = labels.astype(np.uint8)
        arrays[f"{split}_pixels"] = pixels.astype(np.uint8)
    np.savez(path, **arrays)
    return path


@pytest.fixture
def race(quality, npz, tmp_path, monkeypatch):
    """Run the script in a folder of its own; gives its lines of JSON."""
    monkeypatch.chdir(tmp_path)
    small = quality.Race(lambda: quality.small_resnet(4), 32, 512, 0)
    monkeypatch.setitem(quality.RACES, "cpu", small)

    def run(*arguments):
        quality.main(["--data", str(npz), *arguments])
        return quality.read(Path("quality.jsonl"))

    return run


def test_images_of_an_npz_are_read_as_they_are(quality, npz):
    data = quality.load(npz)
    file = np.load(npz)
    assert data.train_images.dtype == torch.uint8
    assert np.array_equal(data.train_images.permute(0, 2, 3, 1).numpy(), file["train_pixels"])
    assert np.array_equal(data.test_images.permute(0, 2, 3, 1).numpy(), file["test_pixels"])
    assert data.train_labels.tolist() == [n % 10 for n in range(300)]
    assert data.test_labels.dtype == torch.int64


def test_without_data_the_error_says_what_to_do(quality, tmp_path, monkeypatch):
    import torchvision

    def fails(*args, **kwargs):
        raise RuntimeError("no network")

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", fails)
    with pytest.raises(SystemExit, match=r"no network.*--data"):
        quality.load(tmp_path)


def test_own_entries_run_once_and_are_tabled(race, capsys):
    own = ("--entries", "random", "byol_wrap", "supervised")
    runs = race("--quick", *own)
    assert [run["entry"] for run in runs] == list(own[1:])
    assert {run["seed"] for run in runs} == {0}
    for run in runs:
        assert run["images_seen"] == (0 if run["entry"] == "random" else 512)
        assert all(0 <= run[score] <= 100 for score in ("knn_20", "knn_200", "linear"))
    assert runs[2]["linear"] > 50  # the classes are told by their brightness alone
    printed = capsys.readouterr().out
    row = f"| byol_wrap | {runs[1]['knn_20']:.1f} | {runs[1]['knn_200']:.1f} |"
    assert row in printed
    assert race("--quick", *own) == runs
    assert "seed 0" not in capsys.readouterr().out
    assert len(race(*own, "--seeds", "0", "1")) == 6


@dataclass
class Claim:
    """What an entry is said to train with: of lightly's, its script says so; ours, the recipe."""

    batch_size: int
    rate: float
    decays: list[float]  # of each group of parameters
    heads: list[tuple[int, int]]  # sizes of all layers behind the 32 features
    attributes: dict[str, object] = field(default_factory=dict)  # of the learner


WIDE = [(32, 2048), (2048, 256), (256, 2048), (2048, 256)]
NARROW = [(32, 512), (512, 128)]
SIMSIAM = [(32, 2048), (2048, 2048), (2048, 512), (512, 2048)]
CLAIMS = {
    "byol-pytorch": Claim(20, 3e-4, [0], [(32, 256), *[(256, 4096), (4096, 256)] * 2]),
    "lightly": Claim(128, 0.06, [5e-4], [(32, 1024), (1024, 256), (256, 1024), (1024, 256)]),
    "byol-pytorch, our recipe": Claim(32, 0.03, [5e-4, 0], WIDE),
    "lightly, our recipe": Claim(32, 0.03, [5e-4, 0], WIDE),
    "byol_wrap": Claim(32, 0.03, [5e-4, 0], WIDE),
    "byol_wrap, training_recipe": Claim(32, 0.03, [5e-4, 0, 5e-4, 0], WIDE),
    "lightly SimSiam": Claim(128, 0.06, [5e-4], SIMSIAM),
    "byol_wrap SimSiam": Claim(
        64, 0.03, [5e-4, 0, 5e-4, 0], [SIMSIAM[0], SIMSIAM[1], *SIMSIAM[1:]]
    ),
    "lightly SimCLR": Claim(128, 0.06, [5e-4], NARROW),
    "byol_wrap SimCLR": Claim(128, 0.06, [5e-4, 0], NARROW, {"temperature": 0.2}),
    "lightly MoCo": Claim(128, 0.06, [5e-4], NARROW),
    "byol_wrap MoCo": Claim(64, 0.03, [5e-4, 0], NARROW, {"temperature": 0.2, "symmetric": True}),
}


def peer(name):
    """Skip where a test needs a library that is not here."""
    library = name.split(",")[0].split()[0].replace("-", "_")
    pytest.importorskip(library)


@pytest.fixture
def enter(quality):
    """Give a small network to an entry, for a race of so many steps."""

    def build(name, steps=4):
        peer(name)
        torch.manual_seed(0)
        net = quality.small_resnet(4).to(memory_format=torch.channels_last)
        race = quality.Race(lambda: net, 32, steps * CLAIMS[name].batch_size, 0)
        return net, quality.ENTRIES["cpu"][name](net, race)

    return build


@pytest.fixture(scope="module")
def images(quality, npz):
    return quality.load(npz).train_images


@pytest.mark.parametrize("name", CLAIMS)
def test_entries_train_with_what_they_claim(enter, images, name):
    claim = CLAIMS[name]
    net, entry = enter(name)
    before = [parameter.clone() for parameter in net.parameters()]
    groups = entry.optimizer.param_groups
    assert entry.batch_size == claim.batch_size
    assert {group.get("initial_lr", group["lr"]) for group in groups} == {claim.rate}
    assert [group["weight_decay"] for group in groups] == claim.decays
    trained = {id(parameter) for group in groups for parameter in group["params"]}
    modules = torch.nn.ModuleList(m for m in entry.parts.values() if isinstance(m, torch.nn.Module))
    linear = [m for m in modules.modules() if isinstance(m, torch.nn.Linear)]
    linear = [m for m in linear if m.weight.requires_grad and id(m.weight) in trained]
    heads = [(m.in_features, m.out_features) for m in linear]
    assert heads == claim.heads
    for attribute, value in claim.attributes.items():
        assert getattr(entry.learner, attribute) == value
    for group in groups:
        if len(groups) > 1:
            assert {p.ndim == 1 for p in group["params"]} == {group["weight_decay"] == 0}
    for _ in range(2):
        loss = entry.step(images[: entry.batch_size], None)
    assert loss.isfinite()
    after = list(net.parameters())
    assert not any(torch.equal(p, q) for p, q in zip(before, after, strict=True))


@pytest.mark.parametrize(
    "name", ["byol-pytorch, our recipe", "lightly, our recipe", "byol_wrap", "byol_wrap MoCo"]
)
def test_rate_and_tau_are_our_recipes(enter, images, name):
    """Step by step; tau is read off what the target did."""
    _, entry = enter(name, steps=20)
    byol = entry if name == "lightly, our recipe" else entry.learner
    online, target = (
        (byol.online_encoder, byol.target_encoder)
        if name == "byol-pytorch, our recipe"
        else (byol.online, byol.target)
    )
    rates, taus = [], []
    for _ in range(6):
        rates.append(entry.optimizer.param_groups[0]["lr"])
        weight = next(online.parameters())
        new, old = weight.detach().clone(), next(target.parameters()).detach().clone()
        entry.step(images[: entry.batch_size], None)
        if name != "lightly, our recipe":  # which moves its target at the start of the next step
            new = weight.detach()
        moved = next(target.parameters()).detach() - old
        taus.append(1 - ((moved * (new - old)).sum() / (new - old).square().sum()).item())
    assert rates[:2] == pytest.approx([0, 0.015])
    assert rates[2:] == pytest.approx([0.015 * (1 + math.cos(math.pi * k / 18)) for k in range(4)])
    first = 1 if name == "lightly, our recipe" else 2  # which update the third step makes
    expected = [1 - 0.05 * (1 + math.cos(math.pi * k / 20)) for k in range(first, first + 4)]
    if name == "byol_wrap MoCo":
        expected = [0.99] * 4
    assert taus[2:] == pytest.approx(expected, abs=1e-5)


def test_our_recipe_gives_lightly_the_loss_for_which_its_rate_was_found(enter):
    _, entry = enter("lightly, our recipe")
    torch.manual_seed(1)
    view1, view2 = torch.randn(2, 32, 3, 32, 32)
    predictions = [entry.predictor(entry.online(view)) for view in (view1, view2)]
    targets = [entry.target(view) for view in (view2, view1)]
    expected = sum(byol_loss(*pair) for pair in zip(predictions, targets, strict=True))
    assert torch.allclose(entry.loss(view1, view2), expected)


@pytest.mark.parametrize("name", ["byol-pytorch, our recipe", "lightly, our recipe"])
def test_our_recipe_gives_the_peers_its_views(enter, name):
    """Crops keep 70 % at least; half of the second views are solarized."""
    _, entry = enter(name)
    white = torch.full((200, 3, 32, 32), 255, dtype=torch.uint8)
    if name == "lightly, our recipe":
        views = entry.two_views(white)
        crops = [view.transform.transforms[0] for view in entry.views]
        assert [crop.scale for crop in crops] == [(0.7, 1.0), (0.7, 1.0)]
    else:
        learner = entry.learner
        views = learner.augment1(white / 255), learner.augment2(white / 255)
        crops = [augment[0][0] for augment in (learner.augment1, learner.augment2)]
        assert [crop._param_generator.scale for crop in crops] == [(0.7, 1.0), (0.7, 1.0)]
    dark = [(view[:, 0].mean((1, 2)) * 0.229 + 0.485 < 0.5).float().mean() for view in views]
    assert dark[0] == 0
    assert 0.4 < dark[1] < 0.6


def test_lightlys_moco_has_batchnorm_of_eighths_and_a_queue_of_earlier_keys(enter, images):
    net, entry = enter("lightly MoCo")
    norms = [m for m in net.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert {m.running_mean.numel() // m.weight.numel() for m in norms} == {8}
    bank = entry.criterion.memory_bank
    before = bank.bank.clone()
    entry.step(images[:128], None)
    replaced = (bank.bank != before).any(1).nonzero().flatten()
    assert replaced.tolist() == list(range(256))  # both views' keys
    assert bank.bank.norm(dim=1).allclose(torch.ones(4096))


@pytest.mark.parametrize("name", ["byol_wrap", "lightly, our recipe", "lightly MoCo"])
def test_a_run_that_is_stopped_goes_on_to_the_same_end(race, quality, monkeypatch, name):
    def weigh(net, data):  # in place of accuracies, which may be the same of other weights
        values = torch.cat([value.flatten() for value in net.state_dict().values()])
        return dict.fromkeys(("knn_20", "knn_200", "linear"), values.double().abs().sum().item())

    peer(name)
    monkeypatch.setattr(quality, "judge", weigh)
    five_steps = str(5 * CLAIMS[name].batch_size)
    arguments = ("--quick", "--entries", name, "--images-seen", five_steps)
    (whole,) = race(*arguments)
    Path("quality.jsonl").unlink()
    for _ in range(3):
        assert race(*arguments, "--minutes", "0") == []  # one step, a checkpoint, no result
        assert len(list(Path("quality-checkpoints").glob("*.pt"))) == 1
    (pieces,) = race(*arguments)
    assert list(Path("quality-checkpoints").iterdir()) == []
    scores = ("knn_20", "knn_200", "linear", "steps", "images_seen")
    assert {name: pieces[name] for name in scores} == {name: whole[name] for name in scores}


def test_the_table_has_its_own_order_and_keeps_what_it_does_not_know(race, capsys):
    run = {"race": "cpu", "budget": 512, "seed": 0, "images_seen": 512, "seconds": 60.0}
    run |= dict.fromkeys(("knn_20", "knn_200", "linear"), 50.0)
    lines = [json.dumps({**run, "entry": name}) for name in ("unknown", "supervised", "random")]
    Path("quality.jsonl").write_text("\n".join(lines))
    race("--quick", "--entries", "random")
    rows = [line.split(" | ")[0] for line in capsys.readouterr().out.splitlines()]
    assert rows[-3:] == ["| random", "| supervised", "| unknown"]


def test_each_epoch_shows_each_image_once_in_an_order_of_its_own(quality):
    orders = [quality.Order(13, 4, seed, torch.device("cpu")) for seed in (0, 1, 0)]
    epochs = [
        torch.cat([order.batch(step) for step in range(start, start + 3)])
        for order, start in zip(orders, (0, 0, 3), strict=True)
    ]
    for epoch in epochs:
        assert len({*epoch.tolist()} & {*range(13)}) == 12
    assert len({tuple(epoch.tolist()) for epoch in epochs}) == 3
    assert torch.equal(orders[2].batch(1), epochs[0][4:8])  # whatever was asked for before


@plays_a_gpu
def test_only_the_first_step_of_an_epoch_waits_for_its_order(quality):
    with Elsewhere() as there:
        order = quality.Order(13, 4, 0, there.device)
        waits = []
        for step in range(6):
            there.waits.clear()
            assert order.batch(step).device == there.device
            waits.append(len(there.waits))
    assert waits == [1, 0, 0, 1, 0, 0]


def test_the_table_gives_mean_and_spread(quality):
    run = {"entry": "a", "images_seen": 1000, "knn_200": 1.0, "linear": 2.0, "seconds": 60.0}
    runs = [{**run, "seed": seed, "knn_20": 40.0 + seed} for seed in range(3)]
    assert "| a | 41.0 ± 1.0 | 1.0 ± 0.0 | 2.0 ± 0.0 | 0, 1, 2 | 1,000 | 1.0 |" in quality.table(
        runs
    )
    assert "| a | 40.0 | 1.0 | 2.0 | 0 | 1,000 | 1.0 |" in quality.table(runs[:1])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is CUDA here")
def test_the_gpu_race_says_that_it_needs_cuda(race):
    with pytest.raises(SystemExit, match="needs a CUDA device"):
        race("--race", "gpu")


def test_results_are_whole_lines_of_json(race):
    race("--entries", "random", "--seeds", "0", "1")
    lines = Path("quality.jsonl").read_text().splitlines()
    assert [json.loads(line)["seed"] for line in lines] == [0, 1]
