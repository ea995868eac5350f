"""What a process writes about itself, without ever waiting for whoever reads it.

A pipe that nobody empties blocks a plain write for ever, and the event loop with it. Lines go through a bounded queue
to a thread; what does not fit is given up and counted.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator

from edgemux.wire.events import Event, LogDropped, LogSuppressed, Name
from edgemux.wire.log_format import Limits, LogOptions, event_of, json_line, key_of, text_line
from edgemux.wire.web import start_thread

MOST_WAITING = 1000
# At the end: for a reader that is merely slow.
LAST_LINES_S = 0.5
READY_LINE_S = 1.0


class Lines(logging.Handler):
    """A handler that hands lines to a thread, which writes them to a descriptor; so many of an event, and no more."""

    def __init__(
        self,
        descriptor: int = 2,
        most_waiting: int = MOST_WAITING,
        options: LogOptions = LogOptions(),  # noqa: B008 - it is frozen
        clock: Callable[[], float] = time.monotonic,
        limits: Limits | None = None,
    ) -> None:
        """Raises ConfigError when the system allows no further thread."""
        super().__init__(options.threshold)
        self.dropped = 0
        self._as_json = options.format == "json"
        self._journal = is_journal(descriptor)
        self._limits = limits or Limits()
        self._clock = clock
        self._descriptor = descriptor
        self._queue: queue.Queue[str | None] = queue.Queue(most_waiting)
        self._thread = threading.Thread(target=self._write_all, name="edgemux-stderr", daemon=True)
        start_thread(self._thread)

    def emit(self, record: logging.LogRecord) -> None:
        """Never waits. The library calls it with the handler's lock held."""
        try:
            suppressed = self._limits.passes(key_of(record), self._clock())
            if suppressed is not None:
                line = self._line(record.levelno, record.name, event_of(record), suppressed, record.created)
                self._queue.put_nowait(line)
        except queue.Full:
            self.dropped += 1
        except Exception:  # as the library has it: a line that cannot be formatted must not end a request
            self.handleError(record)

    def _line(self, level: int, logger: str, event: Event, suppressed: int = 0, created_s: float = 0.0) -> str:
        if self._as_json:
            return json_line(level, logger, event, suppressed, created_s or time.time())
        return text_line(level, logger, event, suppressed, self._journal)

    def _own(self, event: Event) -> str:
        return self._line(event.level, "edgemux", event)

    def end(self) -> None:
        """Let the thread write what it has, for LAST_LINES_S at most."""
        for key, count in self._limits.left().items():
            with contextlib.suppress(queue.Full):
                self._queue.put_nowait(self._own(LogSuppressed(of=Name(key), lines=count)))
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
                self._write(self._own(LogDropped(lines=lost)))
            if line is None:
                return

    def _write(self, line: str) -> None:
        # Past sys.stderr: a thread that hangs in there holds a lock that the end of the interpreter needs.
        left = f"{line}\n".encode("utf-8", "backslashreplace")
        with contextlib.suppress(OSError):
            while left:
                left = left[os.write(self._descriptor, left) :]


def is_journal(descriptor: int) -> bool:
    """Whether journald reads what is written there, as systemd says by device and inode."""
    device, _, inode = os.environ.get("JOURNAL_STREAM", "").partition(":")
    try:
        found = os.fstat(descriptor)
    except OSError:
        return False
    return (str(found.st_dev), str(found.st_ino)) == (device, inode) and stat.S_ISSOCK(found.st_mode)


@contextlib.contextmanager
def unblocked_log(options: LogOptions = LogOptions()) -> Iterator[None]:  # noqa: B008 - it is frozen
    """The root logger writes through Lines, unless somebody has given it a handler."""
    root, ours = logging.getLogger(), logging.getLogger("edgemux")
    if root.handlers:
        yield
        return
    lines, before = Lines(options=options), ours.level
    root.addHandler(lines)
    # Of libraries no more than warnings, as ever.
    ours.setLevel(options.threshold)
    try:
        yield
    finally:
        ours.setLevel(before)
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
