"""BYOL in a loop of Lightning Fabric.

    python fabric_loop.py

Needs ``pip install "byol_wrap[examples]" "lightning>=2.6.4"``.
"""

import argparse
from collections.abc import Sequence

import torch
from digits import accuracy, small_learner, training_loader
from lightning.fabric import Fabric, seed_everything


def main(arguments: Sequence[str] | None = None) -> None:
    """Train on digits, and say what it was worth."""
    parser = argparse.ArgumentParser(description="BYOL in a loop of Fabric.")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--accelerator", default="auto")
    parser.add_argument("--precision", default="bf16-mixed")
    args = parser.parse_args(arguments)

    seed_everything(0)
    fabric = Fabric(accelerator=args.accelerator, devices=1, precision=args.precision)
    fabric.launch()
    learner = small_learner()
    optimizer = torch.optim.AdamW(learner.parameters(), lr=2e-3)
    learner.attach(optimizer)  # the optimizer itself, before Fabric wraps it
    model, wrapped_optimizer = fabric.setup(learner, optimizer)
    loader = fabric.setup_dataloaders(training_loader())
    before = accuracy(learner)
    for _ in range(args.epochs):
        for images, _ in loader:
            loss = model(images)
            wrapped_optimizer.zero_grad()
            fabric.backward(loss)
            wrapped_optimizer.step()
    fabric.print(f"loss {loss.item():.3f}, {int(learner.step)} updates of the target")
    fabric.print(f"nearest neighbours: {before:.1f} % before, {accuracy(learner):.1f} % after")


if __name__ == "__main__":
    main()
