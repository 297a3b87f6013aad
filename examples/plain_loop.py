"""A plain loop with all that loops have: mixed precision, accumulation, clipping, compilation.

    python plain_loop.py                                    # bfloat16, two batches a step
    python plain_loop.py --precision float16 --accumulate 4
    python plain_loop.py --compile                          # the first steps are slow

Needs ``pip install "byol_wrap[examples]"``.
"""

import argparse
from collections.abc import Sequence

import torch
from digits import accuracy, small_learner, training_loader


def main(arguments: Sequence[str] | None = None) -> None:
    """Train on digits, and say what it was worth."""
    parser = argparse.ArgumentParser(description="A plain loop with all that loops have.")
    dtypes = ["float32", "bfloat16", "float16"]
    parser.add_argument("--precision", default="bfloat16", choices=dtypes)
    parser.add_argument("--accumulate", type=int, default=2, help="batches an optimizer step")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args(arguments)

    torch.manual_seed(0)
    dtype = getattr(torch, args.precision)
    loader = training_loader()
    learner = small_learner().to(args.device)
    before = accuracy(learner)
    model = torch.compile(learner) if args.compile else learner
    optimizer = torch.optim.AdamW(learner.parameters(), lr=2e-3)
    learner.attach(optimizer)  # updates the target after each real step, and only then
    scaler = torch.amp.GradScaler(args.device, enabled=dtype == torch.float16)
    for _ in range(args.epochs):
        for number, (images, _) in enumerate(loader, start=1):
            with torch.autocast(args.device, dtype, enabled=dtype != torch.float32):
                loss = model(images.to(args.device))
            scaler.scale(loss / args.accumulate).backward()
            if number % args.accumulate == 0:
                scaler.unscale_(optimizer)
                torch.nn.utils.clip_grad_norm_(learner.parameters(), 5.0)
                scaler.step(optimizer)
                scaler.update()
                optimizer.zero_grad()
    print(f"loss {loss.item():.3f}, {int(learner.step)} updates of the target")
    print(f"nearest neighbours: {before:.1f} % before, {accuracy(learner):.1f} % after")


if __name__ == "__main__":
    main()
