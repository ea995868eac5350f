"""Several processes behind the same ports: Python computes on one core, whatever else is free.

The first process takes the ports and seats the others, each of which is a whole server: the kernel deals gRPC
connections out among them, they take HTTP connections in turn, and their metrics are told together, each series with
the number of its process. One that ends is replaced.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import logging
import multiprocessing
import os
import signal
import socket
import tempfile
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from edgemux.cloud.events import ProcessEnded, ProcessNotStarted
from edgemux.cloud.metrics import count_processes
from edgemux.multiplexer.errors import EdgemuxError, ExecutionError
from edgemux.wire.events import Name, Ready, ReloadAsked, Why, tell, why
from edgemux.wire.log_format import LogOptions
from edgemux.wire.process import Listen, Seat, guard_of, ready_line, take_port
from edgemux.wire.security import Guard
from edgemux.wire.stderr import say, unblocked_log
from edgemux.wire.systemd import Notifier, show_life
from edgemux.wire.web import exporting

# A process that ends at once again and again must not keep a core busy with starting.
FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 30.0
# One that has served for so long is started again without a pause.
SETTLED_S = 60.0
SCRAPE_S = 2.0

_log = logging.getLogger("edgemux.cloud")
_spawn = multiprocessing.get_context("spawn")

# What a seated process does: serves until it is told to stop. Has to be a function that can be named.
Work = Callable[[Any, Seat], None]


def serve_many(listen: Listen, count: int, work: Work, config: Any, log: LogOptions) -> None:
    """Run ``work(config, seat)`` in ``count`` processes until SIGTERM or SIGINT; prints one ready line. Blocks.

    A second signal stops at once. Raises ConfigError for a port in use or an address that needs protection, and what
    the first process raises that cannot start.
    """
    with unblocked_log(log):
        asyncio.run(_Team(listen, count, work, config).serve())


class _Member:
    """One process: its number, and what became of it."""

    def __init__(self, number: int, scrapes: Path) -> None:
        self.number = number
        self.scrapes = scrapes
        self.process: Any = None
        self.tie: Connection | None = None
        self.started_s = 0.0
        self.pause_s = 0.0
        self.ready = False


class _Team:
    """The members and the ports that they share."""

    def __init__(self, listen: Listen, count: int, work: Work, config: Any) -> None:
        self._listen, self._count, self._work, self._config = listen, count, work, config
        self._members: list[_Member] = []
        self._stopping = False
        self._told: asyncio.Future[tuple[str, tuple[str, ...]]] | None = None
        self._starts: set[asyncio.Task[None]] = set()

    async def serve(self) -> None:
        listen = self._listen
        guard = guard_of(listen)
        registry = CollectorRegistry()
        with contextlib.ExitStack() as stack:
            self._http = stack.enter_context(take_port(listen.host, listen.http_port, "--http-port"))
            metrics = stack.enter_context(take_port(listen.host, listen.metrics_port, "--metrics-port"))
            self._grpc = stack.enter_context(_hold_port(listen.host, listen.grpc_port))
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edgemux-")))
            self._members = [_Member(number, folder / str(number)) for number in range(self._count)]
            registry.register(_Together(self._members))
            self._alive = count_processes(registry)
            self._over = asyncio.Event()
            stack.callback(self._end)
            self._signals(guard)
            name, models = await self._start_all()
            stack.enter_context(exporting(metrics, registry, guard.gate, guard.certificates))
            notifier = stack.enter_context(contextlib.closing(Notifier()))
            ports = (self._grpc.getsockname()[1], self._http.getsockname()[1], metrics.getsockname()[1])
            say(ready_line(name, models, listen.host, ports))
            tell(_log, Ready(server=Name(name), models=len(models)))
            notifier.tell("READY=1")
            life = asyncio.ensure_future(show_life(notifier, self._well))
            stack.callback(life.cancel)
            await self._over.wait()

    async def _well(self) -> bool:
        return any(member.ready for member in self._members)

    async def _start_all(self) -> tuple[str, tuple[str, ...]]:
        """What the members are and serve, once each of them does. Raises what one cannot start for."""
        self._told = asyncio.get_running_loop().create_future()
        for member in self._members:
            self._start(member)
        try:
            return await self._told
        except BaseException:
            self._stopping = True
            raise
        finally:
            self._told = None

    def _start(self, member: _Member) -> None:
        loop = asyncio.get_running_loop()
        member.scrapes.unlink(missing_ok=True)
        metrics = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        ours, theirs = _spawn.Pipe()
        with metrics, theirs:
            metrics.bind(str(member.scrapes))
            metrics.listen(16)
            seat = (self._grpc.getsockname()[1], self._http, metrics, theirs)
            process = _spawn.Process(
                target=_seated, args=(self._work, self._config, seat), name=f"edgemux-cloud-{member.number}"
            )
            process.start()
        member.process, member.tie, member.ready, member.started_s = process, ours, False, loop.time()
        loop.add_reader(ours.fileno(), self._heard, member)

    def _heard(self, member: _Member) -> None:
        """A member is ready, cannot start, or is gone."""
        assert member.tie is not None
        try:
            said = member.tie.recv()
        except (EOFError, OSError):
            self._gone(member)
            return
        if isinstance(said, Exception):
            if self._told is not None and not self._told.done():
                self._told.set_exception(said)
            elif not self._stopping:  # while they start: what one cannot do the others cannot either
                cause = why(said) if isinstance(said, EdgemuxError) else Why(type(said).__name__)
                tell(_log, ProcessNotStarted(process=member.number, why=cause))
            return
        member.ready = True
        self._alive.set(sum(each.ready for each in self._members))
        if self._told is not None and not self._told.done() and all(each.ready for each in self._members):
            self._told.set_result(said)

    def _gone(self, member: _Member) -> None:
        loop = asyncio.get_running_loop()
        assert member.tie is not None
        loop.remove_reader(member.tie.fileno())
        member.tie.close()
        member.process.join()
        member.ready, member.tie = False, None
        self._alive.set(sum(each.ready for each in self._members))
        if self._told is not None and not self._told.done():
            self._told.set_exception(ExecutionError(f"process {member.number} ended with {member.process.exitcode}"))
        if self._stopping:
            if not any(each.tie for each in self._members):
                self._over.set()
            return
        settled = loop.time() - member.started_s >= SETTLED_S
        member.pause_s = 0.0 if settled else min(LONGEST_PAUSE_S, max(FIRST_PAUSE_S, 2 * member.pause_s))
        code = member.process.exitcode or 0
        tell(_log, ProcessEnded(process=member.number, exit_code=code, pause_s=member.pause_s))
        task = asyncio.ensure_future(self._start_later(member))
        self._starts.add(task)
        task.add_done_callback(self._starts.discard)

    async def _start_later(self, member: _Member) -> None:
        await asyncio.sleep(member.pause_s)
        if not self._stopping:
            self._start(member)

    def _signals(self, guard: Guard) -> None:
        loop = asyncio.get_running_loop()

        def on_signal(number: int) -> None:
            self._stopping = True
            if self._told is not None and not self._told.done():
                self._told.set_exception(ExecutionError("stopped while it started"))
            self._tell(number)
            if not any(each.tie for each in self._members):
                self._over.set()

        def on_hangup() -> None:
            tell(_log, ReloadAsked())
            guard.reload()
            self._tell(signal.SIGHUP)

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, on_signal, number)
        loop.add_signal_handler(signal.SIGHUP, on_hangup)

    def _tell(self, number: int) -> None:
        for member in self._members:
            if member.tie is not None and member.process.pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(member.process.pid, number)

    def _end(self) -> None:
        """Nobody is left behind; those that drain have done so when this comes."""
        self._stopping = True
        for task in self._starts:
            task.cancel()
        for member in self._members:
            if member.process is not None and member.process.is_alive():
                member.process.kill()
                member.process.join()


def _seated(work: Work, config: Any, seat: tuple[int, socket.socket, socket.socket, Connection]) -> None:
    """A member's process, from its first step to its end."""
    # Ctrl-C reaches everybody in the terminal's group; the first process tells the others.
    os.setpgid(0, 0)
    # The first process alone speaks to systemd.
    os.environ.pop("NOTIFY_SOCKET", None)
    grpc_port, http_socket, metrics, tie = seat
    try:
        work(config, Seat(grpc_port, http_socket, metrics, tie))
    except EdgemuxError as error:
        tie.send(error)
        raise SystemExit(1) from None


def _hold_port(host: str, port: int) -> socket.socket:
    """Keep a port that others may share, without listening. Raises ConfigError naming one that is in use."""
    held = take_port(host, port, "--grpc-port")
    number = held.getsockname()[1]
    held.close()
    keeper = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    keeper.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    keeper.bind((host, number))
    return keeper


class _Together:
    """The members' metrics, asked for at each scrape; each series with the number of its process.

    A member that does not answer, because it starts or ends, is left out.
    """

    def __init__(self, members: list[_Member]) -> None:
        self._members = members

    def collect(self) -> Iterable[Metric]:
        merged: dict[str, Metric] = {}
        for member in self._members:
            for family in _scraped(member.scrapes):
                mine = merged.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                for sample in family.samples:
                    labels = {**sample.labels, "process": str(member.number)}
                    mine.samples.append(Sample(sample.name, labels, sample.value, sample.timestamp, sample.exemplar))
        return merged.values()


def _scraped(path: Path) -> Iterator[Metric]:
    connection = _UnixConnection(path)
    try:
        connection.request("GET", "/metrics")
        content = connection.getresponse().read()
    except (OSError, http.client.HTTPException):
        return
    finally:
        connection.close()
    yield from text_string_to_metric_families(content.decode())


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a socket in the file system."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=SCRAPE_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(SCRAPE_S)
        self.sock.connect(str(self._path))
