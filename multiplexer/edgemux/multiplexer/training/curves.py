"""Deferral curves: accuracy against the share deferred, their areas, and paired bootstrap intervals.

Inputs are deferred by falling gain. Rows of equal gain have no order of their own, so the curve is straight across
them: the mean over all their orders. All functions are pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Curve:
    """Accuracy when a share is deferred; straight between the points. Both float64 [groups + 1], shares 0 to 1."""

    share: Floats
    accuracy: Floats

    @property
    def area(self) -> float:
        """Mean accuracy over all shares."""
        return float(np.trapezoid(self.accuracy, self.share))

    def at(self, share: float) -> float:
        """Accuracy at a share deferred."""
        return float(np.interp(share, self.share, self.accuracy))

    def share_for(self, accuracy: float) -> float:
        """The least share at which an accuracy is reached; not a number when it never is."""
        reached = np.flatnonzero(self.accuracy >= accuracy)
        if not len(reached):
            return float("nan")
        k = int(reached[0])
        if k == 0:
            return 0.0
        rise = self.accuracy[k] - self.accuracy[k - 1]
        part = (accuracy - self.accuracy[k - 1]) / rise
        return float(self.share[k - 1] + part * (self.share[k] - self.share[k - 1]))


@dataclass(frozen=True, slots=True)
class Ranking:
    """Rows by falling gain; where each group of equal gains ends; 1 where keeping and where deferring is right, [n]."""

    rows: NDArray[np.int64]
    ends: NDArray[np.int64]
    kept: Floats
    deferred: Floats

    def curve(self, weights: Floats | None = None) -> Curve:
        """The deferral curve; ``weights`` of the rows, [n], for the bootstrap."""
        w = np.ones(len(self.rows)) if weights is None else weights
        at = np.concatenate([[0], self.ends])
        gained = np.concatenate([[0.0], np.cumsum((w * (self.deferred - self.kept))[self.rows])])[at]
        shares = np.concatenate([[0.0], np.cumsum(w[self.rows])])[at]
        return Curve(shares / shares[-1], (float((w * self.kept).sum()) + gained) / shares[-1])


def rank(gain: NDArray[Any], kept: NDArray[Any], deferred: NDArray[Any]) -> Ranking:
    """Rank n rows by gain."""
    rows = np.argsort(-gain, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(gain[rows]) != 0) + 1, len(gain))
    return Ranking(rows, ends, kept.astype(np.float64), deferred.astype(np.float64))


def areas(rankings: Mapping[str, Ranking], draws: int, seed: int) -> dict[str, Floats]:
    """Areas over resampled rows, float64 [draws] each; the same draws for all, so that differences are paired."""
    generator = np.random.default_rng(seed)
    n = len(next(iter(rankings.values())).rows)
    found = {name: np.empty(draws) for name in rankings}
    for draw in range(draws):
        weights = np.bincount(generator.integers(0, n, n), minlength=n).astype(np.float64)
        for name, ranking in rankings.items():
            found[name][draw] = ranking.curve(weights).area
    return found


def interval(values: Floats, confidence: float = 0.95) -> tuple[float, float]:
    """The percentile interval of bootstrap draws."""
    tail = 50.0 * (1.0 - confidence)
    low, high = np.percentile(values, [tail, 100.0 - tail])
    return float(low), float(high)


def paired_error(gain: NDArray[Any], other: NDArray[Any], device: NDArray[Any], cloud: NDArray[Any]) -> float:
    """Standard error of the difference of two areas over the draw of the rows.

    The area is mean(d) + mean over pairs of g_i [i is deferred no later than j]; its first-order influence of a row
    is d + g (1 - rank) + the mean gain of the rows deferred before it, exact but for terms of order 1 / n.
    """
    return float((_influence(gain, device, cloud) - _influence(other, device, cloud)).std() / len(gain) ** 0.5)


def _influence(gain: NDArray[Any], device: NDArray[Any], cloud: NDArray[Any]) -> Floats:
    n = len(gain)
    order = np.argsort(-gain, kind="stable")
    g = (cloud.astype(np.float64) - device)[order]
    before = np.concatenate([[0.0], np.cumsum(g)[:-1]]) / n
    result = np.empty(n)
    result[order] = device[order] + g * (1.0 - (np.arange(n) + 0.5) / n) + before
    return result
