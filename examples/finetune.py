"""Few labels: fine-tune a small ResNet from scratch, and after BYOL on images without labels.

    python finetune.py                          # scikit-learn's handwritten digits
    python finetune.py --data photos/           # a folder of images; the innermost are the classes
    python finetune.py --data cifar10           # downloads 170 MB and wants a GPU
    python finetune.py --weights quickstart.pt  # what quickstart.py pretrained, at the same --seed

A fifth of the images is held out, as in quickstart.py. The network is pretrained once on the
others, without labels. Then, for each share of labels and each draw of them, all its layers are
trained twice with a new linear head: from random weights, and from the pretrained ones. All else is
the same for both: labels, head, steps, order, augmentation, learning rate. Writes a picture
(finetune.png) and, with --json, the numbers. Ctrl-C ends pretraining early, and fine-tuning after
the pair of runs at hand; what there is then is shown.

Needs ``pip install "byol_wrap[examples]"``, and quickstart.py beside it.
"""

import argparse
import json
import platform
import time
from collections.abc import Iterator, Sequence
from itertools import chain, product, repeat
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from kornia import augmentation as K
from matplotlib.figure import Figure
from quickstart import (
    BLUE,
    ORANGE,
    Data,
    at_least,
    backbone,
    best_device,
    load_data,
    pretrain,
    split,
    stopped_by_ctrl_c,
    usable_device,
    wrap,
)
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

import byol_wrap
from byol_wrap import warmup_cosine

ARMS = {"scratch": "from scratch", "pretrained": "pretrained without labels"}
COLOURS = (ORANGE, BLUE)


def draw_share(labels: Tensor, share: float, classes: int, seed: int) -> Tensor:
    """Indices of a share (percent) of the labelled images, class by class in turn.

    At least one of each class, also where the share is less; a smaller share of the same seed is
    part of a larger one.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randperm(len(labels), generator=generator)
    drawn = drawn[labels[drawn] >= 0]
    turn = F.one_hot(labels[drawn], classes).cumsum(dim=0).gather(1, labels[drawn, None])[:, 0]
    count = max(classes, round(share / 100 * len(drawn)))
    return drawn[turn.argsort(stable=True)[:count]]


def light_views(data: Data, digits: bool) -> nn.Module:
    """Images turned, moved and scaled a little, each by its own draws; digits are not mirrored."""
    move = K.RandomAffine(10, (0.06, 0.06), (0.9, 1.1), padding_mode="border", p=1.0)
    return move if digits else nn.Sequential(move, K.RandomHorizontalFlip())


def finetune(
    start: dict[str, Tensor] | None,
    data: Data,
    chosen: Tensor,
    test: Tensor,
    args: argparse.Namespace,
    seed: int,
) -> float:
    """Train with a few labels, all layers; the accuracy in percent on held-out images.

    Args:
        start: weights of the backbone to start from; None for random ones.
        data: all images and labels.
        chosen: indices of the images whose labels are known.
        test: indices of the images held out.
        args: the command line.
        seed: of random weights, head, order and augmentation: the same for both arms.
    """
    torch.manual_seed(seed)
    net = backbone(data.images.shape[1])
    with torch.no_grad():
        features = net.eval()(data.images[:1].float()).shape[1]
    model = nn.Sequential(net, nn.Linear(features, len(data.classes)))
    if start is not None:
        net.load_state_dict(start)
    model.train().to(args.device)
    images, labels = data.images[chosen].to(args.device), data.labels[chosen].to(args.device)
    mean, std = (torch.tensor(v, device=args.device)[:, None, None] for v in data.mean_std)
    augment = light_views(data, args.data == "digits")
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: warmup_cosine(step, args.steps, args.steps // 10)
    )
    for _, batch in zip(range(args.steps), batches(len(chosen), args.batch_size), strict=False):
        batch = batch.to(args.device)
        views = (augment(images[batch] / 255) - mean) / std
        loss = F.cross_entropy(model(views), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    model.eval()
    correct = 0
    with torch.no_grad():
        for part in test.split(256):
            scores = model((data.images[part].to(args.device) / 255 - mean) / std)
            correct += int((scores.argmax(dim=1).cpu() == data.labels[part]).sum())
    return 100 * correct / len(test)


def batches(count: int, size: int) -> Iterator[Tensor]:
    """Indices in a new order in each epoch, without end; no batch is smaller than it need be."""
    parts = max(1, count // size)
    return chain.from_iterable(torch.randperm(n).tensor_split(parts) for n in repeat(count))


def load_weights(path: Path, net: nn.Module) -> None:
    """Load a backbone's own weights, or say why they are not of this network."""
    try:
        saved = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # a file that is none of torch's can raise anything
        reason = str(error).splitlines()[0]
        raise SystemExit(f"--weights: {str(path)!r} cannot be read: {reason}") from None
    if not isinstance(saved, dict) or not all(isinstance(v, Tensor) for v in saved.values()):
        raise SystemExit(
            f"--weights: {str(path)!r} should hold a backbone's state_dict, as quickstart.py "
            "writes it; of a checkpoint, save learner.net.state_dict()."
        )
    wanted = {name: tuple(value.shape) for name, value in net.state_dict().items()}
    got = {name: tuple(value.shape) for name, value in saved.items()}
    differ = [name for name in wanted | got if wanted.get(name) != got.get(name)]
    if differ:
        first = differ[0]
        raise SystemExit(
            f"--weights: {str(path)!r} does not fit the backbone for this --data, in "
            f"{len(differ)} of {len(wanted | got)} tensors: {first} should be "
            f"{wanted.get(first, 'absent')} and is {got.get(first, 'absent')}."
        )
    net.load_state_dict(saved)


def pretrained(data: Data, train: Tensor, args: argparse.Namespace) -> tuple[dict[str, Any], Any]:
    """The backbone's weights after BYOL on the images to train on, or from --weights."""
    net = backbone(data.images.shape[1])
    about: dict[str, Any] = {"weights": args.weights}
    if args.weights:
        load_weights(args.weights, net)
    else:
        net.to(args.device)
        size = min(args.pretrain_batch_size, len(train))
        images: Any = data.images[train]  # a tensor is a data set, too
        loader = DataLoader(images, size, shuffle=True, drop_last=True)
        learner = wrap(net, data, args, args.pretrain_epochs * len(loader))
        settings = {"epochs": args.pretrain_epochs, "lr": args.pretrain_lr, "device": args.device}
        about |= pretrain(learner, loader, argparse.Namespace(**settings))
        if about["interrupted"]:
            print(f"Pretraining interrupted after {about['steps']} steps: going on from there")
    return {name: value.cpu().clone() for name, value in net.state_dict().items()}, about


def compare(
    start: dict[str, Tensor], data: Data, train: Tensor, test: Tensor, args: argparse.Namespace
) -> list[dict[str, Any]]:
    """Accuracies of both arms, for every share of labels: one row a share."""
    rows = []
    for share in args.shares:
        count = len(draw_share(data.labels[train], share, len(data.classes), 0))
        rows.append({"share": share, "labels": count} | {arm: {"draws": []} for arm in ARMS})
    runs = list(product(range(args.draws), rows))
    with stopped_by_ctrl_c() as stopped:
        for draw, row in tqdm(runs, "fine-tuning", unit=" pairs"):
            share = row["share"]
            chosen = train[draw_share(data.labels[train], share, len(data.classes), draw)]
            pair = {
                arm: finetune(weights, data, chosen, test, args, seed=1000 * args.seed + draw)
                for arm, weights in (("scratch", None), ("pretrained", start))
            }
            for arm, accuracy in pair.items():
                row[arm]["draws"].append(accuracy)
            if stopped.is_set():
                break
    rows = [row for row in rows if row["scratch"]["draws"]]
    for row, arm in product(rows, ARMS):
        scores = row[arm]["draws"]
        row[arm] |= {"mean": float(np.mean(scores)), "std": float(np.std(scores))}
    return rows


def name_of(row: dict[str, Any]) -> str:
    """A share of labels, in words."""
    return f"{row['share']:g} % ({row['labels']:,} labels)"


def print_table(rows: list[dict[str, Any]]) -> None:
    """Accuracy, mean and standard deviation over draws, as a Markdown table."""
    print("| labels | from scratch | pretrained | gain | draws |\n|---|---|---|---|---|")
    for row in rows:
        cells = [f"{row[arm]['mean']:.1f} ± {row[arm]['std']:.1f} %" for arm in ARMS]
        gain = row["pretrained"]["mean"] - row["scratch"]["mean"]
        cells = [name_of(row), *cells, f"{gain:+.1f}", str(len(row["scratch"]["draws"]))]
        print(f"| {' | '.join(cells)} |")


def draw_picture(path: Path, data: Data, rows: list[dict[str, Any]]) -> None:
    """Accuracy over the share of labels: a line for each arm, its spread, and every draw."""
    places = np.arange(len(rows))
    style: Any = {"font.size": 11, "axes.spines.top": False, "axes.spines.right": False}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(8, 5), dpi=150, layout="constrained")
        axes = figure.subplots()
        for (arm, name), colour, side in zip(ARMS.items(), COLOURS, (-1, 1), strict=True):
            mean, std = (np.array([row[arm][what] for row in rows]) for what in ("mean", "std"))
            low, high = mean - std, np.minimum(mean + std, 100)
            axes.fill_between(places, low, high, color=colour, alpha=0.15, linewidth=0)
            axes.plot(places, mean, color=colour, linewidth=2.5, marker="o", label=name)
            for place, row in enumerate(rows):
                draws, value = row[arm]["draws"], row[arm]["mean"]
                beside = [place + 0.035 * side] * len(draws)
                axes.scatter(beside, draws, 18, color=colour, alpha=0.5, linewidth=0, zorder=3)
                above = value > np.mean([row[other]["mean"] for other in ARMS])
                shift = (-10, 0) if place == 0 else (0, 20 if above else -20)
                options: Any = {"ha": "right" if place == 0 else "center", "va": "center"}
                options |= {"textcoords": "offset points", "color": colour, "weight": "bold"}
                axes.annotate(f"{value:.1f}", (place, value), shift, **options)
        axes.set_xticks(places, [name_of(row).replace(" (", "\n(") for row in rows])
        axes.set_xlim(-0.3, len(rows) - 0.75)
        axes.grid(axis="y", alpha=0.3)
        axes.set(ylabel="accuracy on held-out images (%)", xlabel="labels to fine-tune with")
        axes.set_title(
            f"Fine-tuning on {data.name}: what pretraining is worth", weight="bold", pad=20
        )
        axes.legend(frameon=False, loc="lower right", title="mean, standard deviation, draws")
        figure.savefig(path)


def share_of_labels(text: str) -> float:
    """An argparse type: a percentage above 0."""
    if not 0 < float(text) <= 100:
        raise argparse.ArgumentTypeError(f"{text} should lie above 0 and be at most 100")
    return float(text)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="Fine-tune with few labels, from scratch and after BYOL without labels.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--data", default="digits", help="digits, cifar10 (a download), or a folder of images")
    add("--root", default="data", help="folder that cifar10 is downloaded to")
    add("--image-size", type=at_least(8), default=32, help="side of the images in pixels")
    add(
        "--weights", type=Path, help="a backbone's state_dict to start from, instead of pretraining"
    )
    add("--pretrain-epochs", type=at_least(1), default=30, help="times that each image is seen")
    add("--pretrain-batch-size", type=at_least(2), default=128, help="images a pretraining step")
    add("--pretrain-lr", type=float, default=5e-3, help="highest learning rate of pretraining")
    add("--shares", type=share_of_labels, nargs="+", default=[1.0, 10.0, 100.0], help="percent")
    add("--draws", type=at_least(1), default=5, help="different draws of those labels")
    add("--steps", type=at_least(1), default=200, help="fine-tuning steps, at any share")
    add("--batch-size", type=at_least(2), default=64, help="images a fine-tuning step")
    add("--lr", type=float, default=3e-3, help="highest learning rate of fine-tuning, of both arms")
    add("--seed", type=int, default=0, help="of the split, the networks and the training")
    add("--device", type=usable_device, default=best_device(), help="where to compute")
    add("--picture", type=Path, default="finetune.png", help="file for the picture")
    add("--json", type=Path, help="file for the numbers; none is written by default")
    args = parser.parse_args(arguments)
    args.shares = sorted(set(args.shares))
    return args


def main(arguments: Sequence[str] | None = None) -> None:
    """Load, pretrain, fine-tune both ways, print, and draw."""
    args, start = parse(arguments), time.perf_counter()
    torch.manual_seed(args.seed)
    for path in filter(None, (args.picture, args.json)):
        path.parent.mkdir(parents=True, exist_ok=True)
    data = load_data(args)
    train, test = split(data)
    if len(test) == 0:
        raise SystemExit(
            f"--data: {data.name} has {len(data.classes)} classes, at least 2 are needed: images "
            "belong in folders named after their class."
        )
    print(f"{data.name}, {len(data.classes)} classes: {len(train)} images, {len(test)} held out")
    weights, about = pretrained(data, train, args)
    results: dict[str, Any] = {"data": data.name, "classes": data.classes}
    results |= {"train": len(train), "held_out": len(test), "pretraining": about}
    results["seconds"] = {"pretraining": round(time.perf_counter() - start, 1)}
    results["accuracy"] = rows = compare(weights, data, train, test, args)
    print_table(rows)
    draw_picture(args.picture, data, rows)
    results["seconds"]["total"] = round(time.perf_counter() - start, 1)
    if args.json:
        versions = {module.__name__: module.__version__ for module in (byol_wrap, torch)}
        results |= {"settings": vars(args), "versions": versions}
        results["versions"]["python"] = platform.python_version()
        args.json.write_text(json.dumps(results, indent=2, default=str))
    print(f"Picture in {args.picture}, {results['seconds']['total']} seconds in all")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit("Interrupted before there was anything to show") from None
