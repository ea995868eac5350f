"""When something began and when it was over, for the log. Pure: time is passed in."""

from __future__ import annotations

from edgemux.wire.events import OverloadBegan, OverloadEnded

# Nobody refused for so long: the overload is over.
QUIET_S = 5.0


class Spell:
    """Looks now and then whether something is so. It is over when it was not so for ``quiet_s``."""

    def __init__(self, quiet_s: float = 0.0) -> None:
        self._quiet_s = quiet_s
        self._began_s: float | None = None
        self._latest_s = 0.0
        # How long the latest one lasted.
        self.seconds = 0.0

    def look(self, on: bool, now_s: float) -> bool | None:
        """True when it has begun, False when it is over, None when nothing has changed."""
        if on:
            self._latest_s = now_s
            if self._began_s is None:
                self._began_s = now_s
                return True
        elif self._began_s is not None and now_s - self._latest_s >= self._quiet_s:
            self.seconds, self._began_s = now_s - self._began_s, None
            return False
        return None


class Overload:
    """Looks now and then at how many requests were refused since the start for there being too many."""

    def __init__(self, quiet_s: float = QUIET_S) -> None:
        self._spell = Spell(quiet_s)
        self._seen = 0
        self._before = 0

    def look(self, refused: int, now_s: float) -> OverloadBegan | OverloadEnded | None:
        """What there is to say now."""
        fresh, self._seen = refused - self._seen, refused
        change = self._spell.look(fresh > 0, now_s)
        if change is None:
            return None
        if change:
            self._before = refused - fresh
            return OverloadBegan(refused=fresh)
        return OverloadEnded(refused=refused - self._before, seconds=self._spell.seconds)
