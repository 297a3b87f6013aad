"""The objective of BYOL, as a pure function."""

import torch
import torch.nn.functional as F
from torch import Tensor


def byol_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean squared distance between L2-normalised predictions and target projections.

    For one direction, the mean over the batch of ``|q/|q| - z/|z||^2 = 2 - 2 cos(q, z)``. The
    symmetric loss of the paper adds both directions and so lies in [0, 8].

    Args:
        prediction: (B, D), floating, what the online network predicts.
        target: (B, D), floating, what the target network projected. Detach it, or compute it
            without gradient: the function itself stops nothing.

    Returns:
        A scalar in [0, 4], in float32 (float64 for float64 input) whatever autocast says.

    Raises:
        ValueError: the two are not matrices of one shape.

    Reference:
        Grill et al. 2020, equation 2. Norms are floored at 1e-6, as in the reference code, so that
        a vector of zeros has a finite gradient.

    Example:
        >>> import torch
        >>> byol_loss(torch.eye(2), -torch.eye(2)).item()
        4.0
    """
    if prediction.ndim != 2 or prediction.shape != target.shape:
        raise ValueError(
            "byol_loss expects two matrices of one shape (B, D), got "
            f"{tuple(prediction.shape)} and {tuple(target.shape)}; pool or flatten them first."
        )
    with torch.autocast(prediction.device.type, enabled=False):
        return (_unit(prediction) - _unit(target)).square().sum(dim=1).mean()


def _unit(vectors: Tensor) -> Tensor:
    dtype = torch.promote_types(vectors.dtype, torch.float32)
    return F.normalize(vectors.to(dtype), dim=1, eps=1e-6)
