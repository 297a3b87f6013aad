"""The steps of SimSiam, SimCLR and MoCo that step_time.py compares with byol_wrap's.

``Bare...`` are a method's networks and loss alone, ``Lightly...`` are whole steps of lightly's
parts on PIL images. Heads have the papers' sizes and the methods compute the same in all of them:
with equal weights and views, losses are equal.
"""

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from byol_wrap.methods.heads import (
    moco_projector,
    simclr_projector,
    simsiam_predictor,
    simsiam_projector,
)
from byol_wrap.methods.losses import moco_loss, nt_xent_loss, simsiam_loss

QUEUE = 4096  # keys that MoCo keeps
KEY = 128  # numbers in each


# The bare networks


class Bare(nn.Module):
    """Forward and backward on views that are there already; no optimizer, no moving average."""

    def __init__(self, network: Any, net: nn.Module, images: Tensor) -> None:
        super().__init__()
        self.online = nn.Sequential(net, self.projector()).to(images.device)
        with torch.no_grad():
            self.online(images[:2])  # gives lazy layers their size
        self.images = images
        self.build()
        self.to(images.device)

    def projector(self) -> nn.Module:
        """The head on top of the backbone."""
        raise NotImplementedError

    def build(self) -> None:
        """What the method has besides."""

    def loss(self, view1: Tensor, view2: Tensor) -> Tensor:
        """The method."""
        raise NotImplementedError

    def step(self) -> None:
        """Forward and backward."""
        self.loss(self.images, self.images).backward()
        self.zero_grad()


class BareSimSiam(Bare):
    """One network and a predictor."""

    def projector(self) -> nn.Module:
        return simsiam_projector(None, 2048)

    def build(self) -> None:
        self.predictor = simsiam_predictor(2048, 512)

    def loss(self, view1: Tensor, view2: Tensor) -> Tensor:
        z1, z2 = self.online(view1), self.online(view2)
        p1, p2 = self.predictor(z1), self.predictor(z2)
        return (simsiam_loss(p1, z2.detach()) + simsiam_loss(p2, z1.detach())) / 2


class BareSimCLR(Bare):
    """One network."""

    def projector(self) -> nn.Module:
        return simclr_projector(None, 128)

    def loss(self, view1: Tensor, view2: Tensor) -> Tensor:
        return nt_xent_loss(self.online(view1), self.online(view2), temperature=0.5)


class BareMoCo(Bare):
    """A network for queries and one for keys, and a queue that stays as it is."""

    queue: Tensor

    def projector(self) -> nn.Module:
        return moco_projector(None, KEY)

    def build(self) -> None:
        self.target = copy.deepcopy(self.online).requires_grad_(False)
        self.register_buffer("queue", F.normalize(torch.randn(QUEUE, KEY), dim=1))

    def loss(self, view1: Tensor, view2: Tensor) -> Tensor:
        with torch.no_grad():
            keys = self.target(view2)
        return moco_loss(self.online(view1), keys, self.queue, temperature=0.2)


# lightly's


class LightlyStep(nn.Module):
    """A whole step: its transform picture by picture, both networks, SGD.

    Args:
        network: its ``features`` are the backbone's.
        net: the backbone.
        images: (B, 3, H, W) in [0, 1].
        views: whether the transform is part of the step; else views are there already.
    """

    transform: Any  # of a PIL image, to two views
    criterion: nn.Module

    def __init__(self, network: Any, net: nn.Module, images: Tensor, *, views: bool = True) -> None:
        super().__init__()
        side = images.shape[-1]
        self.build(net, network.features, side, blur=0.5 * (side >= 64))
        self.to(images.device)
        trained = [p for p in self.parameters() if p.requires_grad]
        self.optimizer = torch.optim.SGD(trained, lr=1e-3, momentum=0.9)
        self.images, self.bytes, self.with_views = images, images.mul(255).byte(), views

    def build(self, net: nn.Module, features: int, side: int, blur: float) -> None:
        """Set ``online``, ``criterion``, ``transform`` and what the method has besides."""
        raise NotImplementedError

    def loss(self, view1: Tensor, view2: Tensor) -> Tensor:
        """The method; where it has a target, this moves it first."""
        raise NotImplementedError

    def two_views(self) -> tuple[Tensor, Tensor]:
        """Of each picture."""
        from torchvision.transforms.functional import to_pil_image

        pairs = [self.transform(to_pil_image(image)) for image in self.bytes.cpu()]
        view1, view2 = (
            torch.stack(views).to(self.images.device) for views in zip(*pairs, strict=True)
        )
        return view1, view2

    def step(self) -> None:
        """As in its examples."""
        views = self.two_views() if self.with_views else (self.images, self.images)
        loss = self.loss(*views)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()


class LightlySimSiam(LightlyStep):
    """Its heads of three and two layers."""

    def build(self, net: nn.Module, features: int, side: int, blur: float) -> None:
        from lightly.loss import NegativeCosineSimilarity
        from lightly.models.modules.heads import SimSiamPredictionHead, SimSiamProjectionHead
        from lightly.transforms import SimSiamTransform

        self.online = nn.Sequential(net, SimSiamProjectionHead(features, features, 2048))
        self.predictor = SimSiamPredictionHead(2048, 512, 2048)
        self.criterion = NegativeCosineSimilarity()
        self.transform = SimSiamTransform(input_size=side, gaussian_blur=blur)

    def loss(self, view1: Tensor, view2: Tensor) -> Tensor:
        z1, z2 = self.online(view1), self.online(view2)
        p1, p2 = self.predictor(z1), self.predictor(z2)
        loss: Tensor = self.criterion(z1.detach(), p2) + self.criterion(z2.detach(), p1)
        return loss / 2


class LightlySimCLR(LightlyStep):
    """Its head of two layers."""

    def build(self, net: nn.Module, features: int, side: int, blur: float) -> None:
        from lightly.loss import NTXentLoss
        from lightly.models.modules.heads import SimCLRProjectionHead
        from lightly.transforms import SimCLRTransform

        self.online = nn.Sequential(net, SimCLRProjectionHead(features, features, 128))
        self.criterion = NTXentLoss(temperature=0.5)
        self.transform = SimCLRTransform(input_size=side, gaussian_blur=blur)

    def loss(self, view1: Tensor, view2: Tensor) -> Tensor:
        loss: Tensor = self.criterion(self.online(view1), self.online(view2))
        return loss


class LightlyMoCo(LightlyStep):
    """One direction, all keys in one forward: on one device, shuffling them changes nothing."""

    def build(self, net: nn.Module, features: int, side: int, blur: float) -> None:
        from lightly.loss import NTXentLoss
        from lightly.models.modules.heads import MoCoProjectionHead
        from lightly.models.utils import deactivate_requires_grad
        from lightly.transforms import MoCoV2Transform

        self.online = nn.Sequential(net, MoCoProjectionHead(features, features, KEY))
        self.target = copy.deepcopy(self.online)
        deactivate_requires_grad(self.target)
        self.criterion = NTXentLoss(temperature=0.2, memory_bank_size=(QUEUE, KEY))
        self.transform = MoCoV2Transform(input_size=side, gaussian_blur=blur)

    def loss(self, view1: Tensor, view2: Tensor) -> Tensor:
        from lightly.models.utils import update_momentum

        update_momentum(self.online, self.target, m=0.999)
        loss: Tensor = self.criterion(self.online(view1), self.target(view2).detach())
        return loss
