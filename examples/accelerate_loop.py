"""BYOL in a loop of Hugging Face Accelerate.

    python accelerate_loop.py
    accelerate launch accelerate_loop.py

Needs ``pip install "byol_wrap[examples]" accelerate``.
"""

import argparse
from collections.abc import Sequence

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from digits import accuracy, small_learner, training_loader


def main(arguments: Sequence[str] | None = None) -> None:
    """Train on digits, and say what it was worth."""
    parser = argparse.ArgumentParser(description="BYOL in a loop of Accelerate.")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--cpu", action="store_true")
    args = parser.parse_args(arguments)

    set_seed(0)
    accelerator = Accelerator(cpu=args.cpu, gradient_accumulation_steps=2)
    learner = small_learner()
    optimizer = torch.optim.AdamW(learner.parameters(), lr=2e-3)
    learner.attach(optimizer)  # the optimizer itself, before Accelerate wraps it
    model, wrapped_optimizer, loader = accelerator.prepare(learner, optimizer, training_loader())
    before = accuracy(learner)
    for _ in range(args.epochs):
        for images, _ in loader:
            with accelerator.accumulate(model):
                loss = model(images)
                accelerator.backward(loss)
                accelerator.clip_grad_norm_(model.parameters(), 5.0)
                wrapped_optimizer.step()
                wrapped_optimizer.zero_grad()
    after = accuracy(learner)
    accelerator.print(f"loss {loss.item():.3f}, {int(learner.step)} updates of the target")
    accelerator.print(f"nearest neighbours: {before:.1f} % before, {after:.1f} % after")
    accelerator.end_training()


if __name__ == "__main__":
    main()
