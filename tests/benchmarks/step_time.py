"""What a training step costs, and what the two networks alone would.

    python tests/benchmarks/step_time.py                        # all; about half an hour
    python tests/benchmarks/step_time.py --only step --networks small     # a table, a network

The floor is the bare networks: backbone, projector and predictor forward and backward on two
views, one after the other, and the target's forward without gradient; no views, no optimizer, no
moving average. All entries train the same backbone on the same images with SGD, in turns in one
run; ratios are medians over rounds. Tables: the whole step, byol_wrap's by part, those of SimSiam,
SimCLR and MoCo, peak memory (each entry in a process of its own), growth with batch and image size,
start-up and moving average.

Needs ``pip install '.[bench]'``.
"""

import argparse
import copy
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import quality
import sibling_steps
import torch
from entries import Lightly as LightlyBenchmark
from entries import Race
from timing import clock, interleaved, line, ratio, table, where
from torch import Tensor, nn
from torchvision.models import VisionTransformer, resnet18, resnet50

from byol_wrap import BYOL, Learner, MoCo, SimCLR, SimSiam, byol_loss
from byol_wrap.methods.heads import mlp

PARTS = ("views", "forward", "backward", "optimizer", "moving average")
TABLES = ("step", "siblings", "memory", "growth", "start")


# The networks


@dataclass(frozen=True)
class Network:
    """A backbone without classifier, and what it is fed."""

    build: Callable[[], nn.Module]
    features: int
    side: int
    batch: dict[str, int]  # by kind of device
    rounds: int


def without_classifier(build: Callable[[], Any], name: str) -> Callable[[], nn.Module]:
    """A torchvision network that gives its features."""

    def make() -> nn.Module:
        net = build()
        setattr(net, name, nn.Identity())
        return net

    return make


def small_vit() -> VisionTransformer:
    """ViT-S/16."""
    return VisionTransformer(224, 16, num_layers=12, num_heads=6, hidden_dim=384, mlp_dim=1536)


NETWORKS = {
    "small": Network(quality.small_resnet, 128, 32, {"cpu": 256, "cuda": 256}, 9),
    "resnet18": Network(without_classifier(resnet18, "fc"), 512, 96, {"cpu": 64, "cuda": 64}, 7),
    "resnet50": Network(without_classifier(resnet50, "fc"), 2048, 224, {"cpu": 8, "cuda": 256}, 5),
    "vit_s": Network(without_classifier(small_vit, "heads"), 384, 224, {"cpu": 8, "cuda": 256}, 5),
}


# The entries: each gets a network, a fresh backbone and images (B, 3, H, W) in [0, 1]


class Floor:
    """The bare networks on views that are there already."""

    def __init__(self, network: Network, net: nn.Module, images: Tensor) -> None:
        self.online = nn.Sequential(net, mlp(network.features, 4096, 256)).to(images.device)
        self.predictor = mlp(256, 4096, 256).to(images.device)
        self.target = copy.deepcopy(self.online).requires_grad_(False)
        self.images = images

    def step(self) -> None:
        """Forward and backward."""
        prediction1 = self.predictor(self.online(self.images))
        prediction2 = self.predictor(self.online(self.images))
        with torch.no_grad():
            target1, target2 = self.target(self.images), self.target(self.images)
        (byol_loss(prediction1, target2) + byol_loss(prediction2, target1)).backward()
        for parameter in (*self.online.parameters(), *self.predictor.parameters()):
            parameter.grad = None


class ByolWrap:
    """The whole step."""

    def __init__(self, network: Network, net: nn.Module, images: Tensor) -> None:
        self.learner = self.wrap(net, images.shape[-1])
        trained = [p for p in self.learner.parameters() if p.requires_grad]
        self.optimizer = torch.optim.SGD(trained, lr=1e-3, momentum=0.9)
        self.images = images

    def wrap(self, net: nn.Module, side: int) -> Any:
        """The learner."""
        return BYOL(net, side)

    def step(self) -> None:
        """As README has it."""
        self.learner(self.images).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.learner.update_moving_average()

    def parts(self) -> list[float]:
        """Seconds of each of PARTS in one step."""
        times = [clock(self.images.device)]

        def done() -> None:
            times.append(clock(self.images.device))

        views = self.learner.views(self.images)
        done()
        loss = self.learner(*views)
        done()
        loss.backward()
        done()
        self.optimizer.step()
        self.optimizer.zero_grad()
        done()
        self.learner.update_moving_average()
        done()
        return [after - before for before, after in pairwise(times)]


class Halves(ByolWrap):
    """The whole step, one direction of the loss after the other."""

    def step(self) -> None:
        for loss in self.learner.halves(self.images):
            loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.learner.update_moving_average()


class ByolPytorch(ByolWrap):
    """byol-pytorch, its defaults."""

    simplicial = True

    def wrap(self, net: nn.Module, side: int) -> Any:
        import byol_pytorch

        return byol_pytorch.BYOL(
            net, side, hidden_layer=-1, use_simplicial_embeddings=self.simplicial
        )


class ByolPytorchPlain(ByolPytorch):
    """Without its simplicial embeddings."""

    simplicial = False


class Lightly:
    """lightly's parts with heads of the paper's size, on PIL images."""

    def __init__(self, network: Network, net: nn.Module, images: Tensor) -> None:
        class Recipe(LightlyBenchmark):
            hidden, size, blur = 4096, images.shape[-1], float(images.shape[-1] >= 64)

        self.recipe = Recipe(net, Race(network.build, network.features, 200_000, 0))
        self.images = images.mul(255).byte()
        self.views = images, images

    def step(self) -> None:
        """With its transform."""
        self.recipe.step_on_views(*self.recipe.two_views(self.images))


class LightlyNoViews(Lightly):
    """On views that are there already."""

    def step(self) -> None:
        """Without its transform."""
        self.recipe.step_on_views(*self.views)


ENTRIES: dict[str, Callable[[Network, nn.Module, Tensor], Any]] = {
    "floor": Floor,
    "byol_wrap": ByolWrap,
    "byol_wrap, halves": Halves,
    "byol-pytorch": ByolPytorch,
    "byol-pytorch, no SEM": ByolPytorchPlain,
    "lightly": Lightly,
    "lightly, no views": LightlyNoViews,
}


def ours(method: Callable[..., Learner], **options: Any) -> type[ByolWrap]:
    """The whole step of another method."""

    class Ours(ByolWrap):
        def wrap(self, net: nn.Module, side: int) -> Learner:
            return method(net, side, **options)

    return Ours


SIBLINGS: dict[str, dict[str, Callable[[Network, nn.Module, Tensor], Any]]] = {
    method.__name__: {
        "floor": bare,
        "byol_wrap": ours(method),
        "lightly": lightly,
        "lightly, no views": partial(lightly, views=False),
    }
    for method, bare, lightly in (
        (SimSiam, sibling_steps.BareSimSiam, sibling_steps.LightlySimSiam),
        (SimCLR, sibling_steps.BareSimCLR, sibling_steps.LightlySimCLR),
        (MoCo, sibling_steps.BareMoCo, sibling_steps.LightlyMoCo),
    )
}
SIBLINGS["MoCo"]["byol_wrap, keys in 8 parts"] = ours(MoCo, key_parts=8)


def entry(name: str, network: Network, images: Tensor, method: str = "BYOL") -> Any:
    """One entry; the backbone is the same for all."""
    torch.manual_seed(0)
    make = ENTRIES[name] if method == "BYOL" else SIBLINGS[method][name]
    return make(network, network.build().to(images.device), images)


def pictures(batch: int, side: int, device: torch.device) -> Tensor:
    """Images (B, 3, H, W) in [0, 1]."""
    return torch.rand(batch, 3, side, side, generator=torch.Generator().manual_seed(0)).to(device)


# What is measured


def steps(names: Sequence[str], args: argparse.Namespace) -> dict[str, Any]:
    """Seconds of a whole step of each entry, of byol_wrap's by part, and of the views' share."""
    found: dict[str, Any] = {}
    for name in names:
        for precision in args.precisions:
            found[f"{name}, {precision}"] = whole_steps("BYOL", name, precision, args.entries, args)
    return found


def siblings(names: Sequence[str], args: argparse.Namespace) -> dict[str, Any]:
    """The same for the other methods, on the networks for images of up to 96 pixels."""
    found: dict[str, Any] = {}
    for name in (name for name in names if NETWORKS[name].side <= 96):
        for precision in args.precisions:
            for method, all_labels in SIBLINGS.items():
                labels = [x for x in all_labels if x in args.entries or x not in ENTRIES]
                measured = whole_steps(method, name, precision, labels, args)
                found[f"{method}, {name}, {precision}"] = measured
    return found


def whole_steps(
    method: str, name: str, precision: str, labels: Sequence[str], args: argparse.Namespace
) -> dict[str, Any]:
    """One method on one network."""
    network = NETWORKS[name]
    images = pictures(network.batch[args.device.type], network.side, args.device)
    entries = {label: entry(label, network, images, method) for label in labels}
    half = torch.autocast(args.device.type, torch.bfloat16, enabled=precision == "bf16")
    runs = {label: half(one.step) for label, one in entries.items()}  # entered each time
    parts_once = half(entries["byol_wrap"].parts)
    rounds = args.rounds or network.rounds
    times = interleaved(runs, rounds, args.device)
    parts = [parts_once() for _ in range(rounds)]
    columns = [1e3 * median(column) for column in zip(*parts, strict=True)]
    print(f"  {method}, {name}, {precision}: measured", flush=True)
    return {
        "batch": len(images),
        "side": network.side,
        "seconds": times,
        "milliseconds by part": dict(zip(PARTS, columns, strict=True)),
    }


def steps_table(found: dict[str, Any]) -> str:
    """The whole step of each entry over the floor and over byol_wrap's, and its parts."""
    over_floor, over_ours, parts = [], [], []
    entries = list(dict.fromkeys(label for one in found.values() for label in one["seconds"]))
    for name, one in found.items():
        times = one["seconds"]
        label = f"{name}, {one['side']} x {one['side']}, batch {one['batch']}"
        for base, rows in (("floor", over_floor), ("byol_wrap", over_ours)):
            ratios = [f"{ratio(times[x], times[base]):.3f}" if x in times else "" for x in entries]
            rows.append([label, f"{1e3 * median(times[base]):.0f}", *ratios])
        parts.append([label, *(f"{value:.1f}" for value in one["milliseconds by part"].values())])
    tables = [
        table(["a step, floor = 1", "floor, ms", *entries], over_floor),
        table(["a step, byol_wrap = 1", "byol_wrap, ms", *entries], over_ours),
        table(["byol_wrap's step by part, ms", *PARTS], parts),
    ]
    return "\n\n".join(tables)


def memory(names: Sequence[str], args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Peak MiB of two steps of each entry, each in a process of its own; "imports" has no step."""
    found: dict[str, dict[str, float]] = {}
    for name in names:
        found[name] = {}
        for label in ["imports", *args.entries]:
            command = [sys.executable, __file__, "--peak-of", name, label]
            command += ["--device", str(args.device)]
            out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            found[name][label] = float(out.splitlines()[-1])
        print(f"  memory of {name}: measured", flush=True)
    return found


def peak(name: str, label: str, device: torch.device) -> float:
    """MiB at most in this process: resident on the CPU, of the allocator on CUDA."""
    network = NETWORKS[name]
    images = pictures(network.batch[device.type], network.side, device)
    import byol_pytorch  # noqa: F401
    import kornia  # noqa: F401
    import lightly.loss  # noqa: F401

    if label != "imports":
        one = entry(label, network, images)
        for _ in range(2):
            one.step()
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    status = Path("/proc/self/status")  # the resource module counts the process that started this
    if not status.exists():
        raise SystemExit("Peak memory on the CPU is read from /proc, which Linux has.")
    peak_line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM"))
    return int(peak_line.split()[1]) / 2**10


def memory_table(found: dict[str, dict[str, float]]) -> str:
    """Peak MiB, without what imports and images take."""
    labels = [label for label in next(iter(found.values())) if label != "imports"]
    rows = [
        [name, *(f"{one[label] - one['imports']:.0f}" for label in labels)]
        for name, one in found.items()
    ]
    return table(["peak MiB over imports", *labels], rows)


def growth(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Seconds of floor and byol_wrap over batch sizes, and over image sizes."""
    cases = [("small", 32, batch) for batch in (16, 64, 256, 1024)]
    cases += [("resnet18", side, 8) for side in (32, 64, 96, 160, 224, 384)]
    found = []
    for name, side, batch in cases:
        images = pictures(batch, side, args.device)
        both = ("floor", "byol_wrap")
        runs = {label: entry(label, NETWORKS[name], images).step for label in both}
        times = interleaved(runs, args.rounds or 5, args.device)
        found.append({"network": name, "side": side, "batch": batch, "seconds": times})
    print("  growth: measured", flush=True)
    return found


def growth_table(found: list[dict[str, Any]]) -> str:
    """Milliseconds an image, and the ratio."""
    rows = []
    for one in found:
        times = one["seconds"]
        per_image = [1e3 * median(values) / one["batch"] for values in times.values()]
        cells = [f"{value:.2f}" for value in per_image]
        over_floor = f"{ratio(times['byol_wrap'], times['floor']):.3f}"
        size = f"{one['side']} x {one['side']}"
        rows.append([one["network"], size, one["batch"], *cells, over_floor])
    header = ["network", "images", "batch", "floor, ms an image", "byol_wrap, ms an image", "ratio"]
    return table(header, rows)


def start(args: argparse.Namespace) -> dict[str, float]:
    """Wrapping ResNet-50 against one forward and a deep copy; the average against a bare lerp."""
    net = resnet50().to(args.device)
    noise = pictures(2, 224, args.device)

    def forward_and_copy() -> None:
        net(noise)
        copy.deepcopy(net)

    wrapping = {"wrap": lambda: BYOL(net, 224), "forward and copy": forward_and_copy}
    times = interleaved(wrapping, 9, args.device)
    found = {"wrapping over a forward and a deepcopy": ratio(*times.values())}
    for build in (resnet18, resnet50):
        learner = BYOL(build().to(args.device), 224)
        twins = zip(learner.target.parameters(), learner.online.parameters(), strict=True)
        twins_with_values = [(t, s.detach()) for t, s in twins if t.numel()]
        averages = [t for t, _ in twins_with_values]
        sources = [s for _, s in twins_with_values]
        updates = {
            "ours": learner.update_moving_average,
            "bare": partial(torch._foreach_lerp_, averages, sources, 0.01),
        }
        with torch.no_grad():
            times = interleaved(updates, 101, args.device)
        found[f"moving average of {build.__name__} over a bare lerp"] = ratio(*times.values())
    code = "import time, torch, torchvision; t = time.perf_counter(); import byol_wrap; "
    command = [sys.executable, "-c", code + "print(time.perf_counter() - t)"]
    imports = [
        float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        for _ in range(5)
    ]
    found["seconds to import byol_wrap after torch and torchvision"] = median(imports)
    return found


def draw_chart(result: dict[str, Any], path: Path) -> None:
    """Each step over the floor, and how the ratio grows."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.5), width_ratios=(3, 2))
    labels = [label for label in ENTRIES if label != "floor"]
    for place, label in enumerate(labels):
        offsets = [case + 0.8 * (place / len(labels) - 0.5) for case in range(len(result["step"]))]
        heights = [
            ratio(one["seconds"][label], one["seconds"]["floor"]) for one in result["step"].values()
        ]
        colour = {"byol_wrap": "#1f77b4", "byol_wrap, halves": "#9ecae1"}.get(label)
        colour = colour or ("#b35806", "#fdb863", "#5e3c99", "#b2abd2")[place - 2]
        left.bar(offsets, heights, 0.8 / len(labels), label=label, color=colour, align="edge")
    left.axhline(1, color="black", linewidth=1)
    cases = [case.replace(", ", "\n") for case in result["step"]]
    left.set_xticks(range(len(cases)), cases)
    left.set_ylabel("time of a step over the bare networks'")
    left.legend(fontsize=8, ncols=2)
    for name, over in (("small", "batch"), ("resnet18", "side")):
        own = [one for one in result["growth"] if one["network"] == name]
        ratios = [ratio(one["seconds"]["byol_wrap"], one["seconds"]["floor"]) for one in own]
        label = "small ResNet over the batch" if over == "batch" else "ResNet-18 over the side"
        right.plot([one[over] for one in own], ratios, marker="o", label=label)
    right.axhline(1, color="black", linewidth=1)
    right.set_xscale("log", base=2)
    right.set_xlabel("images a batch, or pixels a side")
    right.set_ylabel("byol_wrap's step over the bare networks'")
    right.legend(fontsize=8)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the tables, and write all numbers and the chart."""
    parser = argparse.ArgumentParser(description="What does a training step cost?")
    add = parser.add_argument
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--threads", type=int, help="of PyTorch on the CPU")
    add("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    add("--precisions", nargs="+", choices=("fp32", "bf16"), default=["fp32", "bf16"])
    add("--entries", nargs="+", choices=ENTRIES, default=list(ENTRIES), help="floor, byol_wrap, ..")
    add("--only", nargs="+", choices=TABLES)
    add("--rounds", type=int, help="another number than each network's own")
    add("--output", type=Path, default="step_time.json")
    add("--picture", type=Path, default="step_time.png", help="drawn where all was measured")
    add("--peak-of", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    args.device = torch.device(args.device)
    if args.peak_of:
        print(peak(*args.peak_of, args.device))
        return
    if args.threads:
        torch.set_num_threads(args.threads)
    if not {"floor", "byol_wrap"} <= set(args.entries):
        parser.error("--entries needs floor and byol_wrap, to compare with")
    began = clock(args.device)
    wanted = args.only or TABLES
    result: dict[str, Any] = dict(where(args.device, "byol-pytorch", "lightly"))
    print(line(result), flush=True)
    if "step" in wanted:
        result["step"] = steps(args.networks, args)
        print("\n" + steps_table(result["step"]) + "\n", flush=True)
    if "siblings" in wanted:
        result["siblings"] = siblings(args.networks, args)
        print("\n" + steps_table(result["siblings"]) + "\n", flush=True)
    if "memory" in wanted:
        result["memory"] = memory(args.networks, args)
        print("\n" + memory_table(result["memory"]) + "\n", flush=True)
    if "growth" in wanted:
        result["growth"] = growth(args)
        print("\n" + growth_table(result["growth"]) + "\n", flush=True)
    if "start" in wanted:
        result["start"] = start(args)
        print("\n" + "\n".join(f"{name}: {x:.3f}" for name, x in result["start"].items()))
    args.output.write_text(json.dumps(result, indent=1))
    if {"step", "growth"} <= set(wanted) and len(args.entries) == len(ENTRIES):
        draw_chart(result, args.picture)
    print(f"\n{(clock(args.device) - began) / 60:.1f} minutes")


if __name__ == "__main__":
    main()
