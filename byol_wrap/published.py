"""What papers and reference codes train with, as training recipes."""

import math
from dataclasses import dataclass
from operator import index
from typing import Literal

from byol_wrap.learner import Learner
from byol_wrap.methods.byol import BYOL
from byol_wrap.methods.moco import MoCo
from byol_wrap.methods.simclr import SimCLR
from byol_wrap.methods.simsiam import SimSiam
from byol_wrap.recipe import TrainingRecipe


@dataclass(frozen=True)
class Published:
    """One row of a paper or its code.

    Attributes:
        epochs: for how many it is.
        rate: base learning rate, to be multiplied by batch size / 256.
        weight_decay: of what is no bias and no normalisation layer.
        decay: tau of the first update; of no use to a method without a target.
        warmup_epochs: length of the linear warm-up before the cosine.
        algorithm: "LARS", or "SGD" with momentum 0.9.
        least_area: of an image, that the views are cropped from.
    """

    epochs: int
    rate: float
    weight_decay: float
    decay: float = 0.99
    warmup_epochs: int = 10
    algorithm: Literal["LARS", "SGD"] = "LARS"
    least_area: float = 0.08


Rows = dict[type[Learner], tuple[Published, ...]]

IMAGENET: Rows = {
    BYOL: (
        Published(40, 0.45, 1e-6, 0.97),
        Published(100, 0.45, 1e-6, 0.99),
        Published(300, 0.3, 1e-6, 0.99),
        Published(1000, 0.2, 1.5e-6, 0.996),
    ),
    SimSiam: (Published(100, 0.05, 1e-4, 0.0, 0, "SGD", 0.2),),
    SimCLR: (Published(1000, 0.3, 1e-6),),
    MoCo: (Published(200, 0.03, 1e-4, 0.999, 0, "SGD", 0.2),),
}
CIFAR10: Rows = {
    SimCLR: (Published(1000, 0.5, 1e-4),),
    MoCo: (Published(200, 0.03, 5e-4, 0.99, 0, "SGD", 0.2),),
}
PUBLISHED = {"ImageNet": IMAGENET, "CIFAR-10": CIFAR10}


def published_recipe(
    method: type[Learner],
    image_size: int | tuple[int, int],
    *,
    images: int,
    epochs: int,
    batch_size: int,
    of: Literal["ImageNet", "CIFAR-10"] = "ImageNet",
) -> TrainingRecipe:
    """The settings of a method's paper and reference code, for a new net and a long run.

    ``training_recipe`` is for everything else: these are made for hundreds of epochs.

    Args:
        method: BYOL, SimSiam, SimCLR or MoCo.
        image_size: side, or (height, width), in pixels of the views.
        images: how many there are to train on.
        epochs: how often each is seen. BYOL's reference has settings for 40, 100, 300 and 1,000; of
            those the nearest, by ratio, are taken.
        batch_size: images a step; rates grow in proportion to it.
        of: which data set the settings were published for; CIFAR-10's of SimCLR and MoCo.

    Raises:
        TypeError: no whole number.
        ValueError: nothing is known to be published of ``method``, or the images make no batch.

    Reference:
        deepmind-research/byol; facebookresearch/simsiam; google-research/simclr, with 1.0 at
        batches of 512 on CIFAR-10; facebookresearch/moco, with 0.06 at batches of 512 there, and on
        ImageNet MoCo v2's cosine. Deviation: biases and normalisation layers do not decay, as they
        do not in BYOL's and SimCLR's code alone.

    Example:
        >>> recipe = published_recipe(BYOL, 224, images=1_281_167, epochs=300, batch_size=4096)
        >>> recipe.algorithm, recipe.learning_rate, recipe.moving_average_decay, recipe.steps
        ('LARS', 4.8, 0.99, 93600)
    """
    images, epochs, batch_size = index(images), index(epochs), index(batch_size)
    rows = PUBLISHED.get(of, {}).get(method)
    if rows is None:
        raise ValueError(
            "Settings are published of BYOL, SimSiam, SimCLR and MoCo on 'ImageNet', and of SimCLR "
            f"and MoCo on 'CIFAR-10'; got {getattr(method, '__name__', method)} on {of!r}."
        )
    if epochs < 1 or batch_size < 1 or images < batch_size:
        raise ValueError(
            "epochs and batch_size should be at least 1, and images at least batch_size, got "
            f"epochs={epochs}, batch_size={batch_size}, images={images}."
        )
    row = min(rows, key=lambda row: abs(math.log(epochs / row.epochs)))
    steps_an_epoch = images // batch_size
    rate = row.rate * batch_size / 256
    return TrainingRecipe(
        steps=epochs * steps_an_epoch,
        image_size=image_size,
        pretrained=False,
        algorithm=row.algorithm,
        learning_rate=rate,
        backbone_learning_rate=rate,
        heads_alone=0,
        warmup_steps=min(row.warmup_epochs, epochs) * steps_an_epoch,
        weight_decay=row.weight_decay,
        crop_area=(row.least_area, 1.0),
        moving_average_decay=row.decay,
        projection_hidden_size=4096,
        decay_rises=method is not MoCo,
    )
