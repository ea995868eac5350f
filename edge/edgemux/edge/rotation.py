"""Which of several clouds is asked, and whether another is asked after it has failed. Pure; time is passed in.

A cloud has its turn when it is ready, and is expected to answer within the time that is left. An input is sent to at
most two of them: the second pays for itself, and whoever waits is better served by the device than by a third.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from edgemux.multiplexer.errors import (
    ExecutionError,
    Forbidden,
    Incompatible,
    Overloaded,
    Unauthenticated,
    Unreachable,
)

MOST_ATTEMPTS = 2
# What says nothing of the input, and nothing of the other clouds; no answer has been given, and none will be.
WORTH_ANOTHER = (Unreachable, Overloaded, Incompatible, Unauthenticated, Forbidden)


class Standing(msgspec.Struct, frozen=True):
    """A cloud as it stands for one input: whether it may be asked, and the seconds that it is expected to take."""

    ready: bool
    expected_s: float


class Turns:
    """Round robin: whoever is ready and was passed over is the next."""

    def __init__(self) -> None:
        self._last = -1

    def next(self, standings: Sequence[Standing], left_s: float, tried: frozenset[int] = frozenset()) -> int | None:
        """Whose turn it is, None for nobody's; it then is somebody else's.

        Where nobody is expected to answer in ``left_s`` it is whoever comes nearest: the caller has decided to ask.
        """
        ready = [i for i, each in enumerate(standings) if each.ready and i not in tried]
        if not ready:
            return None
        in_time = [i for i in ready if standings[i].expected_s <= left_s]
        if not in_time:
            return min(ready, key=lambda i: standings[i].expected_s)
        size = len(standings)
        chosen = min(in_time, key=lambda i: (i - self._last - 1) % size)
        self._last = chosen
        return chosen


class Attempts:
    """The attempts at one input."""

    def __init__(self, turns: Turns, deadline_s: float) -> None:
        """``deadline_s``: a point in time after which no attempt begins, and none lasts."""
        self._turns = turns
        self._deadline_s = deadline_s
        self._tried: frozenset[int] = frozenset()
        self._over = False

    def next(self, standings: Sequence[Standing], now_s: float) -> int | None:
        """Whom to ask now, None for nobody. A second one only where it is expected to answer in time."""
        left_s = self.left_s(now_s)
        if self._over or len(self._tried) >= MOST_ATTEMPTS or (self._tried and left_s <= 0):
            return None
        chosen = self._turns.next(standings, left_s, self._tried)
        if chosen is None or (self._tried and standings[chosen].expected_s >= left_s):
            return None
        self._tried |= {chosen}
        return chosen

    def failed(self, error: ExecutionError) -> None:
        """The latest attempt has failed; where that is about the input, or took all the time, it was the last."""
        self._over = not isinstance(error, WORTH_ANOTHER)

    def left_s(self, now_s: float) -> float:
        """Seconds that an attempt may take from now on."""
        return max(0.0, self._deadline_s - now_s)
