"""Who takes part in the race of quality.py: each entry is one way to train a network.

Recipes of ours are numbers (``Training``), so that the peers can be given them, too.
"""

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from byol_wrap import (
    BYOL,
    IMAGENET_MEAN,
    IMAGENET_STD,
    MOCO_VIEW,
    SIMCLR_VIEW,
    SIMSIAM_VIEW,
    VIEW1,
    VIEW2,
    Learner,
    MoCo,
    RandomView,
    Recipe,
    SimCLR,
    SimSiam,
    cosine_ema_decay,
    cosine_schedule,
    kornia_view,
    param_groups,
    training_recipe,
    warmup_cosine,
)
from byol_wrap.views import Normalize, as_unit_float

SIZE = 32  # side of the images in pixels
CLASSES = 10


@dataclass(frozen=True)
class Race:
    """What is the same for all entries."""

    backbone: Callable[[], nn.Module]
    features: int
    images_seen: int
    curve: int  # after how many images seen the features are judged; 0 for only at the end


class Entry:
    """One way to train a network.

    Attributes:
        batch_size: how many images it wants a step.
        parts: what it needs to go on after an interruption, each with a ``state_dict``.
    """

    batch_size = 128
    parts: dict[str, Any]

    def step(self, images: Tensor, labels: Tensor) -> Tensor:
        """Take a training step on images (B, 3, 32, 32) in uint8; gives the loss."""
        raise NotImplementedError


Make = Callable[[nn.Module, Race], Entry]


# byol_wrap


@dataclass(frozen=True)
class Training:
    """A recipe: views, heads, and SGD with warm-up and cosine, no decay for norms and biases.

    What a method has no use for is None in its recipe, and what a recipe does not name is the
    method's default.
    """

    view1: Recipe
    view2: Recipe
    batch_size: int
    rate: float
    projection_hidden_size: int | None = None
    moving_average_decay: float | None = None
    temperature: float | None = None
    warmup: float = 0.1  # share of all steps
    weight_decay: float = 5e-4

    def steps(self, race: Race) -> int:
        """How many steps the race's images make."""
        return race.images_seen // self.batch_size

    def views(self) -> dict[str, Any]:
        """The arguments that give a learner its views."""
        return {"augment_fn": RandomView(self.view1), "augment_fn2": RandomView(self.view2)}

    def optimizer(
        self, learner: nn.Module, race: Race, constant_lr: nn.Module | None = None
    ) -> tuple[SGD, LambdaLR]:
        """The optimizer, and the scheduler to be stepped after it."""
        steps = self.steps(race)
        groups = param_groups(learner, self.weight_decay, constant_lr=constant_lr)
        optimizer = SGD(groups, lr=self.rate, momentum=0.9)
        return optimizer, cosine_schedule(optimizer, steps, round(self.warmup * steps))

    def tau(self, update: int, race: Race) -> float:
        """How much of the target an update keeps; they are counted from 0."""
        return cosine_ema_decay(update, self.steps(race), self.moving_average_decay)


GENTLE = (0.7, 1.0)  # crop area
CONTRASTED = replace(SIMCLR_VIEW, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)

# For a few epochs. BYOL's is the one of examples/README.md: gentle crops, a target that follows
# fast, small batches.
SHORT = {
    "BYOL": Training(
        replace(VIEW1, crop_area=GENTLE),
        replace(VIEW2, crop_area=GENTLE, solarize=0.5),
        batch_size=32,
        rate=0.03,
        projection_hidden_size=2048,
        moving_average_decay=0.9,
    ),
    "SimSiam": Training(
        replace(SIMSIAM_VIEW, crop_area=GENTLE),
        replace(SIMSIAM_VIEW, crop_area=GENTLE),
        batch_size=64,
        rate=0.03,
        projection_hidden_size=2048,
    ),
    "SimCLR": Training(
        replace(CONTRASTED, crop_area=GENTLE),
        replace(CONTRASTED, crop_area=GENTLE),
        batch_size=128,
        rate=0.06,
        projection_hidden_size=512,
        temperature=0.2,
    ),
    "MoCo": Training(
        replace(MOCO_VIEW, crop_area=GENTLE),
        replace(MOCO_VIEW, crop_area=GENTLE),
        batch_size=64,
        rate=0.03,
        projection_hidden_size=512,
        moving_average_decay=0.99,
        temperature=0.2,
    ),
}

# For hundreds of epochs: the papers' heads, tau and views, rates and batches near lightly's.
LONG = {
    "BYOL": Training(
        replace(VIEW1, crop_area=(0.2, 1.0)),
        replace(VIEW2, crop_area=(0.2, 1.0)),
        batch_size=256,
        rate=0.12,
        projection_hidden_size=4096,
        moving_average_decay=0.99,
        warmup=0.05,
    ),
    "SimSiam": Training(
        SIMSIAM_VIEW,
        SIMSIAM_VIEW,
        batch_size=256,
        rate=0.03,
        projection_hidden_size=2048,
        warmup=0.0,
    ),
    "SimCLR": Training(
        CONTRASTED,
        CONTRASTED,
        batch_size=256,
        rate=0.12,
        temperature=0.5,
        warmup=0.05,
    ),
    "MoCo": Training(
        MOCO_VIEW,
        MOCO_VIEW,
        batch_size=256,
        rate=0.03,
        moving_average_decay=0.99,
        temperature=0.1,
        warmup=0.0,
    ),
}


class ByolWrap(Entry):
    """BYOL by a recipe of ours."""

    def __init__(self, net: nn.Module, race: Race, recipe: Training = SHORT["BYOL"]) -> None:
        self.batch_size = recipe.batch_size
        self.learner = self.wrap(net, race, recipe)
        self.optimizer, self.scheduler = self.optimize(race, recipe)
        self.parts = {
            "learner": self.learner,
            "optimizer": self.optimizer,
            "scheduler": self.scheduler,
        }

    def wrap(self, net: nn.Module, race: Race, recipe: Training) -> Learner:
        """The learner."""
        return BYOL(
            net,
            SIZE,
            projection_hidden_size=recipe.projection_hidden_size,
            moving_average_decay=recipe.moving_average_decay,
            total_steps=recipe.steps(race),
            **recipe.views(),
        )

    def optimize(self, race: Race, recipe: Training) -> tuple[Optimizer, LambdaLR]:
        """What trains it."""
        return recipe.optimizer(self.learner, race)

    def step(self, images: Tensor, labels: Tensor) -> Tensor:
        loss: Tensor = self.learner(images)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.scheduler.step()
        self.learner.update_moving_average()
        return loss


class ByolWrapByRecipe(ByolWrap):
    """BYOL as any user has it, by ``training_recipe`` for as many steps of 32 images."""

    def __init__(self, net: nn.Module, race: Race) -> None:
        self.recipe = training_recipe(net, SIZE, steps=race.images_seen // 32)
        super().__init__(net, race)

    def wrap(self, net: nn.Module, race: Race, recipe: Training) -> Learner:
        return BYOL(net, **self.recipe.arguments())

    def optimize(self, race: Race, recipe: Training) -> tuple[Optimizer, LambdaLR]:
        return self.recipe.optimizer(self.learner)


class ByolWrapSimSiam(ByolWrap):
    """SimSiam; the predictor's rate stays constant."""

    def wrap(self, net: nn.Module, race: Race, recipe: Training) -> Learner:
        width = recipe.projection_hidden_size
        return SimSiam(net, SIZE, projection_hidden_size=width, **recipe.views())

    def optimize(self, race: Race, recipe: Training) -> tuple[Optimizer, LambdaLR]:
        return recipe.optimizer(self.learner, race, constant_lr=self.learner.predictor)


class ByolWrapSimCLR(ByolWrap):
    """SimCLR."""

    def wrap(self, net: nn.Module, race: Race, recipe: Training) -> Learner:
        width = recipe.projection_hidden_size
        temperature = recipe.temperature
        return SimCLR(
            net, SIZE, projection_hidden_size=width, temperature=temperature, **recipe.views()
        )


class ByolWrapMoCo(ByolWrap):
    """MoCo with a symmetric loss."""

    def wrap(self, net: nn.Module, race: Race, recipe: Training) -> Learner:
        return MoCo(
            net,
            SIZE,
            projection_hidden_size=recipe.projection_hidden_size,
            moving_average_decay=recipe.moving_average_decay,
            temperature=recipe.temperature,
            symmetric=True,
            **recipe.views(),
        )


# byol-pytorch


class ByolPytorch(Entry):
    """byol-pytorch's README: its defaults, Adam at 3e-4, batches of 20."""

    batch_size = 20

    def __init__(self, net: nn.Module, race: Race) -> None:
        import byol_pytorch

        self.learner = byol_pytorch.BYOL(net, image_size=SIZE, hidden_layer=-1)
        self.optimizer = torch.optim.Adam(self.learner.parameters(), lr=3e-4)
        self.parts = {"learner": self.learner, "optimizer": self.optimizer}

    def step(self, images: Tensor, labels: Tensor) -> Tensor:
        loss: Tensor = self.learner(as_unit_float(images))
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.learner.update_moving_average()
        return loss


class ByolPytorchOurRecipe(ByolPytorch):
    """Ours on what it lets one set: all but its networks, and how the views go through them.

    Its own views are fixed, so it is given kornia's, as in its README. tau is constant in it; here
    it is set anew before each update.
    """

    def __init__(self, net: nn.Module, race: Race, recipe: Training = SHORT["BYOL"]) -> None:
        import byol_pytorch
        from kornia.augmentation import Normalize

        self.race, self.recipe, self.batch_size = race, recipe, recipe.batch_size
        view1, view2 = (
            Float32(kornia_view(view, SIZE), Normalize(IMAGENET_MEAN, IMAGENET_STD))
            for view in (recipe.view1, recipe.view2)
        )
        self.learner = byol_pytorch.BYOL(
            net,
            image_size=SIZE,
            hidden_layer=-1,
            projection_hidden_size=recipe.projection_hidden_size,
            augment_fn=view1,
            augment_fn2=view2,
            use_simplicial_embeddings=False,
        )
        self.optimizer, self.scheduler = recipe.optimizer(self.learner, race)
        self.parts = {
            "learner": self.learner,
            "optimizer": self.optimizer,
            "scheduler": self.scheduler,
        }

    def step(self, images: Tensor, labels: Tensor) -> Tensor:
        tau = self.recipe.tau(self.scheduler.last_epoch, self.race)
        self.learner.target_ema_updater.beta = tau
        loss = super().step(images, labels)
        self.scheduler.step()
        return loss


class Float32(nn.Sequential):
    """Modules in a row, whatever autocast says."""

    def forward(self, images: Tensor) -> Tensor:
        with torch.autocast(images.device.type, enabled=False):
            out: Tensor = super().forward(images)
        return out


# lightly


class LightlyMethod(Entry):
    """What is alike in the methods of lightly's CIFAR-10 benchmark: SGD, a cosine by epochs.

    A method sets ``views``, a transform of PIL images for each view, and its modules, calls
    ``train``, and says what its ``loss`` is.
    """

    batch_size = 128
    size = SIZE
    blur = 0.0
    views: tuple[Callable[[Any], Tensor], Callable[[Any], Tensor]]

    def train(self, race: Race, **modules: nn.Module) -> None:
        """Move the modules to the network's device, and build what trains them."""
        both = nn.ModuleDict(modules)
        self.device = next(both.parameters()).device
        both.to(self.device)
        self.optimizer, self.scheduler = self.optimize(both, race)
        self.parts = {**modules, "optimizer": self.optimizer, "scheduler": self.scheduler}

    def optimize(self, modules: nn.Module, race: Race) -> tuple[SGD, LambdaLR]:
        """The optimizer, and CosineAnnealingLR, stepped once an epoch."""
        trained = [p for p in modules.parameters() if p.requires_grad]
        rate = 0.06 * self.batch_size / 128
        optimizer = SGD(trained, lr=rate, momentum=0.9, weight_decay=5e-4)
        an_epoch = 50_000 // self.batch_size
        epochs = max(1, race.images_seen // 50_000)
        return optimizer, LambdaLR(
            optimizer, lambda step: (1 + math.cos(math.pi * (step // an_epoch) / epochs)) / 2
        )

    def step(self, images: Tensor, labels: Tensor) -> Tensor:
        return self.step_on_views(*self.two_views(images))

    def two_views(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Its transform, picture by picture."""
        from torchvision.transforms.functional import to_pil_image

        pictures = [to_pil_image(image) for image in images.cpu()]
        view1, view2 = (
            torch.stack([view(picture) for picture in pictures]).to(self.device)
            for view in self.views
        )
        return view1, view2

    def step_on_views(self, view1: Tensor, view2: Tensor) -> Tensor:
        """The rest of the step."""
        loss = self.loss(view1, view2)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.scheduler.step()
        return loss

    def loss(self, view1: Tensor, view2: Tensor) -> Tensor:
        """The method; where it has a target, this moves it first."""
        raise NotImplementedError


class Lightly(LightlyMethod):
    """lightly's CIFAR-10 benchmark: its heads and loss, views without blur, SGD, tau 0.99."""

    hidden = 1024  # width of the heads

    def __init__(self, net: nn.Module, race: Race) -> None:
        from lightly.loss import NegativeCosineSimilarity
        from lightly.models.modules.heads import BYOLPredictionHead, BYOLProjectionHead

        self.online = nn.Sequential(net, BYOLProjectionHead(race.features, self.hidden, 256))
        self.predictor = BYOLPredictionHead(256, self.hidden, 256)
        self.target = frozen_copy(self.online)
        self.criterion = NegativeCosineSimilarity()
        self.views = self.transforms()
        self.train(race, online=self.online, predictor=self.predictor, target=self.target)

    def transforms(self) -> tuple[Callable[[Any], Tensor], Callable[[Any], Tensor]]:
        """What makes the views."""
        from lightly.transforms.byol_transform import BYOLView1Transform, BYOLView2Transform

        return (
            BYOLView1Transform(input_size=self.size, gaussian_blur=self.blur),
            BYOLView2Transform(input_size=self.size, gaussian_blur=self.blur / 10),
        )

    def tau(self) -> float:
        """How much the next update keeps."""
        return 0.99

    def loss(self, view1: Tensor, view2: Tensor) -> Tensor:
        from lightly.models.utils import update_momentum

        update_momentum(self.online, self.target, m=self.tau())
        prediction1 = self.predictor(self.online(view1))
        target1 = self.target(view1).detach()
        prediction2 = self.predictor(self.online(view2))
        target2 = self.target(view2).detach()
        loss: Tensor = self.criterion(prediction1, target2) + self.criterion(prediction2, target1)
        return loss / 2


class LightlyOurRecipe(Lightly):
    """Ours on what it lets one set: all but how its heads and its PIL transforms are built."""

    def __init__(self, net: nn.Module, race: Race, recipe: Training = SHORT["BYOL"]) -> None:
        self.race, self.recipe, self.batch_size = race, recipe, recipe.batch_size
        self.hidden = recipe.projection_hidden_size
        super().__init__(net, race)

    def transforms(self) -> tuple[Callable[[Any], Tensor], Callable[[Any], Tensor]]:
        from lightly.transforms.byol_transform import BYOLView1Transform, BYOLView2Transform

        def settings(view: Recipe) -> dict[str, Any]:
            return {
                "input_size": self.size,
                "min_scale": view.crop_area[0],
                "hf_prob": view.flip,
                "cj_prob": view.jitter,
                "cj_bright": view.brightness,
                "cj_contrast": view.contrast,
                "cj_sat": view.saturation,
                "cj_hue": view.hue,
                "random_gray_scale": view.greyscale,
                "solarization_prob": view.solarize,
                "gaussian_blur": self.blur,
            }

        return (
            BYOLView1Transform(**settings(self.recipe.view1)),
            BYOLView2Transform(**settings(self.recipe.view2)),
        )

    def optimize(self, modules: nn.Module, race: Race) -> tuple[SGD, LambdaLR]:
        return self.recipe.optimizer(modules, race)

    def tau(self) -> float:
        return self.recipe.tau(max(self.scheduler.last_epoch - 1, 0), self.race)

    def loss(self, view1: Tensor, view2: Tensor) -> Tensor:
        """In the paper's scale, for which the rate was found: 2 - 2 cos, both ways added."""
        return 4 + 4 * super().loss(view1, view2)


class LightlySimSiam(LightlyMethod):
    """lightly's CIFAR-10 benchmark: a projector of two layers, no target."""

    def __init__(self, net: nn.Module, race: Race) -> None:
        from lightly.loss import NegativeCosineSimilarity
        from lightly.models.modules.heads import ProjectionHead, SimSiamPredictionHead
        from lightly.transforms.simsiam_transform import SimSiamViewTransform

        projector = ProjectionHead(
            [
                (race.features, 2048, nn.BatchNorm1d(2048), nn.ReLU(inplace=True)),
                (2048, 2048, nn.BatchNorm1d(2048), None),
            ]
        )
        self.online = nn.Sequential(net, projector)
        self.predictor = SimSiamPredictionHead(2048, 512, 2048)
        self.criterion = NegativeCosineSimilarity()
        self.views = (SimSiamViewTransform(input_size=self.size, gaussian_blur=self.blur),) * 2
        self.train(race, online=self.online, predictor=self.predictor)

    def loss(self, view1: Tensor, view2: Tensor) -> Tensor:
        projection1, projection2 = self.online(view1), self.online(view2)
        prediction1, prediction2 = self.predictor(projection1), self.predictor(projection2)
        loss: Tensor = self.criterion(projection1.detach(), prediction2)
        loss = loss + self.criterion(projection2.detach(), prediction1)
        return loss / 2


class LightlySimCLR(LightlyMethod):
    """lightly's CIFAR-10 benchmark: half the colour jitter, temperature 0.5."""

    hidden = 512

    def __init__(self, net: nn.Module, race: Race) -> None:
        from lightly.loss import NTXentLoss
        from lightly.models.modules.heads import SimCLRProjectionHead

        self.online = nn.Sequential(net, SimCLRProjectionHead(race.features, self.hidden, 128))
        self.criterion = NTXentLoss(temperature=0.5)
        self.views = contrastive_views(self.size, self.blur)
        self.train(race, online=self.online)

    def loss(self, view1: Tensor, view2: Tensor) -> Tensor:
        loss: Tensor = self.criterion(self.online(view1), self.online(view2))
        return loss


class LightlyMoCo(LightlyMethod):
    """lightly's CIFAR-10 benchmark: both ways, BatchNorm of eighths, 4,096 keys, tau 0.99."""

    hidden = 512

    def __init__(self, net: nn.Module, race: Race) -> None:
        from lightly.loss import NTXentLoss
        from lightly.models.modules.heads import MoCoProjectionHead

        split_batchnorm(net, 8)
        self.online = nn.Sequential(net, MoCoProjectionHead(race.features, self.hidden, 128))
        self.target = frozen_copy(self.online)
        self.criterion = NTXentLoss(temperature=0.1, memory_bank_size=(4096, 128))
        self.views = contrastive_views(self.size, self.blur)
        self.train(race, online=self.online, target=self.target)
        self.criterion.to(self.device)
        self.parts["queue"] = Buffers(self.criterion)

    def loss(self, view1: Tensor, view2: Tensor) -> Tensor:
        from lightly.models.utils import update_momentum

        update_momentum(self.online, self.target, m=0.99)
        return (self.one_way(view1, view2) + self.one_way(view2, view1)) / 2

    def one_way(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Each query's key among those in the queue, which the keys then enter."""
        from lightly.models.utils import batch_shuffle, batch_unshuffle

        keys, order = batch_shuffle(keys)
        projections = self.online(queries)
        targets = batch_unshuffle(self.target(keys), order)
        loss: Tensor = self.criterion(projections, targets)
        return loss


def frozen_copy(online: nn.Module) -> nn.Module:
    """A target."""
    from lightly.models.utils import deactivate_requires_grad

    target = copy.deepcopy(online)
    deactivate_requires_grad(target)
    return target


def contrastive_views(size: int, blur: float) -> tuple[Callable[[Any], Tensor], ...]:
    """SimCLR's of lightly's CIFAR-10 benchmark."""
    from lightly.transforms.simclr_transform import SimCLRViewTransform

    return (SimCLRViewTransform(input_size=size, cj_strength=0.5, gaussian_blur=blur),) * 2


def split_batchnorm(net: nn.Module, splits: int) -> None:
    """Let each part of a batch have statistics of its own, as in lightly's ``ResNetGenerator``."""
    from lightly.models.batchnorm import SplitBatchNorm

    net.to(memory_format=torch.contiguous_format)  # in channels_last its view() fails
    device = next(net.parameters()).device
    for module in list(net.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, name, SplitBatchNorm(child.num_features, splits).to(device))


class Buffers:
    """The buffers of a module that leaves them out of its ``state_dict``."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def state_dict(self) -> dict[str, Tensor]:
        """All of them."""
        return dict(self.module.named_buffers())

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Copied into place."""
        for name, buffer in self.module.named_buffers():
            buffer.copy_(state[name])


# With labels, and all of them


class Supervised(Entry):
    """With all labels: crops and flips, SGD with warm-up and cosine."""

    batch_size = 128

    def __init__(self, net: nn.Module, race: Race) -> None:
        steps = race.images_seen // self.batch_size
        device = next(net.parameters()).device
        self.net = nn.Sequential(net, nn.Linear(race.features, CLASSES).to(device))
        self.view = RandomView(Recipe(crop_area=(0.35, 1.0), jitter=0.0, greyscale=0.0))
        self.normalize = Normalize(IMAGENET_MEAN, IMAGENET_STD, 3)
        groups = param_groups(self.net, weight_decay=5e-4)
        self.optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9, nesterov=True)
        self.scheduler = LambdaLR(
            self.optimizer, lambda step: warmup_cosine(step, steps, steps // 10)
        )
        self.parts = {
            "net": self.net,
            "optimizer": self.optimizer,
            "scheduler": self.scheduler,
        }

    def step(self, images: Tensor, labels: Tensor) -> Tensor:
        loss = F.cross_entropy(self.net(self.normalize(self.view(images))), labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.scheduler.step()
        return loss


def entries(recipes: Mapping[str, Training]) -> dict[str, Make | None]:
    """All that can take part, by name; our recipes are by method."""
    return {
        "random": None,
        "byol-pytorch": ByolPytorch,
        "lightly": Lightly,
        "byol-pytorch, our recipe": partial(ByolPytorchOurRecipe, recipe=recipes["BYOL"]),
        "lightly, our recipe": partial(LightlyOurRecipe, recipe=recipes["BYOL"]),
        "byol_wrap": partial(ByolWrap, recipe=recipes["BYOL"]),
        "byol_wrap, training_recipe": ByolWrapByRecipe,
        "lightly SimSiam": LightlySimSiam,
        "byol_wrap SimSiam": partial(ByolWrapSimSiam, recipe=recipes["SimSiam"]),
        "lightly SimCLR": LightlySimCLR,
        "byol_wrap SimCLR": partial(ByolWrapSimCLR, recipe=recipes["SimCLR"]),
        "lightly MoCo": LightlyMoCo,
        "byol_wrap MoCo": partial(ByolWrapMoCo, recipe=recipes["MoCo"]),
        "supervised": Supervised,
    }


ENTRIES = {"cpu": entries(SHORT), "gpu": entries(LONG)}
