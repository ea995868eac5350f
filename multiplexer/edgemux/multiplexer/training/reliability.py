"""Do probabilities mean what they say: equal-mass calibration error, Brier score, ranking. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

BINS = 15


@dataclass(frozen=True, slots=True)
class Reliability:
    """Per bin of equal count: mean probability said, share that came true; float64 [bins] each."""

    said: NDArray[np.float64]
    true: NDArray[np.float64]
    weight: NDArray[np.float64]

    @property
    def error(self) -> float:
        """Expected calibration error: the mean distance between the two."""
        return float((self.weight * np.abs(self.said - self.true)).sum())


def reliability(said: NDArray[Any], true: NDArray[Any], bins: int = BINS) -> Reliability:
    """Over bins of equal mass (Nguyen & O'Connor 2015). said: probabilities [n]; true: 0 or 1, [n]."""
    order = np.argsort(said, kind="stable")
    groups = np.array_split(order, min(bins, len(said)))
    return Reliability(
        np.array([float(said[group].mean()) for group in groups]),
        np.array([float(true[group].mean()) for group in groups]),
        np.array([len(group) / len(said) for group in groups]),
    )


def brier(said: NDArray[Any], true: NDArray[Any]) -> float:
    """Mean squared distance between probability and outcome (Brier 1950)."""
    return float(((said.astype(np.float64) - true) ** 2).mean())


def auroc(score: NDArray[Any], true: NDArray[Any]) -> float:
    """P(a true row scores above a false one), ties count half; not a number when one kind is missing."""
    positives = int(true.sum())
    negatives = len(true) - positives
    if not positives or not negatives:
        return float("nan")
    _, inverse, counts = np.unique(score, return_inverse=True, return_counts=True)
    rank = (np.cumsum(counts) - (counts - 1) / 2.0)[inverse]
    above = float(rank[true.astype(bool)].sum()) - positives * (positives + 1) / 2.0
    return above / (positives * negatives)
