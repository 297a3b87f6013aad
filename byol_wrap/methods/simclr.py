"""SimCLR: find the other view of an image among all other images of the batch."""

from collections.abc import Sequence

from torch import Tensor, nn

from byol_wrap.learner import Learner, Pool
from byol_wrap.methods.heads import drawn_apart, simclr_projector
from byol_wrap.methods.losses import check_temperature, nt_xent_loss
from byol_wrap.methods.processes import gather
from byol_wrap.views import SIMCLR_VIEW, Augment


class SimCLR(Learner):
    """A simple framework for contrastive learning around any backbone.

    One network. The two views of an image attract each other; all other images of the batch, in
    all processes, are negatives and repel: large batches help. ``update_moving_average`` has
    nothing to move.

    Args:
        net: the backbone. This and what is not described here is as for ``Learner``.
        image_size: side, or (height, width), in pixels of the views.
        hidden_layer: the layer that represents an image.
        projection_size: size of projections.
        projection_hidden_size: width of the projector's hidden layer; None means the
            representation's size.
        temperature: similarities are divided by it: 0.1 on ImageNet, 0.5 on CIFAR-10.
        augment_fn: replaces the pipeline of both views.
        augment_fn2: replaces that of the second view.
        mean: what is subtracted from each channel of the images.
        std: what they are divided by.
        channels: how many the images have.
        pool: how the layer's value becomes a vector.
        pretrained: whether ``net`` has been trained for long; None asks its normalisation layers.
        sync_batchnorm: whether the head's BatchNorm shares statistics between processes; None does
            so in a group of several.

    Reference:
        Chen et al. 2020 (arXiv 2002.05709), algorithm 1, and google-research/simclr. Deviations:
        each view has BatchNorm statistics of its own, and see ``RandomView`` for the views, whose
        colour steps have ImageNet's strength.

    Example:
        >>> import torch
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU())
        >>> learner = SimCLR(net, image_size=32)
        >>> learner(torch.rand(16, 3, 32, 32)).backward()
    """

    recipes = (SIMCLR_VIEW, SIMCLR_VIEW)
    _settled = (*Learner._settled, "projection_size", "projection_hidden_size", "sync_batchnorm")

    def __init__(
        self,
        net: nn.Module,
        image_size: int | tuple[int, int] | None = None,
        hidden_layer: str | int | None = None,
        *,
        projection_size: int = 128,
        projection_hidden_size: int | None = None,
        temperature: float = 0.5,
        augment_fn: Augment | None = None,
        augment_fn2: Augment | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        channels: int | None = None,
        pool: Pool | None = None,
        pretrained: bool | None = None,
        sync_batchnorm: bool | None = None,
    ) -> None:
        check_temperature("SimCLR", temperature)
        with drawn_apart():
            projector = simclr_projector(
                projection_hidden_size, projection_size, sync_batchnorm=sync_batchnorm
            )
        super().__init__(
            net,
            image_size,
            hidden_layer,
            projector=projector,
            recipes=self.recipes,
            augment_fn=augment_fn,
            augment_fn2=augment_fn2,
            mean=mean,
            std=std,
            channels=channels,
            pool=pool,
            pretrained=pretrained,
        )
        self.temperature = temperature

    def loss(self, view1: Tensor, view2: Tensor) -> Tensor:
        """NT-Xent over the rows of all processes; equation 1."""
        z1, z2 = gather(self.project(view1)), gather(self.project(view2))
        return nt_xent_loss(z1, z2, self.temperature)
