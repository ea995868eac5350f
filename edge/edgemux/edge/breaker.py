"""When to stop asking the cloud, and when to try again. A pure state machine over a monotonic clock.

closed --(enough failures)--> open --(time)--> half-open --(one probe: success)--> closed
                                ^------------(probe fails; the pause doubles)------/
"""

from __future__ import annotations

from collections import deque
from enum import IntEnum

import msgspec


class BreakerSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """failures: consecutive ones that open it. rate: so does this share of the last ``window`` calls.

    A success slower than slow_s counts as a failure. It stays open for open_s, doubled at each failed probe up to
    max_open_s.
    """

    failures: int = 3
    rate: float = 0.5
    window: int = 20
    slow_s: float = 1.0
    open_s: float = 0.5
    max_open_s: float = 1.5


class State(IntEnum):
    """The value of the ``edgemux_breaker_state`` metric."""

    CLOSED = 0
    HALF_OPEN = 1
    OPEN = 2


class Breaker:
    """Not thread-safe: one event loop owns it. Every allowed ``begin`` is followed by exactly one outcome."""

    def __init__(self, settings: BreakerSettings = BreakerSettings()) -> None:  # noqa: B008 - it is frozen
        self._settings = settings
        self._outcomes: deque[bool] = deque(maxlen=settings.window)
        self._consecutive = 0
        self._open_until_s: float | None = None
        self._pause_s = settings.open_s
        self._probing = False

    def state(self, now_s: float) -> State:
        """Where the breaker stands now."""
        if self._open_until_s is None:
            return State.CLOSED
        return State.HALF_OPEN if now_s >= self._open_until_s else State.OPEN

    def allows(self, now_s: float) -> bool:
        """Whether ``begin`` would be allowed; changes nothing."""
        state = self.state(now_s)
        return state is State.CLOSED or (state is State.HALF_OPEN and not self._probing)

    def begin(self, now_s: float) -> bool:
        """Ask to make a call. When half-open, the one that gets True is the probe and all others get False."""
        if not self.allows(now_s):
            return False
        if self.state(now_s) is State.HALF_OPEN:
            self._probing = True
        return True

    def succeeded(self, elapsed_s: float, now_s: float) -> None:
        """A call was answered, correctly, in ``elapsed_s``."""
        if elapsed_s > self._settings.slow_s:
            self.failed(now_s)
            return
        if self._open_until_s is not None:
            if not self._probing:
                return  # a call from before it opened: it says nothing about now
            self._close()
        self._consecutive = 0
        self._outcomes.append(True)

    def failed(self, now_s: float) -> None:
        """A call failed, timed out or was too slow."""
        if self._open_until_s is not None:
            if self._probing:
                self._probing = False
                self._pause_s = min(self._pause_s * 2, self._settings.max_open_s)
                self._open_until_s = now_s + self._pause_s
            return
        self._consecutive += 1
        self._outcomes.append(False)
        full = len(self._outcomes) == self._settings.window
        share = self._outcomes.count(False) / len(self._outcomes)
        if self._consecutive >= self._settings.failures or (full and share >= self._settings.rate):
            self._open_until_s = now_s + self._pause_s

    def heard(self, now_s: float) -> None:
        """The cloud was heard of by other means: if open, a probe may be made at once."""
        if self._open_until_s is not None:
            self._open_until_s = min(self._open_until_s, now_s)

    def cancelled(self) -> None:
        """Our own caller gave up: no outcome, and the probe is free again."""
        self._probing = False

    def _close(self) -> None:
        self._open_until_s = None
        self._probing = False
        self._pause_s = self._settings.open_s
        self._outcomes.clear()
