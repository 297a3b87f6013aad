"""What reading photographs costs a run: images a second from disk against the bare loop.

    python tests/benchmarks/disk.py                                   # made photographs
    python tests/benchmarks/disk.py --data photos/ --workers 8        # yours

The same network takes the same steps in both: on batches that ``ImageFiles`` decodes in workers,
as examples/pretrain.py does, and on one batch that is there already. Made photographs are JPEGs of
500 x 375 pixels, as ImageNet's are. A ratio of 1 says that reading is free.

Needs ``pip install '.[pretrain]'``.
"""

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from itertools import chain, repeat
from pathlib import Path
from statistics import median

import numpy as np
import torch
from PIL import Image
from timing import interleaved, line, ratio, where
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.models import get_model

from byol_wrap import BYOL
from byol_wrap.data import ImageFiles, collate


def make_photographs(folder: Path, count: int) -> None:
    """JPEGs with as much detail as photographs have: about 50 kB each."""
    draws = np.random.default_rng(0)
    for number in range(count):
        coarse = draws.integers(0, 256, (24, 32, 3), np.uint8)
        pixels = np.asarray(Image.fromarray(coarse).resize((500, 375)), np.int16)
        pixels = pixels + draws.integers(-12, 13, pixels.shape)
        picture = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
        picture.save(folder / f"{number:05}.jpg", quality=85)


def endless(loader: DataLoader[Tensor]) -> Iterator[Tensor]:
    """Batches of images, epoch after epoch."""
    return (batch.image for batch in chain.from_iterable(repeat(loader)))


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    """Measure both loops in turns; print and give images a second and their ratio."""
    parser = argparse.ArgumentParser(description="What reading photographs costs.")
    add = parser.add_argument
    add("--data", type=Path, help="a folder, zip or tar; made photographs by default")
    add("--images", type=int, default=512, help="how many to make")
    add("--backbone", default="resnet50", help="of torchvision")
    add("--image-size", type=int, default=224, help="side of the views in pixels")
    add("--batch-size", type=int, default=32, help="images a step")
    add("--workers", type=int, default=1, help="that decode")
    add("--steps", type=int, default=4, help="a round")
    add("--rounds", type=int, default=5, help="that are measured")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="where to train")
    args = parser.parse_args(arguments)
    device = torch.device(args.device)
    learner = BYOL(get_model(args.backbone), args.image_size).to(device)
    optimizer = torch.optim.AdamW(learner.parameters(), lr=1e-3)

    def train(batches: Iterator[Tensor]) -> None:
        for _ in range(args.steps):
            loss = learner(next(batches).to(device, non_blocking=True))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            learner.update_moving_average()

    with tempfile.TemporaryDirectory() as made:
        if args.data is None:
            make_photographs(Path(made), args.images)
        files = ImageFiles(args.data or made, round(1.15 * args.image_size))
        loader: DataLoader[Tensor] = DataLoader(
            files,
            args.batch_size,
            shuffle=True,
            drop_last=True,
            num_workers=args.workers,
            collate_fn=collate,
            pin_memory=device.type == "cuda",
            persistent_workers=args.workers > 0,
        )
        read = endless(loader)
        there = repeat(next(read))
        entries = {"bare": lambda: train(there), "disk": lambda: train(read)}
        times = interleaved(entries, args.rounds, device)
    seen = args.steps * args.batch_size
    found = {name: seen / median(seconds) for name, seconds in times.items()}
    found["ratio"] = 1 / ratio(times["disk"], times["bare"])
    print(f"{args.backbone}, {args.image_size} pixels, {args.workers} workers: ", end="")
    print(f"bare loop {found['bare']:.1f} images/s, from disk {found['disk']:.1f}, ", end="")
    print(f"ratio {found['ratio']:.2f}\n({line(where(device, 'pillow'))})")
    return found


if __name__ == "__main__":
    main()
