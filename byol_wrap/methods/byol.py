"""BYOL: learn from unlabelled images with the backbone you have."""

import contextlib
import copy
import warnings
import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from byol_wrap.backbone.encoder import (
    Encoder,
    check_net,
    copy_net,
    empty,
    first_channels,
    float_parameter,
    freeze,
    is_empty,
    probe,
    writes,
)
from byol_wrap.backbone.finding import check_pool, layer_name
from byol_wrap.backbone.modes import eval_mode, outside_graph
from byol_wrap.backbone.reading import Pool, Representation
from byol_wrap.evaluation.health import (
    Outputs,
    alignment,
    effective_rank,
    relative_distance,
    std_ratio,
    uniformity,
)
from byol_wrap.guard import inputs
from byol_wrap.guard.checkpoint import check_fits
from byol_wrap.guard.collapse import COLLAPSED, LOOK_EVERY, LOOKS, CollapseWatch, likely_causes
from byol_wrap.methods import heads
from byol_wrap.methods.losses import byol_loss
from byol_wrap.methods.target import (
    at_least_float32,
    cosine_ema_decay,
    is_active,
    on_step,
    update_average,
)
from byol_wrap.views import Augment, RandomView, Views, as_pair, normalization

BATCHES_CHECKED = 10  # how many batches are checked for NaN where a check waits for the device
STEPS_WITHOUT_UPDATE = 100  # after how many a learner says that its target stands still
UPDATES_UNTRAINED = 10  # after how many it says that the predictor is left out of training


class BYOL(nn.Module):
    """Bootstrap Your Own Latent around any backbone.

    An online network (encoder, projector, predictor) learns to predict what a target network, its
    moving average, says of another view of the same image. The backbone is trained in place:
    ``learner.net is net``, and nothing but its weights is changed.

    Args:
        net: the backbone. Copied once, for the target; what it was given stays as it is, in its
            training mode, on its device.
        image_size: side, or (height, width), in pixels of the views. With it the heads are built
            now; without it on the first batch, whose size the views then keep.
        hidden_layer: the layer whose output represents an image: a dotted name, or a child's index
            (-1 is the last; "" is the net's own output). None finds it: the input of the
            last Linear whose output is the net's output; where there is none, the net's output.
        projection_size: size of projections and predictions.
        projection_hidden_size: width of the hidden layer of projector and predictor.
        augment_fn: replaces the whole pipeline of both views: float32 images (B, C, H, W) in [0, 1]
            in, a batch that the net takes out. A module is moved to the images' device, and is no
            part of the learner's state. ``RandomView`` with a ``Recipe`` of your own varies the
            default views.
        augment_fn2: replaces that of the second view.
        mean: what is subtracted from each channel of views and of ``embed``'s images, for pixels in
            [0, 1]. None means ImageNet's for 3 channels and 0.5 for others; with an ``augment_fn``
            other than a ``RandomView``, None means that nothing is normalised.
        std: what they are divided by; goes with ``mean``.
        channels: how many the images have; None reads it off the net's first convolution (3 where
            it has none, or where the net cannot take so many).
        moving_average_decay: tau in [0, 1], constant or that of the first update.
        total_steps: number of updates over which tau rises from ``moving_average_decay`` to 1 along
            a cosine; None keeps it constant.
        pool: how the layer's value becomes a vector: "mean", "max", "class_token", "flatten", or a
            callable to (B, D). None: maps are averaged; token sequences give their class token
            where the net has one, else their mean.
        sync_batchnorm: whether the heads' BatchNorm shares statistics between processes. None does
            so in a process group of several processes on nccl (there is no such BatchNorm on the
            CPU). The backbone's own BatchNorm is left as it is.

    Attributes:
        online: ``Encoder`` of ``net`` and its projector; ``online.net``, ``online.projector``.
        predictor: the head that only the online network has.
        target: ``Encoder``, the moving average of ``online``, at least float32; its BatchNorm
            statistics are its own. Parameters behind the representation are empty in it.
        representation: which layer was found, how it is pooled, its size; None before the first
            batch where ``image_size`` is not given.
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

    step: Tensor

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
        sync_batchnorm: bool | None = None,
    ) -> None:
        super().__init__()
        if isinstance(net, BYOL):
            raise TypeError("net is a learner already: wrap the net in it, BYOL(learner.net).")
        check_net(net)
        if not 0 <= moving_average_decay <= 1:
            raise ValueError(f"moving_average_decay lies in [0, 1], got {moving_average_decay}.")
        if total_steps is not None and (not isinstance(total_steps, int) or total_steps < 1):
            raise ValueError(f"total_steps should be an integer >= 1 or None, got {total_steps!r}.")
        self.moving_average_decay = moving_average_decay
        self.total_steps = total_steps
        if channels is not None and (not isinstance(channels, int) or channels < 1):
            raise ValueError(f"channels should be a positive integer or None, got {channels!r}.")
        self.channels = first_channels(net) if channels is None else channels
        self._hidden_layer = None if hidden_layer is None else layer_name(net, hidden_layer)
        self._pool = check_pool(pool)
        size = None if image_size is None else as_pair(image_size)

        like = float_parameter(net)
        dtype = torch.promote_types(like.dtype, torch.float32)

        def head(in_features: int | None) -> nn.Sequential:
            widths = (projection_hidden_size, projection_size)
            module = heads.mlp(in_features, *widths, sync_batchnorm=sync_batchnorm)
            return module.to(like.device, dtype)

        with torch.random.fork_rng([]):
            self.online = Encoder(net, head(None))
            self.predictor = head(projection_size)
            self.target = Encoder(copy_net(net), copy.deepcopy(self.online.projector))
        freeze(self.target)
        at_least_float32(self.target)
        self.register_buffer("step", torch.zeros((), dtype=torch.long, device=like.device))

        self._updates: int | None = None  # the step on the host; None where it must be read first
        self._steps_since_update = 0
        self._updates_here = 0  # in this process
        self._writes = (0, 0)
        self._batches_checked = 0
        self._warned: set[str] = set()
        self._attached: RemovableHandle | None = None
        self._optimizer: weakref.ref[Optimizer] | None = None
        self._watch = CollapseWatch()
        self._last: Outputs | None = None
        self._first_half: tuple[Tensor, ...] | None = None  # what it leaves for the second
        if size is not None:
            self._build_on_noise(size, guessed=channels is None)
        own_views = augment_fn is not None and not isinstance(augment_fn, RandomView)
        if mean is None and std is None and own_views:
            normalize = None
        else:
            normalize = normalization(mean, std, self.channels)
        self._views = Views(augment_fn, augment_fn2, size, normalize)

    def forward(
        self,
        images: Tensor,
        view2: Tensor | None = None,
        *,
        return_embedding: bool = False,
        return_projection: bool = True,
        half: int | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """The symmetric BYOL loss of a batch.

        Args:
            images: (B, C, H, W) on the net's device, uint8 or floats in [0, 1], B at least 2 in
                training. With ``view2``: the first view.
            view2: a second view of the same B items. The two are then fed as they are, whatever
                shape the net takes; nothing is augmented or normalised.
            return_embedding: instead of the loss, give (projection (B, P), representation (B, D))
                of ``images``, normalised but not augmented, in the current mode and with gradient.
            return_projection: with ``return_embedding``, False gives the representation alone.
            half: 1 or 2 for one direction of the loss of two views that ``halves`` has made.

        Returns:
            A scalar in [0, 8], in float32 or wider.

        Raises:
            TypeError, ValueError: input that is not as described, before anything is changed. NaN
                and infinity are looked for in every batch on the CPU and in the first 10 elsewhere,
                where looking means waiting.
            RuntimeError: the representation was not reached, or has no gradient.
        """
        if return_embedding:
            return self._embedding(images, view2, return_projection)
        if half is not None:
            return self._half(images, view2, half)
        view1, view2 = self._two_views(images, view2)
        target1, target2 = self._targets(view1, view2)
        loss1, representation1, projection1 = self._direction(view1, target2)
        loss2, representation2, _ = self._direction(view2, target1)
        self._last = Outputs(representation1, representation2, projection1)
        return loss1 + loss2

    @torch.no_grad()
    def _targets(self, view1: Tensor, view2: Tensor) -> tuple[Tensor, Tensor]:
        """What the target network projects of each view."""
        return self.target(view1)[0], self.target(view2)[0]

    def _direction(self, view: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The loss of predicting the other view's target; what the online network saw."""
        projection, representation = self.online(view)
        loss = byol_loss(self.predictor(projection), target)
        return loss, representation.detach(), projection.detach()

    def halves(
        self, images: Tensor, view2: Tensor | None = None, *, parallel: nn.Module | None = None
    ) -> Iterator[Tensor]:
        """The two halves of the loss one after the other, for about half the activation memory.

        ``for loss in learner.halves(images): loss.backward()`` leaves the gradients that
        ``learner(images).backward()`` does, but only one view's activations are alive at a time.
        Call ``backward`` on each before the next is made, and the optimizer after both.

        Args:
            images: as for ``forward``.
            view2: as for ``forward``.
            parallel: the learner as its engine wraps it, such as ``DistributedDataParallel``, whose
                gradients are then averaged once, with the second half.

        Yields:
            Two scalars in [0, 4] that add up to the loss.

        Raises:
            TypeError, ValueError, RuntimeError: as ``forward``, when the first half is asked for.
        """
        view1, view2 = self._two_views(images, view2)
        engine = self if parallel is None else parallel
        alone = getattr(engine, "no_sync", contextlib.nullcontext)
        with alone():
            yield engine(view1, view2, half=1)
        yield engine(view1, view2, half=2)

    def _half(self, view1: Tensor, view2: Tensor | None, half: int) -> Tensor:
        first = self._first_half
        if half == 1 and view2 is not None:
            target1, target2 = self._targets(view1, view2)
            loss, *seen = self._direction(view1, target2)
            self._first_half = (target1, *seen)
        elif half == 2 and view2 is not None and first is not None:
            target1, representation1, projection1 = first
            loss, representation2, _ = self._direction(view2, target1)
            self._last = Outputs(representation1, representation2, projection1)
            self._first_half = None
        else:
            raise ValueError(
                f"half should be 1 and then 2, with two views, got {half!r}: use "
                "learner.halves(images)."
            )
        return loss

    def update_moving_average(self) -> None:
        """Move the target towards the online network; call it after each optimizer step.

        ``target <- target + (1 - tau) (online - target)`` for every parameter, in float32 or wider.
        The k-th call, from 0, uses tau_k. After ``attach`` it changes nothing and says so, once.
        """
        if is_active(self._attached):
            self._warn_once(
                "attached",
                "update_moving_average() does nothing on a learner that is attached to an "
                "optimizer, which updates it already: remove the call, or do not attach.",
            )
        else:
            self._update()

    def attach(self, optimizer: Optimizer) -> RemovableHandle:
        """Update the moving average after each real step of an optimizer.

        Accumulated batches cause no update, nor does a step that ``GradScaler`` skips.

        Args:
            optimizer: the one that trains the learner; where there are several, the last to step.

        Returns:
            A handle; ``handle.remove()`` detaches. Copies of the learner are not attached.

        Raises:
            TypeError: not a torch optimizer.
            ValueError: it trains none of the learner's parameters.
            RuntimeError: the learner is attached already.
        """
        if not isinstance(optimizer, Optimizer):
            raise TypeError(
                f"attach expects a torch.optim.Optimizer, got {type(optimizer).__name__}; give the "
                "optimizer itself where another library has wrapped it."
            )
        if is_active(self._attached):
            raise RuntimeError(
                "The learner is attached to an optimizer already: remove that handle."
            )
        own = {id(parameter) for parameter in self.parameters() if parameter.requires_grad}
        trained = own & {id(p) for group in optimizer.param_groups for p in group["params"]}
        if not trained:
            raise ValueError(
                "The optimizer trains none of the learner's parameters: build it from "
                "learner.parameters(), after the learner."
            )
        if not trained & {id(parameter) for parameter in self.predictor.parameters()}:
            self._warn_of_untrained_heads()
        self._attached = on_step(optimizer, self._update)
        self._optimizer = weakref.ref(optimizer)
        return self._attached

    def embed(self, images: Tensor) -> Tensor:
        """Representations of images: eval mode, no gradient; every training flag is put back.

        Args:
            images: (B, C, H, W) on the net's device, uint8 or floats in [0, 1], B at least 1. They
                are normalised as the views are, and neither augmented nor resized.

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
            return self.online.represent(self._normalized(images))

    def views(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The two augmented, normalised views of a batch that ``forward`` feeds to the networks.

        Args:
            images: as for ``forward``; B may be 1.

        Returns:
            Two float32 tensors (B, C, *image_size).

        Raises:
            TypeError, ValueError: as ``forward``.
        """
        self._check_images(images)
        return self._views(images)

    def health(self) -> dict[str, float]:
        """Figures that tell whether training is sound; costs a step nothing unless it is called.

        Calling it reads from the device. All figures but the last three are of the last batch, and
        vary from batch to batch; ``byol_wrap.health`` defines them.

        Returns:
            "std_ratio": spread of the representations of the first view; falls towards 0 in a
            collapse. "rank": their effective rank (RankMe), at most min(B, D).
            "projection_std_ratio", "projection_rank": the same of the projections.
            "alignment": squared distance in [0, 4] between the representations of two views of an
            image. "uniformity": in [-8, 0], the lower the more evenly images are spread.
            "target_distance": of the target's parameters from the online network's, relative.
            "tau": the decay of the next update. "updates": how many the target has had.

        Raises:
            RuntimeError: no batch of two images or more has been seen yet.
        """
        last = self._last
        if last is None or len(last.representation1) < 2:
            raise RuntimeError(
                "There is nothing to measure before a learner(images) of two images or more."
            )
        return {
            "std_ratio": float(std_ratio(last.representation1)),
            "rank": float(effective_rank(last.representation1)),
            "projection_std_ratio": float(std_ratio(last.projection1)),
            "projection_rank": float(effective_rank(last.projection1)),
            "alignment": float(alignment(last.representation1, last.representation2)),
            "uniformity": float(uniformity(last.representation1)),
            "target_distance": float(relative_distance(self.online, self.target)),
            "tau": self.tau,
            "updates": float(self.step),
        }

    @property
    def net(self) -> nn.Module:
        """The user's backbone itself."""
        return self.online.net

    @property
    def representation(self) -> Representation | None:
        """Which layer represents an image, how it is pooled, its size; None while unknown."""
        return self.online.representation

    @property
    def tau(self) -> float:
        """The decay that the next update will use."""
        if self.total_steps is None:
            return self.moving_average_decay
        if self._updates is None:
            self._updates = int(self.step)
        return cosine_ema_decay(self._updates, self.total_steps, self.moving_average_decay)

    def extra_repr(self) -> str:
        """What ``print(learner)`` shows beside its parts."""
        return f"representation={self.representation}, tau={self.tau}"

    # Preparing a batch

    @outside_graph(recursive=True)
    def _two_views(self, images: Tensor, view2: Tensor | None) -> tuple[Tensor, Tensor]:
        """The checked inputs of both networks; the first batch settles what is still unknown."""
        if getattr(self, "_is_replica", False):
            raise RuntimeError(
                "nn.DataParallel runs copies of a learner that share its hooks: use "
                "torch.nn.parallel.DistributedDataParallel(learner)."
            )
        if view2 is None:
            self._check_images(images)
        else:
            inputs.check_pair(images, view2, self._place())
            self._check_values(images, "view1")
            self._check_values(view2, "view2")
        if self.training:
            inputs.check_more_than_one(images)
        view1, view2 = self._views(images) if view2 is None else (images, view2)
        if self.representation is None:
            self._build(view1[:2])
        if self.training and torch.is_grad_enabled():
            self._count_step()
        return view1, view2

    @outside_graph(recursive=True)
    def _normalized(self, images: Tensor, *, trains_heads: bool = False) -> Tensor:
        self._check_images(images)
        if trains_heads:
            inputs.check_more_than_one(images)
        images = self._views.normalized(images)
        if self.representation is None:
            self._build(images[:2])
        return images

    def _embedding(
        self, images: Tensor, view2: Tensor | None, return_projection: bool
    ) -> Tensor | tuple[Tensor, Tensor]:
        if view2 is not None:
            raise ValueError("return_embedding takes images alone, not a second view.")
        images = self._normalized(images, trains_heads=self.training and return_projection)
        if not return_projection:
            return self.online.represent(images)
        embedding: tuple[Tensor, Tensor] = self.online(images)
        return embedding

    def _check_images(self, images: Tensor) -> None:
        inputs.check_images(images, self.channels, self._place())
        low, high = self._check_values(images, "images")
        if inputs.is_far_from_unit(low, high):
            self._warn_once("range", inputs.far_from_unit_message(low, high))

    def _check_values(self, batch: Tensor, name: str) -> tuple[float, float]:
        if batch.device.type != "cpu":
            if self._batches_checked >= BATCHES_CHECKED:
                return 0.0, 1.0
            self._batches_checked += 1
        return inputs.check_values(batch, name)

    def _place(self) -> torch.device:
        """Where the networks are, and so where images should be."""
        device, target = float_parameter(self.net).device, float_parameter(self.target).device
        if device != target:
            raise RuntimeError(
                f"The net is on {device}, its target on {target}: move the learner rather than its "
                f"net, learner.to({str(device)!r})."
            )
        return device

    def _warn_once(self, about: str, message: str) -> None:
        if about not in self._warned:
            self._warned.add(about)
            warnings.warn(message, UserWarning, stacklevel=3)

    # Building the heads

    @torch.inference_mode(False)
    def _build(self, sample: Tensor) -> None:
        """Find the representation on ``sample``, an input of the net, and size the heads for it."""
        target = self.target
        representation, unused, behind = probe(target.net, sample, self._hidden_layer, self._pool)
        self._size_heads(representation.size)
        self.online.representation = target.representation = representation
        empty(target.net, behind)
        # Read by DistributedDataParallel, which otherwise waits for gradients that never come.
        self._ddp_params_and_buffers_to_ignore = [f"online.net.{name}" for name in unused]

    def _build_on_noise(self, size: tuple[int, int], *, guessed: bool) -> None:
        """Build before there are images; a guess of their channels that fails is mended."""

        def build() -> None:
            noise = torch.rand(2, self.channels, *size, generator=torch.Generator())
            self._build(noise.to(float_parameter(self.net).device))

        try:
            build()
        except ValueError as error:
            guess, self.channels = self.channels, 3
            if not guessed or guess == 3:
                raise
            try:  # a net that folds pixels into channels before its first convolution
                build()
            except ValueError:
                raise error from None

    def _size_heads(self, size: int) -> None:
        projector = self.online.projector
        if heads.in_features(projector) is None:
            with torch.random.fork_rng([]):
                heads.set_in_features(projector, size)
            training = self.target.projector.training  # embed builds in eval mode
            self.target.projector = copy.deepcopy(projector).train(training)
            freeze(self.target.projector)
        elif heads.in_features(projector) != size:
            raise RuntimeError(
                f"The representation has size {size}, but the heads (from a checkpoint?) expect "
                f"{heads.in_features(projector)}. Wrap the net with the arguments they had."
            )

    # The target

    @torch.no_grad()
    def _update(self) -> None:
        update_average(self.target, self.online, self.tau)
        self.step += 1
        self._updates = None if self._updates is None else self._updates + 1
        self._steps_since_update = 0
        self._look_at_heads()

    def _look_at_heads(self) -> None:
        """Warn where the net is trained, and the predictor has gradients that nobody uses."""
        self._updates_here += 1
        if self._updates_here == 1:
            self._writes = writes(self.net), writes(self.predictor)
        elif self._updates_here == 1 + UPDATES_UNTRAINED:
            net, predictor = self._writes
            unused = any(parameter.grad is not None for parameter in self.predictor.parameters())
            if unused and writes(self.net) != net and writes(self.predictor) == predictor:
                self._warn_of_untrained_heads()

    def _warn_of_untrained_heads(self) -> None:
        self._warn_once(
            "heads",
            "The optimizer does not train the predictor. Unless another one does, build it from "
            "learner.parameters(), not from the net's.",
        )

    def _count_step(self) -> None:
        self._steps_since_update += 1
        if self._steps_since_update > STEPS_WITHOUT_UPDATE and self.tau < 1:
            self._warn_once(
                "still",
                f"The target network has not been updated for {STEPS_WITHOUT_UPDATE} training "
                "steps: call learner.update_moving_average() after optimizer.step(), or "
                "learner.attach(optimizer) once.",
            )
        ratios = None if self._last is None else self._watch.collapsed(self._last)
        if ratios is not None:
            self._warn_of_collapse(ratios)

    def _warn_of_collapse(self, std_ratios: dict[str, float]) -> None:
        assert self._last is not None
        figures = " and ".join(f"{ratio:.3f} of the {kind}" for kind, ratio in std_ratios.items())
        causes = likely_causes(
            steps_since_update=self._steps_since_update,
            tau=self.tau,
            batch_size=len(self._last.representation1),
            predictor=self.predictor,
            optimizer=self._optimizer() if self._optimizer and is_active(self._attached) else None,
        )
        self._warn_once(
            "collapse",
            f"Training has collapsed: images are hardly told apart any more. The std ratio is "
            f"{figures}, and one of them was under {COLLAPSED} for the last {LOOKS * LOOK_EVERY} "
            f"steps. Likely causes in this run: {'; '.join(causes)}. Start anew: weights that have "
            "collapsed do not recover.",
        )

    # State

    def _apply(self, fn: Any, recurse: bool = True) -> "BYOL":
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        at_least_float32(self.target)
        self._last = self._first_half = None
        return self

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        if heads.in_features(self.online.projector) is None:
            raise RuntimeError(
                "The heads have no size yet, so there is no state to save: give image_size= to "
                "BYOL, or run one batch first."
            )
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """As ``nn.Module.load_state_dict``, but a state that does not fit changes nothing.

        Raises:
            RuntimeError: names (unless ``strict`` is False) or shapes differ; the message names the
                first that does.
        """
        # A net that renames keys of old checkpoints in a hook knows its keys better.
        renames = any(module._load_state_dict_pre_hooks for module in self.net.modules())
        self._check_fits(state_dict, names=strict and not renames)
        return super().load_state_dict(state_dict, strict, assign)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        given = {k[len(prefix) :]: v for k, v in state_dict.items() if k.startswith(prefix)}
        self._check_fits(given, names=False)  # here as a part of another module
        weight = given.get("online.projector.0.weight")
        if weight is not None and heads.in_features(self.online.projector) is None:
            self._size_heads(weight.shape[1])
        state_dict |= {prefix + name: value for name, value in self._not_loaded(given).items()}
        self._updates = None
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _check_fits(self, given: Mapping[str, Any], *, names: bool) -> None:
        own = {"step": self.step}
        for part in ("online", "predictor", "target"):
            own |= {f"{part}.{k}": v for k, v in getattr(self, part).state_dict().items()}
        own |= {name: given[name] for name in self._not_loaded(given)}
        check_fits(own, given, self.net.state_dict(), names=names)

    def _not_loaded(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """What the target has no use for, or will not have as soon as it is known what it uses."""
        unknown = self.representation is None
        return {
            name: value
            for name, value in self.target.net.state_dict(prefix="target.net.").items()
            if name in given and (is_empty(value) or (unknown and is_empty(given[name])))
        }

    def __getstate__(self) -> dict[str, Any]:
        fresh = {"_attached": None, "_optimizer": None, "_watch": CollapseWatch(), "_last": None}
        fresh["_first_half"] = None
        return {**self.__dict__, **fresh}
