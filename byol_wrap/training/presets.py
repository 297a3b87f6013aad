"""The settings that the methods' papers and reference codes train with, as tables."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Preset:
    """Settings of a reference for one kind of training.

    Attributes:
        learning_rate: base learning rate, to be multiplied by batch size / 256.
        weight_decay: for the optimizer.
        moving_average_decay: tau of the first update; None for a method without a target.
        warmup_epochs: length of the linear warm-up before the cosine.
        optimizer: "LARS", or "SGD" with momentum 0.9.
        rising: whether tau rises to 1 along a cosine (``total_steps``).
    """

    learning_rate: float
    weight_decay: float
    moving_average_decay: float | None
    warmup_epochs: int = 10
    optimizer: str = "LARS"
    rising: bool = True


PRESETS = {
    40: Preset(0.45, 1e-6, 0.97),
    100: Preset(0.45, 1e-6, 0.99),
    300: Preset(0.3, 1e-6, 0.99),
    1000: Preset(0.2, 1.5e-6, 0.996),
}
"""BYOL by epochs on ImageNet, as in the reference code (deepmind-research/byol)."""

SIBLING_PRESETS = {
    "SimSiam": Preset(0.05, 1e-4, None, 0, "SGD"),
    "SimCLR": Preset(0.3, 1e-6, None),
    "SimCLR, CIFAR-10": Preset(0.5, 1e-4, None),
    "MoCo": Preset(0.03, 1e-4, 0.999, 0, "SGD", rising=False),
    "MoCo, CIFAR-10": Preset(0.03, 5e-4, 0.99, 0, "SGD", rising=False),
}
"""The other methods on ImageNet and, where their code has them, on CIFAR-10.

From facebookresearch/simsiam (whose predictor's rate stays constant), google-research/simclr (1.0
at batches of 512 on CIFAR-10) and facebookresearch/moco (0.06 at batches of 512 there; on ImageNet
MoCo v2's cosine).
"""
