"""When to stop asking the cloud, and when to try again. A pure state machine over a monotonic clock.

closed --(enough failures)--> open --(time)--> half-open --(one probe: success)--> recovering --(ramp_s)--> closed
                                ^-------------(one failure; the pause doubles)----------/

Recovering is closed with a smaller door: after an outage of the cloud a fleet comes back a share at a time.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable
from enum import IntEnum

import msgspec

# The share of inputs that may be sent right after a probe has succeeded.
RAMP_FROM = 0.1


class BreakerSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """failures: consecutive ones that open it. rate: so does this share of the last ``window`` calls.

    A success slower than slow_s counts as a failure. It stays open for open_s, doubled at each failed probe up to
    max_open_s, and up to the share ``jitter`` shorter, by chance: a fleet must not come back at one moment. After a
    probe has succeeded, the share of inputs that may be sent grows from a tenth to all within ramp_s; a failure
    meanwhile opens it again at once, for twice as long.
    """

    failures: int = 3
    rate: float = 0.5
    window: int = 20
    slow_s: float = 1.0
    open_s: float = 0.5
    max_open_s: float = 1.5
    ramp_s: float = 5.0
    jitter: float = 0.2

    def __post_init__(self) -> None:
        if self.failures < 1 or self.window < 1:
            raise ValueError("failures and window must be at least 1")
        if not 0 < self.rate <= 1:
            raise ValueError("rate must be in (0, 1]")
        if not self.slow_s > 0:
            raise ValueError("slow_s must be positive")
        if not 0 < self.open_s <= self.max_open_s < math.inf:
            raise ValueError("open_s must be positive and at most max_open_s, which must be finite")
        if not 0 <= self.ramp_s < math.inf:
            raise ValueError("ramp_s must be finite and not negative")
        if not 0 <= self.jitter < 1:
            raise ValueError("jitter must be in [0, 1)")


class State(IntEnum):
    """The value of the ``edgemux_breaker_state`` metric."""

    CLOSED = 0
    HALF_OPEN = 1
    OPEN = 2


class Call(msgspec.Struct):
    """A call that was allowed: in which period of the breaker's life, whether it is the probe, and is it over.

    also: the same call, as a breaker beside it knows it.
    """

    period: int
    probe: bool
    settled: bool = False
    also: Call | None = None


class Breaker:
    """Not thread-safe: one event loop owns it. Of every call that ``begin`` allows the first outcome counts.

    An outcome counts only in the period in which its call began: what a call from before the breaker opened, or from
    before it closed again, has to say is about another time.
    """

    def __init__(
        self,
        settings: BreakerSettings = BreakerSettings(),  # noqa: B008 - it is frozen
        chance: Callable[[], float] = random.random,
    ) -> None:
        """``chance`` gives numbers in [0, 1), for the jitter."""
        self._settings = settings
        self._chance = chance
        self._outcomes: deque[bool] = deque(maxlen=settings.window)
        self._consecutive = 0
        self._open_until_s: float | None = None
        self._opened_s = 0.0
        self._pause_s = settings.open_s
        self._probing = False
        self._period = 0
        # When it closed after an outage, until the ramp is over; whether an input has been sent since.
        self._closed_s: float | None = None
        self._used = False

    def state(self, now_s: float) -> State:
        """Where the breaker stands now."""
        if self._open_until_s is None:
            return State.CLOSED
        return State.HALF_OPEN if now_s >= self._open_until_s else State.OPEN

    def allows(self, now_s: float) -> bool:
        """Whether ``begin`` would allow a call; changes nothing."""
        return self._may(self.state(now_s))

    def _may(self, state: State) -> bool:
        return state is State.CLOSED or (state is State.HALF_OPEN and not self._probing)

    def share(self, now_s: float) -> float:
        """The share of inputs that may be sent: 0 unless closed, and less than 1 while the cloud has just come back."""
        if self._open_until_s is not None:
            return 0.0
        if self._closed_s is None or now_s >= self._closed_s + self._settings.ramp_s:
            return 1.0
        passed = max(0.0, now_s - self._closed_s) / self._settings.ramp_s if self._settings.ramp_s > 0 else 1.0
        return RAMP_FROM + (1.0 - RAMP_FROM) * passed

    def admits(self, now_s: float, lot: float) -> bool:
        """Whether the input that drew ``lot``, in [0, 1), may be sent. The first one after an outage always may."""
        share = self.share(now_s)
        return lot < share or (share > 0 and not self._used)

    @property
    def failures(self) -> int:
        """Failures in a row, by now."""
        return self._consecutive

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
        self._used = self._used or not probe
        return Call(self._period, probe)

    def of_tail(self) -> TailBreaker:
        """A breaker for the tail of a split that the same cloud serves."""
        return TailBreaker(self, self._settings, self._chance)

    def gone(self, call: Call, now_s: float) -> None:
        """The call failed because the cloud cannot be reached at all."""
        self.failed(call, now_s)

    def succeeded(self, call: Call, elapsed_s: float, now_s: float) -> None:
        """The call was answered, correctly, in ``elapsed_s``."""
        if elapsed_s > self._settings.slow_s:
            self.failed(call, now_s)
        elif self._settle(call):
            if call.probe:
                self._close(now_s)
            self._consecutive = 0
            self._outcomes.append(True)

    def failed(self, call: Call, now_s: float) -> None:
        """The call failed, timed out or was too slow."""
        if not self._settle(call):
            return
        if call.probe or self.share(now_s) < 1:
            self._pause_s = min(self._pause_s * 2, self._settings.max_open_s)
            self._open(now_s)
            return
        self._pause_s = self._settings.open_s
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
        self._open_until_s = now_s + self._pause_s * (1.0 - self._settings.jitter * self._chance())
        self._probing = False
        self._period += 1

    def _close(self, now_s: float) -> None:
        """The pause is not reset: should the cloud fail again before the ramp is over, the next one is longer."""
        self._open_until_s = None
        self._probing = False
        self._closed_s = now_s
        self._used = False
        self._outcomes.clear()
        self._period += 1


class TailBreaker(Breaker):
    """The breaker of the tail of a split, beside that of the cloud which serves it: both must allow a call.

    What fails is the tail's, and keeps only the tail from being asked: it may hang or be broken where the cloud's own
    model is well. That the cloud cannot be reached is told to the cloud's alone, that it has answered to both.
    """

    def __init__(self, cloud: Breaker, settings: BreakerSettings, chance: Callable[[], float]) -> None:
        super().__init__(settings, chance)
        self._cloud = cloud

    def state(self, now_s: float) -> State:
        """Where the one stands that allows less."""
        return max(self._cloud.state(now_s), super().state(now_s))

    def failing(self, now_s: float) -> bool:
        """Whether it is the tail that is not asked, and not the cloud."""
        return super().state(now_s) is not State.CLOSED and self._cloud.state(now_s) is State.CLOSED

    def allows(self, now_s: float) -> bool:
        """Whether ``begin`` would allow a call; changes nothing."""
        return self._cloud.allows(now_s) and self._may(super().state(now_s))

    def admits(self, now_s: float, lot: float) -> bool:
        """Whether the input that drew ``lot``, in [0, 1), may be sent."""
        return self._cloud.admits(now_s, lot) and super().admits(now_s, lot)

    def begin(self, now_s: float) -> Call | None:
        """Ask to make a call, None for no."""
        call = super().begin(now_s)
        if call is not None:
            call.also = self._cloud.begin(now_s)
        return call

    def succeeded(self, call: Call, elapsed_s: float, now_s: float) -> None:
        """The call was answered in ``elapsed_s``; how slow the tail is says nothing of the cloud."""
        super().succeeded(call, elapsed_s, now_s)
        if call.also is not None:
            self._cloud.succeeded(call.also, 0.0, now_s)

    def failed(self, call: Call, now_s: float) -> None:
        """The call failed, timed out or was too slow."""
        super().failed(call, now_s)
        if call.also is not None:
            self._cloud.cancelled(call.also)

    def gone(self, call: Call, now_s: float) -> None:
        """The cloud cannot be reached; the tail need not find out by itself that it can be again."""
        super().cancelled(call)
        if call.also is not None:
            self._cloud.failed(call.also, now_s)

    def cancelled(self, call: Call) -> None:
        """Our own caller gave up: no outcome."""
        super().cancelled(call)
        if call.also is not None:
            self._cloud.cancelled(call.also)

    def heard(self, now_s: float) -> None:
        """The cloud was heard of by other means, which says nothing of the tail."""
        self._cloud.heard(now_s)
