"""The race: which library makes the better backbone of the same images?

    python tests/benchmarks/quality.py --quick        # five entries once, on two CPU cores
    python tests/benchmarks/quality.py                # three seeds
    python tests/benchmarks/quality.py --entries "lightly, our recipe"    # one of the others
    python tests/benchmarks/quality.py --race gpu --entries byol_wrap     # ResNet-18, 200 epochs

CIFAR-10, the same network, the same images in the same order, the same number of them; each
library with the recipe of its own README or CIFAR benchmark, and the peers with ours, too (see
entries.py, and --help for all names). Afterwards the 10,000 test images are
classified by the network's features: by nearest neighbours among the 50,000 training images, and by
a linear classifier trained on them. Writes one line of JSON a run and prints a table of all.

Runs that the output file holds already are not run again. A run that was interrupted, or that
--minutes ended, goes on from its checkpoint: several short runs make one long one.

Needs ``pip install '.[bench]'``.
"""

import argparse
import io
import json
import math
import os
import platform
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from entries import ENTRIES, Entry, Race
from torch import Tensor, nn

import byol_wrap
from byol_wrap import IMAGENET_MEAN, IMAGENET_STD, knn_accuracy, linear_probe
from byol_wrap.views import Normalize, as_unit_float

# The data


@dataclass
class Data:
    """Images (N, 3, 32, 32) in uint8 and labels (N,), for training and for testing."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def load(path: Path) -> Data:
    """CIFAR-10 from torchvision's folder, downloaded if it is not there; or from an .npz."""
    if path.suffix == ".npz":
        with np.load(path) as file:
            return Data(*decoded(file, "train_"), *decoded(file, "test_"))
    from torchvision.datasets import CIFAR10

    splits = []
    for train in (True, False):
        try:
            cifar = CIFAR10(path, train=train, download=True)
        except (OSError, RuntimeError) as error:
            raise SystemExit(
                f"CIFAR-10 is not in {str(path)!r} and could not be downloaded: {error}. Put "
                "torchvision's cifar-10-batches-py there, or give --data an .npz (see --help)."
            ) from None
        images = torch.from_numpy(cifar.data).permute(0, 3, 1, 2).contiguous()
        splits += [images, torch.tensor(cifar.targets)]
    return Data(*splits)


def decoded(file: Any, prefix: str = "") -> tuple[Tensor, Tensor]:
    """Images and labels of an .npz that holds JPEG files, one after the other, and their ends."""
    from PIL import Image

    data, ends = file[f"{prefix}bytes"], file[f"{prefix}ends"]
    parts = np.split(data, ends[:-1])
    opened = [Image.open(io.BytesIO(part.tobytes())).convert("RGB") for part in parts]
    images = np.stack([np.asarray(image.resize(opened[0].size)) for image in opened])
    labels = torch.from_numpy(file[f"{prefix}labels"].astype(np.int64))
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), labels


# The networks


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


def small_resnet(width: int = 16) -> nn.Module:
    """Seven convolutions deep, 8 x width features: what two cores can train in minutes."""
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        Residual(width, 2 * width),
        Residual(2 * width, 4 * width),
        Residual(4 * width, 8 * width),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )


def cifar_resnet18() -> nn.Module:
    """ResNet-18 for images of 32 x 32: a 3 x 3 stem without pooling, 512 features."""
    from torchvision.models import resnet18

    net = resnet18()
    net.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    net.maxpool = nn.Identity()
    net.fc = nn.Identity()
    return net


RACES = {
    "cpu": Race(small_resnet, 128, 200_000, 0),
    "gpu": Race(cifar_resnet18, 512, 200 * 50_000, 10 * 50_000),
}


# What runs where --entries says nothing.
ENTRANTS = ("random", "byol-pytorch", "lightly", "byol_wrap", "supervised")


# A run


def run(name: str, seed: int, data: Data, args: argparse.Namespace) -> dict[str, Any] | None:
    """Train one entry from one seed, or go on where it stopped; None where time ran out."""
    race: Race = args.race_
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)
    net = race.backbone().to(args.device, memory_format=torch.channels_last)
    make = ENTRIES[args.race][name]
    if make is None:
        return {"steps": 0, "images_seen": 0, "seconds": 0.0, **judge(net, data)}
    entry = make(net, race)
    steps = race.images_seen // entry.batch_size
    path = args.checkpoints / f"{args.race}-{race.images_seen}-{name}-{seed}.pt"
    done, seconds, curve = resume(path, entry)
    began = time.perf_counter()

    def so_far() -> float:
        return seconds + time.perf_counter() - began

    saved = time.perf_counter()
    order = Order(len(data.train_images), entry.batch_size, seed, args.device)
    for step in range(done, steps):
        chosen = order.batch(step)
        images, labels = data.train_images[chosen], data.train_labels[chosen]
        with torch.autocast(args.device.type, torch.bfloat16, enabled=args.device.type == "cuda"):
            loss = entry.step(images, labels)
        done = step + 1
        if race.curve and done * entry.batch_size % race.curve < entry.batch_size and done < steps:
            curve.append({"images_seen": done * entry.batch_size, **judge(net, data)})
            print(f"  {name} {curve[-1]}", flush=True)
        if time.perf_counter() - saved > args.save_every or args.clock() > args.minutes:
            save(path, entry, done, so_far(), curve)
            saved = time.perf_counter()
        if args.clock() > args.minutes:
            print(f"  {name}: out of time after {done} of {steps} steps; run again to go on")
            return None
        if done % max(1, steps // 10) == 0:
            print(f"  {name} {done}/{steps} loss {loss.item():.3f} {so_far():.0f} s", flush=True)
    result = {"steps": steps, "images_seen": steps * entry.batch_size, "seconds": so_far()}
    result |= judge(net, data)
    if curve:
        result["curve"] = curve
    path.unlink(missing_ok=True)
    return result


class Order:
    """Which images a step gets: all in a new order each epoch, and no incomplete batch.

    An epoch's order is drawn on the host and copied once, so that no other step waits for the
    device.
    """

    def __init__(self, count: int, batch_size: int, seed: int, device: torch.device) -> None:
        self.count, self.batch_size, self.seed, self.device = count, batch_size, seed, device
        self.epoch, self.order = -1, torch.empty(0)

    def batch(self, step: int) -> Tensor:
        """Indices (batch_size,) on the device."""
        epoch, place = divmod(step, self.count // self.batch_size)
        if epoch != self.epoch:
            generator = torch.Generator().manual_seed(1_000_003 * self.seed + epoch)
            order = torch.randperm(self.count, generator=generator)
            self.epoch, self.order = epoch, order.to(self.device)
        return self.order[place * self.batch_size :][: self.batch_size]


@torch.no_grad()
def features(net: nn.Module, images: Tensor) -> Tensor:
    """The frozen network's features (N, D), normalised as all entries normalise."""
    normalize = Normalize(IMAGENET_MEAN, IMAGENET_STD, 3)
    training = net.training
    net.eval()
    rows = torch.cat([net(normalize(as_unit_float(part))).float() for part in images.split(500)])
    net.train(training)
    return rows


def judge(net: nn.Module, data: Data) -> dict[str, float]:
    """Accuracy in percent on the test images, of all training images' features and labels."""
    train, test = features(net, data.train_images), features(net, data.test_images)
    task = (train, data.train_labels, test, data.test_labels)
    scores = {
        "knn_20": knn_accuracy(*task, k=min(20, len(train)), temperature=0.07),
        "knn_200": knn_accuracy(*task, k=min(200, len(train)), temperature=0.1),
        "linear": linear_probe(*task),
    }
    return {name: round(100 * score, 2) for name, score in scores.items()}


def save(path: Path, entry: Entry, steps: int, seconds: float, curve: list[Any]) -> None:
    """Write all that a run needs to go on, never half a file."""
    state = {
        "parts": {name: part.state_dict() for name, part in entry.parts.items()},
        "steps": steps,
        "seconds": seconds,
        "curve": curve,
        "random": random.getstate(),
        "numpy": numpy_state(),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, path.with_suffix(".tmp"))
    os.replace(path.with_suffix(".tmp"), path)


def numpy_state() -> tuple[Any, ...]:
    """The state of numpy's global generator, without an array: ``torch.load`` allows none."""
    name, key, *rest = np.random.get_state()
    return name, key.tolist(), *rest


def resume(path: Path, entry: Entry) -> tuple[int, float, list[Any]]:
    """Steps done, seconds and learning curve of a run that was interrupted; else of a new one."""
    if not path.exists():
        return 0, 0.0, []
    state = torch.load(path, weights_only=True, map_location="cpu")
    for name, part in entry.parts.items():
        part.load_state_dict(state["parts"][name])
    random.setstate(state["random"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    torch.cuda.set_rng_state_all(state["cuda"])
    return state["steps"], state["seconds"], state["curve"]


# Results


def where(device: torch.device) -> dict[str, str]:
    """The machine, the versions and the day."""
    machine = f"{os.cpu_count()} CPU cores ({platform.machine()})"
    if device.type == "cuda":
        machine = torch.cuda.get_device_name(device)
    return {
        "machine": machine,
        "torch": torch.__version__,
        "byol_wrap": byol_wrap.__version__,
        "date": datetime.now(UTC).date().isoformat(),
    }


def read(path: Path) -> list[dict[str, Any]]:
    """All runs that a file holds."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines() if line]


def table(runs: Sequence[dict[str, Any]]) -> str:
    """Mean and standard deviation over seeds of each entry, in Markdown."""
    lines = [
        "| entry | kNN, k 20 | kNN, k 200 | linear | seeds | images seen | minutes a run |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in dict.fromkeys(run["entry"] for run in runs):
        own = [run for run in runs if run["entry"] == name]
        cells = [spread([run[score] for run in own]) for score in ("knn_20", "knn_200", "linear")]
        seeds = ", ".join(str(run["seed"]) for run in own)
        minutes = mean(run["seconds"] for run in own) / 60
        cells += [seeds, f"{own[0]['images_seen']:,}", f"{minutes:.1f}"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def spread(values: Sequence[float]) -> str:
    """Mean, and standard deviation where there are several."""
    if len(values) == 1:
        return f"{values[0]:.1f}"
    return f"{mean(values):.1f} ± {stdev(values):.1f}"


QUESTION = "Which library makes the better backbone of the same images?"
ARCHIVE = """CIFAR-10 is downloaded (170 MB) to the folder that --data names, unless it is there.
--data may also name an .npz: for "train" and "test" each the bytes of all image files in a row
(train_bytes, uint8), where each file ends (train_ends), and the labels (train_labels)."""


def parse(
    arguments: Sequence[str] | None = None, question: str = QUESTION, **defaults: Any
) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=question,
        epilog=ARCHIVE,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--data", type=Path, default="data", help="CIFAR-10: torchvision's folder, or an .npz")
    add("--race", choices=RACES, default="cpu", help="gpu: ResNet-18, 200 epochs, on CUDA")
    add("--entries", nargs="+", default=ENTRANTS, choices=list(ENTRIES["cpu"]))
    add("--seeds", nargs="+", type=int, default=[0, 1, 2])
    add("--quick", action="store_true", help="the first of the seeds only")
    add("--images-seen", type=int, help="another number of images than the race's own")
    add("--output", type=Path, default="quality.jsonl", help="one line a run; runs in it are done")
    add("--checkpoints", type=Path, default="quality-checkpoints", help="of unfinished runs")
    add("--save-every", type=float, default=120, help="seconds between checkpoints")
    add("--minutes", type=float, default=math.inf, help="stop after so long, to go on another time")
    parser.set_defaults(**defaults)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None, question: str = QUESTION, **defaults: Any) -> None:
    """Run what has not been run yet, and print the table of all."""
    args, start = parse(arguments, question, **defaults), time.perf_counter()
    args.clock = lambda: (time.perf_counter() - start) / 60
    args.race_ = RACES[args.race]
    if args.images_seen:
        args.race_ = replace(args.race_, images_seen=args.images_seen)
    if args.race == "gpu" and not torch.cuda.is_available():
        raise SystemExit("--race gpu needs a CUDA device, and PyTorch finds none here.")
    args.device = torch.device("cuda" if args.race == "gpu" else "cpu")
    seeds = args.seeds[:1] if args.quick else args.seeds
    data = load(args.data)
    data = Data(*(tensor.to(args.device) for tensor in vars(data).values()))

    def done() -> list[dict[str, Any]]:
        this = (args.race, args.race_.images_seen)
        runs = [run for run in read(args.output) if (run["race"], run["budget"]) == this]
        order = {name: place for place, name in enumerate(ENTRIES[args.race])}
        return sorted(runs, key=lambda run: order.get(run["entry"], len(order)))

    for seed in seeds:
        for name in args.entries:
            if any((run["entry"], run["seed"]) == (name, seed) for run in done()):
                continue
            print(f"{name}, seed {seed}", flush=True)
            result = run(name, seed, data, args)
            if result is None:
                return
            line = {"race": args.race, "budget": args.race_.images_seen, "entry": name}
            line |= {"seed": seed, **result, **where(args.device)}
            with args.output.open("a") as file:
                file.write(json.dumps(line) + "\n")
            print("  " + json.dumps(line), flush=True)
    print(table(done()))


if __name__ == "__main__":
    main()
