"""SimSiam: predict what the same network says of another view, and stop the gradient there."""

from collections.abc import Sequence

from torch import Tensor, nn

from byol_wrap.learner import Learner, Pool
from byol_wrap.methods.heads import drawn_apart, simsiam_predictor, simsiam_projector
from byol_wrap.methods.losses import simsiam_loss
from byol_wrap.views import SIMSIAM_VIEW, Augment


class SimSiam(Learner):
    """Simple siamese representation learning around any backbone.

    One network and a predictor: what it predicts from one view is held against its own projection
    of the other, through which no gradient flows. No copy of the net is held, and
    ``update_moving_average`` has nothing to move.

    Args:
        net: the backbone. This and what is not described here is as for ``Learner``.
        image_size: side, or (height, width), in pixels of the views.
        hidden_layer: the layer that represents an image.
        projection_size: size of projections and predictions.
        projection_hidden_size: width of the projector's two hidden layers; None means the
            representation's size.
        prediction_hidden_size: width of the predictor's hidden layer, a bottleneck.
        augment_fn: replaces the pipeline of both views.
        augment_fn2: replaces that of the second view.
        mean: what is subtracted from each channel of the images.
        std: what they are divided by.
        channels: how many the images have.
        pool: how the layer's value becomes a vector.
        pretrained: whether ``net`` has been trained for long; None asks its normalisation layers.
        sync_batchnorm: whether the heads' BatchNorm shares statistics between processes; None does
            so in a group of several.

    Reference:
        Chen and He 2021 (arXiv 2011.10566), algorithm 1, and facebookresearch/simsiam. There the
        predictor's learning rate stays constant while the other falls along a cosine, as a
        ``TrainingRecipe`` has it. Colour steps and crops as in ``RandomView``.

    Example:
        >>> import torch
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU())
        >>> learner = SimSiam(net, image_size=32, projection_size=64, prediction_hidden_size=16)
        >>> learner(torch.rand(16, 3, 32, 32)).backward()
    """

    recipes = (SIMSIAM_VIEW, SIMSIAM_VIEW)
    predictor_keeps_its_rate = True  # section 3 of the paper
    _settled = (
        *Learner._settled,
        "projection_size",
        "projection_hidden_size",
        "prediction_hidden_size",
        "sync_batchnorm",
    )

    def __init__(
        self,
        net: nn.Module,
        image_size: int | tuple[int, int] | None = None,
        hidden_layer: str | int | None = None,
        *,
        projection_size: int = 2048,
        projection_hidden_size: int | None = None,
        prediction_hidden_size: int = 512,
        augment_fn: Augment | None = None,
        augment_fn2: Augment | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        channels: int | None = None,
        pool: Pool | None = None,
        pretrained: bool | None = None,
        sync_batchnorm: bool | None = None,
    ) -> None:
        with drawn_apart():
            projector = simsiam_projector(
                projection_hidden_size, projection_size, sync_batchnorm=sync_batchnorm
            )
            predictor = simsiam_predictor(
                projection_size, prediction_hidden_size, sync_batchnorm=sync_batchnorm
            )
        super().__init__(
            net,
            image_size,
            hidden_layer,
            projector=projector,
            predictor=predictor,
            recipes=self.recipes,
            augment_fn=augment_fn,
            augment_fn2=augment_fn2,
            mean=mean,
            std=std,
            channels=channels,
            pool=pool,
            pretrained=pretrained,
        )

    def loss(self, view1: Tensor, view2: Tensor) -> Tensor:
        """The symmetric loss, in [-1, 1]: the mean of both directions; equation 2."""
        z1, z2 = self.project(view1), self.project(view2)
        p1, p2 = self.predictor(z1), self.predictor(z2)
        return (simsiam_loss(p1, z2.detach()) + simsiam_loss(p2, z1.detach())) / 2
