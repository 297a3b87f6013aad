"""Fine-tuning with BYOL beside it: one backbone, a supervised loss and BYOL's in one backward.

    python auxiliary_loss.py                # ten labels a class, all images without labels
    python auxiliary_loss.py --weight 0     # labels alone

Needs ``pip install "byol_wrap[examples]"``.
"""

import argparse
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from digits import TEST, digits, small_learner, training_loader
from torch import nn


def main(arguments: Sequence[str] | None = None) -> None:
    """Train a classifier on few labels and the images of all digits."""
    parser = argparse.ArgumentParser(description="A supervised loss and BYOL's together.")
    parser.add_argument("--weight", type=float, default=0.5, help="of BYOL's loss")
    parser.add_argument("--labels", type=int, default=10, help="for each class")
    parser.add_argument("--epochs", type=int, default=10)
    args = parser.parse_args(arguments)

    torch.manual_seed(0)
    images, labels = digits()
    few = torch.cat([TEST + (labels[TEST:] == k).nonzero()[: args.labels, 0] for k in range(10)])
    learner = small_learner()
    assert learner.representation is not None
    classifier = nn.Linear(learner.representation.size, 10)
    optimizer = torch.optim.AdamW([*learner.parameters(), *classifier.parameters()], lr=2e-3)
    learner.attach(optimizer)
    for _ in range(args.epochs):
        for unlabelled, _ in training_loader():
            chosen = few[torch.randint(len(few), (64,))]
            view, _ = learner.views(images[chosen])
            loss = F.cross_entropy(classifier(learner.net(view)), labels[chosen])
            if args.weight > 0:
                loss = loss + args.weight * learner(unlabelled)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    with torch.no_grad():
        right = classifier(learner.embed(images[:TEST])).argmax(1) == labels[:TEST]
    print(f"{len(few)} labels, weight {args.weight:g}: {100 * right.float().mean():.1f} % right")


if __name__ == "__main__":
    main()
