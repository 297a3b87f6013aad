"""BYOL in small: pretrain a small ResNet without labels, and see what that was worth.

    python quickstart.py                    # scikit-learn's handwritten digits, about a minute
    python quickstart.py --data photos/     # any folder of images; the innermost are the classes
    python quickstart.py --data cifar10     # downloads 170 MB and wants a GPU

A fifth of the images is held out: the network never sees them in training. They are classified with
few labels before and after pretraining, by nearest neighbours and by a linear classifier on frozen
features. Writes the improved backbone (quickstart.pt), a picture (quickstart.png) and, with --json,
the numbers. Ctrl-C ends training early and keeps what there is.

Needs ``pip install "byol_wrap[examples]"``.
"""

import argparse
import json
import os
import platform
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, repeat
from pathlib import Path
from threading import Event
from typing import Any

import kornia
import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from PIL import Image, ImageOps
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

import byol_wrap
from byol_wrap import (
    BYOL,
    IMAGENET_MEAN,
    IMAGENET_STD,
    knn_accuracy,
    linear_probe,
    warmup_cosine,
)

matplotlib.use("Agg")
import matplotlib.pyplot as plt

SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
FEWEST_IMAGES = 20
BLUE, ORANGE, GREY = "#2166ac", "#e08214", "#b8bec6"


@dataclass
class Data:
    """Images (N, C, H, W) in uint8; a label of -1 says that there is none."""

    name: str
    images: Tensor
    labels: Tensor
    classes: list[str]

    @property
    def mean_std(self) -> tuple[Sequence[float], Sequence[float]]:
        """What pixels are normalised with, the same in training and ever after."""
        return (IMAGENET_MEAN, IMAGENET_STD) if self.images.shape[1] == 3 else ((0.5,), (0.5,))


class Residual(nn.Module):
    """Two 3 x 3 convolutions with a way around them, at half the resolution."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.around = nn.Sequential(
            nn.Conv2d(inputs, outputs, 1, stride=2, bias=False), nn.BatchNorm2d(outputs)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) in, (B, outputs, H / 2, W / 2) out."""
        return F.relu(self.body(x) + self.around(x))


def backbone(channels: int, width: int = 16, stride: int = 2) -> nn.Sequential:
    """The network to improve: images in, 8 x width features out. Put your own here."""
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        Residual(width, 2 * width),
        Residual(2 * width, 4 * width),
        Residual(4 * width, 8 * width),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )


def digit_views(size: int) -> nn.Module:
    """Views for digits: each image gets draws of its own.

    The default views suit photographs. A digit that is mirrored, or of which a tenth is left, is
    another digit or none: so no flips, and crops that keep most of it.
    """
    from kornia import augmentation as K

    crop = K.RandomResizedCrop((size, size), scale=(0.6, 1.0), align_corners=False)
    return nn.Sequential(crop, K.RandomGamma((0.5, 2.0), p=1.0))


def load_data(args: argparse.Namespace) -> Data:
    """The images that --data names."""
    if args.data == "digits":
        from sklearn.datasets import load_digits

        digits = load_digits()
        images = torch.from_numpy(digits.images).float()[:, None] * (255 / 16)
        labels = torch.from_numpy(digits.target).long()
        return Data("digits", resized(images, args.image_size), labels, list("0123456789"))
    if args.data == "cifar10":
        try:
            cifar = torchvision.datasets.CIFAR10(args.root, download=True)
        except (OSError, RuntimeError) as error:
            raise SystemExit(f"CIFAR-10 could not be had: {error}") from None
        images = torch.from_numpy(cifar.data).permute(0, 3, 1, 2).contiguous()
        labels = torch.tensor(cifar.targets)
        return Data("cifar10", resized(images, args.image_size), labels, list(cifar.classes))
    return load_folder(Path(args.data), args.image_size)


def resized(images: Tensor, size: int) -> Tensor:
    """Square images in [0, 255] as uint8 of ``size`` x ``size`` pixels."""
    if images.shape[2] != size:
        parts = images.split(1000)
        options: dict[str, Any] = {"size": (size, size), "mode": "bilinear", "antialias": True}
        images = torch.cat([F.interpolate(p.float(), **options).round().byte() for p in parts])
    return images.byte()


def load_folder(folder: Path, size: int) -> Data:
    """All images below a folder; the folder that an image lies in is its class."""
    if not folder.is_dir():
        raise SystemExit(f"--data: there is no folder {str(folder)!r} (nor a data set so named).")
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    paths = [p for p in paths if not any(n.startswith(".") for n in p.relative_to(folder).parts)]
    images, names = [], []
    for path in tqdm(paths, "reading", unit=" images", disable=len(paths) < 200):
        try:
            images.append(torch.from_numpy(read_image(path, size)).permute(2, 0, 1))
        except Exception as error:  # a broken file can raise anything
            tqdm.write(f"skipped {path}: {error}")
        else:
            names.append("" if path.parent == folder else path.parent.name)
    if len(images) < FEWEST_IMAGES:
        raise SystemExit(
            f"--data: {str(folder)!r} holds {len(images)} readable images, at least "
            f"{FEWEST_IMAGES} are needed. Looked for {' '.join(sorted(SUFFIXES))}."
        )
    classes = sorted({name for name in names if names.count(name) > 1} - {""})
    labels = torch.tensor([classes.index(n) if n in classes else -1 for n in names])
    return Data(folder.resolve().name, torch.stack(images), labels, classes)


def read_image(path: Path, size: int) -> np.ndarray:
    """The centre of one image, upright, as (size, size, 3) in uint8, whatever its mode."""
    with Image.open(path) as file:
        file.draft("RGB", (2 * size, 2 * size))  # a JPEG is decoded no larger than it need be
        image = ImageOps.exif_transpose(file)
        if image.mode.startswith(("I", "F")):  # 16 bits or more, which convert() would clip
            values = np.asarray(image, dtype=np.float32)
            values = values * (255 / max(values.max(), 1))
            image = Image.fromarray(values.clip(0, 255).astype(np.uint8))
        image = image.convert("RGBA").convert("RGB")  # palettes need both
        return np.array(ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC))


def split(data: Data) -> tuple[Tensor, Tensor]:
    """Indices to train on, and a fifth of each class (at least one image) to hold out."""
    held_out = torch.zeros(len(data.labels), dtype=torch.bool)
    for label in range(len(data.classes) if len(data.classes) > 1 else 0):
        members = (data.labels == label).nonzero()[:, 0]
        members = members[torch.randperm(len(members))]
        held_out[members[: -(-len(members) // 5)]] = True
    return (~held_out).nonzero()[:, 0], held_out.nonzero()[:, 0]


def draw_labels(labels: Tensor, per_class: int, classes: int, seed: int) -> Tensor:
    """Indices of ``per_class`` images of each class, or of all where a class has fewer."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randperm(len(labels), generator=generator)
    return torch.cat([drawn[labels[drawn] == label][:per_class] for label in range(classes)])


def measure(
    learner: BYOL, data: Data, train: Tensor, test: Tensor, args: argparse.Namespace
) -> dict[str, dict[str, float]]:
    """Accuracy in percent on held-out images given few labels: mean and std over label draws."""
    known, queries = embed(learner, data.images[train]), embed(learner, data.images[test])
    labels, truth = data.labels[train], data.labels[test]
    scores: dict[str, list[float]] = {"knn": [], "linear": []}
    for draw in range(args.draws):
        few = draw_labels(labels, args.labels, len(data.classes), seed=draw)
        task = (known[few], labels[few], queries, truth)
        scores["knn"].append(100 * knn_accuracy(*task, k=min(10, len(few))))
        scores["linear"].append(100 * linear_probe(*task))
    return {n: {"mean": float(np.mean(s)), "std": float(np.std(s))} for n, s in scores.items()}


def embed(learner: BYOL, images: Tensor) -> Tensor:
    """Frozen features of images, on the CPU."""
    device = next(learner.parameters()).device
    return torch.cat([learner.embed(batch.to(device)).cpu() for batch in images.split(256)])


def wrap(net: nn.Module, data: Data, args: argparse.Namespace, steps: int) -> BYOL:
    """The learner around a network, for so many steps on these images."""
    mean, std = data.mean_std
    return BYOL(
        net,
        image_size=args.image_size,
        projection_size=128,
        projection_hidden_size=512,
        moving_average_decay=0.95,  # lower than the usual 0.99: a short run
        total_steps=steps,
        augment_fn=digit_views(args.image_size) if args.data == "digits" else None,
        mean=mean,
        std=std,
        channels=data.images.shape[1],
    )


def pretrain(learner: BYOL, loader: DataLoader[Any], args: argparse.Namespace) -> dict[str, Any]:
    """Train without labels; gives what the loss and the std ratio were on the way."""
    optimizer = torch.optim.AdamW(learner.parameters(), lr=args.lr, weight_decay=1e-4)
    history: dict[str, Any] = {"steps": 0, "interrupted": False, "loss": [], "std_ratio": []}
    steps = args.epochs * len(loader)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: warmup_cosine(step, steps, steps // 10)
    )
    every = max(1, min(10, steps // 10))  # reading a figure waits for the device
    bar = tqdm(total=steps * loader.batch_size, desc="pretraining", unit=" images")
    with bar, stopped_by_ctrl_c() as stopped:
        for images in chain.from_iterable(repeat(loader, args.epochs)):
            loss = learner(images.to(args.device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
            learner.update_moving_average()
            if history["steps"] % every == 0:
                history["loss"].append((history["steps"], loss.item()))
                history["std_ratio"].append((history["steps"], learner.health()["std_ratio"]))
                bar.set_postfix({n: f"{history[n][-1][1]:.2f}" for n in ("loss", "std_ratio")})
            history["steps"] += 1
            bar.update(len(images))
            if stopped.is_set():
                history["interrupted"] = True
                break
    return history


@contextmanager
def stopped_by_ctrl_c() -> Iterator[Event]:
    """An event that the first Ctrl-C sets, to stop between two steps; the second stops at once.

    A KeyboardInterrupt instead could come anywhere, also where Python has to ignore exceptions.
    """
    stopped = Event()

    def stop(*_: Any) -> None:
        signal.signal(signal.SIGINT, before)
        stopped.set()

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield stopped
    finally:
        signal.signal(signal.SIGINT, before)


def save(net: nn.Module, path: Path) -> None:
    """Write a network's own weights; an interruption leaves no half-written file."""
    temporary = path.with_name(path.name + ".tmp")
    torch.save({name: value.cpu() for name, value in net.state_dict().items()}, temporary)
    os.replace(temporary, path)


def reload(path: Path, learner: BYOL, data: Data) -> float:
    """Load saved weights into a network that was never wrapped; how far its features are off."""
    images = data.images[:100].to(next(learner.parameters()).device)
    fresh = backbone(images.shape[1])
    fresh.load_state_dict(torch.load(path, weights_only=True))
    fresh.to(images.device).eval()
    mean, std = (images.new_tensor(v, dtype=torch.float32)[:, None, None] for v in data.mean_std)
    with torch.no_grad():
        features = fresh((images / 255 - mean) / std)
    return (features - learner.embed(images)).abs().max().item()


def draw_picture(
    path: Path, learner: BYOL, data: Data, history: dict[str, Any], results: dict[str, Any]
) -> None:
    """Images and their views above; loss, collapse and accuracies below."""
    plt.rcParams.update({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False})
    figure = plt.figure(figsize=(12, 7.6), dpi=120, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.06)
    above, below = figure.subfigures(2, 1, height_ratios=[1, 1.1], hspace=0.03)
    draw_views(above, learner, data)
    panels = below.subplots(1, 3 if "before" in results else 2)
    draw_curve(panels[0], history["loss"], BLUE, "Loss", "BYOL loss (0 to 8)")
    draw_curve(panels[1], history["std_ratio"], ORANGE, "Collapse", "std ratio of features")
    panels[1].set_ylim(0, max(1.0, *(1.1 * value for _, value in history["std_ratio"]), 0))
    panels[1].text(0.98, 0.03, "0 = collapsed", ha="right", transform=panels[1].transAxes)
    if "before" in results:
        draw_bars(panels[2], results)
    figure.savefig(path)
    plt.close(figure)


def draw_views(figure: Any, learner: BYOL, data: Data, columns: int = 12) -> None:
    """Some images, and the two views of each as pixels again."""
    chosen = torch.randperm(len(data.images))[:columns]
    images = data.images[chosen].to(next(learner.parameters()).device)
    mean, std = (torch.tensor(v)[:, None, None] for v in data.mean_std)
    views = [(view.cpu() * std + mean).clamp(0, 1) for view in learner.views(images)]
    rows = {"image": data.images[chosen] / 255, "view 1": views[0], "view 2": views[1]}
    figure.suptitle("What the network learns from: two views of one image", weight="bold")
    for line, (name, row) in zip(figure.subplots(3, columns), rows.items(), strict=True):
        line[0].set_ylabel(name)
        for axes, image in zip(line, row, strict=True):
            axes.imshow(image.permute(1, 2, 0).squeeze(2).numpy(), cmap="gray", vmin=0, vmax=1)
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)


def draw_curve(axes: Any, curve: list[tuple[int, float]], colour: str, title: str, y: str) -> None:
    """One figure of training over its steps."""
    marker = "o" if len(curve) < 5 else None
    axes.plot(*np.array(curve).reshape(-1, 2).T, color=colour, linewidth=2, marker=marker)
    axes.set_title(title, weight="bold")
    axes.set(xlabel="training step", ylabel=y)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)


def draw_bars(axes: Any, results: dict[str, Any]) -> None:
    """Accuracy before and after, side by side, with the spread over label draws."""
    names = ("knn", "linear")
    for offset, when, colour in ((-0.2, "before", GREY), (0.2, "after", BLUE)):
        means = [results[when][name]["mean"] for name in names]
        places = [place + offset for place in range(len(names))]
        error = [results[when][name]["std"] for name in names]
        axes.bar(places, means, 0.36, yerr=error, capsize=4, color=colour, label=when)
        for place, mean in zip(places, means, strict=True):
            colour_on_bar = "white" if when == "after" else "black"
            axes.text(place, 3, f"{mean:.1f}", ha="center", color=colour_on_bar, weight="bold")
    axes.set_title(f"Accuracy, {results['labels_per_class']} labels a class", weight="bold")
    axes.set(ylabel="accuracy on held-out images (%)", ylim=(0, 100))
    axes.set_xticks(range(len(names)), ["nearest neighbours", "linear classifier"])
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=2, frameon=False)


def describe(data: Data, train: Tensor, test: Tensor, labels_per_class: int) -> None:
    """Say what there is to learn from, and what is missing."""
    shape = " x ".join(str(n) for n in data.images.shape[1:])
    print(f"{data.name}: {len(data.images)} images of {shape}, {len(train)} to train on")
    if len(test) == 0:
        print("Fewer than two classes: pretraining only, accuracies are neither measured nor drawn")
        return
    print(f"{len(data.classes)} classes, {len(test)} images held out")
    counts = [int((data.labels[train] == label).sum()) for label in range(len(data.classes))]
    few = [f"{n} ({c})" for n, c in zip(data.classes, counts, strict=True) if c < labels_per_class]
    if few:
        print(f"With fewer than {labels_per_class} images to label, all are used: {', '.join(few)}")


def say(when: str, scores: dict[str, dict[str, float]]) -> None:
    """Print accuracies."""
    parts = (f"{name} {score['mean']:.1f} ± {score['std']:.1f} %" for name, score in scores.items())
    print(f"{when:>6}: {', '.join(parts)}")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="Pretrain a small ResNet without labels, and see what that was worth.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--data", default="digits", help="digits, cifar10 (a download), or a folder of images")
    add("--root", default="data", help="folder that cifar10 is downloaded to")
    add("--image-size", type=at_least(8), default=32, help="side of the images in pixels")
    add("--epochs", type=at_least(1), default=30, help="times that each image is seen")
    add("--batch-size", type=at_least(2), default=128, help="images a training step")
    add("--lr", type=float, default=5e-3, help="highest learning rate of AdamW")
    add("--labels", type=at_least(1), default=10, help="labels a class that are given to classify")
    add("--draws", type=at_least(1), default=10, help="different draws of those labels")
    add("--seed", type=int, default=0, help="of the split, the network and the training")
    add("--device", type=usable_device, default=best_device(), help="where to compute")
    add("--output", type=Path, default="quickstart.pt", help="file for the backbone's weights")
    add("--picture", type=Path, default="quickstart.png", help="file for the picture")
    add("--json", type=Path, help="file for the numbers; none is written by default")
    return parser.parse_args(arguments)


def at_least(low: int) -> Any:
    """An argparse type: whole numbers that are not below ``low``."""

    def number(text: str) -> int:
        if int(text) < low:
            raise argparse.ArgumentTypeError(f"{text} is below {low}")
        return int(text)

    return number


def usable_device(text: str) -> torch.device:
    """An argparse type: a device that computes here."""
    try:
        return torch.ones(1, device=text).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise argparse.ArgumentTypeError(f"{text} cannot be used: {error}") from None


def best_device() -> str:
    """CUDA or MPS where there is one."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def main(arguments: Sequence[str] | None = None) -> None:
    """Load, measure, pretrain, measure again, save, and draw."""
    args, start = parse(arguments), time.perf_counter()
    torch.manual_seed(args.seed)
    for path in filter(None, (args.output, args.picture, args.json)):
        path.parent.mkdir(parents=True, exist_ok=True)
    data = load_data(args)
    train, test = split(data)
    describe(data, train, test, args.labels)

    batch_size = min(args.batch_size, len(train))
    loader = DataLoader(data.images[train], batch_size, shuffle=True, drop_last=True)
    net = backbone(data.images.shape[1]).to(args.device)
    learner = wrap(net, data, args, args.epochs * len(loader))
    results: dict[str, Any] = {"data": data.name, "classes": data.classes}
    results |= {"images": len(data.images), "held_out": len(test), "labels_per_class": args.labels}
    if len(test):
        results["before"] = measure(learner, data, train, test, args)
        say("before", results["before"])

    clock = time.perf_counter()
    history = pretrain(learner, loader, args)
    results |= history
    results["seconds"] = {"pretraining": round(time.perf_counter() - clock, 1)}
    if history["interrupted"]:
        print(f"Interrupted after {history['steps']} steps: keeping what there is")
    save(net, args.output)
    off = reload(args.output, learner, data)
    print(f"{args.output}: loaded into a fresh network, whose features agree to {off:.0e}")
    results["reload_difference"] = off

    if len(test):
        results["after"] = measure(learner, data, train, test, args)
        say("after", results["after"])
    draw_picture(args.picture, learner, data, history, results)
    results["seconds"]["total"] = round(time.perf_counter() - start, 1)
    if args.json:
        results["settings"] = vars(args)
        modules = (byol_wrap, torch, torchvision, kornia)
        results["versions"] = {module.__name__: module.__version__ for module in modules}
        results["versions"]["python"] = platform.python_version()
        args.json.write_text(json.dumps(results, indent=2, default=str))
    print(f"Picture in {args.picture}, {results['seconds']['total']} seconds in all")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit("Interrupted before there was anything to keep") from None
