"""What a process writes about itself, without ever waiting for whoever reads it.

A pipe that nobody empties blocks a plain write for ever, and the event loop with it. Lines go through a bounded queue
to a thread; what does not fit is given up and counted.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import sys
import threading
from collections.abc import Iterator

from edgemux.wire.web import start_thread

MOST_WAITING = 1000
# At the end: for a reader that is merely slow.
LAST_LINES_S = 0.5
READY_LINE_S = 1.0


class Lines(logging.Handler):
    """A handler that hands lines to a thread, which writes them to a descriptor."""

    def __init__(self, descriptor: int = 2, most_waiting: int = MOST_WAITING) -> None:
        """Raises ConfigError when the system allows no further thread."""
        super().__init__()
        self.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
        self.dropped = 0
        self._descriptor = descriptor
        self._queue: queue.Queue[str | None] = queue.Queue(most_waiting)
        self._thread = threading.Thread(target=self._write_all, name="edgemux-stderr", daemon=True)
        start_thread(self._thread)

    def emit(self, record: logging.LogRecord) -> None:
        """Never waits."""
        try:
            self._queue.put_nowait(self.format(record))
        except queue.Full:
            self.dropped += 1
        except Exception:  # as the library has it: a line that cannot be formatted must not end a request
            self.handleError(record)

    def end(self) -> None:
        """Let the thread write what it has, for LAST_LINES_S at most."""
        try:
            self._queue.put_nowait(None)
        except queue.Full:  # stuck: make room for the word that it is over
            with contextlib.suppress(queue.Empty, queue.Full):
                self._queue.get_nowait()
                self.dropped += 1
                self._queue.put_nowait(None)
        self._thread.join(LAST_LINES_S)

    def _write_all(self) -> None:
        told = 0
        while True:
            line = self._queue.get()
            if line is not None:
                self._write(line)
            if self.dropped > told and (line is None or self._queue.empty()):
                told, lost = self.dropped, self.dropped - told
                self._write(f"WARNING edgemux: {lost} lines of this log were given up, nobody read them")
            if line is None:
                return

    def _write(self, line: str) -> None:
        # Past sys.stderr: a thread that hangs in there holds a lock that the end of the interpreter needs.
        left = f"{line}\n".encode("utf-8", "backslashreplace")
        with contextlib.suppress(OSError):
            while left:
                left = left[os.write(self._descriptor, left) :]


@contextlib.contextmanager
def unblocked_log() -> Iterator[None]:
    """The root logger writes through Lines, unless somebody has given it a handler."""
    root = logging.getLogger()
    if root.handlers:
        yield
        return
    lines = Lines()
    root.addHandler(lines)
    try:
        yield
    finally:
        root.removeHandler(lines)
        lines.end()


def say(line: str) -> None:
    """A line on stdout. Where that is closed nothing happens; where it is full it is waited for READY_LINE_S."""

    def write() -> None:
        try:
            print(line, flush=True)
        except (OSError, ValueError):
            # What is still in the buffer would fail again when the interpreter ends, and become its exit status.
            with contextlib.suppress(OSError):
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, 1)
                os.close(null)

    if sys.stdout is None:
        return
    thread = threading.Thread(target=write, name="edgemux-stdout", daemon=True)
    start_thread(thread)
    thread.join(READY_LINE_S)
