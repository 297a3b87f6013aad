"""What BYOL rests on, in fifteen small experiments on two CPU cores.

    python why_it_works.py                          # CIFAR-10, a download of 170 MB
    python why_it_works.py --data photos/           # any folder; the innermost are the classes
    python why_it_works.py --only BYOL collapse     # some arms or groups of arms
    python why_it_works.py --data digits --images-seen 12800    # offline, to see it run

One network is trained in different ways, from the same weights, on the same images in the same
order, with the same optimizer: the settings of the race in README. Each way takes
one thing from BYOL. How good the features are is measured by labels that training never saw:
nearest neighbours, and a linear classifier on frozen features. Prints a table, draws
why_it_works.png and, with --json, writes every number. Ctrl-C ends it early and keeps the arms that
are done.

Needs ``pip install "byol_wrap[examples]"``.
"""

import argparse
import copy
import json
import platform
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import torch
from quickstart import (
    BLUE,
    ORANGE,
    Data,
    at_least,
    backbone,
    best_device,
    embed,
    load_data,
    plt,
    split,
    stopped_by_ctrl_c,
    usable_device,
)
from torch import Tensor, nn

import byol_wrap
from byol_wrap import BYOL, byol_loss, knn_accuracy, linear_probe, param_groups, warmup_cosine
from byol_wrap.evaluation.health import effective_rank, std_ratio
from byol_wrap.views import VIEW1, VIEW2, RandomView

RED, DARK = "#b2182b", "#4d4d4d"
LOOKS = 20  # how often the features are looked at during training
WATCHED = 512  # on so many held-out images
BANK, QUERIES = 20_000, 10_000  # labelled images to classify others with, and those others


@dataclass(frozen=True)
class Arm:
    """One way to train the network. The defaults are plain BYOL; an arm names what it changes."""

    name: str
    group: str
    trained: bool = True
    tau: float = 0.9
    rising: bool = True  # tau goes up to 1 along a cosine; else it is constant
    random_target: bool = False  # the target is drawn anew, not a copy of the online network
    predictor: bool = True
    stop_gradient: bool = True
    views: dict[str, Any] = field(default_factory=dict)  # what differs in both views' recipes


NO_CROP = {"crop_area": (1.0, 1.0), "crop_ratio": (1.0, 1.0)}
NO_COLOUR = {"jitter": 0.0, "greyscale": 0.0}

ARMS = [
    # What is there to learn from a target that knows nothing? And from one that learns, too?
    Arm("random weights", "networks", trained=False),
    Arm("fixed random target", "networks", tau=1.0, rising=False, random_target=True),
    Arm("BYOL", "networks"),
    # How fast should the target follow? (tau 1 is the fixed random target.)
    Arm("tau 0", "tau", tau=0.0, rising=False),
    Arm("tau 0.9", "tau", tau=0.9, rising=False),
    Arm("tau 0.99", "tau", tau=0.99, rising=False),
    Arm("tau 0.999", "tau", tau=0.999, rising=False),
    # A constant output would be a perfect prediction. What keeps BYOL from it?
    Arm("no predictor", "collapse", predictor=False),
    Arm("no stop-gradient", "collapse", stop_gradient=False),
    Arm("neither", "collapse", predictor=False, stop_gradient=False),
    # Features become blind to what the two views of an image do not share.
    Arm("no greyscale", "views", views={"greyscale": 0.0}),
    Arm("no jitter", "views", views={"jitter": 0.0}),
    Arm("no jitter, no greyscale", "views", views=NO_COLOUR),
    Arm("crop only", "views", views={"flip": 0.0, "solarize": 0.0, **NO_COLOUR}),
    Arm("no crop", "views", views=NO_CROP),
]

TAUS = {arm.name: arm for arm in ARMS if arm.group == "tau" or arm.random_target}
TAUS = dict(sorted(TAUS.items(), key=lambda item: item[1].tau))
KINDS = {"knn": ("nearest neighbours", ORANGE), "linear": ("linear classifier", BLUE)}
STYLES = [(BLUE, "-"), (ORANGE, "-"), (RED, "-"), (DARK, "--")]


def build(arm: Arm, data: Data, args: argparse.Namespace) -> BYOL:
    """A learner that has learned nothing yet; the same weights for all arms."""
    torch.manual_seed(args.seed)
    channels, size = data.images.shape[1:3]
    net = backbone(channels, args.width, stride=1)
    net = net.to(args.device, memory_format=torch.channels_last)
    gentle = {"crop_area": (0.7, 1.0), "blur": 0.0}
    recipes = replace(VIEW1, **gentle), replace(VIEW2, **gentle, solarize=0.5)
    view1, view2 = (RandomView(replace(recipe, **arm.views)) for recipe in recipes)
    mean, std = data.mean_std
    learner = BYOL(
        net,
        size,
        projection_hidden_size=2048,
        moving_average_decay=arm.tau,
        total_steps=args.images_seen // args.batch_size if arm.rising else None,
        augment_fn=view1,
        augment_fn2=view2,
        mean=mean,
        std=std,
        channels=channels,
    )
    if not arm.predictor:
        learner.predictor = nn.Identity()
    if arm.random_target:
        for module in learner.target.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
    return learner


def loss_without_stop_gradient(learner: BYOL, images: Tensor) -> Tensor:
    """Both views meet in the online network, and the gradient flows through both sides.

    ``learner(images)`` takes what is to be predicted from the target, as a constant.
    """
    view1, view2 = learner.views(images)
    projection1, _ = learner.online(view1)
    projection2, _ = learner.online(view2)
    prediction1, prediction2 = learner.predictor(projection1), learner.predictor(projection2)
    return byol_loss(prediction1, projection2) + byol_loss(prediction2, projection1)


def train(
    learner: BYOL, arm: Arm, images: Tensor, watched: Tensor, stopped: Event, args: Any
) -> list[dict[str, float]]:
    """Train on ``images``; gives what the features of the ``watched`` were like on the way."""
    torch.manual_seed(args.seed)  # the same order of images in all arms
    groups = param_groups(learner, weight_decay=5e-4)
    optimizer = torch.optim.SGD(groups, args.lr, momentum=0.9)
    steps = args.images_seen // args.batch_size
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: warmup_cosine(step, steps, steps // 10)
    )
    curve = []
    for step, batch in enumerate(batches(images, steps, args.batch_size), start=1):
        batch = batch.to(args.device)
        loss = learner(batch) if arm.stop_gradient else loss_without_stop_gradient(learner, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        learner.update_moving_average()
        if step % max(1, steps // LOOKS) == 0 or step == steps:
            curve.append(
                look(learner, watched, seen=step * args.batch_size) | {"loss": loss.item()}
            )
        if stopped.is_set():
            break
    return curve


def batches(images: Tensor, count: int, size: int) -> Iterator[Tensor]:
    """So many batches, in a new order each time that all images have been seen."""
    order = torch.cat([torch.randperm(len(images)) for _ in range(count * size // len(images) + 1)])
    for start in range(0, count * size, size):
        yield images[order[start : start + size]]


def look(learner: BYOL, views: Tensor, seen: int) -> dict[str, float]:
    """How spread out outputs are in training; ``learner.health()`` gives this for a last batch."""
    online = copy.deepcopy(learner.online)  # whose BatchNorm may take note of what it sees
    with torch.no_grad():
        projection, representation = online(views)
    return {
        "images_seen": seen,
        "std_ratio": std_ratio(representation).item(),
        "rank": effective_rank(representation).item(),
        "projection_std_ratio": std_ratio(projection).item(),
        "projection_rank": effective_rank(projection).item(),
    }


def measure(learner: BYOL, data: Data, train: Tensor, test: Tensor) -> dict[str, float]:
    """Accuracy in percent on held-out images."""
    known, queries = train[:BANK], test[:QUERIES]
    task = (embed(learner, data.images[known]), data.labels[known])
    task += (embed(learner, data.images[queries]), data.labels[queries])
    return {"knn": 100 * knn_accuracy(*task), "linear": 100 * linear_probe(*task)}


def run(
    arm: Arm,
    data: Data,
    known: Tensor,
    held_out: Tensor,
    stopped: Event,
    args: argparse.Namespace,
) -> dict[str, Any]:
    """All numbers of one arm, none if it is stopped; ``known`` and ``held_out`` are indices.

    What byol_wrap warns of belongs to the numbers: some arms are meant to collapse.
    """
    start = time.perf_counter()
    learner = build(arm, data, args)
    mean, std = (torch.tensor(values)[:, None, None] for values in data.mean_std)
    watched = ((data.images[held_out[:WATCHED]] / 255 - mean) / std).to(args.device)
    curve, warned = [look(learner, watched, seen=0)], []
    if arm.trained:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            curve += train(learner, arm, data.images[known], watched, stopped, args)
        warned = [str(warning.message) for warning in caught]
    if stopped.is_set():
        return {}
    numbers = {"group": arm.group, **measure(learner, data, known, held_out), **curve[-1]}
    seconds = round(time.perf_counter() - start, 1)
    return {**numbers, "seconds": seconds, "warnings": warned, "curve": curve}


def draw_picture(path: Path, arms: dict[str, dict[str, Any]]) -> None:
    """Four panels, each with the arms that there are."""
    plt.rcParams.update({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False})
    figure = plt.figure(figsize=(12, 9), dpi=120, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.1)
    patches = [plt.Rectangle((0, 0), 1, 1, color=colour) for _, colour in KINDS.values()]
    labels = [f"accuracy of {label}" for label, _ in KINDS.values()]
    figure.legend(patches, labels, loc="outside upper center", ncols=2, frameon=False)
    (networks, tau), (collapse, views) = figure.subfigures(2, 2, height_ratios=[1, 1.2])
    draw_networks(networks.subplots(), pick(arms, "networks"))
    draw_tau(tau.subplots(), arms)
    draw_collapse(collapse, pick(arms, "collapse"))
    draw_views(views.subplots(), pick(arms, "views"))
    figure.savefig(path)
    plt.close(figure)


def pick(arms: dict[str, dict[str, Any]], group: str) -> dict[str, dict[str, Any]]:
    """The arms of one group, and BYOL to compare them with, first."""
    first = {name: arms[name] for name in ("BYOL",) if name in arms and group != "networks"}
    return first | {name: arm for name, arm in arms.items() if arm["group"] == group}


def draw_networks(axes: Any, arms: dict[str, dict[str, Any]]) -> None:
    """Upright bars: a network that knows nothing, one that predicts such a network, and BYOL."""
    for offset, (kind, (_, colour)) in zip((-0.2, 0.2), KINDS.items(), strict=True):
        places = [place + offset for place in range(len(arms))]
        bars = axes.bar(places, [arm[kind] for arm in arms.values()], 0.38, color=colour)
        axes.bar_label(bars, fmt="%.1f", padding=2, weight="bold")
    axes.set_xticks(range(len(arms)), arms)
    axes.set(ylabel="accuracy (%)", ylim=(0, 1.1 * highest(arms)))
    axes.set_title("Even a random network is worth predicting", weight="bold")


def draw_tau(axes: Any, arms: dict[str, dict[str, Any]]) -> None:
    """Accuracy over constant values of tau; the cosine as a line across."""
    shown = {name: f"{arm.tau:g}" for name, arm in TAUS.items() if name in arms}
    for kind, (_, colour) in KINDS.items():
        values = [arms[name][kind] for name in shown]
        axes.plot(range(len(values)), values, "o-", color=colour, linewidth=2)
        if "BYOL" in arms:
            axes.axhline(arms["BYOL"][kind], color=colour, linestyle="--", linewidth=1.2)
    axes.plot([], [], "--", color=DARK, linewidth=1.2, label="0.9 rising to 1 (BYOL)")
    axes.set_xticks(range(len(shown)), list(shown.values()))
    axes.set(xlabel="tau: how much of the target stays at each step", ylabel="accuracy (%)")
    axes.margins(y=0.2)
    axes.grid(alpha=0.3)
    axes.set_title("How fast the target should follow", weight="bold")
    axes.legend(loc="upper left", frameon=False)


def draw_collapse(figure: Any, arms: dict[str, dict[str, Any]]) -> None:
    """The spread of projections above, the rank of representations below, over training."""
    panels = figure.subplots(2, 1, sharex=True)
    rows = {"projection_std_ratio": "std ratio of\nprojections", "rank": "rank of\nfeatures"}
    for axes, (name, label) in zip(panels, rows.items(), strict=True):
        for (arm, numbers), (colour, style) in zip(arms.items(), STYLES, strict=False):
            points = [(look["images_seen"] / 1000, look[name]) for look in numbers["curve"]]
            axes.plot(*np.array(points).T, style, color=colour, linewidth=2, label=arm)
        axes.set(ylabel=label)
        axes.set_ylim(0, 1.1 * axes.get_ylim()[1])
        axes.grid(alpha=0.3)
    panels[0].set_title("What keeps outputs from becoming one", weight="bold")
    panels[1].set_xlabel("thousands of images seen")
    if arms:
        entries = panels[0].get_legend_handles_labels()
        figure.legend(*entries, loc="outside lower center", ncols=2, frameon=False)


def draw_views(axes: Any, arms: dict[str, dict[str, Any]]) -> None:
    """Lying bars: what is lost with each step of the augmentation."""
    for offset, (kind, (_, colour)) in zip((-0.2, 0.2), KINDS.items(), strict=True):
        places = [place + offset for place in range(len(arms))]
        bars = axes.barh(places, [arm[kind] for arm in arms.values()], 0.38, color=colour)
        axes.bar_label(bars, fmt="%.1f", padding=3)
    names = ["all steps (BYOL)" if name == "BYOL" else name for name in arms]
    axes.set_yticks(range(len(arms)), [name.replace(", ", ",\n") for name in names])
    axes.invert_yaxis()
    axes.set(xlabel="accuracy (%)", xlim=(0, 1.12 * highest(arms)))
    axes.set_title("What each step of the views is worth", weight="bold")


def highest(arms: dict[str, dict[str, Any]]) -> float:
    """The best accuracy among arms."""
    return max([arm[kind] for arm in arms.values() for kind in KINDS], default=100.0)


def table(arms: dict[str, dict[str, Any]]) -> str:
    """The figures of all arms; keys and how many decimals are shown."""
    columns = {"knn": 1, "linear": 1, "std_ratio": 2, "rank": 1, "projection_std_ratio": 2}
    columns["seconds"] = 0
    lines = [f"{'arm':24}" + "".join(f"  {key:>6}" for key in columns)]
    for name, arm in arms.items():
        cells = (f"  {arm[key]:{max(6, len(key))}.{n}f}" for key, n in columns.items())
        lines.append(f"{name:24}" + "".join(cells))
    return "\n".join(lines)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="Take BYOL apart, and see what each part is for.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    known = list(dict.fromkeys([arm.group for arm in ARMS] + [arm.name for arm in ARMS]))
    add = parser.add_argument
    add("--data", default="cifar10", help="cifar10 (a download), digits, or a folder of images")
    add("--root", default="data", help="folder that cifar10 is downloaded to")
    add("--image-size", type=at_least(8), default=32, help="side of the images in pixels")
    add("--images-seen", type=at_least(1), default=32_000, help="by each arm, repetitions counted")
    add("--batch-size", type=at_least(2), default=32, help="images a training step")
    add("--lr", type=float, default=0.03, help="highest learning rate of SGD")
    add("--width", type=at_least(1), default=16, help="channels of the network's first layer")
    add("--seed", type=int, default=0, help="of the split, the network, the views and the order")
    add("--device", type=usable_device, default=best_device(), help="where to compute")
    add("--only", nargs="+", choices=known, metavar="ARM", help=f"some of: {', '.join(known)}")
    add("--picture", type=Path, default="why_it_works.png", help="file for the picture")
    add("--json", type=Path, help="file for the numbers; none is written by default")
    args = parser.parse_args(arguments)
    if args.images_seen < args.batch_size:
        parser.error("--images-seen is less than one batch")
    return args


def main(arguments: Sequence[str] | None = None) -> None:
    """Load, run every arm, print, draw."""
    args, start = parse(arguments), time.perf_counter()
    for path in filter(None, (args.picture, args.json)):
        path.parent.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)
    data = load_data(args)
    known, held_out = (part[torch.randperm(len(part))] for part in split(data))
    if len(held_out) < 2:
        raise SystemExit("Without classes nothing can be measured: give a folder for each class.")
    chosen = [arm for arm in ARMS if not args.only or {arm.name, arm.group} & {*args.only}]
    print(f"{data.name}: {len(known)} images to learn from, {len(held_out)} held out")

    results: dict[str, Any] = {"data": data.name, "images": len(data.images)}
    results |= {"held_out": len(held_out), "settings": vars(args)}
    versions = {module.__name__: module.__version__ for module in (byol_wrap, torch)}
    results["versions"] = versions | {"python": platform.python_version()}
    arms: dict[str, dict[str, Any]] = {}
    with stopped_by_ctrl_c() as stopped:
        for number, arm in enumerate(chosen, start=1):
            numbers = run(arm, data, known, held_out, stopped, args)
            if not numbers:
                print(f"Interrupted in {arm.name!r}: keeping the arms before")
                break
            arms[arm.name] = numbers
            scores = f"kNN {numbers['knn']:.1f} %, linear {numbers['linear']:.1f} %"
            done = f"{number:2}/{len(chosen)}"
            print(f"{done} {arm.name}: {scores}, {numbers['seconds']:.0f} s", flush=True)
            for warning in numbers["warnings"]:
                print(f"      byol_wrap warns: {warning}")
            results |= {"arms": arms, "seconds": round(time.perf_counter() - start, 1)}
            if args.json:
                args.json.write_text(json.dumps(results, indent=2, default=str))
    if arms:
        print(f"\n{table(arms)}\n")
        draw_picture(args.picture, arms)
        print(f"Picture in {args.picture}, {results['seconds']:.0f} seconds in all")


if __name__ == "__main__":
    main()
