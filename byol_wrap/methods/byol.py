"""BYOL: predict what a slowly following copy says of another view of the same image."""

from collections.abc import Iterator, Sequence

from torch import Tensor, nn

from byol_wrap.learner import Learner, Pool
from byol_wrap.methods.heads import drawn_apart, mlp
from byol_wrap.methods.losses import byol_loss
from byol_wrap.views import VIEW1, VIEW2, Augment


class BYOL(Learner):
    """Bootstrap Your Own Latent around any backbone.

    An online network (encoder, projector, predictor) learns to predict what a target network, its
    moving average, says of another view of the same image. The backbone is trained in place:
    ``learner.net is net``, and nothing but its weights is changed.

    Args:
        net: the backbone. What is not described here is as for ``Learner``.
        image_size: side, or (height, width), in pixels of the views.
        hidden_layer: the layer that represents an image: a dotted name or a child's index; None
            finds it.
        projection_size: size of projections and predictions.
        projection_hidden_size: width of the hidden layer of projector and predictor.
        augment_fn: replaces the pipeline of both views.
        augment_fn2: replaces that of the second view.
        mean: what is subtracted from each channel of the images, in [0, 1].
        std: what they are divided by.
        channels: how many the images have.
        moving_average_decay: tau in [0, 1], constant or that of the first update.
        total_steps: number of updates over which tau rises from ``moving_average_decay`` to 1 along
            a cosine; None keeps it constant.
        pool: how the layer's value becomes a vector.
        pretrained: whether ``net`` has been trained for long; None asks its normalisation layers.
        sync_batchnorm: whether the heads' BatchNorm shares statistics between processes. None does
            so in a group of several. The backbone's own BatchNorm is left as it is.

    Attributes:
        predictor: the head that only the online network has.
        target: the moving average of ``online``, at least float32; what ``online`` is when training
            begins, also where weights were loaded into ``net`` after it was wrapped.
        step: a buffer, how many updates the target has had.

    Raises:
        TypeError, ValueError: an argument is not what is described here; the message says which.
        RuntimeError: ``net`` cannot be copied.

    Reference:
        Grill et al. 2020, arXiv 2006.07733. Deviations: the target starts equal to the online
        network, where the reference draws it anew; see ``RandomView`` for the views.

    Example:
        >>> import torch
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU())
        >>> learner = BYOL(net, image_size=32, projection_hidden_size=64)
        >>> optimizer = torch.optim.AdamW(learner.parameters(), lr=1e-3)
        >>> loss = learner(torch.rand(16, 3, 32, 32))
        >>> loss.backward()
        >>> optimizer.step()
        >>> learner.update_moving_average()
        >>> learner.embed(torch.rand(5, 3, 32, 32)).shape
        torch.Size([5, 8])
    """

    recipes = (VIEW1, VIEW2)
    _settled = (*Learner._settled, "projection_size", "projection_hidden_size", "sync_batchnorm")

    def __init__(
        self,
        net: nn.Module,
        image_size: int | tuple[int, int] | None = None,
        hidden_layer: str | int | None = None,
        *,
        projection_size: int = 256,
        projection_hidden_size: int = 4096,
        augment_fn: Augment | None = None,
        augment_fn2: Augment | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        channels: int | None = None,
        moving_average_decay: float = 0.99,
        total_steps: int | None = None,
        pool: Pool | None = None,
        pretrained: bool | None = None,
        sync_batchnorm: bool | None = None,
    ) -> None:
        sizes = projection_hidden_size, projection_size
        with drawn_apart():
            projector = mlp(None, *sizes, sync_batchnorm=sync_batchnorm)
            predictor = mlp(projection_size, *sizes, sync_batchnorm=sync_batchnorm)
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
            moving_average_decay=moving_average_decay,
            total_steps=total_steps,
            pool=pool,
            pretrained=pretrained,
        )

    def loss(self, view1: Tensor, view2: Tensor) -> Tensor:
        """The symmetric loss, in [0, 8]: the sum over both directions."""
        direction1, direction2 = self.directions(view1, view2)
        return direction1 + direction2

    def directions(self, view1: Tensor, view2: Tensor) -> Iterator[Tensor]:
        """Predict from each view what the target says of the other; equation 2."""
        target1, target2 = self.target.project(view1), self.target.project(view2)
        yield byol_loss(self.predictor(self.project(view1)), target2)
        yield byol_loss(self.predictor(self.project(view2)), target1)
