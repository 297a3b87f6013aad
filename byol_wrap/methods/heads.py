"""The papers' heads: projectors on top of the representation, and predictors on top of those.

A size of None is that of the representation, which may not be known yet: such layers are lazy, and
their parameters keep their identity when it is found. A lazy layer draws no weights.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from operator import index as as_index
from typing import Any

import torch
from torch import Tensor, nn

from byol_wrap.methods.processes import SharedBatchNorm1d, in_group


@contextmanager
def drawn_apart() -> Iterator[None]:
    """Build heads in float32 on the host, whatever the defaults are.

    The global random state is afterwards what it was.
    """
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.device("cpu"), torch.random.fork_rng([]):
            yield
    finally:
        torch.set_default_dtype(dtype)


def mlp(
    in_features: int | None,
    hidden_features: int,
    out_features: int,
    *,
    sync_batchnorm: bool | None = False,
) -> nn.Sequential:
    """Linear, BatchNorm1d, ReLU, Linear without bias: projector and predictor of BYOL.

    Args:
        in_features: size of the input, or None where it is not known yet.
        hidden_features: width of the hidden layer (4096 in the paper).
        out_features: size of the output (256 in the paper).
        sync_batchnorm: whether statistics are shared between processes; None does so in a group of
            several.

    Returns:
        A module from (B, in_features) to (B, out_features).

    Raises:
        ValueError: a size that is not a positive integer.

    Reference:
        Grill et al. 2020, section 3.3; no BatchNorm follows the last layer. The reference code
        draws weights from a truncated normal; here they are PyTorch's default.
    """
    _check_sizes(hidden=hidden_features, output=out_features)
    if in_features is not None:
        _check_sizes(input=in_features)
    return nn.Sequential(
        _linear(in_features, hidden_features),
        _norm(hidden_features, sync_batchnorm),
        nn.ReLU(inplace=True),
        nn.Linear(hidden_features, out_features, bias=False),
    )


def simsiam_projector(
    hidden_features: int | None, out_features: int, *, sync_batchnorm: bool | None = False
) -> nn.Sequential:
    """Three layers with BatchNorm after each; the last has neither ReLU nor weights of its own.

    Args:
        hidden_features: width of both hidden layers.
        out_features: size of the output (2048 in the paper).
        sync_batchnorm: as for ``mlp``.

    Reference:
        Chen and He 2021 (arXiv 2011.10566), section 3, and facebookresearch/simsiam.
    """
    _check_sizes(hidden=1 if hidden_features is None else hidden_features, output=out_features)
    return nn.Sequential(
        _linear(None, hidden_features, bias=False),
        _norm(hidden_features, sync_batchnorm),
        nn.ReLU(inplace=True),
        _linear(hidden_features, hidden_features, bias=False),
        _norm(hidden_features, sync_batchnorm),
        nn.ReLU(inplace=True),
        _linear(hidden_features, out_features, bias=False),
        _norm(out_features, sync_batchnorm, affine=False),
    )


def simsiam_predictor(
    features: int, hidden_features: int, *, sync_batchnorm: bool | None = False
) -> nn.Sequential:
    """A bottleneck: two layers from ``features`` through ``hidden_features`` and back.

    Reference:
        Chen and He 2021, section 3: a quarter of the features in the middle.
    """
    _check_sizes(hidden=hidden_features, output=features)
    return nn.Sequential(
        nn.Linear(features, hidden_features, bias=False),
        _norm(hidden_features, sync_batchnorm),
        nn.ReLU(inplace=True),
        nn.Linear(hidden_features, features),
    )


def simclr_projector(
    hidden_features: int | None, out_features: int, *, sync_batchnorm: bool | None = False
) -> nn.Sequential:
    """Two layers with BatchNorm after each; that of the last scales, but does not shift.

    Reference:
        Chen et al. 2020 (arXiv 2002.05709), section 2.1, and google-research/simclr, whose code has
        the BatchNorm that the text does not. Its fixed shift is a bias of zero that is not trained.
    """
    _check_sizes(hidden=1 if hidden_features is None else hidden_features, output=out_features)
    last = _norm(out_features, sync_batchnorm)
    last.get_parameter("bias").requires_grad_(False)
    return nn.Sequential(
        _linear(None, hidden_features),
        _norm(hidden_features, sync_batchnorm),
        nn.ReLU(inplace=True),
        _linear(hidden_features, out_features, bias=False),
        last,
    )


def moco_projector(hidden_features: int | None, out_features: int) -> nn.Sequential:
    """Two layers without BatchNorm.

    Reference:
        Chen et al. 2020 (MoCo v2, arXiv 2003.04297), section 2, and facebookresearch/moco.
    """
    _check_sizes(hidden=1 if hidden_features is None else hidden_features, output=out_features)
    return nn.Sequential(
        _linear(None, hidden_features),
        nn.ReLU(inplace=True),
        _linear(hidden_features, out_features),
    )


class LazySquare(nn.LazyLinear):
    """A linear layer as wide as its input, whose size is not known yet."""

    def __init__(self, bias: bool = True) -> None:
        super().__init__(0, bias)

    def initialize_parameters(self, input: Tensor) -> None:  # type: ignore[override]
        """Take the input's size for the output's, too."""
        self.out_features = input.shape[-1]
        super().initialize_parameters(input)


class LazyBatchNorm1d(nn.LazyBatchNorm1d):
    """PyTorch's, which cannot be copied while the number of features is not known; this one can."""

    def __deepcopy__(self, memo: dict[int, Any]) -> "LazyBatchNorm1d":
        like = self.get_buffer("running_mean")
        copied = type(self)(
            self.eps, self.momentum, self.affine, device=like.device, dtype=like.dtype
        )
        memo[id(self)] = copied
        return copied.train(self.training)


class LazySharedBatchNorm1d(LazyBatchNorm1d):
    """``SharedBatchNorm1d``, while the number of features is not known yet."""

    cls_to_become = SharedBatchNorm1d  # type: ignore[assignment]


def _linear(in_features: int | None, out_features: int | None, bias: bool = True) -> nn.Linear:
    if out_features is None:
        return LazySquare(bias)
    if in_features is None:
        return nn.LazyLinear(out_features, bias)
    return nn.Linear(in_features, out_features, bias)


def _norm(features: int | None, shared: bool | None, affine: bool = True) -> nn.Module:
    if in_group() if shared is None else shared:
        if features is None:
            return LazySharedBatchNorm1d(affine=affine)
        return SharedBatchNorm1d(features, affine=affine)
    return (
        LazyBatchNorm1d(affine=affine)
        if features is None
        else nn.BatchNorm1d(features, affine=affine)
    )


def _check_sizes(**sizes: int) -> None:
    for name, size in sizes.items():
        if not is_count(size):
            raise ValueError(
                f"The {name} size of a head should be a positive integer, got {size!r}."
            )


def is_count(number: object) -> bool:
    """Whether something is a whole number of at least 1, of Python's, numpy's or another kind."""
    try:
        return as_index(number) >= 1  # type: ignore[arg-type]
    except TypeError:
        return False
