"""Finds a torch weight in an exported graph although the exporter has scaled its output channels.

Export folds a batch norm into the convolution before it: weight [c, ...] becomes fl(weight * scale[c]), which has as
many codebooks as channels. With the scales apart, one codebook is enough, and the product gives back every bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Weight = NDArray[np.float32]
# fl(w * s) / w is within 1.5 units in the last place of s, or three below a power of two.
NEIGHBOURS = 3


def scaled(weight: Weight, scale: Weight) -> Weight:
    """float32 [c, ...] times one number a channel, float32 [c]."""
    return weight * scale.reshape(-1, *(1,) * (weight.ndim - 1))


def parted(value: Weight, weights: Sequence[Weight]) -> tuple[Weight, Weight | None]:
    """(weight, scale) with ``scaled(weight, scale)`` bit for bit ``value``; (value, None) where none of them fits."""
    for weight in weights:
        if weight.shape == value.shape and value.ndim > 1 and value.size:
            if same_bits(weight, value):
                break
            scale = _scale(value.reshape(len(value), -1), weight.reshape(len(value), -1))
            if scale is not None:
                return weight, scale
    return value, None


def _scale(value: Weight, weight: Weight) -> Weight | None:
    """One scale for each row, or None when there are none that give exactly these values."""
    at = np.abs(weight).argmax(axis=1)[:, None]
    with np.errstate(all="ignore"):
        ratio = (np.take_along_axis(value, at, 1) / np.take_along_axis(weight, at, 1))[:, 0]
    # A row of zeros keeps the sign of its zeros under any positive scale only.
    ratio = np.where(np.isfinite(ratio), ratio, np.float32(1.0)).astype(np.float32)
    scale, open_rows = ratio.copy(), np.ones(len(ratio), bool)
    for far in sorted(range(-NEIGHBOURS, NEIGHBOURS + 1), key=abs):
        trial = ratio.copy()
        for _ in range(abs(far)):
            trial = np.nextafter(trial, np.float32(np.copysign(np.inf, far)))
        with np.errstate(all="ignore"):
            fits = (scaled(weight, trial).view(np.uint32) == value.view(np.uint32)).all(axis=1)
        scale = np.where(open_rows & fits, trial, scale)
        open_rows &= ~fits
        if not open_rows.any():
            return scale
    return None


def same_bits(one: NDArray[Any], other: NDArray[Any]) -> bool:
    """Equal in shape, dtype and every bit."""
    return one.shape == other.shape and one.dtype == other.dtype and one.tobytes() == other.tobytes()
