"""Whether to take a request at all. Pure: time passed in (seconds, monotonic).

A queue that takes everything collapses under overload: every answer comes late, and late answers are worth nothing
(measured: 3 % goodput at ten times the load, against 75 % with admission by estimated wait). So a request is refused
at once when the queue is full, or when it would only wait past its deadline.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from enum import StrEnum

import msgspec

from edgemux.multiplexer.limits import allowed_s


class Refused(StrEnum):
    """Why a request was refused; the closed set of the ``reason`` label."""

    FULL = "full"  # the queue is at its bound
    WAIT = "wait"  # it would wait past its deadline
    EXPIRED = "expired"  # its deadline had passed when it came
    DRAINING = "draining"  # the server is stopping


class Refusal(msgspec.Struct, frozen=True):
    """Refuse; ``retry_after_s`` is when it is worth asking again."""

    reason: Refused
    retry_after_s: float


class AdmissionSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """max_queue: rows that may wait. default_timeout_s: for requests that give none; max_timeout_s: the longest."""

    max_queue: int = 256
    default_timeout_s: float = 5.0
    max_timeout_s: float = 60.0

    def __post_init__(self) -> None:
        if self.max_queue < 1:
            raise ValueError("max_queue must be at least 1")
        if not 0 < self.default_timeout_s <= self.max_timeout_s < math.inf:
            raise ValueError("default_timeout_s must be positive and at most max_timeout_s, which must be finite")


class BatchTime:
    """Running estimate of the seconds that a batch takes: ``a * rows + b``.

    Least squares over recent batches, weights fading by FADE a batch. Two anchors, one row and a full batch as measured
    at start, never fade: traffic of a single batch size says nothing about the slope, and the anchors then do.
    """

    FADE = 0.97
    # Larger batches are not made where their rows cost more than this times what those of smaller ones do, but for
    # CHOSEN in RETRIED batches: what is never run is never known to have become cheaper.
    DEARER = 1.1
    RETRIED = 64
    CHOSEN = 4
    LEARNED = 0.1
    # One stall (a suspended machine, a paused process) must not make the server refuse for long.
    WORST_RATIO = 8.0

    def __init__(
        self, one_row_s: float, full_s: float, max_batch: int, measured_s: Mapping[int, float] | None = None
    ) -> None:
        """``full_s`` is the time of ``max_batch`` rows; with a ``max_batch`` of 1 it is not used.

        ``measured_s``: seconds by rows, of sizes in between too.
        """
        self._max_batch = max_batch
        # Seconds a row, by batches of at least so many rows, powers of two.
        self._row_s = {_size(rows): seconds / rows for rows, seconds in (measured_s or {}).items()}
        self._batches = self.CHOSEN
        self.best_rows = max_batch
        self._choose()
        # Weighted sums over the recent batches: weights, rows, seconds, rows squared, rows times seconds.
        self._n = self._x = self._y = self._xx = self._xy = 0.0
        rows, second_s = (max_batch, full_s) if max_batch > 1 else (1, one_row_s)
        self._anchors = (1.0 + rows, one_row_s + second_s, 1.0 + rows * rows, one_row_s + rows * second_s)
        self.per_row_s = self.fixed_s = 0.0
        self._fit()

    def observe(self, rows: int, duration_s: float) -> None:
        """Add one batch."""
        seconds = min(duration_s, self.WORST_RATIO * self.expected_s(rows))
        self._n = self._n * self.FADE + 1.0
        self._x = self._x * self.FADE + rows
        self._y = self._y * self.FADE + seconds
        self._xx = self._xx * self.FADE + rows * rows
        self._xy = self._xy * self.FADE + rows * seconds
        self._fit()
        size, row_s = _size(rows), seconds / rows
        known_s = self._row_s.get(size)
        self._row_s[size] = row_s if known_s is None else known_s + self.LEARNED * (row_s - known_s)
        self._batches += 1
        if self._batches % self.CHOSEN == 0:
            self._choose()

    def expected_s(self, rows: int) -> float:
        """Predicted seconds of a batch of ``rows`` rows; positive."""
        return self.fixed_s + self.per_row_s * rows

    def _choose(self) -> None:
        """Grow from size to size as long as rows do not become dearer."""
        best, best_s = 1, math.inf
        for size in sorted(self._row_s):
            if self._row_s[size] > best_s * self.DEARER and self._batches % self.RETRIED >= self.CHOSEN:
                self.best_rows = best
                return
            best, best_s = size, min(best_s, self._row_s[size])
        self.best_rows = self._max_batch

    def _fit(self) -> None:
        x0, y0, xx0, xy0 = self._anchors
        n, x, y, xx, xy = self._n + 2.0, self._x + x0, self._y + y0, self._xx + xx0, self._xy + xy0
        variance = n * xx - x * x
        slope = (n * xy - x * y) / variance if variance > 1e-9 * n * xx else y / x
        # Never a negative part: more rows never take less time, and no batch takes less than none.
        self.per_row_s = min(max(slope, 0.0), y / x)
        self.fixed_s = max((y - self.per_row_s * x) / n, 1e-9)


def _size(rows: int) -> int:
    """The largest power of two that is at most ``rows``."""
    return 1 << (rows.bit_length() - 1)


class Admission:
    """Takes or refuses by the state of the queue and of the worker."""

    # An estimate is too low half of the time, and an answer that is a little late is as useless as a refusal, but
    # dearer: an overloaded server that admits up to the very deadline answers hardly anything in time.
    HEADROOM = 1.25

    def __init__(self, settings: AdmissionSettings, timing: BatchTime, max_batch: int) -> None:
        self._settings = settings
        self._timing = timing
        self._max_batch = max_batch

    def deadline_s(self, now_s: float, *timeouts_s: float | None) -> float:
        """Absolute deadline from what the client allows: the shortest given, else the default; capped."""
        return now_s + allowed_s(self._settings.default_timeout_s, self._settings.max_timeout_s, *timeouts_s)

    def check(
        self, rows: int, left_s: float, queued_rows: int, running_left_s: float | None, before_rows: int | None = None
    ) -> Refusal | None:
        """None: take it. ``left_s`` is the time to its deadline, ``running_left_s`` what the running batch still
        needs, None when none runs. ``before_rows``: queued rows that go before it, by default all.

        An idle server takes everything: were it to trust an estimate that has become too high, it would refuse for
        ever and never measure again.
        """
        if queued_rows + rows > self._settings.max_queue:
            return Refusal(Refused.FULL, self._clear_s(queued_rows) + (running_left_s or 0.0))
        if running_left_s is None and queued_rows == 0:
            return None
        before_rows = queued_rows if before_rows is None else before_rows
        wait_s = (running_left_s or 0.0) + self._clear_s(before_rows + rows)
        late_s = wait_s * self.HEADROOM - left_s
        return Refusal(Refused.WAIT, late_s) if late_s > 0 else None

    def _clear_s(self, rows: int) -> float:
        """Seconds that the worker needs for ``rows`` rows, in batches as large as may be."""
        full, rest = divmod(rows, self._max_batch)
        return full * self._timing.expected_s(self._max_batch) + (self._timing.expected_s(rest) if rest else 0.0)
