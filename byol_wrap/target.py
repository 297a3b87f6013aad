"""The target network: a copy that follows the online network."""

import copy
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy

from byol_wrap.backbone.copying import copy_net
from byol_wrap.backbone.encoder import Encoder, freeze


class Target(Encoder):
    """A copy of an encoder that is never trained: the moving average of the online network.

    At least float32, since averages stand still in half precision. Its BatchNorm statistics are
    its own, and in training mode it uses those of the batch, as the online network does.

    Attributes:
        behind: names of those parameters of the net that are only reached behind the
            representation. They are the online network's own, so that they cost no memory; a state
            has nothing for them.
    """

    def __init__(self, online: Encoder) -> None:
        super().__init__(copy_net(online.net), copy.deepcopy(online.projector))
        self.behind: frozenset[str] = frozenset()
        freeze(self)
        at_least_float32(self)

    @torch.no_grad()
    def project(self, view: Tensor) -> Tensor:
        """What the target says of a view, without gradient: (B, ...) in, (B, P) out."""
        projection: Tensor = self(view)[0]
        return projection

    def follow(self, online: Encoder, decay: float | Tensor) -> None:
        """Move towards the online network; see ``update_average``."""
        update_average(self, online, decay, leave={f"net.{name}" for name in self.behind})

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
        """As ``nn.Module.state_dict``; what is shared is empty in it."""
        state = super().state_dict(*args, prefix=prefix, **kwargs)
        for name in self.behind:
            value = state[f"{prefix}net.{name}"]
            state[f"{prefix}net.{name}"] = torch.empty(0, dtype=value.dtype, device=value.device)
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
        left = {f"{prefix}net.{name}" for name in self.behind}
        if self.representation is None:
            left |= {name for name in own if name in given and _is_empty(given[name])}
        return {name: own[name] for name in left if name in given}

    def freeze_statistics_as(self, online: Encoder) -> None:
        """Keep BatchNorm layers in eval mode where the online network's are, put there on purpose.

        The target is in the mode of its learner otherwise.
        """
        pairs = zip(self.net.modules(), online.net.modules(), strict=False)
        for ours, theirs in pairs:
            if isinstance(ours, _BatchNorm) and ours.training != theirs.training:
                ours.train(theirs.training)

    def start_from(self, projector: nn.Module) -> None:
        """Take over a projector whose size has been found."""
        training = self.projector.training  # embed builds in eval mode
        self.projector = copy.deepcopy(projector).train(training)
        freeze(self.projector)


def _is_empty(value: object) -> bool:
    """Whether a state's value stands for a parameter that is not the target's own."""
    return isinstance(value, Tensor) and value.shape == (0,)


@torch.no_grad()
def update_average(
    average: nn.Module, online: nn.Module, decay: float | Tensor, *, leave: Collection[str] = ()
) -> None:
    """Move every parameter of ``average`` towards its twin in ``online``, in one foreach call.

    ``average <- average + (1 - decay) (online - average)``, in the dtype of ``average``; equal
    values stay bit for bit equal. Buffers are left alone: the target has BatchNorm statistics of
    its own. Parameters that have no size yet, and integer ones, are left out.

    Args:
        average: the module that is moved. Parameters that it lets be empty are left out.
        online: a module of the same structure.
        decay: tau, in [0, 1]; 1 changes nothing, 0 copies. A scalar on the device is not read.
        leave: names of parameters of ``average`` that stay as they are.

    Raises:
        RuntimeError: the two no longer have the same parameters.
    """
    targets = [(name, p) for name, p in average.named_parameters() if _is_averaged(p)]
    sources = [p for p in online.parameters() if _is_averaged(p)]
    together = zip(targets, sources, strict=False)
    pairs = [(t, s) for (name, t), s in together if t.numel() and name not in leave]
    if len(targets) != len(sources) or any(t.shape != s.shape for t, s in pairs):
        raise RuntimeError(
            "The online network no longer has the parameters it was wrapped with: it has "
            f"{len(sources)}, its target {len(targets)}, or their shapes differ. Change a backbone "
            "before wrapping it, and wrap it anew after a change."
        )
    like: list[Tensor] = [s if s.dtype == t.dtype else s.to(t.dtype) for t, s in pairs]
    to: list[Tensor] = [t for t, _ in pairs]
    if isinstance(decay, Tensor) and all(t.device == decay.device for t in to):
        steps = torch._foreach_sub(like, to)
        torch._foreach_mul_(steps, (1 - decay).to(steps[0].dtype))
        torch._foreach_add_(to, steps)
    else:
        torch._foreach_lerp_(to, like, 1 - float(decay))


def _is_averaged(parameter: nn.Parameter) -> bool:
    return not is_lazy(parameter) and (parameter.is_floating_point() or parameter.is_complex())


def at_least_float32(module: nn.Module) -> None:
    """Widen a module's half-precision parameters and buffers: averages stand still in bf16."""
    half = (torch.float16, torch.bfloat16)
    module._apply(lambda tensor: tensor.float() if tensor.dtype in half else tensor)
