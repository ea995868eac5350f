"""The shell of a server process: three ports, one ready line, an orderly end.

The agent and the cloud differ in what they answer, not in how they listen, say that they are ready, and stop.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import re
import signal
import socket
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import grpc.aio
import msgspec
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from prometheus_client import CollectorRegistry

from edgemux.multiplexer.errors import ConfigError
from edgemux.wire.admin import Admin, AdminServer
from edgemux.wire.channel import MAX_REQUEST_BYTES, bind, server_options
from edgemux.wire.events import Draining, InternalError, Name, Ready, ReloadAsked, Stopped, kind, places, tell
from edgemux.wire.forks import served
from edgemux.wire.http import Page
from edgemux.wire.live import Live
from edgemux.wire.log_format import LogOptions
from edgemux.wire.rest import Rest
from edgemux.wire.security import Gate, Guard, ServerTls, TokenCheck, check_exposure
from edgemux.wire.service import Door, register
from edgemux.wire.stderr import say, unblocked_log
from edgemux.wire.systemd import Notifier, show_life
from edgemux.wire.web import answering, exporting, start_thread

# Between "not ready" and "not accepting": time for load balancers and clients to look elsewhere.
LAME_DUCK_S = 0.2
# Nobody inside and nobody new for this long: the server can be stopped without cutting anybody off. A client that
# keeps asking a server that says it is stopping is cut off after PATIENCE_S.
QUIET_S = 0.1
PATIENCE_S = 1.0
# For answers on their way out, and for health watches, which never end by themselves.
LAST_WORDS_S = 0.5
MAX_PORT = 65535
# More than an agent or a cloud server was seen to start.
NEEDED_THREADS = 24
_HOST = re.compile(r"[A-Za-z0-9._:%-]+")
MIN_MESSAGE_BYTES = 64 * 2**10
MAX_MESSAGE_BYTES = 2**30

_log = logging.getLogger("edgemux.wire")


class Listen(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where a server listens, and how large a message it takes. Port 0 takes a free one.

    ``tls`` and ``token_file`` hold for all three ports. ``insecure``: listen to others without them.
    """

    host: str = "127.0.0.1"
    grpc_port: int
    http_port: int
    metrics_port: int
    drain_s: float = 10.0
    max_message_bytes: int = MAX_REQUEST_BYTES
    tls: ServerTls = ServerTls()
    token_file: Path | None = None
    insecure: bool = False

    def __post_init__(self) -> None:
        if not _HOST.fullmatch(self.host):
            raise ValueError("host must be a name or an address")
        for name in ("grpc_port", "http_port", "metrics_port"):
            if not 0 <= getattr(self, name) <= MAX_PORT:
                raise ValueError(f"{name} must be between 0 and {MAX_PORT}")
        if not 0 <= self.drain_s < float("inf"):
            raise ValueError("drain_s must not be negative")
        if not MIN_MESSAGE_BYTES <= self.max_message_bytes <= MAX_MESSAGE_BYTES:
            raise ValueError(f"max_message_bytes must be between {MIN_MESSAGE_BYTES} and {MAX_MESSAGE_BYTES}")


class Seat(msgspec.Struct, frozen=True):
    """The place of one of several processes behind the same ports.

    ``grpc_port`` is shared with the others by the kernel, ``http`` listens for all of them, ``metrics`` for this one.
    ``tie``: a connection to whoever seated it, who is told the ready line; when that one is gone the process stops.
    """

    grpc_port: int
    http: socket.socket
    metrics: socket.socket
    tie: Connection


# Who is to be told that a model has come or gone.
Announce = Callable[[str, bool], Awaitable[None]]


NO_ADMIN = Admin()
PLAIN_LOG = LogOptions()


async def _always_well() -> bool:
    return True


class Serving(msgspec.Struct, frozen=True):
    """What a process serves. ``pages``: HTTP paths and what each answers. ``drain`` is called once, first, when the
    process is told to stop: from then on ready is False; what was accepted is still answered. ``well``: whether models
    answer as they should, asked now and then where there is a watchdog. ``admin``: who takes orders, where there is an
    address for them. ``announced``: is told whom to tell of models that come and go. ``live``: what the live page
    shows, of the inputs those after a number; None for no such page."""

    name: str
    models: tuple[str, ...]
    servicer: Any  # a ModelService with ModelInfer
    registry: CollectorRegistry
    pages: Mapping[str, Callable[[], Page]]
    drain: Callable[[], None]
    closed: Callable[[], Awaitable[None]]
    well: Callable[[], Awaitable[bool]] = _always_well
    admin: Any = None
    announced: Callable[[Announce], None] = lambda announce: None
    live: Callable[[int], dict[str, Any]] | None = None


async def serve(
    listen: Listen, make: Callable[[], Awaitable[Serving]], seat: Seat | None = None, admin: Admin = NO_ADMIN
) -> None:
    """Take the ports, make what is served, serve until SIGTERM or SIGINT. A second one stops at once; SIGHUP reloads
    certificates and tokens.

    Ports are taken first, and held, so that a process that cannot listen fails before it loads a model. Whatever
    fails later, what was made until then is closed. Raises ConfigError naming a port that is in use, an address that
    needs protection, a file that cannot be used, or a message size that is too small for the model, and what ``make``
    raises.
    """
    guard = guard_of(listen)
    async with contextlib.AsyncExitStack() as stack:
        if seat is None:
            http_socket = stack.enter_context(take_port(listen.host, listen.http_port, "--http-port"))
            metrics_socket = stack.enter_context(take_port(listen.host, listen.metrics_port, "--metrics-port"))
            # The library reports a taken port on stderr, in its own words, before it raises: look first.
            take_port(listen.host, listen.grpc_port, "--grpc-port").close()
        else:
            http_socket, metrics_socket = seat.http, seat.metrics
        server, grpc_port = _take_grpc_port(listen, guard, seat)
        stack.push_async_callback(server.stop, 0)
        orders = None if admin.grpc_port is None else AdminServer(admin, listen.tls, listen.token_file)
        if orders is not None:
            stack.push_async_callback(orders.stop)
        serving = await make()
        stack.push_async_callback(serving.closed)
        serving.servicer.check_fits(listen.max_message_bytes)

        door, checks = Door(serving.servicer.came_late), health.aio.HealthServicer()
        register(server, serving.servicer, door)
        health_pb2_grpc.add_HealthServicer_to_server(checks, server)
        announce = partial(_announce, checks)
        for service in ("", *serving.models):
            await announce(service, True)
        serving.announced(announce)
        guard.export(serving.registry)
        # Whoever seated this process asks for its metrics, over a socket of its own, and tells them to those who may.
        asks = (guard.gate, guard.certificates) if seat is None else (Gate(), None)
        stack.enter_context(exporting(metrics_socket, serving.registry, *asks))
        pages = _with_security(serving.pages, guard)
        site = None if serving.live is None else Live(serving.live, guard)
        rest = Rest(serving.servicer, door, pages, guard.gate, listen.max_message_bytes, site)
        await stack.enter_async_context(answering(http_socket, rest, guard.certificates))
        _settle()
        await server.start()
        if orders is not None:
            await orders.start(serving.admin)

        stop, stop_now = _signals(guard)
        stack.enter_context(served())
        if seat is None:
            ports = (grpc_port, http_socket.getsockname()[1], metrics_socket.getsockname()[1])
            line = ready_line(serving.name, serving.models, listen.host, ports)
            say(line if orders is None else f"{line} admin={orders.address}")
        else:
            seat.tie.send((serving.name, serving.models))
            asyncio.get_running_loop().add_reader(seat.tie.fileno(), stop.set)
        notifier = stack.enter_context(contextlib.closing(Notifier()))
        tell(_log, Ready(server=Name(serving.name), models=len(serving.models)))
        notifier.tell("READY=1")
        life = asyncio.ensure_future(show_life(notifier, serving.well))
        stack.callback(life.cancel)
        await stop.wait()
        notifier.tell("STOPPING=1")
        tell(_log, Draining(inside=door.inside))
        serving.drain()
        await checks.enter_graceful_shutdown()
        await _stop(server, door, stop_now, listen.drain_s)


def _settle() -> None:
    """What is there now stays: the collector of cycles need not look at it after every few hundred requests."""
    gc.collect()
    gc.freeze()


async def _announce(checks: Any, service: str, ready: bool) -> None:
    status = health_pb2.HealthCheckResponse
    await checks.set(service, status.SERVING if ready else status.NOT_SERVING)


def guard_of(listen: Listen) -> Guard:
    """What protects the ports. Raises ConfigError for an address that needs more, or a file that cannot be used."""
    check_exposure(
        listen.host,
        encrypted=listen.tls.cert is not None,
        authenticated=listen.token_file is not None or listen.tls.client_ca is not None,
        insecure=listen.insecure,
    )
    return Guard(listen.tls, listen.token_file)


def ready_line(name: str, models: Sequence[str], host: str, ports: tuple[int, int, int]) -> str:
    """What a server says once it answers; ``ports`` of gRPC, HTTP and metrics."""
    grpc_port, http_port, metrics_port = ports
    return (
        f"edgemux {name} ready model={','.join(models)} grpc={host}:{grpc_port} http={host}:{http_port} "
        f"metrics={host}:{metrics_port}"
    )


def _with_security(pages: Mapping[str, Callable[[], Page]], guard: Guard) -> dict[str, Callable[[], Page]]:
    """The status page says what protects the ports."""
    given = dict(pages)
    status = given.get("/status")
    if status is not None:

        def page() -> Page:
            made = status()
            return Page(made.status, made.body | {"security": guard.describe()}, made.content_type)

        given["/status"] = page
    return given


def _take_grpc_port(listen: Listen, guard: Guard, seat: Seat | None) -> tuple[grpc.aio.Server, int]:
    interceptors = () if guard.gate.open else (TokenCheck(guard.gate),)
    options = server_options(listen.max_message_bytes, shared_port=seat is not None)
    server = grpc.aio.server(options=options, interceptors=interceptors)
    port = listen.grpc_port if seat is None else seat.grpc_port
    return server, bind(server, listen.host, port, guard.credentials())


async def _stop(server: grpc.aio.Server, door: Door, stop_now: asyncio.Event, drain_s: float) -> None:
    """Let clients look elsewhere, refuse new inferences, finish those inside, stop; all of it only until stop_now.

    Whoever is still inside then is told UNAVAILABLE.
    """
    await _unless(stop_now, asyncio.sleep(LAME_DUCK_S))
    door.closed = True
    await _unless(stop_now, asyncio.wait_for(_quiet(door), drain_s))
    unanswered = door.inside
    await door.clear(LAST_WORDS_S)
    await _unless(stop_now, server.stop(LAST_WORDS_S))
    await server.stop(0)
    tell(_log, Stopped(unanswered=unanswered))


def run(
    listen: Listen,
    make: Callable[[], Awaitable[Serving]],
    seat: Seat | None = None,
    admin: Admin = NO_ADMIN,
    new_loop: Callable[[], asyncio.AbstractEventLoop] | None = None,
    log: LogOptions = PLAIN_LOG,
) -> None:
    """``serve`` on an event loop of its own, by default asyncio's, with a log that never waits for its reader.

    Raises ConfigError when the system does not allow the threads that serving takes, and what ``serve`` raises.
    """
    _check_threads()
    with unblocked_log(log), asyncio.Runner(loop_factory=new_loop) as runner:
        runner.get_loop().set_exception_handler(_nobody_caught)
        runner.run(serve(listen, make, seat, admin))


def _nobody_caught(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """What the loop found in a task that nobody waits for. Its own words would hold a callback's arguments."""
    error = context.get("exception")
    if isinstance(error, Exception):
        tell(_log, InternalError(error=kind(error), at=places(error)))
    else:
        tell(_log, InternalError(error=Name("asyncio"), at=Name(str(context.get("message")).partition("(")[0])))


def _check_threads() -> None:
    """The libraries below end the process without a word when they get no thread: find out before they do."""
    over = threading.Event()
    try:
        for _ in range(NEEDED_THREADS):
            start_thread(threading.Thread(target=over.wait, name="edgemux-probe", daemon=True))
    finally:
        over.set()


async def _quiet(door: Door) -> None:
    """Wait until nobody is inside, then until nobody has come for QUIET_S, but no longer than PATIENCE_S."""
    while door.inside:  # noqa: ASYNC110 - an event would cost every request
        await asyncio.sleep(QUIET_S)
    loop = asyncio.get_running_loop()
    until_s = loop.time() + PATIENCE_S
    arrived = -1
    while door.arrived != arrived and loop.time() < until_s:
        arrived = door.arrived
        await asyncio.sleep(QUIET_S)


async def _unless(event: asyncio.Event, work: Any) -> None:
    """Wait for ``work``, but no longer than until ``event``."""
    task, watch = asyncio.ensure_future(work), asyncio.ensure_future(event.wait())
    await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
    for pending in (task, watch):
        pending.cancel()
    await asyncio.gather(task, watch, return_exceptions=True)


def _signals(guard: Guard) -> tuple[asyncio.Event, asyncio.Event]:
    stop, stop_now = asyncio.Event(), asyncio.Event()

    def on_signal() -> None:
        if stop.is_set():
            stop_now.set()
        stop.set()

    def on_hangup() -> None:
        tell(_log, ReloadAsked())
        guard.reload()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    loop.add_signal_handler(signal.SIGHUP, on_hangup)
    return stop, stop_now


def take_port(host: str, port: int, flag: str) -> socket.socket:
    """A socket that listens. Raises ConfigError naming the flag of a port that is in use."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise ConfigError(f"{flag} {port}: cannot listen on {host}:{port} ({error.strerror})") from error
    listener.setblocking(False)
    return listener
