"""How long a call takes."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np


def median_ms(call: Callable[[], object], repeats: int) -> float:
    """The median of so many calls, in ms."""
    taken = []
    for _ in range(repeats):
        began = time.perf_counter()
        call()
        taken.append(time.perf_counter() - began)
    return 1e3 * float(np.median(taken))
