"""The networks around a user's net: what they are fed, where they are read, what they give."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from byol_wrap.backbone.channels import channels_of, on_noise, possible_channels
from byol_wrap.backbone.copying import without_graph
from byol_wrap.backbone.encoder import Encoder, check_net, float_parameter, moved
from byol_wrap.backbone.finding import check_pool, layer_name
from byol_wrap.backbone.modes import eval_mode, is_recorded, outside_graph
from byol_wrap.backbone.pretrained import is_pretrained, keep_statistics
from byol_wrap.backbone.probing import probe
from byol_wrap.backbone.representation import Pool, Representation
from byol_wrap.guard.checkpoint import Checkpointed
from byol_wrap.guard.contract import Gate
from byol_wrap.guard.inputs import (
    check_channels,
    check_known,
    check_more_than_one,
    check_not_captured,
    plain_integer,
)
from byol_wrap.guard.watch import Watch
from byol_wrap.target import Target, at_least_float32
from byol_wrap.views import (
    Augment,
    Images,
    Recipe,
    Views,
    as_pair,
    normalization,
)

NORMALIZES_ITSELF = (
    "augment_fn normalises the views itself, which images to embed do not go through: they are fed "
    "as pixels. Take the Normalize out of augment_fn and give mean= and std=, or embed what is "
    "normalised already with prepared=True."
)


class Wrapper(Checkpointed):
    """What a learner is before it learns: ``Learner`` says what the arguments are.

    A batch goes one way down: checked, made into views or left as it is, normalised, and then
    through the networks.
    """

    predictor: nn.Module
    target: Target

    def __init__(
        self,
        net: nn.Module,
        image_size: int | tuple[int, int] | None,
        hidden_layer: str | int | None,
        *,
        projector: nn.Module,
        predictor: nn.Module | None,
        with_target: bool,
        recipes: tuple[Recipe, Recipe],
        augment_fn: Augment | None,
        augment_fn2: Augment | None,
        mean: Sequence[float] | None,
        std: Sequence[float] | None,
        channels: int | None,
        pool: Pool | None,
        pretrained: bool | None,
    ) -> None:
        super().__init__()
        if isinstance(net, Wrapper):
            raise TypeError(
                f"net is a learner already: wrap the net in it, {type(self).__name__}(learner.net)."
            )
        check_net(net, type(self).__name__)
        hidden_layer = plain_integer(hidden_layer)
        guesses = possible_channels(net) if channels is None else [check_channels(channels)]
        self._channels = guesses[0]
        self._hidden_layer = None if hidden_layer is None else layer_name(net, hidden_layer)
        self._pool = check_pool(pool)
        size = None if image_size is None else as_pair(image_size)
        self._pretrained = is_pretrained(net) if pretrained is None else bool(pretrained)

        like = float_parameter(net)
        dtype = torch.promote_types(like.dtype, torch.float32)
        self.online = Encoder(net, moved(projector, like.device, dtype, waits=size is None))
        if predictor is not None:
            self.predictor = predictor.to(like.device, dtype)
        if with_target:
            self.target = Target(self.online)
        self._watch = Watch()
        self._gate = Gate()
        if size is not None:
            self._channels, _ = on_noise(net, guesses, size, self._build)
        told = mean is not None or std is not None
        normalize = normalization(mean, std, self._channels)
        given = augment_fn, augment_fn2, size, normalize
        self._views = Views(*given, always=told, recipes=recipes, gently=self._pretrained)
        self._channels_are_guessed = channels is None and mean is None

    @property
    def net(self) -> nn.Module:
        """The user's backbone itself."""
        return self.online.net

    @property
    def representation(self) -> Representation | None:
        """Which layer represents an image, how it is pooled, its size; None while unknown."""
        return self.online.representation

    @property
    def has_target(self) -> bool:
        """Whether the method has a target network."""
        return "target" in self._modules

    def embed(self, images: Images, *, prepared: bool | None = None) -> Tensor:
        """Representations of images: eval mode, no gradient; every training flag is put back.

        Args:
            images: what the learner is trained on. Images (B, C, H, W) on the net's device, uint8
                or floats in [0, 1], B at least 1, are normalised as the views are, and neither
                augmented nor resized. After training on two views that were fed as they are, a
                batch is fed as it is, too, in whatever shape the net takes.
            prepared: True feeds a batch as it is, False normalises; None does as training did, also
                before the state was saved, and normalises where there was none.

        Returns:
            (B, D), in the net's dtype.

        Raises:
            TypeError, ValueError: as ``forward``.
        """
        device = self._place().type
        # Older versions of PyTorch would go on to train with the casts of weights that were cached
        # here, which have no gradient.
        uncached = torch.autocast(
            device, enabled=torch.is_autocast_enabled(device), cache_enabled=False
        )
        with torch.no_grad(), uncached, eval_mode(self.online):
            return self.online.represent(self._images(images, prepared=prepared))

    def views(self, images: Images) -> tuple[Tensor, Tensor]:
        """The two augmented, normalised views of a batch that ``forward`` feeds to the networks.

        Args:
            images: as for ``forward``; B may be 1.

        Returns:
            Two float32 tensors (B, C, *image_size).

        Raises:
            TypeError, ValueError: as ``forward``.
        """
        check_not_captured()
        self._check_images(images)
        return self._views(images)

    # The way of a batch

    @outside_graph(recursive=True)
    def _two_views(self, images: Any, view2: Tensor | None) -> tuple[Tensor, Tensor]:
        """What the networks are trained on; the first batch settles what is still unknown."""
        if getattr(self, "_is_replica", False):
            raise RuntimeError(
                "nn.DataParallel runs copies of a learner that share its hooks: use "
                "torch.nn.parallel.DistributedDataParallel(learner)."
            )
        fed = "images" if view2 is None else "views"
        if view2 is None:
            self._check_images(images)
        else:
            self._gate.pair(images, view2, self._place())
        if self.training:
            check_more_than_one(images, type(self).__name__)
        view1, view2 = self._views(images) if view2 is None else (images, view2)
        if torch.is_grad_enabled():
            self._gate.fed.begins(fed, view1, in_eval_mode=not self.training)
            if self._pretrained:
                keep_statistics(self.net)
        if fed == "images":
            self._gate.views(images, view1, self._views, self._watch.warn)
        if self.representation is None:
            self._build(view1[:2])
        return view1, view2

    @outside_graph(recursive=True)
    def _images(
        self, images: Any, *, prepared: bool | None = None, trains_heads: bool = False
    ) -> Tensor:
        """What they are used on: the same, but for the augmentation."""
        if prepared is None:
            prepared = self._gate.as_it_is(images, self._watch.warn)
        if is_recorded():
            check_known(self.representation)
        elif prepared:
            self._gate.batch(images, self._place())
        else:
            self._check_images(images)
            if self._views.normalizes_itself:
                self._watch.warn("normalize", NORMALIZES_ITSELF)
        batch: Tensor = images if prepared else self._views.normalized(images)
        if trains_heads:
            check_more_than_one(batch, type(self).__name__)
        if self.representation is None:
            self._build(batch[:2])
        return batch

    def _check_images(self, images: Any) -> None:
        if self.representation is None and self._channels_are_guessed:
            self._settle_channels(images)
        warn, any_shape = self._watch.warn, self._views.is_own
        self._gate.images(images, self._channels, self._place(), warn, any_shape=any_shape)

    def _place(self) -> torch.device:
        """Where the networks are, and so where images should be."""
        device = float_parameter(self.net).device
        if self.has_target:
            self.target.check_is_on(device)
        return device

    def _embedding(
        self, images: Any, view2: Tensor | None, return_projection: bool
    ) -> Tensor | tuple[Tensor, Tensor]:
        if view2 is not None:
            raise ValueError("return_embedding takes images alone, not a second view.")
        images = self._images(images, trains_heads=self.training and return_projection)
        if not return_projection:
            return self.online.represent(images)
        return tuple(self.online(images))

    def _settle_channels(self, images: Tensor) -> None:
        """Mend a guess of the images' channels by the first images."""
        guess, self._channels = self._channels, channels_of(self.net, images, self._channels)
        if self._channels != guess and self._views.normalize is not None:
            self._views.normalize = normalization(None, None, self._channels)

    @torch.inference_mode(False)
    def _build(self, sample: Tensor) -> None:
        """Find the representation on ``sample``, an input of the net, and size the heads for it."""
        copied = self.target.net if self.has_target else None
        found = probe(self.net, sample, self._hidden_layer, self._pool, copied)
        if found.doubt:
            self._watch.warn("reading", found.doubt)
        self._gate.slopes = found.slopes
        self._size_heads(found.representation.size)
        self.online.representation = found.representation
        if self.has_target:
            self.target.representation = found.representation
            self.target.share(self.online, found.behind)
        # Read by DistributedDataParallel, which otherwise waits for gradients that never come.
        self._ddp_params_and_buffers_to_ignore = [f"online.net.{name}" for name in found.unused]

    # State

    def _size_heads(self, size: int) -> None:
        waits = self.online.is_unsized
        self.online.size_projector(size)
        if waits and self.has_target:
            self.target.start_from(self.online.projector)

    def _sized_heads(self, size: int) -> dict[str, Any]:
        projector = self.online.sized_projector(size)
        sides = ("online", "target") if self.has_target else ("online",)
        return {
            name: value
            for side in sides
            for name, value in projector.state_dict(prefix=f"{side}.projector.").items()
        }

    def _not_loaded(self, given: Mapping[str, Any]) -> dict[str, Any]:
        return self.target.not_loaded(given, "target.") if self.has_target else {}

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        memo |= without_graph(self)
        copied = memo[id(self)] = type(self).__new__(type(self))
        copied.__setstate__(copy.deepcopy(self.__getstate__(), memo))  # type: ignore[no-untyped-call]
        return copied

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        if self.has_target:
            self.target.share(self.online, self.target.behind)  # which were copied one by one

    def _apply(self, fn: Any, recurse: bool = True) -> "Wrapper":
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.has_target:
            at_least_float32(self.target)
            self.target.share(self.online, self.target.behind)  # which were moved one by one
        self._watch.forget_batch()
        return self
