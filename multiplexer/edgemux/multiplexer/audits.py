"""What comparisons of device and cloud say while serving: bounds that hold at any time, samples, a new calibration.

Everything takes bounded memory and is pure but for the generator that is passed in.
"""

from __future__ import annotations

import math
import random
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgemux.multiplexer.certify import Price, certify

Floats = NDArray[np.float64]

# Doubts, 1 - max softmax, at which a new certificate may be put: fixed beforehand, the strictest first, as the fixed
# sequence of tests demands. Evenly spaced log-odds.
DOUBTS = 1.0 / (1.0 + np.exp(np.linspace(12.0, -3.0, 300)))
# Log-odds are cut here: beyond, FP32 probabilities say nothing.
SUREST = 1e-7
# Below this slope a calibration would no longer order answers as max softmax does.
LEAST_SLOPE = 0.05


def risk_interval(wrong: int, n: int, delta: float) -> tuple[float, float]:
    """An interval for a chance, after ``wrong`` of ``n``, that holds at all n together with confidence 1 - delta.

    The chances that a mixture of bets with a Beta(1/2, 1/2) prior does not refute (Robbins 1970; Howard, Ramdas,
    McAuliffe and Sekhon 2021, "Time-uniform, nonparametric, nonasymptotic confidence sequences"), by bisection.
    """
    if n == 0:
        return 0.0, 1.0
    mixed = _log_beta(wrong + 0.5, n - wrong + 0.5) - _log_beta(0.5, 0.5) - math.log(1.0 / delta)

    def refuted(p: float) -> bool:
        hit = wrong * math.log(p) if wrong else 0.0
        miss = (n - wrong) * math.log1p(-p) if wrong < n else 0.0
        return mixed >= hit + miss

    middle = wrong / n
    return _edge(refuted, 0.0, middle), _edge(refuted, 1.0, middle)


def _edge(refuted: Any, outside: float, inside: float) -> float:
    for _ in range(60):
        middle = (outside + inside) / 2.0
        if middle in (outside, inside):
            break
        outside, inside = (middle, inside) if refuted(middle) else (outside, middle)
    return outside


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)


class Reservoir:
    """A uniform sample of all rows offered so far, FP64 [<= capacity, columns] (Vitter 1985, algorithm R)."""

    def __init__(self, capacity: int, columns: int, chance: random.Random) -> None:
        self._rows = np.empty((capacity, columns))
        self._chance = chance
        self.seen = 0

    def offer(self, *row: float) -> None:
        """Take a row in, or not."""
        place = self.seen if self.seen < len(self._rows) else self._chance.randrange(self.seen + 1)
        self.seen += 1
        if place < len(self._rows):
            self._rows[place] = row

    @property
    def rows(self) -> Floats:
        """The sample; a view."""
        return self._rows[: min(self.seen, len(self._rows))]

    def clear(self) -> None:
        """Forget everything."""
        self.seen = 0


class Calibration(msgspec.Struct, frozen=True):
    """P(the device's answer is the cloud's) = sigmoid(slope * log-odds of max softmax + offset) (Platt 1999)."""

    slope: float = 1.0
    offset: float = 0.0

    def confidence(self, surest: float) -> float:
        """The chance for an answer whose largest probability is ``surest``; rises with it."""
        value = self.slope * log_odds(surest) + self.offset
        return 1.0 / (1.0 + math.exp(-value)) if value > -700.0 else 0.0


def log_odds(surest: float) -> float:
    """log(p / (1 - p)), cut where FP32 ends; what is not a number counts as no confidence at all."""
    p = min(max(SUREST, surest), 1.0 - SUREST)
    return math.log(p) - math.log1p(-p)


def recalibrate(odds: Floats, agrees: Floats, weight: Floats, prior: Calibration, ridge: float = 4.0) -> Calibration:
    """The calibration that fits best, by Newton steps with halving; ``ridge`` pulls it towards ``prior``.

    odds: log-odds of max softmax [n]; agrees: 0 or 1 [n]; weight: [n]. With no rows it is ``prior``.
    """
    x = np.stack([odds, np.ones_like(odds)], axis=1)
    home = np.array([prior.slope, prior.offset])

    def loss(at: Floats) -> float:
        z = x @ at
        return float(weight @ (np.logaddexp(0.0, z) - agrees * z) + ridge / 2 * ((at - home) ** 2).sum())

    at = home.copy()
    for _ in range(25):
        chance = 1.0 / (1.0 + np.exp(-np.clip(x @ at, -500.0, 500.0)))
        slope = x.T @ (weight * (chance - agrees)) + ridge * (at - home)
        bend = (x * (weight * chance * (1.0 - chance))[:, None]).T @ x + ridge * np.eye(2)
        step, now = np.linalg.solve(bend, slope), loss(at)
        while loss(at - step) > now and np.abs(step).max() > 1e-9:
            step = step / 2.0
        at = at - step
        if np.abs(step).max() < 1e-6:
            break
    return Calibration(max(LEAST_SLOPE, float(at[0])), float(at[1]))


def certify_again(doubt: Floats, differs: NDArray[np.bool_], alpha: float, delta: float) -> Price | None:
    """The most doubt up to which answers may be kept, by the same tests as in the bundle; None if that is nothing.

    doubt: 1 - max softmax [n] of a random sample of what the device answers now, kept or not; differs: [n].
    """
    if not len(doubt):
        return None
    found = certify(doubt, differs, DOUBTS, alpha, delta)
    return found if found.kept > 0.0 else None
