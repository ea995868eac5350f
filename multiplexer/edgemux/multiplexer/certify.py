"""The certificate: P(kept on the device and differs from the cloud) <= alpha, with confidence 1 - delta.

A price is the gain up to which a device answer is kept. Prices are tried from the strictest on, in an order that
was fixed on other data; each is tested with an exact binomial test and the first that fails ends the search. That
is fixed-sequence testing: the chance that any accepted price breaks alpha is at most delta (Angelopoulos et al.
2021, "Learn then Test", section 3). The bound shown with it is Clopper and Pearson's (1934).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemux.multiplexer.errors import ConfigError

# Gains are differences of probabilities, within [-1, 1]: below -1 nothing is kept, above 1 nothing is deferred.
DEFER_ALL = -2.0
KEEP_ALL = 2.0


@dataclass(frozen=True, slots=True)
class Price:
    """A certified price, and what was seen at it on the certificate split.

    kept: share of inputs kept; disagreement: share kept and different from the cloud; upper_bound: its
    Clopper-Pearson bound at this level's share of delta.
    """

    price: float
    kept: float
    disagreement: float
    upper_bound: float


def certify(gain: NDArray[Any], differs: NDArray[np.bool_], grid: NDArray[Any], alpha: float, delta: float) -> Price:
    """The highest price that the fixed-sequence test accepts; DEFER_ALL when it accepts none.

    gain: [n] on the certificate split; differs: [n], where device and cloud disagree; grid: rising prices, chosen
    without looking at that split. Raises ConfigError for an alpha or delta outside (0, 1) or a grid that falls.
    """
    if not (0.0 < alpha < 1.0 and 0.0 < delta < 1.0):
        raise ConfigError("certify: alpha and delta must be between 0 and 1")
    if np.any(np.diff(grid) < 0):
        raise ConfigError("certify: the grid of prices must rise")
    accepted = DEFER_ALL
    for price in grid:
        wrong = int(np.count_nonzero(differs & (gain <= price)))
        if binomial_cdf(wrong, len(gain), alpha) > delta:
            break
        accepted = float(price)
    kept = gain <= accepted
    wrong = int(np.count_nonzero(differs & kept))
    share = float(kept.mean())
    return Price(accepted, share, wrong / len(gain), upper_bound(wrong, len(gain), delta))


def grid_of(gain: NDArray[Any], count: int) -> NDArray[np.float64]:
    """Rising prices at evenly spaced quantiles of the gains of *another* split."""
    quantiles = np.quantile(gain.astype(np.float64), np.linspace(0.0, 1.0, count))
    return np.unique(np.concatenate([quantiles, [KEEP_ALL]]))


def rows_needed(alpha: float, delta: float) -> int:
    """Least n at which anything can be certified: that no row errs must be unlikely, (1 - alpha)^n <= delta."""
    return math.ceil(math.log(delta) / math.log1p(-alpha))


def binomial_cdf(k: int, n: int, p: float) -> float:
    """P(Bin(n, p) <= k), exact to rounding: the p-value of "the risk is above p" after k of n went wrong."""
    if k >= n or p <= 0.0:
        return 1.0
    if p >= 1.0:
        return 0.0
    j = np.arange(1, k + 1, dtype=np.float64)
    ratios = np.log((n - j + 1) / j) + math.log(p) - math.log1p(-p)
    terms = np.concatenate([[0.0], np.cumsum(ratios)]) + n * math.log1p(-p)
    top = float(terms.max())
    return min(1.0, math.exp(top) * float(np.exp(terms - top).sum()))


def upper_bound(k: int, n: int, delta: float) -> float:
    """Clopper-Pearson: the p for which P(Bin(n, p) <= k) = delta, by bisection."""
    if k >= n:
        return 1.0
    low, high = k / n, 1.0
    for _ in range(60):
        middle = (low + high) / 2.0
        low, high = (middle, high) if binomial_cdf(k, n, middle) > delta else (low, middle)
    return high


def interval(k: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Two-sided Clopper-Pearson interval for a share k / n."""
    tail = (1.0 - confidence) / 2.0
    return 1.0 - upper_bound(n - k, n, tail), upper_bound(k, n, tail)


def skip_price(before: NDArray[Any], deferred: NDArray[np.bool_], agreement: float, least: int = 20) -> float:
    """The lowest pre-gate gain from which at least ``agreement`` of the inputs would be deferred anyway.

    before: pre-gate gains [n]; deferred: bool [n]. KEEP_ALL when no ``least`` inputs allow it.
    """
    order = np.argsort(-before, kind="stable")
    hits = np.cumsum(deferred[order])
    counts = np.arange(1, len(before) + 1)
    fits = np.flatnonzero((hits >= agreement * counts) & (counts >= least))
    return float(before[order[fits[-1]]]) if len(fits) else KEEP_ALL
