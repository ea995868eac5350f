"""Servers as processes: our cloud in its forms, bare grpc.aio, the peers; what a tree of processes takes."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import psutil

from serving_bench import peers

HERE = Path(__file__).parent
START_PATIENCE_S = 120.0
MODEL = "model"


class Running(msgspec.Struct, frozen=True):
    """A server. grpc, http: HOST:PORT, empty where it does not listen. restless: must not be stopped meanwhile."""

    name: str
    pid: int
    grpc: str = ""
    http: str = ""
    version: str = ""
    restless: bool = False


class Usage(msgspec.Struct, frozen=True):
    """Of a process and its children: CPU seconds so far, resident bytes."""

    cpu_s: float
    rss_bytes: int


class Machine(msgspec.Struct, frozen=True):
    """All CPUs together, seconds so far: everybody's work, ours (with children that have ended), and what there was."""

    busy_s: float
    own_s: float
    whole_s: float

    @classmethod
    def now(cls) -> Machine:
        """As it is."""
        times = psutil.cpu_times()
        whole_s = sum(times) - times.guest - times.guest_nice
        spent = os.times()
        own_s = spent.user + spent.system + spent.children_user + spent.children_system
        return cls(whole_s - times.idle - times.iowait, own_s, whole_s)

    def others(self, before: Machine, server_s: float) -> float:
        """The share of the time since ``before`` that neither we nor a server of ``server_s`` seconds took."""
        others_s = self.busy_s - before.busy_s - (self.own_s - before.own_s) - server_s
        return max(0.0, others_s / max(self.whole_s - before.whole_s, 1e-9))


def tree(pid: int) -> list[psutil.Process]:
    """A process and all below it."""
    with contextlib.suppress(psutil.NoSuchProcess):
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    return []


def usage(pid: int) -> Usage:
    """What the tree has taken."""
    cpu_s, rss = 0.0, 0
    for each in tree(pid):
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            times = each.cpu_times()
            cpu_s += times.user + times.system
            rss += each.memory_info().rss
    return Usage(cpu_s, rss)


@contextlib.contextmanager
def quiet(others: Sequence[Running]) -> Iterator[None]:
    """While one is measured the others stand still: LitServe with batching takes a whole core when idle."""
    stopped = [each for other in others if not other.restless for each in tree(other.pid)]
    for each in stopped:
        with contextlib.suppress(psutil.NoSuchProcess):
            each.suspend()
    try:
        yield
    finally:
        for each in stopped:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.resume()


@contextlib.contextmanager
def process(name: str, command: Sequence[str], version: str = "") -> Iterator[Running]:
    """A server that says on its first line where it listens, ``grpc=HOST:PORT http=HOST:PORT``."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryFile() as log:
        popen = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment, start_new_session=True
        )
        try:
            assert popen.stdout is not None
            line = _line(popen)
            found = dict(re.findall(r"(\w+)=(\S+)", line))
            if "grpc" not in found:
                log.seek(0)
                raise peers.Unavailable(f"{name}: did not start: {line}{log.read()[-1500:].decode(errors='replace')}")
            yield Running(name, popen.pid, found["grpc"], found.get("http", ""), version)
        finally:
            _end(popen)


def _line(popen: subprocess.Popen[str]) -> str:
    """The line that says it is ready; others may come before it."""
    assert popen.stdout is not None
    until_s = time.monotonic() + START_PATIENCE_S
    while time.monotonic() < until_s:
        line = popen.stdout.readline()
        if not line or " ready " in line:
            return line
    return ""


def _end(popen: subprocess.Popen[str]) -> None:
    for number, patience_s in ((signal.SIGTERM, 20.0), (signal.SIGKILL, 5.0)):
        with contextlib.suppress(ProcessLookupError):
            if popen.poll() is None or number == signal.SIGKILL:
                os.killpg(popen.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            popen.wait(patience_s)


@contextlib.contextmanager
def ours(
    onnx: Path,
    *,
    name: str = "edgemux",
    max_batch: int = 32,
    processes: int = 1,
    python: str = sys.executable,
    options: Sequence[str] = (),
) -> Iterator[Running]:
    """``edgemux cloud`` with a list of one ONNX model, one thread, defaults otherwise."""
    text = (
        f"processes = {processes}\n[[models]]\nname = {json.dumps(MODEL)}\nonnx = {json.dumps(str(onnx.resolve()))}\n"
        f"[batching]\nmax_batch = {max_batch}\n"
    )
    with tempfile.TemporaryDirectory(prefix="edgemux-serving-") as folder:
        config = Path(folder) / "cloud.toml"
        config.write_text(text)
        command = [python, "-m", "edgemux.cli.main", "cloud", "--config", str(config)]
        command += ["--grpc-port", "0", "--http-port", "0", "--metrics-port", "0", *options]
        with process(name, command) as running:
            # A cluster of Ray's that stood still would take itself for dead.
            yield msgspec.structs.replace(running, restless="--engine" in options)


@contextlib.contextmanager
def bare(onnx: Path) -> Iterator[Running]:
    """grpc.aio and uvloop, nothing else."""
    with process("bare grpc.aio", [sys.executable, str(HERE / "bare.py"), str(onnx)]) as running:
        yield running


@contextlib.contextmanager
def peer(name: str, label: str, onnx: Path, max_batch: int) -> Iterator[Running]:
    """One of the peers' servers."""
    with peers.serve(name, onnx, MODEL, max_batch) as found:
        # Triton's processes wake each other through shared memory, and idle takes nothing.
        yield Running(label, found.pid, found.grpc, found.http, found.version, name == "triton")
