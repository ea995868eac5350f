"""Rows 75, 76 and 84: a sensor that hangs, an event loop that hangs, a child that asks what its parent opened."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.system.faults.table import Found
from tests.system.faults.test_host_rows import ask

Report = Callable[[Found], None]
PATIENCE_S = 60.0
# The watchdog's interval, and for how long the loop is blocked; signs of life come four times an interval.
WATCHDOG_S, BLOCKED_S = 2.0, 4.0

# An agent whose sensor of heat hangs from the second reading on, and whose event loop does on a signal.
SICK = """
import signal, sys, threading, time
from edgemux.edge import sensors, server
from edgemux.edge.config import load

readings = iter([{"temperature_c": 40.0}])

class Heat(sensors.Heat):
    def read(self):
        for reading in readings:
            return reading
        threading.Event().wait()

sensors.Heat = Heat
signal.signal(signal.SIGUSR1, lambda *_: time.sleep(float(sys.argv[2])))
ports = {f"listen.{name}_port": 0 for name in ("grpc", "http", "metrics")}
server.serve(load(None, {"bundle": sys.argv[1], **ports}))
"""


@pytest.fixture
def good(message: Any) -> bytes:
    """A good request."""
    return bytes(message.SerializeToString())


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    """What listens for signs of life, as systemd does."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        listening.settimeout(PATIENCE_S)
        yield listening


@pytest.fixture
def sick(manager: socket.socket, monkeypatch: pytest.MonkeyPatch, serving_by: Any, tiny_bundle: Path) -> Iterator[Any]:
    """The agent above, watched by ``manager``."""
    monkeypatch.setenv("NOTIFY_SOCKET", manager.getsockname())
    monkeypatch.setenv("WATCHDOG_USEC", str(round(WATCHDOG_S * 1e6)))
    with serving_by(SICK, str(tiny_bundle), str(BLOCKED_S)) as server:
        yield server


def test_row_75_a_sensor_that_hangs_is_unknown_and_aged_and_holds_up_no_answer(
    sick: Any, good: bytes, report: Report
) -> None:
    age, reading = 'edgemux_sensor_age_seconds{sensor="heat"}', 'edgemux_resource{sensor="temperature_c"}'
    until = time.monotonic() + PATIENCE_S
    while sick.scrape().get(age, 0.0) < 3.0 or reading in sick.scrape():
        assert time.monotonic() < until
        time.sleep(0.1)
    elapsed = ask(sick.grpc, good, count=100)
    assert 'edgemux_resource{sensor="cpu_count"}' in sick.scrape()
    report(
        Found(75, "a sensor hangs", 100, p99_ms=sorted(elapsed)[98] * 1000, note="its reading unknown, its age told")
    )


def test_row_76_a_loop_that_is_blocked_feeds_no_watchdog(
    sick: Any, manager: socket.socket, good: bytes, report: Report
) -> None:
    assert manager.recv(100) == b"READY=1"
    assert manager.recv(100) == b"WATCHDOG=1"
    ask(sick.grpc, good, count=1)
    sick.popen.send_signal(signal.SIGUSR1)
    time.sleep(0.2)
    heard_s = blocked_s = time.monotonic()
    longest_s = 0.0
    while heard_s < blocked_s + BLOCKED_S + WATCHDOG_S:
        assert manager.recv(100) == b"WATCHDOG=1"
        now_s = time.monotonic()
        longest_s, heard_s = max(longest_s, now_s - heard_s), now_s
    # A manager would have restarted it; this one hears of it again when the loop goes on.
    assert longest_s > WATCHDOG_S
    ask(sick.grpc, good, count=1)
    report(
        Found(
            76, "event loop blocked for 4 s", 2, note=f"no sign of life for {longest_s:.1f} s, {WATCHDOG_S:g} allowed"
        )
    )


FORKING = """
import asyncio, os, sys
from pathlib import Path
import numpy as np
from edgemux.edge import EdgeConfig, open_agent

async def main():
    async with open_agent(EdgeConfig(bundle=Path(sys.argv[1]))) as agent:
        image = {"image": np.zeros((1, 28, 28), np.uint8)}
        await agent.infer(image)
        child = os.fork()
        if child == 0:
            try:
                await agent.infer(image)
            except Exception as error:
                os.write(1, f"child: {type(error).__name__}: {error}\\n".encode())
            os._exit(0)
        os.waitpid(child, 0)
        for _ in range(20):
            await agent.infer(image)
        print("parent: answered", flush=True)

asyncio.run(main())
"""


def test_row_84_a_child_that_asks_its_parents_agent_is_told_and_the_parent_goes_on(
    tiny_bundle: Path, report: Report
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FORKING, str(tiny_bundle)],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    child, parent = done.stdout.splitlines()
    assert child.startswith("child: ConfigError: ")
    assert parent == "parent: answered"
    report(Found(84, "a child asks its parent's agent", 22, refused=1, note="typed error; the parent goes on"))
