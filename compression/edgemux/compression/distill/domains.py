"""How far apart the features of two domains are: by their covariances, or by their distributions."""

from __future__ import annotations

import torch
from torch import Tensor

# Widths of the kernels as shares of the mean squared distance, so that near and far points both count (Long et al.
# 2015 use such a family around one bandwidth).
BANDWIDTHS = (0.25, 0.5, 1.0, 2.0, 4.0)


def coral(a: Tensor, b: Tensor) -> Tensor:
    """Squared Frobenius distance of the covariances over 4 d^2 (Sun & Saenko 2016, Deep CORAL, equation 1).

    a: float [n, d]; b: float [m, d]; n, m > 1. Means do not matter.
    """
    width = a.shape[1]
    return (_covariance(a) - _covariance(b)).square().sum() / (4.0 * width**2)


def mmd(a: Tensor, b: Tensor) -> Tensor:
    """Squared maximum mean discrepancy under the mean of Gaussian kernels of five widths, 0..2 (Gretton et al. 2012).

    a: float [n, d]; b: float [m, d]. The biased estimate with every pair, which is 0 for the same samples.
    """
    both = torch.cat([a, b])
    lengths = both.square().sum(dim=1)
    square = (lengths[:, None] + lengths[None] - 2.0 * both @ both.T).clamp_min(0.0)
    scale = square.detach().mean().clamp_min(torch.finfo(square.dtype).tiny)
    kernel = torch.stack([torch.exp(-square / (width * scale)) for width in BANDWIDTHS]).mean(dim=0)
    n = len(a)
    return kernel[:n, :n].mean() + kernel[n:, n:].mean() - 2.0 * kernel[:n, n:].mean()


def _covariance(x: Tensor) -> Tensor:
    centred = x - x.mean(dim=0)
    return centred.T @ centred / (len(x) - 1)
