"""What two views cost: byol_wrap's against the stock kornia chain and torchvision image by image.

    python tests/benchmarks/views.py                     # the CPU, or CUDA where there is one
    python tests/benchmarks/views.py --device cpu --threads 1 --busy   # beside other work
    python tests/benchmarks/views.py --only functions    # our steps against kornia's functions
    python tests/benchmarks/views.py --only estimate     # what an H100 would be asked, without one

All are given the same float images in the same run, in turns, and make the paper's two views of
them, without the normalisation. "copy" reads and writes the batch once a view, which is the least
that a view can cost. Prints medians, images a second and ratios; then byol_wrap by step.

Needs ``pip install '.[bench]'``; the estimate a CUDA build of PyTorch and no GPU.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import timing
import torch
from timing import clock, interleaved, line, ratio, table, where
from torch import Tensor
from torchvision.transforms import v2

import byol_wrap
from byol_wrap import VIEW1, VIEW2, RandomView, Recipe, kornia_view
from byol_wrap.views import Draws, apply, applying, draw, normalization, pixels

# Side of the images, side of the views, images.
SIZES = {
    "cpu": [(32, 32, 256), (96, 96, 64), (224, 224, 32)],
    "cuda": [(32, 32, 1024), (96, 96, 512), (256, 224, 256), (500, 224, 256)],
}
FUNCTIONS = [(32, 256), (64, 128), (96, 64), (224, 32)]  # side, images, of single steps


def torchvision_chain(recipe: Recipe, side: int) -> Callable[[Tensor], Tensor]:
    """The same pipeline of torchvision, drawn and computed image by image."""
    jitter = v2.ColorJitter(recipe.brightness, recipe.contrast, recipe.saturation, recipe.hue)
    steps: list[Any] = [
        v2.RandomResizedCrop(
            side,
            scale=recipe.crop_area,
            ratio=recipe.crop_ratio,
            interpolation=v2.InterpolationMode.BICUBIC,
            antialias=True,
        ),
        v2.RandomHorizontalFlip(recipe.flip),
        v2.RandomApply([jitter], recipe.jitter),
        v2.RandomGrayscale(recipe.greyscale),
        v2.RandomSolarize(0.5, recipe.solarize),
    ]
    if side >= 64:
        blur = v2.GaussianBlur(side // 10 | 1, recipe.blur_sigma)
        steps.insert(4, v2.RandomApply([blur], recipe.blur))
    chain = v2.Compose(steps)
    return lambda images: torch.stack([chain(image) for image in images])


def pairs(images: Tensor, side: int, *, compiled: bool = False) -> dict[str, Callable[[], object]]:
    """Ways to make both views of a batch, of ``side`` x ``side`` pixels."""
    recipes = VIEW1, VIEW2
    makers: dict[str, list[Callable[[Tensor], Tensor]]] = {
        "byol_wrap": [RandomView(recipe, side) for recipe in recipes],
        "kornia": [kornia_view(recipe, side) for recipe in recipes],
    }
    if compiled:
        makers["kornia, compiled"] = [
            torch.compile(kornia_view(recipe, side)) for recipe in recipes
        ]
    if not images.is_cuda:  # a launch for each image and step
        makers["torchvision"] = [torchvision_chain(recipe, side) for recipe in recipes]
    runs: dict[str, Callable[[], object]] = {
        name: partial(lambda both: [make(images) for make in both], both)
        for name, both in makers.items()
    }
    out = torch.empty_like(images)
    runs["copy"] = lambda: [out.copy_(images) for _ in range(2)]
    return runs


def functions(images: Tensor) -> dict[str, tuple[Callable[[], Any], Callable[[], Tensor]]]:
    """Each step for all images with a parameter for each: ours, and kornia's function."""
    from kornia import color, enhance, filters, geometry

    count, side = len(images), images.shape[2]
    factors = torch.linspace(0.6, 1.4, count)
    turns, sigmas = torch.linspace(-0.1, 0.1, count), torch.linspace(0.1, 2.0, count)
    weights, taps = torch.tensor([0.2989, 0.5870, 0.1140]), side // 10 | 1

    def ours(name: str, *own: Tensor) -> Callable[[], Any]:
        """Of the batch at once, as kornia's; the blur of larger images one by one, as it is."""
        if name == "blur" and side >= applying.MEDIUM:
            return lambda: [
                pixels.blur_one(*row) for row in zip(images, sigmas.tolist(), strict=True)
            ]
        return lambda: getattr(pixels, name)(images, *own)

    return {
        "brightness": (
            ours("brightness", factors),
            lambda: enhance.adjust_brightness_accumulative(images, factors),
        ),
        "contrast": (
            ours("contrast", factors),
            lambda: enhance.adjust_contrast_with_mean_subtraction(images, factors),
        ),
        "saturation": (
            ours("saturation", factors),
            lambda: enhance.adjust_saturation_with_gray_subtraction(images, factors),
        ),
        "hue": (ours("hue", turns), lambda: enhance.adjust_hue(images, 2 * math.pi * turns)),
        "greyscale": (
            ours("greyscale"),
            lambda: color.rgb_to_grayscale(images, weights).expand_as(images).contiguous(),
        ),
        "blur": (
            ours("blur", sigmas),
            lambda: filters.gaussian_blur2d(images, (taps, taps), sigmas[:, None].expand(-1, 2)),
        ),
        "solarize": (ours("solarize"), lambda: enhance.solarize(images, 0.5)),
        "flip": (lambda: images.flip(-1), lambda: geometry.hflip(images)),
    }


def measure_functions(rounds: int) -> str:
    """A table: by how much kornia's functions are slower than our steps, and how far from them."""
    rows = []
    for side, batch in FUNCTIONS:
        torch.manual_seed(0)
        images = torch.rand(batch, 3, side, side)
        cells, apart = [], 0.0
        for ours, theirs in functions(images).values():
            own = torch.stack(list(ours()))
            apart = max(apart, (own - theirs()).abs().max().item())
            times = interleaved({"ours": ours, "kornia": theirs}, rounds, images.device)
            cells.append(f"{ratio(times['kornia'], times['ours']):.1f}")
        rows.append([f"{side} x {side}, batch {batch}", *cells, f"{apart:.0e}"])
    names = functions(torch.rand(2, 3, 32, 32))
    return table(["kornia's time, ours = 1", *names, "largest difference"], rows)


def estimate() -> str:
    """A table of what two views, normalised, would ask of an H100, by shapes alone."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from fake_cuda import DEVICE, FakeCuda

    rows = []
    for kind in (torch.float32, torch.uint8):
        for given, side, batch in SIZES["cuda"][2:]:
            makers: dict[str, list[Callable[[Tensor], Tensor]]] = {
                "byol_wrap": [RandomView(recipe, side) for recipe in (VIEW1, VIEW2)],
                "kornia": [kornia_view(recipe, side) for recipe in (VIEW1, VIEW2)],
            }
            normalize = normalization(None, None, 3)
            if kind == torch.uint8:  # which kornia refuses
                del makers["kornia"]
            for name, both in makers.items():
                with FakeCuda() as cuda:
                    images = torch.empty(batch, 3, given, given, dtype=kind, device=DEVICE)
                    _ = [normalize(make(images[:2])) for make in both]
                    cuda.forget()
                    held = cuda.held
                    made = [normalize(make(images)) for make in both]
                    moved = sum(launch.bytes for launch in cuda.launches) / 1e9
                    pageable = sum("not pinned" in wait.name for wait in cuda.waits)
                    counts = [len(cuda.launches), len(cuda.copies), pageable]
                    counts.append(len(cuda.waits) - pageable)
                    peak = (cuda.peak - held) / 1e9
                    cells = [*counts, f"{moved:.1f}", f"{1e3 * cuda.seconds:.2f}", f"{peak:.2f}"]
                    kinds = str(kind).removeprefix("torch.")
                    rows.append([f"{given} to {side}, batch {batch}, {kinds}", name, *cells])
                    del images, made
    header = ["two views", "by", "launches", "copies", "of them pageable", "waits", "GB"]
    return table([*header, "at least ms", "peak GB"], rows)


def by_step(images: Tensor, side: int, rounds: int) -> dict[str, float]:
    """Milliseconds that each step adds to byol_wrap's two views, and drawing them."""
    size, (height, width) = (side, side), images.shape[2:]
    spent: dict[str, list[float]] = {}
    for _ in range(rounds):
        totals: dict[str, float] = {}
        for recipe in (VIEW1, VIEW2):
            if min(size) < 64:
                recipe = byol_wrap.Recipe(**{**vars(recipe), "blur": 0.0})
            began = clock(images.device)
            draws = draw(recipe, len(images), height, width)
            totals["draw"] = totals.get("draw", 0.0) + clock(images.device) - began
            steps = ("flip", "jitter", "greyscale", "blur", "solarize")
            kept = {**vars(draws), **dict.fromkeys(steps, torch.zeros_like(draws.flip))}
            before = 0.0
            for step in ("crop", *steps):
                kept[step] = vars(draws).get(step)
                began = clock(images.device)
                apply(Draws(**{k: v for k, v in kept.items() if k != "crop"}), images, size)
                took = clock(images.device) - began
                totals[step] = totals.get(step, 0.0) + took - before
                before = took
        for step, took in totals.items():
            spent.setdefault(step, []).append(1e3 * took)
    return {step: round(median(times), 2) for step, times in spent.items()}


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print, and write all numbers."""
    parser = argparse.ArgumentParser(description="What do two views cost?")
    add = parser.add_argument
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--threads", type=int, help="of PyTorch on the CPU")
    add("--rounds", type=int, default=11)
    add("--sizes", type=int, nargs="+", help="sides in pixels of the images, of those in SIZES")
    add("--busy", action="store_true", help="count this process's time alone: with one thread")
    add("--compiled", action="store_true", help="kornia's chain compiled, too: minutes on a CPU")
    add("--only", choices=["functions", "estimate"], help="another table, and nothing else")
    add("--output", type=Path, help="a JSON file for all numbers")
    args = parser.parse_args(arguments)
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.busy:
        timing.now = time.process_time
    device = torch.device(args.device)
    facts = where(device, "kornia", "torchvision")
    print(line(facts))
    result: dict[str, Any] = {**facts, "sizes": {}}
    if args.only:
        print("\n" + (estimate() if args.only == "estimate" else measure_functions(args.rounds)))
        return result
    rows, parts = [], []
    for given, side, batch in SIZES[device.type]:
        if args.sizes and given not in args.sizes:
            continue
        torch.manual_seed(0)
        images = torch.rand(batch, 3, given, given, device=device)
        compiled = args.compiled or device.type == "cuda"
        runs = pairs(images, side, compiled=compiled)
        try:
            runs.get("kornia, compiled", runs["kornia"])()
        except Exception as error:  # the compiler's, which is not what is measured
            print(f"kornia's chain does not compile: {error}")
            del runs["kornia, compiled"]
        times = interleaved(runs, args.rounds, device)
        of = f"{given} x {given}" + (f" to {side} x {side}" if side != given else "")
        of += f", batch {batch}"
        for name, own in times.items():
            cells = [f"{1e3 * median(own):.2f}", f"{batch / median(own):,.0f}"]
            rows.append([of, name, *cells, f"{ratio(own, times['byol_wrap']):.2f}"])
        steps = by_step(images, side, args.rounds)
        parts.append([of, *steps.values()])
        own_numbers = {"batch": batch, "seconds": times, "milliseconds by step": steps}
        result["sizes"][given] = own_numbers
    header = ["images", "by", "ms", "images a second", "time, byol_wrap's = 1"]
    print("\n" + table(header, rows))
    print("\n" + table(["ms by step", *steps], parts))
    if args.output:
        args.output.write_text(json.dumps(result, indent=1))
    return result


if __name__ == "__main__":
    main()
