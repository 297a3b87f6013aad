"""What all methods share: a net and images in, a loss out."""

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from byol_wrap.backbone.modes import outside_graph
from byol_wrap.backbone.representation import Pool
from byol_wrap.evaluation.health import figures, relative_distance
from byol_wrap.guard.collapse import Run
from byol_wrap.guard.parallel import check_gradients_come
from byol_wrap.updates import Following
from byol_wrap.views import VIEW1, VIEW2, Augment, Images, Recipe

__all__ = ["Learner", "Pool"]

NOT_TWO = "directions(view1, view2) should yield two terms that add up to the loss."


class Learner(Following):
    """Self-supervised learning around any backbone: what every method shares.

    A method is a subclass that hands over its heads and writes one function,
    ``loss(view1, view2)``, with ``project`` and, where it asks for a target network,
    ``target.project``. The backbone is trained in place: ``learner.net is net``, and nothing but
    its weights is changed.

    Args:
        net: the backbone; what it was given stays as it is, in its training mode, on its device.
        image_size: side, or (height, width), in pixels of the views. With it the heads are built
            now; without it on the first batch, whose size is kept.
        hidden_layer: the layer whose output represents an image: a dotted name, or a child's index
            (-1 is the last; "" is the net's own output). None finds it: what the net's classifiers
            read, in training mode; of several maps the deepest of the backbone; of a dense output
            the narrowest place before it; else the net's output. A warning says where that is in
            doubt; ``representation_candidates`` lists the others.
        projector: from the representation (B, D) to the projection (B, P). Where D is not known
            yet, its first layer is an ``nn.LazyLinear``.
        predictor: a head from (B, P) that only the online network has; kept as ``predictor``.
        recipes: of the two views.
        augment_fn: replaces the whole pipeline of both views: float32 images (B, C, H, W) in [0, 1]
            in, a batch that the net takes out. A module is moved to the images' device, and is no
            part of the state. ``RandomView`` with a ``Recipe`` of your own varies the default.
        augment_fn2: replaces that of the second view.
        mean: what is subtracted from each channel of views and of ``embed``'s images, for pixels in
            [0, 1]. None means ImageNet's for 3 channels and 0.5 for others, and nothing with an
            ``augment_fn`` that holds no ``RandomView``, or that holds a ``Normalize``.
        std: what they are divided by; goes with ``mean``.
        channels: how many the images have; None tries what the net's convolutions take and 3;
            without ``image_size`` what the first images have.
        moving_average_decay: tau in [0, 1] of a target network, constant or that of the first
            update. None for a method without one: no copy of the net is then held.
        total_steps: number of updates over which tau rises to 1 along a cosine; None keeps it.
        pool: how the layer's value becomes a vector: "mean", "max", "class_token", "flatten", or a
            callable to (B, D). None: the mean, but of tokens the first where it is shown to be a
            class token that the net goes on with.
        pretrained: whether ``net`` has been trained for long. Its BatchNorm layers then keep their
            statistics (eval mode, in both networks), and the default views crop from half of the
            area and more. None asks its normalisation layers.

    Attributes:
        online: ``Encoder`` of ``net`` and its projector; ``online.net``, ``online.projector``.
        predictor, target: where the method has them. ``target`` is an ``Encoder``, too, the moving
            average of ``online``; it holds ``net``'s own parameters behind the representation.
        representation: the layer that was found, its pooling, its size; None while unknown.
        step: with a target, a buffer: how many updates it has had.

    Raises:
        TypeError, ValueError: an argument is not what is described here; the message says which.
        RuntimeError: ``net`` cannot be copied.
    """

    def __init__(
        self,
        net: nn.Module,
        image_size: int | tuple[int, int] | None = None,
        hidden_layer: str | int | None = None,
        *,
        projector: nn.Module,
        predictor: nn.Module | None = None,
        recipes: tuple[Recipe, Recipe] = (VIEW1, VIEW2),
        augment_fn: Augment | None = None,
        augment_fn2: Augment | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        channels: int | None = None,
        moving_average_decay: float | None = None,
        total_steps: int | None = None,
        pool: Pool | None = None,
        pretrained: bool | None = None,
    ) -> None:
        super().__init__(
            net,
            image_size,
            hidden_layer,
            projector=projector,
            predictor=predictor,
            recipes=recipes,
            augment_fn=augment_fn,
            augment_fn2=augment_fn2,
            mean=mean,
            std=std,
            channels=channels,
            pool=pool,
            pretrained=pretrained,
            moving_average_decay=moving_average_decay,
            total_steps=total_steps,
        )
        self._direction: Iterator[Tensor] | None = None  # while ``halves`` asks for one

    # The method

    def loss(self, view1: Tensor, view2: Tensor) -> Tensor:
        """The loss of two views: what a method is. A direct call is not what ``embed`` goes by."""
        raise NotImplementedError(f"{type(self).__name__} should define loss(view1, view2).")

    def directions(self, view1: Tensor, view2: Tensor) -> Iterator[Tensor]:
        """The two terms of the loss one by one, where each needs one view's activations alone."""
        raise TypeError(
            f"The loss of {type(self).__name__}, as it is set up, does not fall into two halves: "
            "use learner(images)."
        )

    def project(self, view: Tensor) -> Tensor:
        """The online network's projection of a view: (B, ...) in, (B, P) out, with gradient."""
        projection: Tensor
        projection, representation = self.online(view)
        self._watch.saw(representation, projection)
        return projection

    # Training

    def forward(
        self,
        images: Images,
        view2: Tensor | None = None,
        *,
        return_embedding: bool = False,
        return_projection: bool = True,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """The loss of a batch.

        Args:
            images: (B, C, H, W) on the net's device, uint8 or floats in [0, 1], B at least 2 in
                training; or a list of (C, H, W) of any sizes, such as ``collate_fn=list`` gives,
                each cropped from its full size (with ``image_size`` where they differ). With
                ``view2``: the first view.
            view2: a second view of the same B items. The two are then fed as they are, whatever
                shape the net takes; nothing is augmented or normalised.
            return_embedding: instead of the loss, give (projection (B, P), representation (B, D))
                of ``images``, normalised but not augmented, in the current mode and with gradient.
            return_projection: with ``return_embedding``, False gives the representation alone.

        Returns:
            A scalar, in float32 or wider.

        Raises:
            TypeError, ValueError: input that is not as described, before anything is changed. NaN
                and infinity are looked for on the CPU, elsewhere in the first 10 batches of floats.
            RuntimeError: the representation was not reached, or has no gradient.
        """
        if self._direction is not None:
            return self._next_direction()
        if return_embedding:
            return self._embedding(images, view2, return_projection)
        views = self._begin(images, view2)
        return self._end(self.loss(*views))

    def halves(
        self, images: Images, view2: Tensor | None = None, *, parallel: nn.Module | None = None
    ) -> Iterator[Tensor]:
        """The two halves of the loss one after the other, for about half the activation memory.

        ``for loss in learner.halves(images): loss.backward()`` leaves the gradients that
        ``learner(images).backward()`` does, but only one view's activations are alive at a time.
        Call ``backward`` on each before the next is made, and the optimizer after both.

        Args:
            images: as for ``forward``.
            view2: as for ``forward``.
            parallel: the learner as its engine wraps it, such as ``DistributedDataParallel``;
                gradients are then averaged once.

        Yields:
            Two scalars that add up to the loss.

        Raises:
            TypeError: the loss does not fall into halves; and as ``forward``, with the first half.
        """
        check_halves(type(self))
        view1, view2 = self._begin(images, view2)
        directions = self.directions(view1, view2)
        engine = self if parallel is None else parallel
        alone = getattr(engine, "no_sync", contextlib.nullcontext)
        for context in (alone, contextlib.nullcontext):
            with context():
                self._direction = directions
                try:
                    loss: Tensor = engine(view1, view2)
                finally:
                    self._direction = None
                yield loss
        if next(directions, None) is not None:
            raise TypeError(NOT_TWO)

    def health(self) -> dict[str, float]:
        """Figures that tell whether training is sound; costs a step nothing unless it is called.

        Calling it reads from the device. All but the last three are of the last batch;
        ``byol_wrap.evaluation.health`` defines them.

        Returns:
            "std_ratio": spread of the first view's representations; near 0 in a collapse. "rank":
            their effective rank (RankMe), at most min(B, D). "projection_std_ratio" (about 1 where
            BatchNorm ends the projector), "projection_rank", "projection_participation" (the number
            of directions they lie along): of the projections. "alignment": squared distance in
            [0, 4] of an image's views. "instance_accuracy": share of views nearest to the other of
            their image. "uniformity": in [-8, 0], lower where images are more evenly spread. With a
            target, "target_distance": of its parameters from the online network's, relative;
            "tau": the decay of the next update; "updates": how many it has had.

        Raises:
            RuntimeError: no batch of two images or more has been seen yet.
        """
        outputs = self._watch.outputs
        if outputs is None or len(outputs.representation1) < 2:
            raise RuntimeError(
                "There is nothing to measure before a learner(images) of two images or more."
            )
        told = figures(outputs)
        if self.has_target:
            told["target_distance"] = float(relative_distance(self.online, self.target))
            told |= {"tau": self.tau, "updates": float(self.step)}
        return told

    def extra_repr(self) -> str:
        """What ``print(learner)`` shows beside its parts."""
        tau = f", tau={self.tau}" if self.has_target else ""
        return f"representation={self.representation}, pretrained={self.pretrained}{tau}"

    # What is behind them

    @outside_graph(recursive=True)
    def _begin(self, images: Images, view2: Tensor | None) -> tuple[Tensor, Tensor]:
        """Two views, and a training step counted."""
        views = self._two_views(images, view2)
        if torch.is_grad_enabled():
            decay = (lambda: self.tau) if self.has_target else None
            about = getattr(self, "predictor", None), self._attachment.optimizer, self.pretrained
            self._watch.step(Run(decay, *about), self, self.net)
            if self.has_target:
                self.target.set_as(self.online)
        self._watch.forget_batch()
        return views

    @outside_graph(recursive=True)
    def _end(self, loss: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            self._gate.fed.trained()
            self._watch.lost(loss, self)
            check_gradients_come(self, self._ddp_params_and_buffers_to_ignore, loss)
        return loss

    @outside_graph(recursive=False)
    def _next_direction(self) -> Tensor:
        assert self._direction is not None
        if (term := next(self._direction, None)) is None:
            raise TypeError(NOT_TWO)
        return self._end(term)


def check_halves(method: type[Learner]) -> None:
    """Refuse halves of another loss than the method's.

    Raises:
        TypeError: a class more derived than that which writes ``directions`` writes ``loss``.
    """
    of_loss, of_halves = (
        next(kind for kind in method.__mro__ if name in vars(kind))
        for name in ("loss", "directions")
    )
    if of_halves is not Learner and not issubclass(of_halves, of_loss):
        raise TypeError(
            f"{of_loss.__name__} has a loss of its own, of which the halves of "
            f"{of_halves.__name__} are not: write directions(view1, view2), too, or use "
            "learner(images)."
        )
