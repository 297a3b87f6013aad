"""What two views cost: byol_wrap's against the stock kornia chain and torchvision image by image.

    python tests/benchmarks/views.py                     # the CPU, or CUDA where there is one
    python tests/benchmarks/views.py --device cpu --threads 1

All are given the same float images in the same run, in turns, and make the paper's two views of
them, without the normalisation. "copy" reads and writes the batch once a view, which is the least
that a view can cost. Prints medians, images a second and ratios; then byol_wrap by step.

Needs ``pip install '.[bench]'``.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from timing import clock, interleaved, line, ratio, table, where
from torch import Tensor
from torchvision.transforms import v2

import byol_wrap
from byol_wrap import VIEW1, VIEW2, RandomView, Recipe, kornia_view
from byol_wrap.views import Draws, apply, draw

SIZES = {"cpu": {32: 256, 96: 64, 224: 32}, "cuda": {32: 1024, 96: 512, 224: 256}}  # side: batch


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


def pairs(images: Tensor) -> dict[str, Callable[[], object]]:
    """Ways to make both views of a batch."""
    side = images.shape[-1]
    makers: dict[str, list[Callable[[Tensor], Tensor]]] = {
        "byol_wrap": [RandomView(VIEW1), RandomView(VIEW2)],
        "kornia": [kornia_view(VIEW1, side), kornia_view(VIEW2, side)],
        "torchvision": [torchvision_chain(VIEW1, side), torchvision_chain(VIEW2, side)],
    }
    if images.is_cuda:
        del makers["torchvision"]  # a launch for each image and step
    runs: dict[str, Callable[[], object]] = {
        name: partial(lambda both: [make(images) for make in both], both)
        for name, both in makers.items()
    }
    out = torch.empty_like(images)
    runs["copy"] = lambda: [out.copy_(images) for _ in range(2)]
    return runs


def by_step(images: Tensor, rounds: int) -> dict[str, float]:
    """Milliseconds that each step adds to byol_wrap's two views, and drawing them."""
    size = tuple(images.shape[-2:])
    spent: dict[str, list[float]] = {}
    for _ in range(rounds):
        totals: dict[str, float] = {}
        for recipe in (VIEW1, VIEW2):
            if min(size) < 64:
                recipe = byol_wrap.Recipe(**{**vars(recipe), "blur": 0.0})
            began = clock(images.device)
            draws = draw(recipe, len(images), *size)
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
    add("--sizes", type=int, nargs="+", help="sides in pixels: of 32, 96, 224")
    add("--output", type=Path, help="a JSON file for all numbers")
    args = parser.parse_args(arguments)
    if args.threads:
        torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    facts = where(device, "kornia", "torchvision")
    print(line(facts))
    result: dict[str, Any] = {**facts, "sizes": {}}
    rows, parts = [], []
    for side, batch in SIZES[device.type].items():
        if args.sizes and side not in args.sizes:
            continue
        torch.manual_seed(0)
        images = torch.rand(batch, 3, side, side, device=device)
        times = interleaved(pairs(images), args.rounds, device)
        for name, own in times.items():
            cells = [f"{1e3 * median(own):.2f}", f"{batch / median(own):,.0f}"]
            faster = f"{ratio(own, times['byol_wrap']):.2f}"
            rows.append([f"{side} x {side}, batch {batch}", name, *cells, faster])
        steps = by_step(images, args.rounds)
        parts.append([f"{side} x {side}, batch {batch}", *steps.values()])
        result["sizes"][side] = {"batch": batch, "seconds": times, "milliseconds by step": steps}
    header = ["images", "by", "ms", "images a second", "time, byol_wrap's = 1"]
    print("\n" + table(header, rows))
    print("\n" + table(["ms by step", *steps], parts))
    if args.output:
        args.output.write_text(json.dumps(result, indent=1))
    return result


if __name__ == "__main__":
    main()
