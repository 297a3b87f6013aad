"""A run that can be stopped at any moment, and goes on as if it had not been.

    python resume.py            # stop it with Ctrl-C, a power cut or kill -9; call it again

The weights come out bit for bit the same, however often it was stopped: the checkpoint holds the
learner, the optimizer, the schedule, the random state, and the epoch, on whose number alone the
order of its images depends. It is written beside the last one and takes its place when it is whole.

Needs ``pip install "byol_wrap[examples]"``.
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from digits import accuracy, small_learner, training_set
from torch.utils.data import DataLoader

from byol_wrap import warmup_cosine


def save(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint: afterwards the file holds this one or the last one, never a part."""
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train on digits from the last checkpoint on."""
    parser = argparse.ArgumentParser(description="A run that goes on where it stopped.")
    parser.add_argument("--checkpoint", type=Path, default=Path("checkpoint.pt"))
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--until", type=int, help="stop after so many of them, to go on later")
    args = parser.parse_args(arguments)

    torch.manual_seed(0)
    data, batch_size = training_set(), 64
    an_epoch = len(data) // batch_size
    total_steps = args.epochs * an_epoch
    learner = small_learner(total_steps)
    optimizer = torch.optim.AdamW(learner.parameters(), lr=2e-3)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: warmup_cosine(step, total_steps, an_epoch)
    )
    parts = {"learner": learner, "optimizer": optimizer, "scheduler": scheduler}
    start = 0
    if args.checkpoint.exists():
        saved = torch.load(args.checkpoint, weights_only=True)
        for name, part in parts.items():
            part.load_state_dict(saved[name])
        torch.set_rng_state(saved["random"])
        start = saved["epoch"]
        print(f"going on after epoch {start}")
    for epoch in range(start, min(args.epochs, args.until or args.epochs)):
        order = torch.Generator().manual_seed(epoch)
        for images, _ in DataLoader(
            data, batch_size, shuffle=True, drop_last=True, generator=order
        ):
            loss = learner(images)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
            learner.update_moving_average()
        state = {name: part.state_dict() for name, part in parts.items()}
        save(args.checkpoint, state | {"random": torch.get_rng_state(), "epoch": epoch + 1})
        print(f"epoch {epoch + 1}: loss {loss.item():.3f}", flush=True)
    print(f"nearest neighbours: {accuracy(learner):.1f} %")


if __name__ == "__main__":
    main()
