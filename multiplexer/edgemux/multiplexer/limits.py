"""Token buckets for long-run budgets: what was spent never exceeds what the rate and the burst allow."""

from __future__ import annotations

import math


class TokenBucket:
    """A bucket of tokens filled at ``rate_per_s`` up to ``burst``; starts full. Infinite rate: no limit.

    Over any window of t seconds at most ``burst + rate_per_s * t`` tokens are taken. Time is passed in, monotonic;
    a clock that steps back adds nothing.
    """

    def __init__(self, rate_per_s: float, burst: float) -> None:
        if not rate_per_s >= 0 or not burst >= 0:
            raise ValueError("rate and burst must not be negative")
        self._rate = rate_per_s
        self._burst = burst
        self._tokens = burst
        self._at_s: float | None = None

    def available(self, now_s: float) -> float:
        """Tokens that could be taken now."""
        if math.isinf(self._rate):
            return math.inf
        if self._at_s is None:
            self._at_s = now_s
        elapsed = now_s - self._at_s
        if elapsed > 0:
            self._tokens = min(self._burst, self._tokens + elapsed * self._rate)
            self._at_s = now_s
        return self._tokens

    def take(self, count: float, now_s: float) -> bool:
        """Take ``count`` tokens if they are there; False, and nothing taken, if not."""
        if count > self.available(now_s):
            return False
        if not math.isinf(self._rate):
            self._tokens -= count
        return True
