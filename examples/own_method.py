"""A method of one's own, VICReg, in twenty-five lines; trained on handwritten digits.

    python own_method.py

A method is a ``Learner`` with its heads and one function, the loss of two views. All else is there
already: views, checks, heads whose size is found, ``embed``, ``health``, checkpoints, DDP.

Needs ``pip install "byol_wrap[examples]"``.
"""

import argparse
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from digits import SIZE, accuracy, training_loader
from quickstart import backbone, digit_views
from torch import Tensor, nn

from byol_wrap import Learner


class VICReg(Learner):
    """Variance-invariance-covariance regularisation: neither a copy of the net nor negatives.

    Reference: Bardes et al. 2022 (arXiv 2105.04906), equations 1 to 6.
    """

    def __init__(
        self, net: nn.Module, image_size: int, *, width: int = 512, **options: Any
    ) -> None:
        expander = nn.Sequential(
            *(nn.LazyLinear(width), nn.BatchNorm1d(width), nn.ReLU()),
            *(nn.Linear(width, width), nn.BatchNorm1d(width), nn.ReLU()),
            nn.Linear(width, width),
        )
        super().__init__(net, image_size, projector=expander, **options)

    def loss(self, view1: Tensor, view2: Tensor) -> Tensor:
        """Two views of an image should be projected alike, and different images apart."""
        z1, z2 = self.project(view1), self.project(view2)
        return 25 * F.mse_loss(z1, z2) + self.spread(z1) + self.spread(z2)

    def spread(self, z: Tensor) -> Tensor:
        """No feature may be constant, and no two may tell the same."""
        z = z - z.mean(dim=0)
        covariance = z.T @ z / (len(z) - 1)
        variance = covariance.diagonal()
        others = covariance.square().sum() - variance.square().sum()
        return 25 / 2 * F.relu(1 - (variance + 1e-4).sqrt()).mean() + others / len(variance)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train the method on digits and say what it brought."""
    parser = argparse.ArgumentParser(description="VICReg on handwritten digits.")
    parser.add_argument("--epochs", type=int, default=10)
    args = parser.parse_args(arguments)

    torch.manual_seed(0)
    learner = VICReg(
        backbone(channels=1), SIZE, augment_fn=digit_views(SIZE), mean=(0.5,), std=(0.5,)
    )
    optimizer = torch.optim.AdamW(learner.parameters(), lr=1e-3)
    print(f"nearest neighbours before: {accuracy(learner):.1f} %")
    for epoch in range(args.epochs):
        for images, _ in training_loader():
            loss = learner(images)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        print(f"epoch {epoch + 1}: loss {loss.item():.2f}, rank {learner.health()['rank']:.1f}")
    print(f"nearest neighbours after: {accuracy(learner):.1f} %")


if __name__ == "__main__":
    main()
