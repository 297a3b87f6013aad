"""What negatives ask for, and what BYOL does without: SimCLR, MoCo and BYOL on two CPU cores.

    python negatives.py                             # CIFAR-10, a download of 170 MB
    python negatives.py --data photos/              # any folder; the innermost are the classes
    python negatives.py --only views                # some cells or groups of cells
    python negatives.py --data digits --images-seen 2048    # offline, to see it run

SimCLR finds an image among the others of its batch, MoCo among those of a queue, BYOL needs no
others. So SimCLR should want large batches, MoCo a long queue and slow keys; and where crops of an
image share their colours, those alone find it: SimCLR should want the colour steps more.

All cells start from the same weights, see as many images, in views drawn alike, and are
measured as why_it_works.py does. Each cell appends its line to --json; cells that are there already
are not run again. Prints a table and draws negatives.png.

Needs ``pip install "byol_wrap[examples]"``.
"""

import argparse
import io
import json
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from quickstart import (
    BLUE,
    ORANGE,
    Data,
    at_least,
    backbone,
    best_device,
    load_data,
    plt,
    resized,
    split,
    usable_device,
)
from torch import Tensor
from why_it_works import NO_COLOUR, RED, batches, measure

from byol_wrap import BYOL, Learner, MoCo, SimCLR, param_groups, warmup_cosine
from byol_wrap.views import VIEW1, VIEW2, RandomView

BATCHES, QUEUES = (16, 64, 256, 512), (256, 1024, 4096)
COLOURS = {"SimCLR": RED, "BYOL": BLUE, "MoCo": ORANGE}
LINES = {"linear": "o-", "knn": "o--"}
WITHOUT_COLOUR = {**NO_COLOUR, "solarize": 0.0}
VIEWS = {
    "all steps": {},
    "no colour": WITHOUT_COLOUR,
    "crop only": {**WITHOUT_COLOUR, "flip": 0.0},
}


@dataclass(frozen=True)
class Cell:
    """One way to train. The defaults are shared; a cell names what it changes."""

    method: str
    group: str
    batch_size: int = 64
    queue_size: int = 1024  # of MoCo, as the next two
    tau: float = 0.99
    key_parts: int | None = None
    views: dict[str, float] = field(default_factory=dict)  # what differs in both recipes
    label: str = ""

    @property
    def name(self) -> str:
        """What its row in the table is called."""
        return f"{self.method}, {self.label}"


METHODS = ("SimCLR", "BYOL")
CELLS = [Cell(m, "batch", batch_size=b, label=f"batch {b}") for b in BATCHES for m in METHODS]
CELLS += [Cell("MoCo", "queue", queue_size=q, label=f"queue {q}") for q in QUEUES]
CELLS += [
    Cell("MoCo", "queue", tau=0.0, label="tau 0"),
    Cell("MoCo", "queue", key_parts=8, label="keys in 8 parts"),
]
CELLS += [
    Cell(m, "views", views=changed, label=label)
    for label, changed in VIEWS.items()
    for m in METHODS
    if changed  # all steps are the cells of batch 64
]


def load(args: argparse.Namespace) -> Data:
    """What why_it_works.py takes, and an .npz of encoded images.

    It holds ``train_bytes``, the files one after another, ``train_ends`` and ``train_labels``.
    """
    path = Path(args.data)
    if path.suffix != ".npz":
        return load_data(args)
    with np.load(path) as file:
        parts = np.split(file["train_bytes"], file["train_ends"][:-1])
        labels = torch.from_numpy(file["train_labels"].astype(np.int64))
    pictures = [np.array(Image.open(io.BytesIO(p.tobytes())).convert("RGB")) for p in parts]
    images = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()
    classes = [str(label) for label in range(int(labels.max()) + 1)]
    return Data(path.stem, resized(images, args.image_size), labels, classes)


def build(cell: Cell, data: Data, args: argparse.Namespace) -> Learner:
    """A learner that has learned nothing yet; the same weights for all cells."""
    torch.manual_seed(args.seed)
    channels, size = data.images.shape[1:3]
    net = backbone(channels, args.width, stride=1)
    net = net.to(args.device, memory_format=torch.channels_last)
    gentle = {"crop_area": (0.7, 1.0), "blur": 0.0}
    recipes = replace(VIEW1, **gentle), replace(VIEW2, **gentle, solarize=0.5)
    view1, view2 = (RandomView(replace(recipe, **cell.views)) for recipe in recipes)
    mean, std = data.mean_std
    shared: dict[str, Any] = {"image_size": size, "channels": channels, "mean": mean, "std": std}
    shared |= {"augment_fn": view1, "augment_fn2": view2}
    if cell.method == "SimCLR":
        return SimCLR(net, **shared)
    if cell.method == "MoCo":
        moco = {"queue_size": cell.queue_size, "key_parts": cell.key_parts}
        return MoCo(net, moving_average_decay=cell.tau, **moco, **shared)
    return BYOL(
        net,
        projection_hidden_size=2048,
        moving_average_decay=0.9,
        total_steps=args.images_seen // cell.batch_size,
        **shared,
    )


def train(learner: Learner, cell: Cell, images: Tensor, args: argparse.Namespace) -> None:
    """The learning rate rises with the root of the batch size, as suits AdamW."""
    torch.manual_seed(args.seed)  # the same order of images in all cells
    rate = args.lr * (cell.batch_size / 64) ** 0.5
    optimizer = torch.optim.AdamW(param_groups(learner, weight_decay=1e-4), rate)
    steps = args.images_seen // cell.batch_size
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: warmup_cosine(step, steps, steps // 10)
    )
    for batch in batches(images, steps, cell.batch_size):
        loss = learner(batch.to(args.device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        learner.update_moving_average()


def run(
    cell: Cell, data: Data, known: Tensor, held_out: Tensor, args: argparse.Namespace
) -> dict[str, Any]:
    """Accuracies of one cell; what byol_wrap warns of belongs to them."""
    start = time.perf_counter()
    learner = build(cell, data, args)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        train(learner, cell, data.images[known], args)
    numbers: dict[str, Any] = dict(measure(learner, data, known, held_out))
    numbers["warnings"] = [str(warning.message) for warning in caught]
    return numbers | {"seconds": round(time.perf_counter() - start, 1)}


def settings(cell: Cell, data: Data, args: argparse.Namespace) -> dict[str, Any]:
    """All that a cell's numbers depend on."""
    names = ("images_seen", "image_size", "lr", "width", "seed")
    shared = {name: getattr(args, name) for name in names}
    return {"data": data.name, "images": len(data.images), **shared, **asdict(cell)}


def done(path: Path, cell: dict[str, Any]) -> dict[str, Any] | None:
    """The cell's line, if a file has one with the same settings."""
    lines = path.read_text().splitlines() if path.is_file() else []
    for line in map(json.loads, lines):
        if line["settings"] == cell:
            numbers: dict[str, Any] = line["numbers"]
            return numbers
    return None


def table(found: dict[str, dict[str, Any]]) -> str:
    """A row a cell, in Markdown; accuracies in percent."""
    lines = ["| | kNN | linear | seconds |", "|---|---|---|---|"]
    for name, numbers in found.items():
        knn, linear, seconds = (numbers[key] for key in ("knn", "linear", "seconds"))
        lines.append(f"| {name} | {knn:.1f} | {linear:.1f} | {seconds:.0f} |")
    return "\n".join(lines)


def draw_picture(path: Path, found: dict[str, dict[str, Any]]) -> None:
    """Accuracy over batch sizes, over queue lengths and by views, with the cells that there are."""
    plt.rcParams.update({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False})
    figure, (batch, queue, views) = plt.subplots(
        1, 3, figsize=(14, 4.6), dpi=120, layout="constrained"
    )
    for method in METHODS:
        of = {cell.batch_size: found[cell.name] for cell in pick(found, "batch", method)}
        draw_lines(batch, of, COLOURS[method], method)
    batch.set(xlabel="batch size (equal images seen)", title="Negatives in the batch, or none")
    moco = pick(found, "queue", "MoCo")
    plain = {cell.queue_size: found[cell.name] for cell in moco if "queue" in cell.label}
    draw_lines(queue, plain, COLOURS["MoCo"], "MoCo, tau 0.99")
    others = [cell for cell in moco if "queue" not in cell.label]
    for cell, marker in zip(others, "Xs", strict=False):
        mark = {"marker": marker, "s": 70, "color": COLOURS["MoCo"], "edgecolor": "black"}
        numbers, at = found[cell.name], cell.queue_size
        queue.scatter(at, numbers["linear"], **mark, label=cell.name, zorder=3)
        queue.scatter(at, numbers["knn"], **mark, alpha=0.5, zorder=3)
    queue.set(xlabel="keys in the queue (batch 64)", title="Negatives in a queue")
    for place, method in enumerate(METHODS):
        bars = {c.label: found[c.name] for c in pick(found, "views", method)}
        if (full := f"{method}, batch 64") in found:
            bars = {"all steps": found[full], **bars}
        places = [list(VIEWS).index(label) + 0.4 * place - 0.2 for label in bars]
        heights = [numbers["linear"] for numbers in bars.values()]
        drawn = views.bar(places, heights, 0.38, color=COLOURS[method], label=method)
        views.bar_label(drawn, fmt="%.1f", padding=2)
    views.set_xticks(range(len(VIEWS)), VIEWS)
    views.set(title="Views that share more", ylabel="linear accuracy (%)")
    views.margins(y=0.3)
    for axes in (batch, queue):
        axes.set_ylabel("accuracy (%); dashed: kNN")
        axes.grid(alpha=0.3)
        axes.margins(y=0.25)
    for axes in (batch, queue, views):
        axes.title.set_weight("bold")
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False, loc="upper right", fontsize=9)
    figure.savefig(path)
    plt.close(figure)


def pick(found: dict[str, dict[str, Any]], group: str, method: str) -> list[Cell]:
    """The cells of one group and method that there are numbers of."""
    named = [cell for cell in CELLS if cell.name in found]
    return [cell for cell in named if (cell.group, cell.method) == (group, method)]


def draw_lines(axes: Any, of: dict[int, dict[str, Any]], colour: str, label: str) -> None:
    """Both accuracies over a size that doubles."""
    for kind, style in LINES.items():
        values = [numbers[kind] for numbers in of.values()]
        named = label if kind == "linear" and of else None
        axes.plot(list(of), values, style, color=colour, linewidth=2, label=named)
    if of:
        axes.set_xscale("log", base=2)
        axes.set_xticks(list(of), [str(size) for size in of], minor=False)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="What negatives ask for, and what BYOL does without.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    known = list(dict.fromkeys([c.group for c in CELLS] + [c.name for c in CELLS]))
    add = parser.add_argument
    add("--data", default="cifar10", help="cifar10 (a download), digits, a folder, or an .npz")
    add("--root", default="data", help="folder that cifar10 is downloaded to")
    add("--image-size", type=at_least(8), default=32, help="side of the images in pixels")
    add("--images-seen", type=at_least(1), default=16_384, help="by each cell, with repetitions")
    add("--lr", type=float, default=2e-3, help="highest learning rate of AdamW at batch 64")
    add("--width", type=at_least(1), default=16, help="channels of the network's first layer")
    add("--seed", type=int, default=0, help="of the split, the network, the views and the order")
    add("--device", type=usable_device, default=best_device(), help="where to compute")
    add("--only", nargs="+", choices=known, metavar="CELL", help=f"some of: {'; '.join(known)}")
    add("--picture", type=Path, default="negatives.png", help="file for the picture")
    add("--json", type=Path, default="negatives.jsonl", help="file that a line a cell is added to")
    args = parser.parse_args(arguments)
    if args.images_seen < max(BATCHES):
        parser.error(f"--images-seen is less than the largest batch, {max(BATCHES)}")
    return args


def main(arguments: Sequence[str] | None = None) -> None:
    """Load, run every cell that is not done, print, draw."""
    args = parse(arguments)
    for path in (args.picture, args.json):
        path.parent.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)
    data = load(args)
    known, held_out = (part[torch.randperm(len(part))] for part in split(data))
    if len(held_out) < 2:
        raise SystemExit("Without classes nothing can be measured: give a folder for each class.")
    print(f"{data.name}: {len(known)} images to learn from, {len(held_out)} held out")
    found: dict[str, dict[str, Any]] = {}
    for cell in CELLS:
        if args.only and not {cell.name, cell.group} & {*args.only}:
            continue
        chosen = settings(cell, data, args)
        numbers = done(args.json, chosen)
        if numbers is None:
            numbers = run(cell, data, known, held_out, args)
            with args.json.open("a") as file:
                file.write(json.dumps({"settings": chosen, "numbers": numbers}) + "\n")
        found[cell.name] = numbers
        scores = f"kNN {numbers['knn']:.1f} %, linear {numbers['linear']:.1f} %"
        print(f"{cell.name}: {scores}, {numbers['seconds']:.0f} s", flush=True)
        for warning in numbers["warnings"]:
            print(f"      byol_wrap warns: {warning}")
    print(f"\n{table(found)}\n")
    draw_picture(args.picture, found)
    print(f"Picture in {args.picture}")


if __name__ == "__main__":
    main()
