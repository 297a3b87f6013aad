"""The race runs, resumes, and judges as it says; peers take part where they are installed."""

import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

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


@pytest.mark.parametrize("name", ["byol-pytorch", "lightly"])
def test_peers_take_part(quality, npz, name):
    pytest.importorskip(name.replace("-", "_"))
    data = quality.load(npz)
    torch.manual_seed(0)
    net = quality.small_resnet(4)
    before = [parameter.clone() for parameter in net.parameters()]
    entry = quality.ENTRIES["cpu"][name](net, quality.Race(lambda: net, 32, 512, 0))
    for _ in range(2):
        loss = entry.step(data.train_images[: entry.batch_size], data.train_labels)
    assert loss.isfinite()
    after = list(net.parameters())
    assert not any(torch.equal(p, q) for p, q in zip(before, after, strict=True))


def test_a_run_that_is_stopped_goes_on_to_the_same_end(race, tmp_path):
    arguments = ("--quick", "--entries", "byol_wrap")
    (whole,) = race(*arguments)
    Path("quality.jsonl").unlink()
    for _ in range(3):
        assert race(*arguments, "--minutes", "0") == []  # one step, a checkpoint, no result
        assert len(list(Path("quality-checkpoints").glob("*.pt"))) == 1
    (pieces,) = race(*arguments)
    assert list(Path("quality-checkpoints").iterdir()) == []
    scores = ("knn_20", "knn_200", "linear", "steps", "images_seen")
    assert {name: pieces[name] for name in scores} == {name: whole[name] for name in scores}


def test_each_epoch_shows_each_image_once_in_an_order_of_its_own(quality):
    epochs = [
        torch.cat([quality.batch_indices(12, 4, step, seed) for step in range(start, start + 3)])
        for seed, start in ((0, 0), (0, 3), (1, 0))
    ]
    for epoch in epochs:
        assert sorted(epoch.tolist()) == list(range(12))
    assert len({tuple(epoch.tolist()) for epoch in epochs}) == 3


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
