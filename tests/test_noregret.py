"""The matrix measures what it says, runs a cell, and does not run it twice."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).parent / "benchmarks"


@pytest.fixture
def noregret(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.chdir(tmp_path)
    import noregret

    return noregret


def test_few_labels_are_as_many_of_each_class(noregret: Any) -> None:
    labels = torch.arange(200) % 4
    draws = list(noregret.few_labels(labels))
    assert len(draws) == noregret.DRAWS
    assert all(labels[chosen].bincount().tolist() == [10] * 4 for chosen in draws)
    assert not torch.equal(draws[0], draws[1])


def test_a_spectrum_that_falls_as_a_power_has_its_slope(noregret: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(300, 60, generator=generator))[0]
    basis = torch.linalg.qr(basis - basis.mean(dim=0))[0]
    falling = torch.arange(1.0, 61).pow(-0.75)  # of singular values; variances fall as its square
    assert noregret.spectrum_slope(basis * falling) == pytest.approx(1.5, abs=1e-3)


def test_lidar_counts_the_directions_that_tell_images_apart(noregret: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    centres = torch.zeros(400, 1, 12)
    centres[..., :3] = torch.randn(400, 1, 3, generator=generator)
    views = 100 * centres + 0.01 * torch.randn(400, 4, 12, generator=generator)
    assert noregret.lidar(views) == pytest.approx(3, abs=0.1)


def test_a_cell_runs_once(
    noregret: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(noregret, "DRAWS", 1)
    monkeypatch.setattr(noregret, "LOOKS", 2)
    monkeypatch.setattr(noregret, "TUNED", 1)
    monkeypatch.setattr(noregret, "PASSES", 1)
    command = ["--cells", "resnet/digits/BYOL", "--seeds", "0", "--steps", "4", "--batch-size", "8"]
    command += ["--output", "runs.jsonl"]
    noregret.main(command)
    (row,) = map(json.loads, Path("runs.jsonl").read_text().splitlines())
    assert [look["step"] for look in row["curve"]] == [0, 2, 4]
    assert row["curve"][0]["distance"] == 0
    assert row["curve"][-1]["distance"] > 0
    assert row["recipe"]["pretrained"] is False
    assert [len(look.get("tuned", ())) for look in row["curve"]] == [1, 0, 1]
    assert row["curve"][-1]["health updates"] == 4
    capsys.readouterr()
    noregret.main(command)
    assert len(Path("runs.jsonl").read_text().splitlines()) == 1
    assert "| resnet/digits/BYOL | 1 |" in capsys.readouterr().out
    noregret.main([*command, "--changes", "crop_area=[0.3, 1.0]"])
    changed = json.loads(Path("runs.jsonl").read_text().splitlines()[1])
    assert changed["recipe"]["crop_area"] == [0.3, 1.0]


def runs(noregret: Any, *accuracies: list[float], **figures: list[list[float]]) -> list[Any]:
    """Rows with the same accuracy by each measure at every look."""
    return [
        {
            "curve": [
                dict.fromkeys(noregret.MEASURES, value)
                | {figure: values[i][step] for figure, values in figures.items()}
                for step, value in enumerate(scores)
            ]
        }
        for i, scores in enumerate(accuracies)
    ]


def test_a_figure_is_judged_by_what_it_picks_and_by_the_harm_it_tells(noregret: Any) -> None:
    rows = runs(
        noregret,
        [50.0, 60.0, 55.0],  # it helped
        [50.0, 45.0, 40.0],  # it harmed
        rank=[[1.0, 3.0, 2.0], [3.0, 2.0, 1.0]],  # as accuracy goes
        alignment=[[0.1, 0.3, 0.2], [0.3, 0.2, 0.1]],  # the same, where less is said to be better
    )
    assert noregret.told_by("rank", rows) == {
        "correlation": pytest.approx(1),
        "regret": 0,
        "worst": 0,
        "harm": 1,
    }
    assert noregret.told_by("alignment", rows) == {
        "correlation": pytest.approx(-1),
        "regret": 10,
        "worst": 10,
        "harm": 0,
    }
    assert noregret.told_by("lidar", rows) is None
    assert "2 runs, of which 1 harmed. Taking the last look of each costs 7.5" in noregret.judged(
        rows
    )


def test_small_crops_are_seen_by_the_online_network_alone(noregret: Any) -> None:
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8))
    learner = noregret.SmallCrops(net, 32, projection_hidden_size=16, projection_size=8)
    sides: dict[str, list[int]] = {"online": [], "target": []}
    learner.net.register_forward_pre_hook(lambda _, x: sides["online"].append(x[0].shape[-1]))
    learner.target.net.register_forward_pre_hook(
        lambda _, x: sides["target"].append(x[0].shape[-1])
    )
    learner(torch.rand(4, 3, 32, 32)).backward()
    assert sides == {"online": [32, 16, 16, 32, 16, 16], "target": [32, 32]}


def test_what_is_fine_tuned_is_a_copy(noregret: Any) -> None:
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU())
    learner = noregret.BYOL(net, 16, projection_hidden_size=16, projection_size=8)
    labels = torch.arange(80) % 2
    images = (labels * 200).to(torch.uint8)[:, None, None, None].expand(-1, 3, 16, 16).contiguous()
    images += torch.randint(0, 50, images.shape, dtype=torch.uint8)
    before = {name: value.clone() for name, value in learner.state_dict().items()}
    state = torch.get_rng_state()
    found = noregret.fine_tuned(learner, noregret.Images(images, labels, images, labels))
    assert found == [100.0] * noregret.TUNED  # white and black are told apart
    assert torch.equal(torch.get_rng_state(), state)
    after = learner.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
