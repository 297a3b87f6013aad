"""The references' optimizer: LARS, its parameter groups, its learning rate."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

NORMALISATION = (
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
)


def warmup_cosine(step: int, total_steps: int, warmup_steps: int) -> float:
    """The share of the peak learning rate at a step: up linearly, then down along half a cosine.

    Args:
        step: how many steps came before this one, at least 0.
        total_steps: at which step the rate reaches 0, and stays there.
        warmup_steps: at which step it reaches its peak, in [0, total_steps].

    Returns:
        A factor in [0, 1], as ``torch.optim.lr_scheduler.LambdaLR`` takes it.

    Raises:
        ValueError: an argument out of its range.

    Reference:
        Grill et al. 2020, section 3.3.

    Example:
        >>> [round(warmup_cosine(k, 100, 10), 3) for k in (0, 5, 10, 55, 100)]
        [0.0, 0.5, 1.0, 0.5, 0.0]
    """
    if step < 0 or not 0 <= warmup_steps <= total_steps or total_steps < 1:
        raise ValueError(
            "warmup_cosine expects step >= 0 and 0 <= warmup_steps <= total_steps, got "
            f"step={step}, total_steps={total_steps}, warmup_steps={warmup_steps}."
        )
    if step < warmup_steps:
        return step / warmup_steps
    progress = min((step - warmup_steps) / max(total_steps - warmup_steps, 1), 1.0)
    return (1 + math.cos(math.pi * progress)) / 2


def cosine_schedule(
    optimizer: Optimizer, total_steps: int, warmup_steps: int = 0
) -> torch.optim.lr_scheduler.LambdaLR:
    """Let an optimizer's rates follow ``warmup_cosine``; call its ``step`` after the optimizer's.

    Groups with "constant_lr" keep their rate; see ``param_groups``.

    Args:
        optimizer: whose rates, as they are now, are the peak.
        total_steps: at which step they reach 0.
        warmup_steps: at which step they reach their peak.

    Raises:
        ValueError: as ``warmup_cosine``.
    """

    def along_the_cosine(step: int) -> float:
        return warmup_cosine(step, total_steps, warmup_steps)

    def constant(step: int) -> float:
        return 1.0

    along_the_cosine(0)
    shares = [
        constant if g.get("constant_lr") else along_the_cosine for g in optimizer.param_groups
    ]
    return torch.optim.lr_scheduler.LambdaLR(optimizer, shares)  # type: ignore[arg-type]


def param_groups(
    module: nn.Module,
    weight_decay: float,
    *,
    constant_lr: nn.Module | None = None,
    rates: Mapping[nn.Module, float] | None = None,
) -> list[dict[str, Any]]:
    """Parameters that train, split into those with and without weight decay and LARS scaling.

    Biases and all parameters of normalisation layers go without. What is which is told by the type
    of the module and the name of the parameter, not by the number of dimensions, which lazy and
    sharded parameters do not tell.

    Args:
        module: a learner, or any module.
        weight_decay: of the first group.
        constant_lr: a part of it whose rate should stay constant, in groups of its own: SimSiam's
            paper does so with ``learner.predictor``.
        rates: peak rates of parts of it, where they are not the optimizer's:
            ``{learner.net: 1e-4}`` for a backbone that is pretrained.

    Returns:
        Two groups for any optimizer; "lars_exclude" in the second tells ``LARS``. With
        ``constant_lr`` two more, which "constant_lr" tells ``cosine_schedule``, and two for each
        of ``rates``, which have "lr".
    """
    kinds: dict[int, tuple[tuple[str, Any], ...]] = {}
    for part, rate in (rates or {}).items():
        kinds |= dict.fromkeys(map(id, part.parameters()), (("lr", rate),))
    for parameter in () if constant_lr is None else constant_lr.parameters():
        kinds[id(parameter)] = (*kinds.get(id(parameter), ()), ("constant_lr", True))
    split: dict[tuple[tuple[tuple[str, Any], ...], bool], list[Tensor]] = {}
    seen: set[int] = set()
    for layer in module.modules():
        normalises = isinstance(layer, NORMALISATION) or "Norm" in type(layer).__name__
        for name, parameter in layer.named_parameters(recurse=False):
            if not parameter.requires_grad or id(parameter) in seen:
                continue
            seen.add(id(parameter))
            key = (kinds.get(id(parameter), ()), normalises or name.endswith("bias"))
            split.setdefault(key, []).append(parameter)
    groups: list[dict[str, Any]] = []
    for kind in dict.fromkeys([(), *kinds.values()]):
        decayed, excluded = split.get((kind, False), []), split.get((kind, True), [])
        groups += [
            {"params": decayed, "weight_decay": weight_decay, **dict(kind)},
            {"params": excluded, "weight_decay": 0.0, "lars_exclude": True, **dict(kind)},
        ]
    return groups


class LARS(Optimizer):
    """Layer-wise adaptive rate scaling, as the reference implementation of BYOL has it.

    With ``u = grad + weight_decay * p``, ``u <- u * eta |p| / |u|`` (unscaled where a norm is 0),
    ``m <- momentum * m + u``, and ``p <- p - lr * m``. Groups with "lars_exclude" are not scaled.

    Args:
        params: parameters, or groups as ``param_groups`` gives them.
        lr: learning rate; (batch size / 256) times a base rate in the paper.
        momentum: in [0, 1).
        weight_decay: L2 penalty, added to the gradient.
        eta: trust coefficient.

    Raises:
        ValueError: a setting out of its range.

    Reference:
        You et al. 2017 (arXiv 1708.03888) and the code of Grill et al. 2020. Widely copied variants
        divide by ``|grad| + weight_decay |p|`` instead, which differs where weight decay is large.

    Example:
        >>> import torch
        >>> from byol_wrap import LARS, param_groups, warmup_cosine
        >>> net = torch.nn.Linear(4, 2)
        >>> optimizer = LARS(param_groups(net, weight_decay=1.5e-6), lr=0.2 * 4096 / 256)
        >>> scheduler = torch.optim.lr_scheduler.LambdaLR(
        ...     optimizer, lambda step: warmup_cosine(step, total_steps=100, warmup_steps=10)
        ... )
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        eta: float = 1e-3,
    ) -> None:
        if lr < 0 or not 0 <= momentum < 1 or weight_decay < 0 or eta <= 0:
            raise ValueError(
                "LARS expects lr >= 0, momentum in [0, 1), weight_decay >= 0 and eta > 0, got "
                f"lr={lr}, momentum={momentum}, weight_decay={weight_decay}, eta={eta}."
            )
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "eta": eta,
            "lars_exclude": False,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take one step; reads nothing back from the device."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            for device in dict.fromkeys(p.device for p in parameters):
                self._step([p for p in parameters if p.device == device], group)
        return loss

    def _step(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        updates = [p.grad for p in parameters if p.grad is not None]
        if not group["lars_exclude"] or group["weight_decay"] != 0:
            updates = list(torch._foreach_add(updates, parameters, alpha=group["weight_decay"]))
        if not group["lars_exclude"]:
            torch._foreach_mul_(updates, _trust(parameters, updates, group["eta"]))
        for parameter in parameters:
            if "momentum_buffer" not in self.state[parameter]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        momenta = [self.state[parameter]["momentum_buffer"] for parameter in parameters]
        torch._foreach_mul_(momenta, group["momentum"])
        torch._foreach_add_(momenta, updates)
        torch._foreach_add_(parameters, momenta, alpha=-group["lr"])


def _trust(parameters: list[Tensor], updates: list[Tensor], eta: float) -> list[Tensor]:
    """The scale of each update: eta |p| / |u|, and 1 where either norm is 0.

    All in one vector: operators do not grow with the number of parameters.
    """
    sizes = torch.stack(torch._foreach_norm(parameters))
    steps = torch.stack(torch._foreach_norm(updates))
    ratios = torch.where((sizes > 0) & (steps > 0), eta * sizes / steps, 1.0)
    return list(ratios.unbind())
