"""How spread out features are in sound runs and in broken ones: what a collapse is, by method.

    python tests/benchmarks/collapse.py               # scikit-learn's digits, a few minutes
    python tests/benchmarks/collapse.py --data data   # CIFAR-10, as quality.py takes it

Every method trains the race's small network by its short recipe and in ways known to break it. The
learner's watch looks at the std ratio of representations and of projections every 20 steps; here
are the same figures, at the start and as their median over the last ten looks, whether it warned,
and what nearest neighbours made of the features before and after.

Needs ``pip install '.[bench]'``.
"""

import argparse
import json
import warnings
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import entries
import quality
import torch
from torch import Tensor, nn

from byol_wrap import Learner, knn_accuracy
from byol_wrap.guard.collapse import LOOK_EVERY
from byol_wrap.methods.losses import simsiam_loss

METHODS = {
    "BYOL": entries.ByolWrap,
    "SimSiam": entries.ByolWrapSimSiam,
    "SimCLR": entries.ByolWrapSimCLR,
    "MoCo": entries.ByolWrapMoCo,
}
BATCH = 64


def no_predictor(entry: entries.ByolWrap) -> None:
    """The online network's projections are the predictions."""
    entry.learner.predictor = nn.Identity()


def no_stop_gradient(entry: entries.ByolWrap) -> None:
    """SimSiam's loss pulls both sides."""
    learner = entry.learner

    def loss(view1: Tensor, view2: Tensor) -> Tensor:
        z1, z2 = learner.project(view1), learner.project(view2)
        p1, p2 = learner.predictor(z1), learner.predictor(z2)
        return (simsiam_loss(p1, z2) + simsiam_loss(p2, z1)) / 2

    learner.loss = loss  # type: ignore[method-assign]


def tau_0(entry: entries.ByolWrap) -> None:
    """The target is the online network at once."""
    entry.learner.moving_average_decay, entry.learner.total_steps = 0.0, None


def no_predictor_at_tau_0(entry: entries.ByolWrap) -> None:
    """Nothing is left that keeps BYOL from a collapse."""
    no_predictor(entry)
    tau_0(entry)


def adam(rate: float) -> Any:
    """AdamW at one rate."""

    def change(entry: entries.ByolWrap) -> None:
        parameters = [p for p in entry.learner.parameters() if p.requires_grad]
        entry.optimizer = torch.optim.AdamW(parameters, lr=rate)
        entry.scheduler = torch.optim.lr_scheduler.LambdaLR(entry.optimizer, lambda step: 1.0)

    return change


SOUND = {"short recipe": None, "AdamW 1e-3": adam(1e-3)}
BROKEN: dict[str, dict[str, Any]] = {
    "BYOL": {"no predictor, tau 0": no_predictor_at_tau_0, "no predictor": no_predictor},
    "SimSiam": {"no predictor": no_predictor, "no stop-gradient": no_stop_gradient},
    "SimCLR": {},
    "MoCo": {"tau 0": tau_0},
}
FOR_ALL = {"AdamW 0.03": adam(0.03), "AdamW 0.3": adam(0.3)}


def digits() -> quality.Data:
    """scikit-learn's 1,797, enlarged to 32 pixels, in three equal channels; a fifth for testing."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = torch.tensor(bunch.images, dtype=torch.float32)[:, None] / 16
    images = nn.functional.interpolate(images, (32, 32), mode="bilinear")
    pixels = (255 * images).round().byte().expand(-1, 3, -1, -1).contiguous()
    labels = torch.tensor(bunch.target)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    train, test = order[: len(order) * 4 // 5], order[len(order) * 4 // 5 :]
    return quality.Data(pixels[train], labels[train], pixels[test], labels[test])


def run(method: str, change: Any, steps: int, seed: int, data: quality.Data) -> dict[str, Any]:
    """Train once; what came of it."""
    torch.manual_seed(seed)
    net = quality.small_resnet(8)
    race = entries.Race(quality.small_resnet, 64, steps * BATCH, 0)
    recipe = replace(entries.SHORT[method], batch_size=BATCH, projection_hidden_size=512)
    entry = METHODS[method](net, race, recipe)
    if change is not None:
        change(entry)
    before, looks = worth(net, data), []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        order = quality.Order(len(data.train_images), BATCH, seed, torch.device("cpu"))
        for step in range(steps):
            chosen = order.batch(step)
            entry.step(data.train_images[chosen], data.train_labels[chosen])
            if step % LOOK_EVERY == LOOK_EVERY - 1 or step == 0:
                looks.append(spread(entry.learner))
    told = [str(warning.message).split(":")[0] for warning in caught]
    last = looks[-10:]
    return {
        "start": looks[0],
        "end": [round(median(kind), 3) for kind in zip(*last, strict=True)],
        "lowest": [min(kind) for kind in zip(*looks, strict=True)],
        "knn": [before, worth(net, data)],
        "warned": sorted(set(told)),
    }


def spread(learner: Learner) -> list[float]:
    """The std ratios of representations and of projections, and these' participation ratio."""
    health = learner.health()
    kinds = "std_ratio", "projection_std_ratio", "projection_participation"
    return [round(health[kind], 3) for kind in kinds]


def worth(net: nn.Module, data: quality.Data) -> float:
    """Nearest neighbours on the test images, in percent."""
    bank = quality.features(net, data.train_images[:10_000])
    queries = quality.features(net, data.test_images[:2_000])
    labels = data.train_labels[:10_000], data.test_labels[:2_000]
    return round(100 * knn_accuracy(bank, labels[0], queries, labels[1], k=20), 1)


def main() -> None:
    """Run what has not been run, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--data", type=Path, help="CIFAR-10 as quality.py takes it; without, digits")
    add("--steps", type=int, default=320)
    add("--seeds", type=int, nargs="+", default=[0])
    add("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    add("--output", type=Path, default="collapse.jsonl", help="runs that are in it are done")
    args = parser.parse_args()
    data = digits() if args.data is None else quality.load(args.data)
    source = "digits" if args.data is None else "CIFAR-10"
    rows = quality.read(args.output)
    for seed in args.seeds:
        for method in args.methods:
            for name, change in {**SOUND, **BROKEN[method], **FOR_ALL}.items():
                key = {"data": source, "method": method, "setting": name, "seed": seed}
                if any(key.items() <= row.items() for row in rows):
                    continue
                rows.append(
                    key | {"steps": args.steps} | run(method, change, args.steps, seed, data)
                )
                with args.output.open("a") as file:
                    file.write(json.dumps(rows[-1]) + "\n")
                print(rows[-1], flush=True)
    print(table(rows))


def table(rows: list[dict[str, Any]]) -> str:
    """In Markdown; each figure of each seed."""
    columns = "data", "method", "setting", "seed", "representations", "projections"
    lines = [f"| {' | '.join(columns)} | participation | kNN | warned |", "|---" * 9 + "|"]
    for row in rows:
        ratios = [f"{a:.2f} to {b:.2f}" for a, b in zip(row["start"], row["end"], strict=True)]
        knn = "{:.1f} to {:.1f}".format(*row["knn"])
        cells = [row["data"], row["method"], row["setting"], str(row["seed"]), *ratios, knn]
        lines.append(f"| {' | '.join(cells)} | {'; '.join(row['warned'])} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
