"""The service manager's end of a process: ready, stopping, and a sign of life only while there is life.

Its protocol is lines of text in datagrams (sd_notify(3)); without its environment variables nothing is sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Mapping

from edgemux.wire.events import HealthLookFailed, NotWell, kind, places, tell

_log = logging.getLogger("edgemux.wire")

# Signs of life within one watchdog interval: two may be missed.
SIGNS = 4


class Notifier:
    """Tells the service manager, if there is one. Never raises: nobody's answer depends on it."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        address = environment.get("NOTIFY_SOCKET", "")
        self.watchdog_s = _watchdog_s(environment) if address else None
        self._socket: socket.socket | None = None
        if address[:1] in ("/", "@"):
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            self._socket.setblocking(False)
            self._address = "\0" + address[1:] if address[0] == "@" else address

    def tell(self, state: str) -> None:
        """Send a line like READY=1."""
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.sendto(state.encode(), self._address)

    def close(self) -> None:
        """Give the socket back."""
        if self._socket is not None:
            self._socket.close()


def _watchdog_s(environment: Mapping[str, str]) -> float | None:
    """The interval within which signs of life are wanted, in seconds; None for none, or when it is not about us."""
    if environment.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    text = environment.get("WATCHDOG_USEC", "")
    return int(text) / 1e6 if text.isdigit() and int(text) > 0 else None


async def show_life(notifier: Notifier, well: Callable[[], Awaitable[bool]]) -> None:
    """A sign of life SIGNS times an interval while ``well``; runs until cancelled, at once done without a watchdog.

    That this task runs shows that the event loop does; ``well`` shows that models still answer, and rightly.
    """
    if notifier.watchdog_s is None:
        return
    pause_s = notifier.watchdog_s / SIGNS
    was_well = True
    while True:
        try:
            is_well = await asyncio.wait_for(well(), 2 * pause_s)
        except TimeoutError:
            is_well = False
        except Exception as error:
            tell(_log, HealthLookFailed(error=kind(error), at=places(error)))
            is_well = False
        if is_well:
            notifier.tell("WATCHDOG=1")
        elif was_well:
            tell(_log, NotWell())
        was_well = is_well
        await asyncio.sleep(pause_s)
