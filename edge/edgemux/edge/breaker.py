"""When to stop asking the cloud, and when to try again. A pure state machine over a monotonic clock.

closed --(enough failures)--> open --(time)--> half-open --(one probe: success)--> closed
                                ^------------(probe fails; the pause doubles)------/
"""

from __future__ import annotations

import math
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

    def __post_init__(self) -> None:
        if self.failures < 1 or self.window < 1:
            raise ValueError("failures and window must be at least 1")
        if not 0 < self.rate <= 1:
            raise ValueError("rate must be in (0, 1]")
        if not self.slow_s > 0:
            raise ValueError("slow_s must be positive")
        if not 0 < self.open_s <= self.max_open_s < math.inf:
            raise ValueError("open_s must be positive and at most max_open_s, which must be finite")


class State(IntEnum):
    """The value of the ``edgemux_breaker_state`` metric."""

    CLOSED = 0
    HALF_OPEN = 1
    OPEN = 2


class Call(msgspec.Struct):
    """A call that was allowed: in which period of the breaker's life, whether it is the probe, and is it over."""

    period: int
    probe: bool
    settled: bool = False


class Breaker:
    """Not thread-safe: one event loop owns it. Of every call that ``begin`` allows the first outcome counts.

    An outcome counts only in the period in which its call began: what a call from before the breaker opened, or from
    before it closed again, has to say is about another time.
    """

    def __init__(self, settings: BreakerSettings = BreakerSettings()) -> None:  # noqa: B008 - it is frozen
        self._settings = settings
        self._outcomes: deque[bool] = deque(maxlen=settings.window)
        self._consecutive = 0
        self._open_until_s: float | None = None
        self._opened_s = 0.0
        self._pause_s = settings.open_s
        self._probing = False
        self._period = 0

    def state(self, now_s: float) -> State:
        """Where the breaker stands now."""
        if self._open_until_s is None:
            return State.CLOSED
        return State.HALF_OPEN if now_s >= self._open_until_s else State.OPEN

    def allows(self, now_s: float) -> bool:
        """Whether ``begin`` would allow a call; changes nothing."""
        state = self.state(now_s)
        return state is State.CLOSED or (state is State.HALF_OPEN and not self._probing)

    @property
    def slow_s(self) -> float:
        """From when on a call that is not answered yet has failed."""
        return self._settings.slow_s

    def begin(self, now_s: float) -> Call | None:
        """Ask to make a call, None for no. When half-open, the one that gets leave is the probe."""
        if not self.allows(now_s):
            return None
        probe = self._open_until_s is not None
        self._probing = probe
        return Call(self._period, probe)

    def succeeded(self, call: Call, elapsed_s: float, now_s: float) -> None:
        """The call was answered, correctly, in ``elapsed_s``."""
        if elapsed_s > self._settings.slow_s:
            self.failed(call, now_s)
        elif self._settle(call):
            if call.probe:
                self._close()
            self._consecutive = 0
            self._outcomes.append(True)

    def failed(self, call: Call, now_s: float) -> None:
        """The call failed, timed out or was too slow."""
        if not self._settle(call):
            return
        if call.probe:
            self._pause_s = min(self._pause_s * 2, self._settings.max_open_s)
            self._open(now_s)
            return
        self._consecutive += 1
        self._outcomes.append(False)
        full = len(self._outcomes) == self._settings.window
        share = self._outcomes.count(False) / len(self._outcomes)
        if self._consecutive >= self._settings.failures or (full and share >= self._settings.rate):
            self._open(now_s)

    def cancelled(self, call: Call) -> None:
        """Our own caller gave up: no outcome, and if it was the probe, another may be made."""
        if self._settle(call) and call.probe:
            self._probing = False

    def heard(self, now_s: float) -> None:
        """The cloud was heard of by other means: if open, a probe may be made once the first, short pause is over."""
        if self._open_until_s is not None:
            earliest_s = max(now_s, self._opened_s + self._settings.open_s)
            self._open_until_s = min(self._open_until_s, earliest_s)

    def _settle(self, call: Call) -> bool:
        """Whether this is the call's first outcome, and it is about now."""
        first, call.settled = not call.settled, True
        return first and call.period == self._period

    def _open(self, now_s: float) -> None:
        self._opened_s = now_s
        self._open_until_s = now_s + self._pause_s
        self._probing = False
        self._period += 1

    def _close(self) -> None:
        self._open_until_s = None
        self._probing = False
        self._pause_s = self._settings.open_s
        self._outcomes.clear()
        self._period += 1
