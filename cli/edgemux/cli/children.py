"""The demo's processes: the two servers and the load that keeps the device busy."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import sys
from collections.abc import Iterator
from types import TracebackType

import msgspec

from edgemux.multiplexer.errors import ConfigError, ExecutionError

START_S = 60.0  # a cold disk and a busy machine; usually it takes 1 to 2 s
STOP_S = 3.0

_READY = re.compile(r"edgemux (?P<name>\w+) ready (?P<fields>.*)")
_ERROR_LINES = 20

Cpus = frozenset[int]


class Ready(msgspec.Struct, frozen=True):
    """What a server's ready line says; the addresses are HOST:PORT."""

    model: str
    grpc: str
    http: str
    metrics: str


def parse_ready(line: str) -> Ready | None:
    """The content of a ready line, None for any other line."""
    match = _READY.fullmatch(line.strip())
    if match is None:
        return None
    fields = dict(field.partition("=")[::2] for field in match["fields"].split())
    try:
        return msgspec.convert(fields, Ready)
    except msgspec.ValidationError:
        return None


class Layout(msgspec.Struct, frozen=True):
    """Which CPUs the device has, and which everything else has; the same ones where there is only one."""

    device: Cpus
    others: Cpus


def lay_out(cpus: Cpus) -> Layout:
    """The device gets one CPU of its own where there is more than one."""
    if len(cpus) < 2:
        return Layout(cpus, cpus)
    device = frozenset({max(cpus)})
    return Layout(device, cpus - device)


def allowed_cpus() -> Cpus:
    """The CPUs that this thread may use; empty where the system cannot tell."""
    return frozenset(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else frozenset()


@contextlib.contextmanager
def confined_to(cpus: Cpus) -> Iterator[None]:
    """Within the block this thread runs on ``cpus``, and so do the processes and threads that it starts."""
    before = allowed_cpus()
    if not cpus or cpus == before:
        yield
        return
    os.sched_setaffinity(0, cpus)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


class Child:
    """A child process that ends with the block, and with this process whatever happens to it."""

    def __init__(self, arguments: list[str], cpus: Cpus) -> None:
        self._arguments = arguments
        self._cpus = cpus
        self._process: asyncio.subprocess.Process | None = None
        self._reading: list[asyncio.Task[None]] = []
        self._errors: list[str] = []
        self._lines: asyncio.Queue[str | None] = asyncio.Queue()

    async def __aenter__(self) -> Child:
        pipe = asyncio.subprocess.PIPE
        command = [sys.executable, "-m", "edgemux.cli.attached", str(os.getpid()), *self._arguments]
        with confined_to(self._cpus):
            self._process = await asyncio.create_subprocess_exec(
                *command, stdin=asyncio.subprocess.DEVNULL, stdout=pipe, stderr=pipe
            )
        self._reading = [asyncio.create_task(self._read_output()), asyncio.create_task(self._read_errors())]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self._signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(self._running.wait(), STOP_S)
        except TimeoutError:
            pass
        finally:
            self._signal(signal.SIGKILL)
        await self._running.wait()
        await asyncio.gather(*self._reading)

    @property
    def _running(self) -> asyncio.subprocess.Process:
        assert self._process is not None
        return self._process

    def kill(self) -> None:
        """End it at once, as a power cut would."""
        self._signal(signal.SIGKILL)

    async def gone(self) -> None:
        """Wait until it has ended: only then is its port free."""
        await self._running.wait()

    async def ready(self) -> Ready:
        """Wait for the server's ready line. Raises ConfigError with its own reason when it ends instead."""
        try:
            async with asyncio.timeout(START_S):
                while (line := await self._lines.get()) is not None:
                    ready = parse_ready(line)
                    if ready is not None:
                        return ready
                code = await self._running.wait()
                await asyncio.gather(*self._reading)
        except TimeoutError as error:
            raise ExecutionError(f"edgemux {self._arguments[0]} was not ready within {START_S:g} s") from error
        reason = self._errors[-1] if self._errors else f"it ended with exit code {code}"
        raise ConfigError(f"edgemux {self._arguments[0]} did not start: {reason}")

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._running.send_signal(number)

    async def _read_output(self) -> None:
        assert self._running.stdout is not None
        async for line in self._running.stdout:
            self._lines.put_nowait(line.decode(errors="replace"))
        self._lines.put_nowait(None)

    async def _read_errors(self) -> None:
        assert self._running.stderr is not None
        async for line in self._running.stderr:
            self._errors.append(line.decode(errors="replace").strip())
            del self._errors[:-_ERROR_LINES]
