"""Whether the device can take an input at all, and whose turn it is. Pure, time passed in (seconds, monotonic).

A queue that takes everything collapses under overload: every answer comes late. So an input is refused at once when
it would only wait past its deadline, and no client may hold more than is left for the others.
"""

from __future__ import annotations

import math

import msgspec

# A storm slows the model down before the estimate knows: refusing takes a part of the same core. Measured at ten times
# the capacity, the first second's admissions took 1.2 to 1.5 times what was estimated; what waits less is never idle.
HEADROOM = 1.5
# A client that has not been heard of for this long needs no room kept for it.
AROUND_S = 1.0
# Clients that are remembered; beyond, those that hold nothing are forgotten first.
MOST_CLIENTS = 1024


class AdmissionSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """max_inflight: requests that may be inside at once, waiting for the cloud or for the device."""

    max_inflight: int = 512

    def __post_init__(self) -> None:
        if not 1 <= self.max_inflight <= 65536:
            raise ValueError("max_inflight must be from 1 to 65536")


class Shares:
    """What clients hold of something that is limited: places, or seconds of the device's time.

    Alone, a client may hold all of it. While others are around it may hold no more than what is left over, so that
    half of everything is there for whoever comes next: dynamic thresholds with a factor of 1 (Choudhury and Hahne 1998,
    "Dynamic queue length thresholds for shared-memory packet switches").
    """

    def __init__(self) -> None:
        self.total = 0.0
        self._held: dict[str, float] = {}
        self._seen_s: dict[str, float] = {}

    def fits(self, client: str, amount: float, limit: float, now_s: float) -> bool:
        """Whether ``client`` may hold ``amount`` more of ``limit``. Where nobody holds anything, anything fits.

        An idle device takes everything: were it to trust an estimate that has become too high, it would refuse for
        ever and never measure again.
        """
        seen = self._seen_s
        seen.pop(client, None)
        seen[client] = now_s  # the latest last, so that the one before it says whether anybody else is around
        if len(seen) > MOST_CLIENTS:
            del seen[next(iter(seen))]
        if not self._held:
            return True
        left = limit - self.total
        if amount > left:
            return False
        return self._held.get(client, 0.0) + amount <= left or self._is_alone(client, now_s)

    def take(self, client: str, amount: float) -> None:
        """``client`` holds ``amount`` more, whether or not it fits."""
        self._held[client] = self._held.get(client, 0.0) + amount
        self.total += amount

    def give(self, client: str, amount: float) -> None:
        """``client`` gives back what it took; the same amounts, in any order."""
        left = self._held[client] - amount
        if left <= 1e-9:
            del self._held[client]
        else:
            self._held[client] = left
        self.total = self.total - amount if self._held else 0.0

    def _is_alone(self, client: str, now_s: float) -> bool:
        """Whether nobody else holds anything or was heard of lately; ``client``, who holds or asks, was just now."""
        if len(self._held) > 1 or (self._held and client not in self._held):
            return False
        others = iter(reversed(self._seen_s))
        next(others)
        other = next(others, None)
        return other is None or now_s - self._seen_s[other] > AROUND_S


class Backlog:
    """The device's work that was accepted and is not done yet, in expected seconds."""

    def __init__(self) -> None:
        self._shares = Shares()

    @property
    def wait_s(self) -> float:
        """How long an input that comes now would wait for the device."""
        return self._shares.total

    def fits(self, client: str, work_s: float, left_s: float, now_s: float) -> bool:
        """Whether ``work_s`` more would be done within ``left_s``, with headroom, and is fair."""
        return self._shares.fits(client, work_s, left_s / HEADROOM if left_s < math.inf else left_s, now_s)

    def enter(self, client: str, work_s: float) -> None:
        """Work was accepted, or room for it is kept."""
        self._shares.take(client, work_s)

    def leave(self, client: str, work_s: float) -> None:
        """It is done, or will never be."""
        self._shares.give(client, work_s)
