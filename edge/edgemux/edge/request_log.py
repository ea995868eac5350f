"""The agent's ledger: one line of JSON for every request that is finished, however it ended.

Lines are handed to a thread, so a disk that is full or a pipe that nobody reads never holds up an answer: lines that
do not fit are dropped, the oldest first, and counted.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import msgspec

from edgemux.edge.events import RequestLogFailed
from edgemux.wire.events import kind, tell

_log = logging.getLogger("edgemux.edge")

# Lines wait this long to be written together; what is lost when the process is killed is no more than that.
FLUSH_S = 0.05
# A file that cannot be written is tried again at this interval: the disk may have room again.
RETRY_S = 1.0
# However stuck the file is, an orderly end waits no longer for it.
CLOSE_S = 1.0


class Line(msgspec.Struct, frozen=True):
    """A finished request: its client's id, what became of it, and for each row of an answer where it came from.

    outcome: "answered", a refusal's reason, or "cancelled". elapsed_s: from arrival to the end.
    """

    id: str
    model: str
    outcome: str
    elapsed_s: float
    rows: int = 0
    routes: tuple[str, ...] = ()
    variants: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()
    labels: tuple[int, ...] = ()


class RequestLog:
    """Appends lines to a file. ``dropped`` is called with a number of lines whenever some were given up."""

    def __init__(self, path: Path, most: int, dropped: Callable[[int], None]) -> None:
        """``most``: lines that may wait. Nothing is opened here, so nothing fails here."""
        self._path = path
        self._dropped = dropped
        self._waiting: deque[Line] = deque(maxlen=most)
        self._stop = threading.Event()
        self._complained = False
        self._thread = threading.Thread(target=self._loop, name="edgemux-request-log", daemon=True)
        self._thread.start()

    def add(self, line: Line) -> None:
        """Have a line written soon. Never blocks."""
        if len(self._waiting) == self._waiting.maxlen:
            self._dropped(1)
        self._waiting.append(line)

    def close(self) -> None:
        """Write what waits, within CLOSE_S."""
        self._stop.set()
        self._thread.join(CLOSE_S)

    def _loop(self) -> None:
        while True:
            try:
                with self._path.open("ab", buffering=0) as file:
                    self._complained = False
                    self._write_until_stopped(file)
                return
            except OSError as error:
                if not self._complained:
                    self._complained = True
                    tell(_log, RequestLogFailed(cause=kind(error)))
                if self._stop.wait(RETRY_S):
                    self._dropped(len(self._waiting))
                    return

    def _write_until_stopped(self, file: BinaryIO) -> None:
        """Raises OSError when the file fails; what was being written is then dropped, and counted."""
        encoder = msgspec.json.Encoder()
        while True:
            stopping = self._stop.wait(FLUSH_S)
            lines = [self._waiting.popleft() for _ in range(len(self._waiting))]
            written = 0
            try:
                for line in lines:
                    file.write(encoder.encode(line) + b"\n")
                    written += 1
            finally:
                if written < len(lines):
                    self._dropped(len(lines) - written)
            if stopping:
                return
