"""The log of a process whose reader is slow, stuck or gone."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

from edgemux.wire.events import MOST_CHARACTERS
from edgemux.wire.log_format import Limits
from edgemux.wire.stderr import Lines, unblocked_log

PATIENT_S = 30.0


def record(text: str) -> logging.LogRecord:
    return logging.LogRecord("name", logging.WARNING, "", 0, text, (), None)


def test_lines_come_out_in_order_with_their_level() -> None:
    source, sink = os.pipe()
    lines = Lines(sink)
    for number in range(5):
        lines.emit(record(f"line {number}"))
    lines.end()
    os.close(sink)
    with open(source, encoding="utf-8") as read:
        assert read.read().splitlines() == [f"WARNING name: line {number}" for number in range(5)]
    assert lines.dropped == 0


def test_a_reader_that_is_stuck_holds_nobody_up_and_hears_later_what_was_given_up() -> None:
    source, sink = os.pipe()
    lines = Lines(sink, most_waiting=10, limits=Limits(burst=1e6))
    for _ in range(1000):
        lines.emit(record("x" * 1000))
    assert lines.dropped >= 1000 - 10 - 2**16 / MOST_CHARACTERS - 1
    lines.end()  # returns, whatever is stuck
    heard = b""
    while sum(int(number) for number in re.findall(rb"log dropped lines=(\d+)", heard)) < lines.dropped:
        got = os.read(source, 2**16)
        assert got
        heard += got
    os.close(sink)
    os.close(source)


def test_a_reader_that_is_gone_is_no_error() -> None:
    source, sink = os.pipe()
    os.close(source)
    lines = Lines(sink)
    lines.emit(record("nobody hears it"))
    lines.end()
    os.close(sink)


def test_whoever_has_set_up_logging_keeps_it() -> None:
    root = logging.getLogger()
    mine = logging.NullHandler()
    before = list(root.handlers)
    root.addHandler(mine)
    try:
        threads = threading.active_count()
        with unblocked_log():
            assert root.handlers == [*before, mine]
            assert threading.active_count() <= threads
    finally:
        root.removeHandler(mine)


PROGRAM = """
import logging, sys
from edgemux.wire import log_format
from edgemux.wire.stderr import say, unblocked_log
log_format.BURST = 1e6
with unblocked_log():
    say("ready")
    for number in range(int(sys.argv[1])):
        logging.getLogger("a").warning("%s", "x" * 1000)
"""


@contextlib.contextmanager
def run(lines: int, **how: Any) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", PROGRAM, str(lines)], **how) as process:
        try:
            yield process
        finally:
            process.kill()


def test_a_closed_stdout_is_no_end() -> None:
    source, sink = os.pipe()
    os.close(source)
    with run(1, stdout=sink, stderr=subprocess.PIPE) as process:
        os.close(sink)
        assert b"xxx" in process.stderr.read()  # type: ignore[union-attr]
        assert process.wait(PATIENT_S) == 0
    with run(1, stdout=None, stderr=subprocess.PIPE, preexec_fn=lambda: os.close(1)) as process:
        assert process.wait(PATIENT_S) == 0


def test_a_stderr_that_nobody_reads_is_no_end() -> None:
    with run(2000, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"ready\n"  # type: ignore[union-attr]
        assert process.wait(PATIENT_S) == 0
