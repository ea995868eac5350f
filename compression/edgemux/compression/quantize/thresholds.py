"""Batch norm and sign after a product of signs, as one comparison of whole numbers (FINN, Umuroglu et al. 2017).

The product is a whole number and what follows it rises or falls with it, so the sign turns over at one whole number.
That number is searched for with the very function it replaces: not even its rounding is left out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Whole = NDArray[np.int32]
# Whole numbers [channels] -> is the sign of what follows positive, bool [channels]?
Positive = Callable[[Whole], NDArray[np.bool_]]


@dataclass(frozen=True, eq=False)
class Thresholds:
    """The sign of channel c is positive where (product >= at[c]) != falling[c]; at: int32, falling: bool [channels]."""

    at: Whole
    falling: NDArray[np.bool_]

    def positive(self, products: Whole) -> NDArray[np.bool_]:
        """int32 [..., channels] -> bool [..., channels]."""
        return (products >= self.at) != self.falling

    def signs(self, products: Whole) -> NDArray[np.float32]:
        """int32 [..., channels] -> float32 -1 or 1."""
        return np.where(self.positive(products), np.float32(1.0), np.float32(-1.0))


def fold(positive: Positive, channels: int, reach: int) -> Thresholds:
    """The thresholds that give the signs of ``positive`` for every product from -reach to reach.

    ``positive`` must turn over at most once in each channel. reach: the number of terms of the product.
    """
    low = np.full(channels, -reach, np.int32)
    high = np.full(channels, reach + 1, np.int32)
    start = positive(low)
    falling = start & ~positive(high - 1)
    # Invariant: below ``low`` the sign is that of the start, from ``high`` on it is the other.
    while np.any(low < high):
        middle = (low + high) // 2
        same = positive(np.minimum(middle, reach)) == start
        open_ = low < high
        low = np.where(open_ & same, middle + 1, low).astype(np.int32)
        high = np.where(open_ & ~same, middle, high).astype(np.int32)
    always = start & ~falling
    return Thresholds(np.where(always, -reach, low).astype(np.int32), falling)
