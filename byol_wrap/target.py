"""The target network: a copy that follows the online network."""

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from byol_wrap.backbone.copying import copy_net
from byol_wrap.backbone.encoder import Encoder, float_parameter, freeze
from byol_wrap.ema import update_average


class Target(Encoder):
    """A copy of an encoder that is never trained: the moving average of the online network.

    At least float32, since averages stand still in half precision. Its BatchNorm statistics are
    its own, and in training mode it uses those of the batch, as the online network does.

    Attributes:
        behind: names of those parameters of the net that are only reached behind the
            representation. They are the online network's own, so that they cost no memory.
    """

    def __init__(self, online: Encoder) -> None:
        super().__init__(copy_net(online.net), copy.deepcopy(online.projector))
        self.behind: frozenset[str] = frozenset()
        self._loads = Loads()
        self._loads.watch(self.net, self.projector)
        freeze(self)
        at_least_float32(self)

    @property
    def shared(self) -> set[str]:
        """Names of its parameters that are the online network's own."""
        return {f"net.{name}" for name in self.behind}

    @property
    def was_loaded(self) -> bool:
        """Whether a state was loaded into it, which says where it is."""
        return self._loads.any

    @torch.no_grad()
    def project(self, view: Tensor) -> Tensor:
        """What the target says of a view, without gradient: (B, ...) in, (B, P) out."""
        projection: Tensor = self(view)[0]
        return projection

    def follow(self, online: Encoder, decay: float | Tensor) -> None:
        """Move towards the online network; see ``update_average``."""
        update_average(self, online, decay, leave=self.shared)

    def share(self, online: Encoder, behind: Iterable[str]) -> None:
        """Hold the online network's values where the target has no use for its own.

        Not of a net in half precision, beside which the target is wider.
        """
        pairs = [(n, self.net.get_parameter(n), online.net.get_parameter(n)) for n in behind]
        self.behind = frozenset(name for name, own, theirs in pairs if own.dtype == theirs.dtype)
        for name, own, theirs in pairs:
            if name in self.behind:
                own.data = theirs.data

    def state_dict(self, *args: Any, prefix: str = "", **kwargs: Any) -> Any:
        """As ``nn.Module.state_dict``; of what is shared a copy: safetensors want no shared memory.

        States of earlier versions have nothing for it, and are loaded as well.
        """
        state = super().state_dict(*args, prefix=prefix, **kwargs)
        if not kwargs.get("keep_vars"):
            for key in {prefix + name for name in self.shared} & state.keys():
                state[key] = state[key].clone()
        return state

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """As ``nn.Module.load_state_dict``; what is shared stays."""
        return super().load_state_dict(
            {**state_dict, **self.not_loaded(state_dict, "")}, strict, assign
        )

    def not_loaded(self, given: Mapping[str, Any], prefix: str) -> dict[str, Any]:
        """Of a state, what is not the target's own, or will not be when it is known what it uses.

        Names, under ``prefix``, and the values that stay.
        """
        own = self.net.state_dict(prefix=f"{prefix}net.")
        left = {prefix + name for name in self.shared}
        if self.representation is None:
            left |= {name for name in own if name in given and _is_empty(given[name])}
        return {name: own[name] for name in left if name in given}

    def set_as(self, online: Encoder) -> None:
        """Follow what is set while training goes on: shares that are dropped, and frozen BatchNorm.

        BatchNorm layers are in eval mode where the online network's are, put there on purpose; the
        target is in the mode of its learner otherwise.
        """
        pairs = zip(self.net.modules(), online.net.modules(), strict=False)
        for ours, theirs in pairs:
            if isinstance(ours, _BatchNorm):
                if ours.training != theirs.training:
                    ours.train(theirs.training)
            elif isinstance(ours, _DropoutNd) and isinstance(theirs, _DropoutNd):
                ours.p = theirs.p

    def check_is_on(self, device: torch.device) -> None:
        """Raise RuntimeError where the online network is on another device."""
        if device != (own := float_parameter(self).device):
            raise RuntimeError(
                f"The net is on {device}, its target on {own}: move the learner rather than its "
                f"net, learner.to({str(device)!r})."
            )

    def start_from(self, projector: nn.Module) -> None:
        """Take over a projector whose size has been found."""
        training = self.projector.training  # embed builds in eval mode
        self.projector = copy.deepcopy(projector).train(training)
        self._loads.watch(self.projector)
        freeze(self.projector)


class Loads:
    """Notices that a state is loaded into a module, also as a part of another.

    Attributes:
        any: whether one was.
    """

    def __init__(self) -> None:
        self.any = False

    def watch(self, *modules: nn.Module) -> None:
        """Notice what is loaded into these, but for scripted ones, which take no hooks."""
        for module in modules:
            if not isinstance(module, torch.jit.ScriptModule):
                module._register_load_state_dict_pre_hook(self)

    def __call__(self, state: Mapping[str, Any], prefix: str, *_: Any) -> None:
        """A state, or a part of it for other modules, is loaded."""
        self.any |= any(name.startswith(prefix) for name in state)


def _is_empty(value: object) -> bool:
    """Whether a state's value stands for a parameter that is not the target's own."""
    return isinstance(value, Tensor) and value.shape == (0,)


def at_least_float32(module: nn.Module) -> None:
    """Widen a module's half-precision parameters and buffers: averages stand still in bf16."""
    half = (torch.float16, torch.bfloat16)
    module._apply(lambda tensor: tensor.float() if tensor.dtype in half else tensor)
