"""HTTP on a socket, for clients that may be slow, silent, or very many.

Every connection has one task and one life: so long for its handshake and the head of its request, so long for all of
it. When there are too many the oldest goes. The library that parses and answers has none of these limits.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from typing import Any

import uvicorn
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from edgemux.multiplexer.errors import ConfigError
from edgemux.wire.certificates import Certificates, Pair, server_context
from edgemux.wire.http import App, Page, Receive, Scope, Send
from edgemux.wire.security import Gate

HEAD_S = 3.0
LIFE_S = 10.0
# Pages are for probes, scrapers and people: a few at a time.
MAX_CONNECTIONS = 64
# What accept() may lack (descriptors, memory) comes back when somebody leaves; until then the kernel keeps the rest.
ACCEPT_PAUSE_S = 0.25
TELL_AGAIN_S = 60.0
# Writing the metrics takes milliseconds of the interpreter's only lock, which requests need too.
FRESH_SCRAPES_PER_S = 10

_log = logging.getLogger("edgemux.wire")


# Whoever sends nonsense is told so; a line in the log for each would be theirs to fill it with.
_unheard = logging.Logger("edgemux.unheard", logging.CRITICAL)


class _Connection(H11Protocol):
    """The library's, which says when it has a request and when it is over."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self.logger = _unheard
        self.asked = asyncio.Event()
        self.gone = asyncio.Event()

    def handle_events(self) -> None:
        super().handle_events()
        if self.cycle is not None:
            self.asked.set()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.asked.set()
        self.gone.set()


class Web:
    """Answers with an App on a socket that listens. Lives in the running event loop; ``close`` it there."""

    def __init__(
        self,
        listener: socket.socket,
        app: App,
        certificates: Certificates | None = None,
        most: int = MAX_CONNECTIONS,
        head_s: float = HEAD_S,
        life_s: float = LIFE_S,
    ) -> None:
        """``certificates``: None for plaintext. ``most`` connections, each for ``life_s``, ``head_s`` to ask."""
        self._listener = listener
        listener.setblocking(False)
        self._config = uvicorn.Config(app, log_config=None, access_log=False, lifespan="off", ws="none", http="h11")
        self._config.load()
        self._state = ServerState()
        self._contexts = None if certificates is None else _Contexts(certificates)
        self._most, self._head_s, self._life_s = most, head_s, life_s
        # Those that count, oldest first, and all, those that were sent away a moment ago too.
        self._open: dict[asyncio.Task[None], None] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()
        self._accepting = self._loop.create_task(self._accept())

    async def close(self) -> None:
        """Stop listening, and end every connection."""
        tasks = [self._accepting, *self._tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._listener.close()

    async def _accept(self) -> None:
        told_s = float("-inf")
        while True:
            try:
                connection, _ = await self._loop.sock_accept(self._listener)
            except OSError as error:
                if self._loop.time() - told_s >= TELL_AGAIN_S:
                    told_s = self._loop.time()
                    _log.error("no connection can be accepted now (%s)", error.strerror)
                await asyncio.sleep(ACCEPT_PAUSE_S)
                continue
            if len(self._open) >= self._most:
                oldest = next(iter(self._open))
                del self._open[oldest]
                oldest.cancel()
            task = self._loop.create_task(self._meet(connection))
            self._open[task] = None
            self._tasks.add(task)
            task.add_done_callback(partial(self._over, connection))
            # While connections wait, accepting one suspends nothing: a storm of them must not keep the loop for itself.
            await asyncio.sleep(0)

    def _over(self, connection: socket.socket, task: asyncio.Task[None]) -> None:
        # A task that is cancelled before its first step has closed nothing; closing twice does no harm.
        connection.close()
        self._open.pop(task, None)
        self._tasks.discard(task)

    async def _meet(self, connection: socket.socket) -> None:
        """One connection, to its end."""
        transport: asyncio.Transport | None = None
        try:
            async with asyncio.timeout(self._life_s):
                async with asyncio.timeout(self._head_s):
                    transport, protocol = await self._loop.connect_accepted_socket(
                        self._protocol,
                        connection,
                        ssl=None if self._contexts is None else self._contexts.current(),
                        ssl_handshake_timeout=None if self._contexts is None else self._head_s,
                        ssl_shutdown_timeout=None if self._contexts is None else 1.0,
                    )
                    await protocol.asked.wait()
                await protocol.gone.wait()
        except (TimeoutError, OSError):  # too slow, gone, or no TLS: nobody to tell
            pass
        finally:
            if transport is not None:
                transport.abort()

    def _protocol(self) -> _Connection:
        return _Connection(config=self._config, server_state=self._state, app_state={}, _loop=self._loop)


class _Contexts:
    """The ssl context of the current pair."""

    def __init__(self, certificates: Certificates) -> None:
        self._certificates = certificates
        self._made: tuple[Pair, ssl.SSLContext] | None = None

    def current(self) -> ssl.SSLContext:
        pair = self._certificates.current()
        if self._made is None or self._made[0] is not pair:
            self._made = (pair, server_context(pair, "listen.tls"))
        return self._made[1]


@contextlib.asynccontextmanager
async def answering(listener: socket.socket, app: App, certificates: Certificates | None) -> AsyncIterator[None]:
    """Answer HTTP on ``listener``, in this event loop."""
    web = Web(listener, app, certificates)
    try:
        yield
    finally:
        await web.close()


@contextlib.contextmanager
def exporting(
    listener: socket.socket, registry: CollectorRegistry, gate: Gate, certificates: Certificates | None
) -> Iterator[None]:
    """Answer scrapes on ``listener``, in one thread with an event loop of its own, whoever asks and however often.

    Raises ConfigError when the system allows no further thread.
    """
    loop = asyncio.new_event_loop()
    ready, over = threading.Event(), asyncio.Event()

    async def serve() -> None:
        async with answering(listener, Scrapes(registry, gate, loop.time), certificates):
            ready.set()
            await over.wait()

    def run() -> None:
        try:
            loop.run_until_complete(serve())
        finally:
            ready.set()
            loop.close()

    thread = threading.Thread(target=run, name="edgemux-metrics", daemon=True)
    start_thread(thread)
    ready.wait()
    try:
        yield
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join()


def start_thread(thread: threading.Thread) -> None:
    """Raises ConfigError where the system allows no further thread."""
    try:
        thread.start()
    except RuntimeError as error:
        raise ConfigError("the system allows no further thread: raise its limit (ulimit -u, TasksMax)") from error


class Scrapes(App):
    """The metrics, on every path as Prometheus' own exporter has it.

    More than FRESH_SCRAPES_PER_S a second get the page of one before.
    """

    def __init__(self, registry: CollectorRegistry, gate: Gate, clock: Callable[[], float]) -> None:
        super().__init__({}, gate)
        self._registry = registry
        self._clock = clock
        self._made_s: deque[float] = deque(maxlen=FRESH_SCRAPES_PER_S)
        self._latest: dict[str, bytes] = {}
        self._accept = ""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        accepted = (value for name, value in scope.get("headers", ()) if name == b"accept")
        self._accept = str(next(accepted, b""), "ascii", "replace")
        await super().__call__(scope, receive, send)

    def _page(self, method: str, path: str, authorization: str | None) -> Page:
        if not self._gate.allows(authorization):
            return super()._page(method, "/metrics", authorization)
        if method not in ("GET", "HEAD"):
            return Page(405, {"error": "only GET and HEAD"})
        encode, kind = choose_encoder(self._accept)
        now_s = self._clock()
        crowded = len(self._made_s) == FRESH_SCRAPES_PER_S and now_s - self._made_s[0] < 1.0
        if kind not in self._latest or not crowded:
            self._made_s.append(now_s)
            self._latest[kind] = encode(self._registry)
        return Page(200, self._latest[kind], kind)
