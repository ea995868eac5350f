"""The request log: every finished request once, and never in the way."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from edgemux.edge.config import LogSettings
from edgemux.edge.request_log import Line, RequestLog

PATIENCE_S = 30.0


class Count:
    """How many lines were given up."""

    def __init__(self) -> None:
        self.lines = 0

    def __call__(self, number: int) -> None:
        self.lines += number


def line(number: int) -> Line:
    return Line(str(number), "m", "answered", 0.001, 1, ("edge",), ("level-1",), ("confident",), (3,))


def written(path: Path) -> list[str]:
    return [json.loads(text)["id"] for text in path.read_text().splitlines()]


def test_every_line_is_written_in_order_by_the_time_it_is_closed(tmp_path: Path) -> None:
    dropped = Count()
    log = RequestLog(tmp_path / "log", 5000, dropped)
    for number in range(5000):
        log.add(line(number))
    log.close()
    assert written(tmp_path / "log") == [str(number) for number in range(5000)]
    assert dropped.lines == 0
    assert json.loads((tmp_path / "log").read_text().splitlines()[0]) == {
        "id": "0",
        "model": "m",
        "outcome": "answered",
        "elapsed_s": 0.001,
        "rows": 1,
        "routes": ["edge"],
        "variants": ["level-1"],
        "reasons": ["confident"],
        "labels": [3],
    }


def test_a_file_that_cannot_be_opened_drops_the_oldest_and_is_tried_again(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("edgemux.edge.request_log.RETRY_S", 0.01)
    folder = tmp_path / "later"
    dropped = Count()
    log = RequestLog(folder / "log", 3, dropped)
    for number in range(10):
        log.add(line(number))
    assert dropped.lines == 7
    folder.mkdir()
    until = time.monotonic() + PATIENCE_S
    while not (folder / "log").exists() or len(written(folder / "log")) < 3:
        assert time.monotonic() < until
        time.sleep(0.01)
    log.close()
    assert written(folder / "log") == ["7", "8", "9"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_costs_lines_that_are_counted_and_nothing_else(monkeypatch: Any) -> None:
    monkeypatch.setattr("edgemux.edge.request_log.RETRY_S", 0.01)
    dropped = Count()
    log = RequestLog(Path("/dev/full"), 1000, dropped)
    for number in range(100):
        log.add(line(number))
    until = time.monotonic() + PATIENCE_S
    while dropped.lines < 100:
        assert time.monotonic() < until
        time.sleep(0.01)
    log.close()
    assert dropped.lines == 100


def test_a_pipe_that_nobody_reads_blocks_neither_requests_nor_the_end(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        log = RequestLog(pipe, 100, Count())
        began = time.monotonic()
        for number in range(5000):
            log.add(line(number))
        assert time.monotonic() - began < PATIENCE_S
        closing = threading.Thread(target=log.close)
        closing.start()
        closing.join(PATIENCE_S)
        assert not closing.is_alive()
    finally:
        os.close(reader)


def test_a_queue_must_hold_something() -> None:
    with pytest.raises(ValueError, match="most_waiting"):
        LogSettings(most_waiting=0)
