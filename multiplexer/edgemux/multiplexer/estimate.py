"""Running estimates of durations, rates and the link. Plain state, time passed in, bounded memory."""

from __future__ import annotations

import math
from collections import deque


class DurationEstimate:
    """Mean and upper quantile of a duration in seconds, over the last ``window`` observations.

    Before the first observation both are the prior. The mean is exponentially weighted (weight 1/16, after the first
    16 observations); the quantile is of the sorted window and is renewed every 16 observations, so that reading it
    costs nothing on the request path.
    """

    _RENEW = 16

    def __init__(self, prior_s: float, window: int = 512, quantile: float = 0.999) -> None:
        self.mean_s = prior_s
        self.upper_s = prior_s
        self._quantile = quantile
        self._window: deque[float] = deque(maxlen=window)
        self._count = 0

    def observe(self, duration_s: float) -> None:
        """Add one observation."""
        self._count += 1
        self._window.append(duration_s)
        self.mean_s += (duration_s - self.mean_s) / min(self._count, 16)
        if duration_s > self.upper_s or self._count == 1:
            self.upper_s = duration_s
        if self._count % self._RENEW == 0:
            ordered = sorted(self._window)
            self.upper_s = ordered[min(len(ordered) - 1, math.ceil(self._quantile * len(ordered)) - 1)]


class RateEstimate:
    """Events per second, exponentially weighted with the given time constant."""

    def __init__(self, time_constant_s: float = 2.0) -> None:
        self._constant_s = time_constant_s
        self._weight = 0.0
        self._at_s: float | None = None

    def observe(self, now_s: float, events: int = 1) -> None:
        """Count events that happened now."""
        self._decay(now_s)
        self._weight += events / self._constant_s

    def per_s(self, now_s: float) -> float:
        """The rate as of now."""
        self._decay(now_s)
        return self._weight

    def _decay(self, now_s: float) -> None:
        if self._at_s is not None and now_s > self._at_s:
            self._weight *= math.exp((self._at_s - now_s) / self._constant_s)
        self._at_s = now_s if self._at_s is None else max(self._at_s, now_s)


class LinkEstimate:
    """Round trip and bandwidth of the link, from (bytes sent, seconds on the network) pairs.

    A least-squares line ``seconds = rtt + bytes / bandwidth`` over samples whose weight halves every ``half_life_s``.
    Samples of one size cannot tell the two apart: bandwidth is then unknown (None) and the round trip holds both.
    Nothing is known (None) before the first sample or when the newest is older than ``stale_s``.
    """

    def __init__(self, half_life_s: float = 1.0, stale_s: float = 5.0) -> None:
        self._half_life_s = half_life_s
        self._stale_s = stale_s
        self._at_s: float | None = None
        # Weighted sums of 1, x, y, x*x and x*y, with x bytes and y seconds.
        self._n = self._x = self._y = self._xx = self._xy = 0.0
        self._deviation = 0.0

    def observe(self, sent_bytes: float, network_s: float, now_s: float) -> None:
        """Add one sample; ``network_s`` excludes what the server says it spent itself."""
        expected = self._line(sent_bytes)
        decay = 1.0 if self._at_s is None else 0.5 ** (max(0.0, now_s - self._at_s) / self._half_life_s)
        # Old samples fade with time, and by a little with each new one, so that a busy link follows as quickly.
        decay *= 0.95
        self._n = self._n * decay + 1.0
        self._x = self._x * decay + sent_bytes
        self._y = self._y * decay + network_s
        self._xx = self._xx * decay + sent_bytes * sent_bytes
        self._xy = self._xy * decay + sent_bytes * network_s
        if expected is not None:
            self._deviation += (abs(network_s - expected) - self._deviation) / 8
        self._at_s = now_s

    def forget(self) -> None:
        """Know nothing again: the connection that the samples are about is gone."""
        self._at_s = None
        self._n = self._x = self._y = self._xx = self._xy = self._deviation = 0.0

    def age_s(self, now_s: float) -> float | None:
        """Seconds since the newest sample, None before the first."""
        return None if self._at_s is None else now_s - self._at_s

    def rtt_s(self, now_s: float) -> float | None:
        """Seconds for an empty message and its answer, None when unknown."""
        return self._line(0.0) if self._fresh(now_s) else None

    def bytes_per_s(self, now_s: float) -> float | None:
        """Bandwidth towards the cloud, None when unknown."""
        slope = self._slope()
        return 1.0 / slope if slope > 0 and self._fresh(now_s) else None

    def predict_s(self, sent_bytes: float, now_s: float) -> float | None:
        """Seconds on the network for a message, on the safe side by two mean deviations; None when unknown."""
        expected = self._line(sent_bytes) if self._fresh(now_s) else None
        return None if expected is None else expected + 2 * self._deviation

    def _fresh(self, now_s: float) -> bool:
        return self._at_s is not None and now_s - self._at_s <= self._stale_s

    def _slope(self) -> float:
        """Seconds per byte; 0 while the sizes vary too little (10 % of their mean) to tell."""
        if self._n == 0:
            return 0.0
        mean = self._x / self._n
        variance = self._xx / self._n - mean * mean
        if variance <= (0.1 * mean) ** 2:
            return 0.0
        return max(0.0, (self._xy / self._n - mean * self._y / self._n) / variance)

    def _line(self, sent_bytes: float) -> float | None:
        if self._n == 0:
            return None
        return max(0.0, self._y / self._n + self._slope() * (sent_bytes - self._x / self._n))
