"""Rows 65, 66, 68, 69, 78, 80 to 82 and 85: full disks, clocks that jump, processes that are stopped or killed."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from edgemux.wire.channel import client_options
from tests.system.faults import http2
from tests.system.faults.stage import Agent, Pictures, Stage, agent_process, settings, write_config
from tests.system.faults.table import Found

Report = Callable[[Found], None]
# EDGEMUX_STOPS=20 is the promise of none lost in 10,000, which takes two minutes.
STOPS = int(os.environ.get("EDGEMUX_STOPS", "6"))
REQUESTS = 500 * STOPS
PATIENCE_S = 60.0
READY_S, BUSY_READY_S = 5.0, 15.0
FAKETIME = next(iter(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1")), None)

pytestmark = pytest.mark.timeout(400)


@pytest.fixture
def good(message: Any) -> bytes:
    """A good request."""
    return bytes(message.SerializeToString())


def ask(address: str, good: bytes, count: int = 20, timeout_s: float = 10.0) -> list[float]:
    """Seconds that so many answers took."""
    elapsed = []
    with grpc.insecure_channel(address, options=client_options()) as channel:
        infer = channel.unary_unary(http2.INFER)
        for _ in range(count):
            began = time.monotonic()
            infer(good, timeout=timeout_s, wait_for_ready=True)
            elapsed.append(time.monotonic() - began)
    return elapsed


def played(on_stage: Stage, agent: Any, seen: Pictures, report: Report, row: int, fault: str, note: str = "") -> None:
    """A load on an agent on which the fault lies from the beginning: everything is answered."""
    with agent.load(on_stage.backstage, seen, rate_per_s=60.0, timeout_s=1.0) as load:
        load.more(120)
    # The agent's own ledger may be what cannot be written: the client's decides.
    outcomes = Counter(entry.outcome for entry in load.entries)
    assert set(outcomes) == {"answered"}
    wrong = [e for e in load.entries if seen.labels[e.variant][e.picture] != e.label]
    assert wrong == []
    report(Found(row, fault, len(load.entries), note=note))


@contextlib.contextmanager
def remembering(
    serving: Any, tiny_bundle: Path, folder: Path, address: str, log: str, state: str | None = None
) -> Iterator[Agent]:
    """An agent that writes its log to ``log`` and what it remembers to ``state``."""
    chosen = settings(tiny_bundle, address, Path(log))
    if state is not None:
        chosen["state_dir"] = state
    with serving("edge", "--config", str(write_config(folder / "agent.toml", chosen))) as server:
        yield Agent(server, Path(log))


@contextlib.contextmanager
def tiny_disk(folder: Path) -> Iterator[Path]:
    """A file system of 256 KB, which takes root."""
    folder.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if made.returncode:
        pytest.skip("no right to mount a file system; the row runs on /dev/full beside this")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_row_65_a_disk_that_is_full_costs_no_answer_and_what_is_not_logged_is_counted(
    on_stage: Stage, serving: Any, tiny_bundle: Path, tmp_path: Path, seen: Pictures, report: Report
) -> None:
    with tiny_disk(tmp_path / "disk") as disk:
        (disk / "filling").write_bytes(bytes(256 * 1024 - 4096))
        log, state = disk / "requests.jsonl", disk / "state"
        with remembering(serving, tiny_bundle, tmp_path, on_stage.proxy.address, str(log), str(state)) as agent:
            played(on_stage, agent, seen, report, 65, "disk full")
            wait_for(lambda: agent.metric("edgemux_log_dropped_total") > 0, "lines are dropped and counted")
            assert agent.server.popen.poll() is None


def test_row_65_a_log_that_takes_nothing_costs_no_answer(
    on_stage: Stage, serving: Any, tiny_bundle: Path, tmp_path: Path, seen: Pictures, report: Report
) -> None:
    with remembering(serving, tiny_bundle, tmp_path, on_stage.proxy.address, "/dev/full") as agent:
        played(on_stage, agent, seen, report, 65, "log on /dev/full")
        wait_for(lambda: agent.metric("edgemux_log_dropped_total") > 0, "lines are dropped and counted")


def test_row_66_an_agent_whose_log_and_state_cannot_be_made_starts_and_answers(
    on_stage: Stage, serving: Any, tiny_bundle: Path, tmp_path: Path, seen: Pictures, report: Report
) -> None:
    # /proc takes no file from anybody, not even from root.
    with remembering(
        serving, tiny_bundle, tmp_path, on_stage.proxy.address, "/proc/requests.jsonl", "/proc/state"
    ) as agent:
        played(on_stage, agent, seen, report, 66, "state and log on a read-only file system")


@pytest.mark.skipif(FAKETIME is None, reason="faketime is not installed")
@pytest.mark.parametrize("shift", ["+1h", "-1h", "+10y", "-10y"])
def test_row_68_a_wall_clock_that_is_wrong_changes_no_answer(
    on_stage: Stage, tiny_bundle: Path, tmp_path: Path, good: bytes, report: Report, shift: str
) -> None:
    moved = tmp_path / "clock"
    moved.write_text("+0\n")
    # The monotonic clock is left alone, as by a host whose wall clock is set.
    told = os.environ | {
        "LD_PRELOAD": str(FAKETIME),
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "FAKETIME_TIMESTAMP_FILE": str(moved),
        "FAKETIME_CACHE_DURATION": "1",
    }
    command = [sys.executable, "-m", "edgemux.cli.main", "edge", "--bundle", str(tiny_bundle), "--grpc-port", "0"]
    command += ["--http-port", "0", "--metrics-port", "0", "--cloud", on_stage.proxy.address]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=told) as process:
        try:
            assert process.stdout is not None
            words = dict(word.split("=", 1) for word in process.stdout.readline().split() if "=" in word)
            before = ask(words["grpc"], good)
            moved.write_text(f"{shift}\n")
            clock = [sys.executable, "-c", "import time; print(time.time())"]
            told_time = float(subprocess.run(clock, env=told, capture_output=True, text=True, check=True).stdout)
            assert abs(told_time - time.time()) > 3000, "the clock does not jump"
            time.sleep(1.5)
            during = ask(words["grpc"], good, count=100)
        finally:
            process.kill()
    assert len(during) == 100
    assert sorted(during)[50] < 5 * sorted(before)[10] + 0.05
    report(Found(68, f"wall clock {shift} while it serves", 120, p99_ms=sorted(during)[98] * 1000))


def test_row_69_a_process_that_was_stopped_for_a_while_answers_at_once_when_it_goes_on(
    on_stage: Stage, serving: Any, tiny_bundle: Path, tmp_path: Path, good: bytes, report: Report
) -> None:
    with agent_process(serving, tmp_path, tiny_bundle, on_stage.proxy.address) as agent:
        process = agent.server.popen
        ask(agent.server.grpc, good)
        with grpc.insecure_channel(agent.server.grpc, options=client_options()) as channel:
            infer = channel.unary_unary(http2.INFER)
            infer(good, timeout=10.0)
            process.send_signal(signal.SIGSTOP)
            stale = [infer.future(good, timeout=0.5) for _ in range(50)]
            ended = [call.exception(timeout=30.0) for call in stale]
            process.send_signal(signal.SIGCONT)
            assert {error.code().name for error in ended} == {"DEADLINE_EXCEEDED"}
        after = ask(agent.server.grpc, good)
        assert min(after) < 0.5
        wait_for(lambda: agent.metric("edgemux_inflight") == 0, "nothing in flight")
        report(Found(69, "stopped and continued", 71, refused=50, p99_ms=max(after) * 1000))


def test_row_78_an_agent_that_is_out_of_file_descriptors_goes_on_with_the_connections_it_has(
    tiny_bundle: Path, serving_by: Any, good: bytes, report: Report
) -> None:
    program = (
        "import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64)); "
        "runpy.run_module('edgemux.cli.main', run_name='__main__', alter_sys=True)"
    )
    ports = ("--grpc-port", "0", "--http-port", "0", "--metrics-port", "0")
    with (
        serving_by(program, "edge", "--bundle", str(tiny_bundle), *ports) as server,
        grpc.insecure_channel(server.grpc, options=client_options()) as channel,
    ):
        infer = channel.unary_unary(http2.INFER)
        infer(good, timeout=10.0)
        with contextlib.ExitStack() as stack:
            for _ in range(100):
                with contextlib.suppress(OSError):
                    host, _, port = server.grpc.rpartition(":")
                    stack.enter_context(socket.create_connection((host, int(port)), timeout=1.0))
            for _ in range(50):
                infer(good, timeout=10.0)
        assert server.popen.poll() is None
        assert len(ask(server.grpc, good, count=5, timeout_s=30.0)) == 5
        report(Found(78, "64 file descriptors, 100 connections", 56))


def test_row_82_after_sigkill_it_is_ready_again_within_seconds(
    tiny_bundle: Path, serving: Any, good: bytes, report: Report
) -> None:
    with serving("edge", "--bundle", str(tiny_bundle)) as server:
        port = server.grpc.rpartition(":")[2]
        clients = Retrying(server.grpc, good, 1000)
        clients.start()
        wait_for(lambda: sum(clients.outcomes.values()) >= 100, "requests are answered")
        server.stop(signal.SIGKILL)
    began = time.monotonic()
    with serving("edge", "--bundle", str(tiny_bundle), "--grpc-port", port):
        ready_s = time.monotonic() - began
        wait_for(lambda: clients.over, "all are answered")
    report(Found(82, "SIGKILL under load, and restart", 1000, recovery_s=ready_s))
    assert clients.outcomes == {"answered": 1000}
    assert ready_s <= READY_S + BUSY_READY_S


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_row_81_a_signal_ends_it_in_order_and_a_second_at_once(
    tiny_bundle: Path, serving: Any, good: bytes, report: Report, number: signal.Signals
) -> None:
    with serving("edge", "--bundle", str(tiny_bundle)) as server:
        ask(server.grpc, good, count=1)
        server.popen.send_signal(number)
        server.popen.send_signal(number)
        assert server.ended() == 0
    report(Found(81, f"{number.name} twice", 1, note="exit 0"))


def test_row_81_certificates_and_tokens_are_looked_at_again_under_load_at_no_request_s_cost(
    tiny_bundle: Path, serving: Any, good: bytes, report: Report
) -> None:
    with serving("edge", "--bundle", str(tiny_bundle)) as server:
        clients = Retrying(server.grpc, good, 400)
        clients.start()
        for number in range(1, 6):
            wait_for(lambda due=50 * number: sum(clients.outcomes.values()) >= due, "requests are answered")
            server.popen.send_signal(signal.SIGHUP)
        wait_for(lambda: clients.over, "all are answered")
        assert server.popen.poll() is None
    report(Found(81, "SIGHUP five times under load", 400))
    assert clients.outcomes == {"answered": 400}
    assert clients.cut_off == 0


def test_row_85_nobody_who_reads_stdout_and_stderr_holds_up_no_answer(
    tiny_bundle: Path, good: bytes, report: Report
) -> None:
    ports = ["--grpc-port", "0", "--http-port", "0", "--metrics-port", "0"]
    command = [sys.executable, "-m", "edgemux.cli.main", "edge", "--bundle", str(tiny_bundle), *ports]
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with contextlib.suppress(BlockingIOError):
        while os.write(writing, b"x" * 4096):
            pass
    os.set_blocking(writing, True)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=writing, text=True) as process:
        try:
            assert process.stdout is not None
            words = dict(word.split("=", 1) for word in process.stdout.readline().split() if "=" in word)
            process.stdout.close()
            elapsed = []
            for _ in range(20):  # each signal is worth a line in the log
                process.send_signal(signal.SIGHUP)
                elapsed += ask(words["grpc"], good, count=5)
        finally:
            process.kill()
            os.close(reading)
            os.close(writing)
    report(Found(85, "stdout closed, stderr full", 100, p99_ms=sorted(elapsed)[98] * 1000))


class Retrying:
    """Clients that ask again, up to a bound, when they hear UNAVAILABLE or CANCELLED.

    CANCELLED is the library's word at a stop for calls that have come and were not taken in: nobody has worked on them.
    The server waits for a moment without any, but not for ever, and clients that ask again at once leave it none:
    32 of 10,000 heard it in 20 stops on a busy machine. ``cut_off`` counts them.
    """

    def __init__(self, address: str, good: bytes, count: int) -> None:
        self.outcomes: Counter[str] = Counter()
        self.cut_off = 0
        self._address, self._good = address, good
        self._numbers = iter(range(count))
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._ask, daemon=True) for _ in range(4)]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    @property
    def over(self) -> bool:
        return not any(thread.is_alive() for thread in self._threads)

    def _ask(self) -> None:
        with grpc.insecure_channel(self._address, options=client_options()) as channel:
            infer = channel.unary_unary(http2.INFER)
            while True:
                with self._lock:
                    if next(self._numbers, None) is None:
                        return
                outcome = self._answered(infer)
                with self._lock:
                    self.outcomes[outcome] += 1

    def _answered(self, infer: Any) -> str:
        give_up_s = time.monotonic() + PATIENCE_S
        while True:
            try:
                infer(self._good, timeout=10.0, wait_for_ready=True)
                return "answered"
            except grpc.RpcError as error:
                code = str(error.code().name)
                if code not in ("UNAVAILABLE", "CANCELLED") or time.monotonic() > give_up_s:
                    return code
                with self._lock:
                    self.cut_off += code == "CANCELLED"
                time.sleep(0.02)


def test_row_80_stops_under_load_lose_none_of_thousands_of_requests(
    tiny_bundle: Path, serving: Any, good: bytes, report: Report
) -> None:
    stops = 0
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(serving("edge", "--bundle", str(tiny_bundle)))
        port = server.grpc.rpartition(":")[2]
        clients = Retrying(server.grpc, good, REQUESTS)
        clients.start()
        while stops < STOPS and not clients.over:
            due = (stops + 1) * REQUESTS // (STOPS + 1)
            wait_for(lambda due=due: sum(clients.outcomes.values()) >= due or clients.over, "requests are answered")
            assert server.stop() == 0, server.errors()
            stops += 1
            server = stack.enter_context(serving("edge", "--bundle", str(tiny_bundle), "--grpc-port", port))
        wait_for(lambda: clients.over, "all are answered")
    report(Found(80, f"{stops} SIGTERMs under load", REQUESTS, note=f"{clients.cut_off} asked again after CANCELLED"))
    assert stops == STOPS
    assert clients.outcomes == {"answered": REQUESTS}
    assert clients.cut_off <= REQUESTS // 100


def wait_for(condition: Callable[[], bool], what: str) -> None:
    give_up_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < give_up_s, f"not within {PATIENCE_S:g} s: {what}"
        time.sleep(0.02)
