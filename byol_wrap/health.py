"""Measures of collapse: is the representation still spread out?"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


@torch.no_grad()
def std_ratio(features: Tensor) -> Tensor:
    """How evenly features fill the sphere: 1 for an isotropic Gaussian, 0 collapsed to a point.

    The standard deviation over the batch of each dimension of the L2-normalised features, averaged
    over dimensions, times sqrt(D). Features behind a ReLU share a positive mean, and are healthy
    at 0.3 to 0.6; what tells a collapse is a fall towards 0.

    Args:
        features: (B, D), floating, B at least 2.

    Returns:
        A scalar on the features' device, at least 0, in float32 or wider.

    Reference:
        Chen and He 2020 (SimSiam, arXiv 2011.10566), section 4.1.

    Example:
        >>> std_ratio(torch.ones(8, 4)).item()
        0.0
    """
    dtype = torch.promote_types(features.dtype, torch.float32)
    unit = F.normalize(features.to(dtype), dim=1)
    return unit.std(dim=0).mean() * math.sqrt(features.shape[1])
