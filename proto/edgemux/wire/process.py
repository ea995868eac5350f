"""The shell of a server process: three ports, one ready line, an orderly end.

The agent and the cloud differ in what they answer, not in how they listen, say that they are ready, and stop.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
import socket
import socketserver
import threading
import wsgiref.simple_server
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from typing import Any

import grpc.aio
import msgspec
import uvicorn
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from prometheus_client import CollectorRegistry, make_wsgi_app

from edgemux.multiplexer.errors import ConfigError
from edgemux.wire.channel import MAX_REQUEST_BYTES, bind, server_options
from edgemux.wire.http import App, Page
from edgemux.wire.service import Door, register

# Between "not ready" and "not accepting": time for load balancers and clients to look elsewhere.
LAME_DUCK_S = 0.2
# Nobody inside and nobody new for this long: the server can be stopped without cutting anybody off. A client that
# keeps asking a server that says it is stopping is cut off after PATIENCE_S.
QUIET_S = 0.1
PATIENCE_S = 1.0
# For answers on their way out, and for health watches, which never end by themselves.
LAST_WORDS_S = 0.5
MAX_PORT = 65535
_HOST = re.compile(r"[A-Za-z0-9._:%-]+")
MIN_MESSAGE_BYTES = 64 * 2**10
MAX_MESSAGE_BYTES = 2**30


class Listen(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where a server listens, and how large a message it takes. Port 0 takes a free one."""

    host: str = "127.0.0.1"
    grpc_port: int
    http_port: int
    metrics_port: int
    drain_s: float = 10.0
    max_message_bytes: int = MAX_REQUEST_BYTES

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


class Serving(msgspec.Struct, frozen=True):
    """What a process serves. ``pages``: HTTP paths and what each answers. ``drain`` is called once, first, when the
    process is told to stop: from then on ready is False; what was accepted is still answered."""

    name: str
    models: tuple[str, ...]
    servicer: Any  # a ModelService with ModelInfer
    registry: CollectorRegistry
    pages: Mapping[str, Callable[[], Page]]
    drain: Callable[[], None]
    closed: Callable[[], Awaitable[None]]


async def serve(listen: Listen, make: Callable[[], Awaitable[Serving]]) -> None:
    """Take the ports, make what is served, serve until SIGTERM or SIGINT. A second signal stops at once.

    Ports are taken first, and held, so that a process that cannot listen fails before it loads a model. Whatever
    fails later, what was made until then is closed. Raises ConfigError naming a port that is in use, or a message size
    that is too small for the model, and what ``make`` raises.
    """
    async with contextlib.AsyncExitStack() as stack:
        http_socket = stack.enter_context(_listen(listen.host, listen.http_port, "--http-port"))
        metrics_socket = stack.enter_context(_listen(listen.host, listen.metrics_port, "--metrics-port"))
        # The library reports a taken port on stderr, in its own words, before it raises: look first.
        _listen(listen.host, listen.grpc_port, "--grpc-port").close()
        server = grpc.aio.server(options=server_options(listen.max_message_bytes))
        stack.push_async_callback(server.stop, 0)
        grpc_port = bind(server, listen.host, listen.grpc_port)
        serving = await make()
        stack.push_async_callback(serving.closed)
        serving.servicer.check_fits(listen.max_message_bytes)

        door, checks = Door(), health.aio.HealthServicer()
        register(server, serving.servicer, door)
        health_pb2_grpc.add_HealthServicer_to_server(checks, server)
        for service in ("", *serving.models):
            await checks.set(service, health_pb2.HealthCheckResponse.SERVING)
        stack.enter_context(_exporting(metrics_socket, serving.registry))
        await stack.enter_async_context(_answering(http_socket, App(serving.pages)))
        await server.start()

        stop, stop_now = _signals()
        http_port, metrics_port = http_socket.getsockname()[1], metrics_socket.getsockname()[1]
        print(
            f"edgemux {serving.name} ready model={','.join(serving.models)} grpc={listen.host}:{grpc_port} "
            f"http={listen.host}:{http_port} metrics={listen.host}:{metrics_port}",
            flush=True,
        )
        await stop.wait()
        serving.drain()
        await checks.enter_graceful_shutdown()
        await _stop(server, door, stop_now, listen.drain_s)


async def _stop(server: grpc.aio.Server, door: Door, stop_now: asyncio.Event, drain_s: float) -> None:
    """Let clients look elsewhere, refuse new inferences, finish those inside, stop; all of it only until stop_now.

    Whoever is still inside then is told UNAVAILABLE.
    """
    await _unless(stop_now, asyncio.sleep(LAME_DUCK_S))
    door.closed = True
    await _unless(stop_now, asyncio.wait_for(_quiet(door), drain_s))
    await door.clear(LAST_WORDS_S)
    await _unless(stop_now, server.stop(LAST_WORDS_S))
    await server.stop(0)


def run(listen: Listen, make: Callable[[], Awaitable[Serving]]) -> None:
    """``serve`` on an event loop of its own."""
    asyncio.run(serve(listen, make))


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


def _signals() -> tuple[asyncio.Event, asyncio.Event]:
    stop, stop_now = asyncio.Event(), asyncio.Event()

    def on_signal() -> None:
        if stop.is_set():
            stop_now.set()
        stop.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    return stop, stop_now


def _listen(host: str, port: int, flag: str) -> socket.socket:
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


@contextlib.asynccontextmanager
async def _answering(listener: socket.socket, app: App) -> AsyncIterator[None]:
    """Answer HTTP on ``listener``, in this event loop."""
    web = _Web(app)
    task = asyncio.create_task(web.serve(sockets=[listener]))
    try:
        yield
    finally:
        web.should_exit = True
        await task


@contextlib.contextmanager
def _exporting(listener: socket.socket, registry: CollectorRegistry) -> Iterator[None]:
    """Answer scrapes on ``listener``, in a thread: writing the metrics takes milliseconds."""
    exporter = _Exporter(listener, registry)
    thread = threading.Thread(target=exporter.serve_forever, name="edgemux-metrics", daemon=True)
    thread.start()
    try:
        yield
    finally:
        exporter.shutdown()
        exporter.server_close()
        thread.join()


class _Exporter(socketserver.ThreadingMixIn, wsgiref.simple_server.WSGIServer):
    """The metrics page, on a socket that listens already: the library's own server wants a port, not a socket."""

    daemon_threads = True

    def __init__(self, listener: socket.socket, registry: CollectorRegistry) -> None:
        super().__init__(listener.getsockname()[:2], _Silent, bind_and_activate=False)
        self.socket.close()
        listener.setblocking(True)
        self.socket = listener
        self.server_name, self.server_port = listener.getsockname()[:2]
        self.setup_environ()
        self.set_app(make_wsgi_app(registry))


class _Silent(wsgiref.simple_server.WSGIRequestHandler):
    def log_message(self, *_: Any) -> None:
        return


class _Web(uvicorn.Server):
    """uvicorn inside our own loop: it must not take over the signals."""

    def __init__(self, app: App) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                log_config=None,
                access_log=False,
                lifespan="off",
                ws="none",
                http="h11",
                loop="none",
                timeout_graceful_shutdown=1,
            )
        )

    def install_signal_handlers(self) -> None:
        return

    def capture_signals(self) -> Any:
        return contextlib.nullcontext()
