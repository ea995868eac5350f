"""Several processes behind the same ports: all of them answer, one that is killed is replaced, all of them stop."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest

from tests.system.conftest import MODEL, PATIENCE_S, Serving

IMAGE = np.zeros((1, 28, 28), dtype=np.uint8)


def _until(done: Callable[[], bool]) -> None:
    over_s = time.monotonic() + PATIENCE_S
    while not done():
        assert time.monotonic() < over_s, "it never happened"
        time.sleep(0.1)


def _workers(pid: int) -> list[psutil.Process]:
    found = []
    for child in psutil.Process(pid).children():
        if "resource_tracker" not in " ".join(child.cmdline()):
            found.append(child)
    return found


@pytest.fixture(scope="module")
def options(tiny_bundle: Path) -> tuple[str, ...]:
    return ("--bundle", str(tiny_bundle), "--processes", "2")


def test_all_of_them_answer_and_tell_their_metrics_together(serving: Serving, options: tuple[str, ...]) -> None:
    with serving("cloud", *options) as server:
        asked = 0

        def both_asked() -> bool:
            nonlocal asked
            # A connection stays with the process that took it.
            with server.client() as client:
                client.ask(IMAGE)
            asked += 1
            return all(count > 0 for count in counts().values())

        def counts() -> dict[str, float]:
            return {
                name: value
                for name, value in server.scrape().items()
                if name.startswith("edgemux_cloud_requests_total{") and 'outcome="answered"' in name
            }

        _until(both_asked)
        assert len(counts()) == 2
        assert sum(counts().values()) == asked
        assert server.scrape()["edgemux_cloud_processes"] == 2
        assert server.get("/v2/health/ready")[0] == 200
        assert server.stop() == 0


def test_one_that_is_killed_is_replaced_and_the_others_answer_meanwhile(
    serving: Serving, options: tuple[str, ...]
) -> None:
    with serving("cloud", *options) as server:
        victim, other = _workers(server.popen.pid)
        victim.kill()
        _until(lambda: server.scrape()["edgemux_cloud_processes"] == 1)
        _until(lambda: server.scrape()["edgemux_cloud_processes"] == 2)
        pids = {worker.pid for worker in _workers(server.popen.pid)}
        assert other.pid in pids
        assert victim.pid not in pids
        with server.client() as client:
            assert client.is_model_ready(MODEL)
            client.ask(IMAGE)
        assert server.stop() == 0


def test_nobody_is_left_behind_by_a_first_process_that_is_killed(serving: Serving, options: tuple[str, ...]) -> None:
    with serving("cloud", *options) as server:
        workers = _workers(server.popen.pid)
        server.stop(signal.SIGKILL)
        _, alive = psutil.wait_procs(workers, timeout=PATIENCE_S)
        assert not alive


def test_what_one_cannot_start_for_is_said_once(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "edgemux.cli.main", "cloud", "--bundle", str(tmp_path), "--processes", "3"]
    ports = ("--grpc-port", "0", "--http-port", "0", "--metrics-port", "0")
    ended = subprocess.run([*command, *ports], capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert ended.returncode == 2
    assert ended.stderr.count("holds neither manifest.json nor folders") == 1


def test_a_port_that_is_taken_is_named(serving: Serving, options: tuple[str, ...]) -> None:
    with serving("cloud", *options) as server:
        port = server.grpc.rpartition(":")[2]
        command = [sys.executable, "-m", "edgemux.cli.main", "cloud", *options]
        ports = ("--grpc-port", port, "--http-port", "0", "--metrics-port", "0")
        ended = subprocess.run(
            [*command, *ports], capture_output=True, text=True, timeout=PATIENCE_S, check=False, env=dict(os.environ)
        )
        assert ended.returncode == 2
        assert f"--grpc-port {port}" in ended.stderr
