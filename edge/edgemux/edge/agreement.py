"""Whether a cloud serves what is wanted: a model of that name and digest, and to us. Time is passed in."""

from __future__ import annotations

import logging
import math

from edgemux.edge.events import CloudUnserved
from edgemux.multiplexer.domain import Reason
from edgemux.multiplexer.errors import ExecutionError, Forbidden, Incompatible, Unauthenticated, Unreachable
from edgemux.wire.events import Name, tell, why

_log = logging.getLogger("edgemux.edge")

# A cloud that does not serve what is wanted is asked whether it does by now when it was restarted, or this much later.
RECHECK_S = 30.0
# One such answer can be a damaged one; so many in a row are not.
INCOMPATIBLE_IN_A_ROW = 2


class Breaks:
    """How often the connection to a cloud was found to be broken, by whichever model was asked for."""

    def __init__(self) -> None:
        self.count = 0


class Agreement:
    """Of one cloud on one ``model``. ``against``: how many answers in a row have said that it is not served."""

    def __init__(self, peer: int, model: str, breaks: Breaks | None = None) -> None:
        """peer: the cloud's place in the configuration. breaks: shared by all that one cloud is asked for: while one
        is asked for, nobody sees the connection go and come that another one waits for.
        """
        self._peer = peer
        self.breaks = breaks or Breaks()
        self._breaks_then = 0
        self.model = model
        self.against = 0
        self.reason = Reason.CLOUD_INCOMPATIBLE
        self.recheck_s = math.inf
        self._reconnected = False

    @property
    def broken(self) -> bool:
        """Whether the cloud has said, more than once, that it does not serve what is wanted, or not to us."""
        return self.against >= INCOMPATIBLE_IN_A_ROW

    def holds(self) -> None:
        """An answer has come that says so."""
        self.against = 0

    def heard(self, error: ExecutionError, now_s: float) -> None:
        """A call has failed; said once in the log where that says that the model is not served, until it is."""
        if not isinstance(error, Incompatible | Unauthenticated | Forbidden):
            self.breaks.count += isinstance(error, Unreachable)
            self.against = 0
            return
        self.against += 1
        self.reason = Reason.CLOUD_INCOMPATIBLE if isinstance(error, Incompatible) else Reason.CLOUD_DENIED
        if self.against == INCOMPATIBLE_IN_A_ROW:
            self.recheck_s = now_s + RECHECK_S
            self._reconnected, self._breaks_then = False, self.breaks.count
            model, reason = Name(self.model), Name(self.reason.value)
            tell(_log, CloudUnserved(peer=self._peer, model=model, reason=reason, why=why(error)))

    def may_ask(self, connected: bool, now_s: float) -> bool:
        """Whether to ask by now if it is served: after a reconnection, or RECHECK_S."""
        if not connected:
            self._reconnected = True
            return False
        return self._reconnected or self.breaks.count != self._breaks_then or now_s >= self.recheck_s

    def asked(self, ready: bool, now_s: float) -> None:
        """It has said whether."""
        self._reconnected, self._breaks_then = False, self.breaks.count
        self.recheck_s = now_s + RECHECK_S
        if ready:
            self.against = 0
