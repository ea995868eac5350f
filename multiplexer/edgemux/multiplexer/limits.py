"""What requests may take: time each, and tokens together, of which never more than rate and burst allow."""

from __future__ import annotations

import math


def allowed_s(default_s: float, most_s: float, *asked_s: float | None) -> float:
    """The time that a request may take: the shortest that was asked for, else the default; at most ``most_s``."""
    return min(most_s, min((seconds for seconds in asked_s if seconds is not None), default=default_s))


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
