"""When the target network moves, and how far: by hand, or after an optimizer's steps."""

from collections.abc import Collection, Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from byol_wrap.attachment import Attachment, check_trains, innermost
from byol_wrap.backbone.encoder import freeze
from byol_wrap.backbone.modes import outside_graph
from byol_wrap.ema import Pace
from byol_wrap.guard.checkpoint import FED, differences, nothing_fits
from byol_wrap.guard.inputs import bytes_explained, check_not_captured, is_in_backward
from byol_wrap.guard.start import Start
from byol_wrap.networks import Wrapper

NOT_AGAIN = (
    "cannot be run again in backward: since its forward the queue has moved on. Leave the learner "
    "as a whole out of activation checkpoints, and put those around blocks of its net."
)


class Following(Wrapper):
    """Networks of which one, the target, follows the other, where the method has a target."""

    _settled: ClassVar[Collection[str]] = (
        *("net", "image_size", "hidden_layer", "projector", "recipes", "augment_fn", "augment_fn2"),
        *("mean", "std", "channels", "pool", "pretrained"),
    )
    _moves_on: ClassVar[bool] = False  # whether a forward changes what the next one is held against
    _has_run = _takes_bytes = False
    _start: Start | None = None  # until training begins
    _saved_meaning: Mapping[str, str] | None = None  # of the state that was loaded

    def __init__(
        self,
        *args: Any,
        moving_average_decay: float | None,
        total_steps: int | None,
        **kwargs: Any,
    ) -> None:
        pace = None if moving_average_decay is None else Pace(moving_average_decay, total_steps)
        super().__init__(*args, with_target=pace is not None, **kwargs)
        if pace is not None:
            self.register_buffer("step", torch.zeros((), dtype=torch.long, device=self._place()))
            pace.moved(self._kept_count())
            self._start = Start(self.online, self.target, self.target.shared)
            self._watch.wrapped(self.net)
        self._pace, self._attachment = pace, Attachment()
        own = [(n, p) for n, p in self.named_parameters() if not n.startswith("online.net.")]
        if once := self._views.drawing_once:
            self._watch.warn("once", once)
        self._fixed = [name for name, parameter in own if not parameter.requires_grad]

    @property
    def channels(self) -> int:
        """How many the images have."""
        return self._channels

    @property
    def pretrained(self) -> bool:
        """Whether the net counts as one that was trained before it was wrapped."""
        return self._pretrained

    @property
    def step(self) -> Tensor:
        """A buffer: how many updates the target has had. Reading it waits for the device.

        Whoever writes a larger number into it goes on from there; a smaller one is mended.
        """
        self._schedule("step").hand_out(self._kept_count())
        return self._kept_count()

    @property
    def fed(self) -> Tensor:
        """What training was fed, so that ``embed`` prepares likewise; a state keeps it."""
        return torch.full((), self._gate.fed.code, dtype=torch.long, device=self._place())

    @fed.setter
    def fed(self, code: Tensor) -> None:
        """Nothing: ``torch.func.functional_call`` puts a state's in its place for one call."""

    @property
    def tau(self) -> float:
        """The decay that the target's next update will use."""
        return self._schedule("tau").tau(self._kept_count())

    @property
    def moving_average_decay(self) -> float:
        """The decay of the target's first update; may be set at any time."""
        return self._schedule("moving_average_decay").base

    @moving_average_decay.setter
    def moving_average_decay(self, decay: float) -> None:
        self._schedule("moving_average_decay").base = decay

    @property
    def total_steps(self) -> int | None:
        """Over how many updates tau rises to 1; None keeps it; may be set at any time."""
        return self._schedule("total_steps").total_steps

    @total_steps.setter
    def total_steps(self, total_steps: int | None) -> None:
        self._schedule("total_steps").total_steps = total_steps

    def update_moving_average(self) -> None:
        """Move the target towards the online network; call it after each optimizer step.

        ``target <- target + (1 - tau) (online - target)`` for every parameter, in float32 or wider.
        The k-th call, from 0, uses tau_k. After ``attach`` it changes nothing and says so, once. A
        method without a target has nothing to move.
        """
        if not self._attachment.is_active:
            self._update()
            if self.has_target:
                self._watch.updated_by_hand(self)
        elif self.has_target:
            self._watch.warn(
                "attached",
                "update_moving_average() does nothing on a learner that is attached to an "
                "optimizer, which updates it already: remove the call, or do not attach.",
            )

    def attach(self, optimizer: Optimizer) -> RemovableHandle:
        """Update the moving average after each real step of an optimizer.

        Accumulated batches cause no update, nor does a step that ``GradScaler`` skips.

        Args:
            optimizer: the one that trains the learner, also as Accelerate, Fabric or Lightning have
                wrapped it; where there are several, the last to step. Once more the same changes
                nothing; another one takes its place, with a warning.

        Returns:
            A handle; ``handle.remove()`` detaches. Copies of the learner are not attached.

        Raises:
            TypeError: not a torch optimizer.
            ValueError: it trains none of the learner's parameters.
        """
        optimizer = innermost(optimizer)
        trained = check_trains(optimizer, self)
        if self._attachment.optimizer not in (None, optimizer):
            self._watch.moved()
        self._watch.attached(self, trained)
        return self._attachment.attach(optimizer, self._update)

    def _two_views(self, images: Any, view2: Tensor | None) -> tuple[Tensor, Tensor]:
        again = is_in_backward()
        if again and self._moves_on and self._has_run:
            raise RuntimeError(f"{type(self).__name__} {NOT_AGAIN}")
        self._catch_up(trains=torch.is_grad_enabled())
        with bytes_explained(images, view2) as are_bytes:
            views = super()._two_views(images, view2)
            if are_bytes and not self._takes_bytes:
                self.embed(images[:1], prepared=True)
                self._takes_bytes = True
        if torch.is_grad_enabled():
            if self._start is not None:
                self._start = None
                freeze(self.target)  # which was unfrozen with all other parameters, if it was
            self._watch.pair(images, *views, self)
            self._has_run |= not again
        else:
            self._watch.without_gradient(self)
        return views

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """As ``nn.Module.requires_grad_``, but for what is never trained, such as the target."""
        super().requires_grad_(requires_grad)
        for name in self._fixed:
            self.get_parameter(name).requires_grad = False
        return self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As ``forward``; FSDP2 gathers parameters in its hooks, and loses what is written then."""
        if hasattr(self, "unshard"):
            self._catch_up(trains=torch.is_grad_enabled())
        return super().__call__(*args, **kwargs)

    @outside_graph(recursive=True)
    def _catch_up(self, *, trains: bool = False) -> None:
        """Before training begins the target is what the online network is, or what was loaded."""
        check_not_captured()
        if self._start is not None and self._pace is not None and not self.target.was_loaded:
            self._start.catch_up(self.online, self.target, trains or not self._pace.is_of_copy)

    def _build(self, sample: Tensor) -> None:
        self._catch_up()
        super()._build(sample)
        if self._start is not None:
            self._start.look(self.online, self.target, self.target.shared)
        self._is_meant(self._saved_meaning or {})

    @torch.no_grad()
    def _update(self, skipped: Tensor | None = None) -> None:
        check_not_captured()
        self._start = None
        if (pace := self._pace) is None:
            self._watch.updated(None, None)
            return
        if self._watch.may_follow(getattr(self, "predictor", self.online.projector)):
            tau = self.tau if skipped is None else pace.tau_unless(skipped, self._kept_count())
            self.target.follow(self.online, tau)
        pace.advance(self._kept_count(), skipped)
        self._watch.updated(pace.updates, pace.total_steps)

    def _kept_count(self) -> Tensor:
        step = self._buffers["step"]
        assert step is not None
        return step

    def _schedule(self, name: str) -> Pace:
        if self._pace is None:
            raise AttributeError(f"{type(self).__name__} has no target network, and so no {name}.")
        return self._pace

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if self._pace is not None:
            self._pace.left(self._kept_count())
        if self._start is not None:
            self._start = Start(self.online, self.target, self.target.shared)

    def __getstate__(self) -> dict[str, Any]:
        self._catch_up()
        if self._pace is not None:
            self._pace.mend(self._kept_count())  # a copy's original is what this is now
        return vars(self)

    def _apply(self, fn: Any, recurse: bool = True) -> "Following":
        self._catch_up()
        super()._apply(fn, recurse)
        if self._start is not None:
            self._start.look(self.online, self.target, self.target.shared)
        if self._pace is not None:
            self._pace.moved(self._kept_count())
        return self

    def _state_is_loaded(self, given: Mapping[str, Any], fed: Any) -> None:
        own = (*self.named_parameters(), *self.named_buffers())
        if given and given.keys().isdisjoint(name for name, _ in own):
            self._watch.warn("nothing", nothing_fits(given))
        if any(name.startswith("target.") for name in given):
            self._start = None  # it says where the target is
        if fed is not None and not getattr(fed, "is_meta", False):
            self._gate.fed.remember(int(fed))
        if self._pace is not None:
            self._pace.read_anew(self._kept_count())

    def _meaning(self) -> dict[str, str]:
        if (read := self.representation) is None:
            return {}
        normalize = self._views.normalize
        pool = read.pool if isinstance(read.pool, str) else getattr(read.pool, "__qualname__", "")
        return {
            "representation": f"{read.where} with pool {pool!r}",
            "normalisation": "none" if normalize is None else repr(normalize),
            "pretrained": str(self.pretrained),
        }

    def _is_meant(self, saved: Mapping[str, str]) -> None:
        self._saved_meaning = saved  # compared again once the representation is known
        if saved and (told := differences(self._meaning(), saved)):
            self._watch.warn("meaning", told)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        self._catch_up()
        if self._pace is not None:
            self._pace.mend(self._kept_count())
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + FED] = self.fed
