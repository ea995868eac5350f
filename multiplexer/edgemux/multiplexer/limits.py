"""What requests may take: time each, and tokens together, of which never more than rate and burst allow."""

from __future__ import annotations

import math


def allowed_s(default_s: float, most_s: float, *asked_s: float | None) -> float:
    """The time that a request may take: the shortest that was asked for, else the default; at most ``most_s``."""
    return min(most_s, min((seconds for seconds in asked_s if seconds is not None), default=default_s))


class TokenBucket:
    """A bucket of tokens filled at ``rate_per_s`` up to ``burst``. Infinite rate: no limit.

    But for what is charged, over any window of t seconds at most ``burst + rate_per_s * t`` tokens are taken. Time is
    passed in, monotonic; a clock that steps back adds nothing. ``taken``, ``accrued`` and ``spilled`` are totals; what
    is accrued while the bucket is full is spilled.
    """

    def __init__(self, rate_per_s: float, burst: float, tokens: float | None = None) -> None:
        """``tokens``: what it holds at first, if less than ``burst``."""
        if not rate_per_s >= 0 or not burst >= 0:
            raise ValueError("rate and burst must not be negative")
        self.rate_per_s = rate_per_s
        self.burst = burst
        self.unlimited = math.isinf(rate_per_s)
        self.taken = self.accrued = self.spilled = 0.0
        self._tokens = burst if tokens is None else min(burst, tokens)
        self._at_s: float | None = None

    def available(self, now_s: float) -> float:
        """Tokens that could be taken now."""
        if self.unlimited:
            return math.inf
        if self._at_s is None:
            self._at_s = now_s
        elapsed = now_s - self._at_s
        if elapsed > 0:
            accrued = elapsed * self.rate_per_s
            spilled = max(0.0, self._tokens + accrued - self.burst)
            self._tokens = min(self.burst, self._tokens + accrued)
            self.accrued += accrued
            self.spilled += spilled
            self._at_s = now_s
        return self._tokens

    def take(self, count: float, now_s: float) -> bool:
        """Take ``count`` tokens if they are there; False, and nothing taken, if not."""
        if count > self.available(now_s):
            return False
        if not self.unlimited:
            self._tokens -= count
            self.taken += count
        return True

    def charge(self, count: float, now_s: float) -> None:
        """Take ``count`` tokens whether they are there or not: what was spent already makes a debt."""
        if not self.unlimited:
            self.available(now_s)
            self._tokens -= count
            self.taken += count
