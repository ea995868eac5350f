"""Running estimates of durations, rates and the link. Plain state, time passed in, bounded memory."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Sequence


class DurationEstimate:
    """Mean and upper quantile of a duration in seconds, over the last ``window`` observations.

    Before the first observation both are the prior. The mean is exponentially weighted (weight 1/16, after the first
    16 observations); the quantile is of the sorted window and is renewed every 16 observations, so that reading it
    costs nothing on the request path. One stall (a suspended process, a page fault) counts as at most WORST_RATIO times
    the mean: a route that is no longer chosen because of it would never be measured again.
    """

    WORST_RATIO = 8.0
    _RENEW = 16

    def __init__(self, prior_s: float, window: int = 512, quantile: float = 0.999) -> None:
        self.mean_s = prior_s
        self.upper_s = prior_s
        self._quantile = quantile
        self._window: deque[float] = deque(maxlen=window)
        self._count = 0

    def observe(self, duration_s: float) -> None:
        """Add one observation."""
        if self._count:
            duration_s = min(duration_s, self.WORST_RATIO * self.mean_s)
        self._count += 1
        self._window.append(duration_s)
        self.mean_s += (duration_s - self.mean_s) / min(self._count, 16)
        if duration_s > self.upper_s or self._count == 1:
            self.upper_s = duration_s
        if self._count % self._RENEW == 0:
            ordered = sorted(self._window)
            self.upper_s = ordered[min(len(ordered) - 1, math.ceil(self._quantile * len(ordered)) - 1)]

    def warmed_up(self, durations_s: Sequence[float]) -> None:
        """Add what a warm-up has measured, as many observations of its median.

        One stall among so few would make dear what, not being chosen for that, is never measured again.
        """
        usual_s = statistics.median(durations_s)
        for _ in durations_s:
            self.observe(usual_s)


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


class RecentMean:
    """Mean and mean deviation of the last few seconds of a quantity that may change at any time.

    Weights halve every ``half_life_s``. A sample that is off by more than a factor of two starts afresh: what was
    measured before was of another world. None when nothing is known, or nothing newer than ``stale_s``.
    """

    def __init__(self, half_life_s: float = 1.0, stale_s: float = 2.0) -> None:
        self._half_life_s = half_life_s
        self._stale_s = stale_s
        self._at_s: float | None = None
        self._weight = self._mean = self._deviation = 0.0

    def observe(self, value: float, now_s: float) -> None:
        """Add one sample."""
        if self._at_s is None or not self._mean / 2 <= value <= self._mean * 2:
            self._weight, self._mean, self._deviation = 0.0, value, 0.0
        else:
            # Old samples fade with time, and a little with each new one, so that a busy quantity follows as quickly.
            self._weight *= 0.95 * 0.5 ** (max(0.0, now_s - self._at_s) / self._half_life_s)
            self._deviation += (abs(value - self._mean) - self._deviation) / 8
        self._weight += 1.0
        self._mean += (value - self._mean) / self._weight
        self._at_s = now_s

    def age_s(self, now_s: float) -> float:
        """Seconds since the newest sample, infinite before the first."""
        return math.inf if self._at_s is None else now_s - self._at_s

    def mean(self, now_s: float) -> float | None:
        """The mean, None when unknown."""
        return self._mean if self.age_s(now_s) <= self._stale_s else None

    def upper(self, now_s: float) -> float | None:
        """The mean and two mean deviations, None when unknown."""
        mean = self.mean(now_s)
        return None if mean is None else mean + 2 * self._deviation

    def forget(self) -> None:
        """Know nothing again."""
        self._at_s = None
        self._weight = self._mean = self._deviation = 0.0


class RecentShare:
    """How often something was so among the last ``window`` times, of which only those of the last ``stale_s`` count."""

    def __init__(self, window: int = 64, stale_s: float = 30.0) -> None:
        self._stale_s = stale_s
        self._seen: deque[tuple[float, bool]] = deque(maxlen=window)

    def observe(self, so: bool, now_s: float) -> None:
        """Add one time."""
        self._seen.append((now_s, so))

    def share(self, now_s: float) -> float | None:
        """The share, None when there was no time lately."""
        recent = [so for at_s, so in self._seen if now_s - at_s <= self._stale_s]
        return sum(recent) / len(recent) if recent else None


# A cloud that was slow is asked by shadows, with nobody waiting: until one is back it is taken to be slow still.
OFFLOAD_STALE_S = 30.0


class LinkEstimate:
    """Round trip and bandwidth of the link, from (bytes sent, seconds on the network) pairs.

    Two sizes are told apart: calls of at most SMALL_BYTES, whose time is the round trip, and offloads. What an offload
    takes is what the last ones have taken; when none was sent for half a minute it is the round trip. The bandwidth is
    what the additional bytes of an offload cost; unknown (None) while that is nothing.
    """

    SMALL_BYTES = 256

    def __init__(self) -> None:
        self._small = RecentMean(stale_s=5.0)
        self._large = RecentMean(stale_s=OFFLOAD_STALE_S)
        self._large_bytes = 0.0
        # Of everything that is sent over this link.
        self._every_large = [self._large]
        self._most_small = float(self.SMALL_BYTES)

    def beside(self) -> LinkEstimate:
        """The same link for offloads of another size: one round trip, and what such offloads take is their own.

        However small they are: that one of them is not answered is no round trip.
        """
        other = LinkEstimate()
        other._small, other._every_large, other._most_small = self._small, self._every_large, 0.0
        self._every_large.append(other._large)
        return other

    def observe(self, sent_bytes: float, network_s: float, now_s: float) -> None:
        """Add one sample; ``network_s`` excludes what the server says it spent itself."""
        if sent_bytes <= self._most_small:
            self._small.observe(network_s, now_s)
        else:
            self._large.observe(network_s, now_s)
            self._large_bytes = sent_bytes

    def forget(self) -> None:
        """Know nothing again: the connection that the samples are about is gone."""
        self._small.forget()
        for large in self._every_large:
            large.forget()

    def age_s(self, now_s: float) -> float:
        """Seconds since the newest sample of either size, infinite before the first."""
        return min(self._small.age_s(now_s), self._large.age_s(now_s))

    def small_age_s(self, now_s: float) -> float:
        """Seconds since the newest sample of a small call, infinite before the first."""
        return self._small.age_s(now_s)

    def small_s(self, now_s: float) -> float | None:
        """Seconds of a small call, None when unknown."""
        return self._small.mean(now_s)

    def offload_age_s(self, now_s: float) -> float:
        """Seconds since the newest sample of an offload, infinite before the first."""
        return self._large.age_s(now_s)

    def offload(self, now_s: float) -> tuple[float, float] | None:
        """Bytes of the newest offload, and the seconds that such take; None when unknown."""
        large_s = self._large.mean(now_s)
        return None if large_s is None else (self._large_bytes, large_s)

    def rtt_s(self, now_s: float) -> float | None:
        """Seconds for a small message and its answer, None when unknown. Offloads alone give an upper bound."""
        small = self._small.mean(now_s)
        return self._large.mean(now_s) if small is None else small

    def bytes_per_s(self, now_s: float) -> float | None:
        """Bandwidth towards the cloud, None when unknown."""
        small, large = self._small.mean(now_s), self._large.mean(now_s)
        if small is None or large is None or large <= small:
            return None
        return (self._large_bytes - self.SMALL_BYTES / 2) / (large - small)

    def predict_s(self, now_s: float) -> float | None:
        """Seconds on the network for an offload, on the safe side by two mean deviations; None when unknown."""
        large = self._large.upper(now_s)
        return self._small.upper(now_s) if large is None else large
