"""Has a stream of numbers changed? Bets against a reference, with a stated mean time to a false alarm.

A reference is a histogram of what the stream was. Every bin, and every tail, has a chance that is not above a limit
taken from the reference's counts; a bet that pays when a value falls there more often than that has factors e with mean
at most 1 while nothing has changed. Each bet is started afresh with every value, and the sum of all that were started,
M = (1 + M) * e (Shiryaev 1963, Roberts 1966), is on average at most the number of values seen. So M, or a mean of such
M, is first at least A after A values or more on average: the e-detectors of Shin, Ramdas and Rinaldo (2023,
"E-detectors: a nonparametric framework for sequential change detection", NEJSDS 2).

The statement is about values that come independently of each other. Frames of one camera do not: values that keep
falling into one bin for a while are what a shift looks like.
"""

from __future__ import annotations

import math
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

BINS = 10
# A bet of b is the best one against a chance that rose from the limit u to u + b * (1 - u) (Kelly 1956).
BETS = (0.025, 0.1, 0.35)
# The chance, over the draw of the reference, that any of its limits is below the true chance.
UNSURE = 0.01
# Of the values that a reference is learned from, the share that places the bins; the rest is counted. A histogram whose
# bins were placed by the values counted would look more even than the stream is.
PLACING = 0.25
# Values worked on at once: products of so many factors stay far inside of float64.
CHUNK = 32
CEILING = 1e60
# Numbers of an input that are looked at, up to twice as many: little to copy on the path of a request.
PIXELS = 512


class Reference(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a stream was: rising ``edges``, and ``counts`` of the values <= the first edge, <= the next, ..., above."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.counts) != len(self.edges) + 1 or not self.edges or min(self.counts) < 0 or not sum(self.counts):
            raise ValueError("a reference needs edges, one count more than edges, and counts that are not all 0")
        if any(not low < high for low, high in zip(self.edges, self.edges[1:], strict=False)):
            raise ValueError("the edges of a reference must rise")


class References(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a bundle's inputs usually are: the pre-gate's gain, ``light_of``, the post-gate's gain per level."""

    pre_gate_gain: Reference
    brightness: Reference
    contrast: Reference
    levels: tuple[Reference, ...]


def reference_of(placing: NDArray[Any], counted: NDArray[Any], bins: int = BINS) -> Reference:
    """The histogram of ``counted`` [m] in bins that hold about as many each of ``placing`` [n], other values.

    A value that fills a whole bin by itself gets one of its own.
    """
    placed = placing.astype(np.float64)
    cuts = np.quantile(placed, np.arange(1, bins) / bins, method="lower")
    edges, times = np.unique(cuts, return_counts=True)
    with np.errstate(over="ignore"):  # nothing is below the least of all numbers
        below = np.nextafter(edges[times > 1], -np.inf)
    edges = np.unique(np.concatenate([edges, below[np.isfinite(below)]]))
    where = np.searchsorted(edges, counted.astype(np.float64), side="left")
    counts = np.bincount(where, minlength=len(edges) + 1)
    return Reference(tuple(edges.tolist()), tuple(int(count) for count in counts))


def chance_limit(counts: NDArray[Any], total: int, tail: float) -> Floats:
    """Upper limits of chances of which ``counts`` of ``total`` were seen, each wrong with chance ``tail`` at most.

    Chernoff's bound in its Kullback-Leibler form, by bisection for all at once; a little above Clopper and Pearson's.
    """
    seen = np.asarray(counts, dtype=np.float64) / total
    low, high = seen.copy(), np.ones_like(seen)
    room = math.log(1.0 / tail) / total
    for _ in range(50):
        middle = (low + high) / 2.0
        near = _divergence(seen, middle) <= room
        low, high = np.where(near, middle, low), np.where(near, high, middle)
    return high


def _divergence(p: Floats, q: Floats) -> Floats:
    """KL(Bernoulli(p) || Bernoulli(q)) in nats; 0 log 0 is 0."""
    tiny = 1e-300
    hit = p * np.log(np.maximum(p, tiny) / np.maximum(q, tiny))
    miss = (1.0 - p) * np.log(np.maximum(1.0 - p, tiny) / np.maximum(1.0 - q, tiny))
    return np.asarray(hit + miss)


class Detector:
    """Sums of bets on what comes next. State: one number a bet. Not thread-safe."""

    def __init__(self, factors: NDArray[Any]) -> None:
        """factors: [kinds, bets], above 0; unless something changed, each column's mean is 1 at most."""
        self._log = np.log(np.asarray(factors, dtype=np.float64))
        self._sums = np.zeros(self._log.shape[1])
        self.evidence = 0.0

    def observe(self, kinds: NDArray[Any]) -> float:
        """Take kinds INT [n] in turn. Returns ``evidence``, the most that the mean of the sums has been so far."""
        for start in range(0, len(kinds), CHUNK):
            steps = self._log[kinds[start : start + CHUNK]]
            total = np.cumsum(steps, axis=0)
            sums = np.exp(total) * (self._sums + np.cumsum(np.exp(steps - total), axis=0))
            self._sums = np.minimum(sums[-1], CEILING)
            self.evidence = max(self.evidence, float(sums.mean(axis=1).max()))
        return self.evidence


def against_reference(reference: Reference, unsure: float = UNSURE) -> Detector:
    """Bets that some bin or tail of the histogram holds more than it did; kinds are the numbers of the bins."""
    bins = len(reference.counts)
    own = np.eye(bins)
    below = np.triu(np.ones((bins, bins)))[:, :-1]
    sets = np.concatenate([own, below, 1.0 - below], axis=1)
    counts = np.array(reference.counts, dtype=np.float64)
    limits = chance_limit(counts @ sets, int(counts.sum()), unsure / sets.shape[1])
    factors = 1.0 + np.array(BETS)[:, None, None] * (sets / limits - 1.0)
    return Detector(np.moveaxis(factors, 0, 1).reshape(bins, -1))


def against_risk(limit: float) -> Detector:
    """Bets that a chance of at most ``limit`` in (0, 1) has become more; kinds are 0, and 1 for what should be rare."""
    rare = np.array([0.0, 1.0])[:, None]
    return Detector(1.0 + np.array((0.01, 0.03, 0.1, 0.3)) * (rare / limit - 1.0))


class Stream:
    """One number per input: first learned, unless a reference is given, then watched. Bounded memory."""

    def __init__(self, learn: int, reference: Reference | None = None, unsure: float = UNSURE) -> None:
        """learn: how many values make the reference where none is given; at least 8."""
        self._unsure = unsure
        self._learned: Floats | None = None if reference else np.empty(max(8, learn))
        self.seen = 0
        self.reference = reference
        self._detector = against_reference(reference, unsure) if reference else None

    @property
    def evidence(self) -> float:
        """On average at most the number of values seen since the reference, if nothing has changed."""
        return self._detector.evidence if self._detector else 0.0

    def observe(self, values: NDArray[Any]) -> float:
        """Take values FLOAT [n] in turn; what is not a number counts as very large. Returns ``evidence``."""
        rest = np.asarray(values, dtype=np.float64)
        if self._learned is not None:
            taken = rest[: len(self._learned) - self.seen]
            self._learned[self.seen : self.seen + len(taken)] = np.nan_to_num(taken, nan=np.inf)
            rest = rest[len(taken) :]
            self.seen += len(taken)
            if self.seen == len(self._learned):
                self._settle(self._learned)
        if self.reference is not None and self._detector is not None:
            self.seen += len(rest)
            self._detector.observe(np.searchsorted(np.array(self.reference.edges), rest, side="left"))
        return self.evidence

    def _settle(self, learned: Floats) -> None:
        split = max(1, int(len(learned) * PLACING))
        self.reference = reference_of(learned[:split], learned[split:])
        self._detector = against_reference(self.reference, self._unsure)
        self._learned = None


def numbers_of(tensor: NDArray[Any]) -> NDArray[Any]:
    """About PIXELS numbers of each row of a tensor [n, ...], the same ones each time, as a small copy [n, numbers]."""
    rows = tensor.reshape(len(tensor), -1)
    # An odd step does not stay in one column of a picture or one of its channels for long.
    return rows[:, :: (rows.shape[1] // PIXELS) | 1].copy()


def light_of(numbers: NDArray[Any]) -> Floats:
    """Mean and standard deviation of each row of numbers [n, m], FP64 [n, 2]: brightness and contrast of pictures."""
    with np.errstate(over="ignore", invalid="ignore"):
        exact = numbers.astype(np.float64)
        return np.stack([exact.mean(axis=1), exact.std(axis=1)], axis=1)
