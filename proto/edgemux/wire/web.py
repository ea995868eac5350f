"""HTTP on a socket, for clients that may be slow, silent, or very many.

Every connection has so long for its handshake and the head of a request, a body and an answer so long as their size
allows, and so long to be silent. When there are too many, the one that has been quiet longest goes.
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

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from edgemux.multiplexer.errors import ConfigError
from edgemux.wire.certificates import Certificates, Pair, server_context
from edgemux.wire.connection import Clock, Connection
from edgemux.wire.events import AcceptFailed, kind, tell
from edgemux.wire.http import Answer, App, Page, Request
from edgemux.wire.security import Gate

HEAD_S = 3.0
LIFE_S = 10.0
# Longer than load balancers and clients keep what they do not use (60 s), so that theirs is the end they meet.
IDLE_S = 75.0
MAX_CONNECTIONS = 256
# Of scrapers.
MAX_SCRAPING = 64
# Bodies on their way, of all clients together.
MIN_BUFFERED_BYTES = 64 * 2**20
# How long those who are being answered at the end have to take it.
LAST_WORDS_S = 0.5
# What accept() may lack (descriptors, memory) comes back when somebody leaves; until then the kernel keeps the rest.
ACCEPT_PAUSE_S = 0.25
TELL_AGAIN_S = 60.0
# Writing the metrics takes milliseconds of the interpreter's only lock, which requests need too.
FRESH_SCRAPES_PER_S = 10

_log = logging.getLogger("edgemux.wire")


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
        idle_s: float = IDLE_S,
    ) -> None:
        """``certificates``: None for plaintext. ``most`` connections, ``head_s`` to ask, ``life_s`` to take a page,
        ``idle_s`` to ask for more.
        """
        self._listener = listener
        listener.setblocking(False)
        self.app = app
        self.head_s, self.life_s, self.idle_s = head_s, life_s, idle_s
        self.loop = asyncio.get_running_loop()
        self.max_buffered_bytes = max(MIN_BUFFERED_BYTES, 4 * app.max_body_bytes)
        self.buffered_bytes = 0
        self._contexts = None if certificates is None else _Contexts(certificates)
        self._most = most
        # All that count; those that have nothing to answer, in the order in which they fell quiet.
        self._open: set[Connection] = set()
        self._quiet: dict[Connection, None] = {}
        self._meeting: set[asyncio.Task[None]] = set()
        self._clock = Clock()
        self._tick_s = min(0.25, head_s / 10)
        self._sweeping: asyncio.TimerHandle | None = None
        self._accepting = self.loop.create_task(self._accept())

    async def close(self) -> None:
        """Stop listening, and end every connection once it was sent what was written to it, or LAST_WORDS_S later."""
        tasks = [self._accepting, *self._meeting]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._listener.close()
        for connection in tuple(self._open):
            connection.close()
        until_s = self.loop.time() + LAST_WORDS_S
        await asyncio.sleep(0)
        while self._open and self.loop.time() < until_s:  # noqa: ASYNC110 - an event for once in a process's life
            await asyncio.sleep(0.01)
        for connection in tuple(self._open):
            connection.abort()
        if self._sweeping is not None:
            self._sweeping.cancel()
        await asyncio.sleep(0)

    def quiet(self, connection: Connection) -> None:
        """``connection`` has nothing to answer now."""
        if connection in self._open:
            self._quiet[connection] = None

    def busy(self, connection: Connection) -> None:
        """``connection`` has a request to answer."""
        self._quiet.pop(connection, None)

    def gone(self, connection: Connection) -> None:
        """``connection`` is over."""
        self._open.discard(connection)
        self._quiet.pop(connection, None)

    async def _accept(self) -> None:
        told_s = float("-inf")
        while True:
            try:
                client, _ = await self.loop.sock_accept(self._listener)
            except OSError as error:
                if self.loop.time() - told_s >= TELL_AGAIN_S:
                    told_s = self.loop.time()
                    tell(_log, AcceptFailed(cause=kind(error)))
                await asyncio.sleep(ACCEPT_PAUSE_S)
                continue
            if self._has_room():
                connection = Connection(self, self._clock)
                self._open.add(connection)
                self._quiet[connection] = None
                task = self.loop.create_task(self._meet(client, connection))
                connection.meeting = task
                self._meeting.add(task)
                task.add_done_callback(partial(self._met, client, connection))
                if self._sweeping is None:
                    self._sweeping = self.loop.call_later(self._tick_s, self._sweep)
            else:
                client.close()
            # While connections wait, accepting one suspends nothing: a storm of them must not keep the loop for itself.
            await asyncio.sleep(0)

    def _has_room(self) -> bool:
        """Whether one more may come in; the one that has been quiet longest is sent away for it."""
        if len(self._open) >= self._most and self._quiet:
            self._drop(next(iter(self._quiet)))
        return len(self._open) < self._most

    def _drop(self, connection: Connection) -> None:
        connection.abort()
        self.gone(connection)

    def _sweep(self) -> None:
        """Drop whoever is overdue; again in a moment, as long as there is anybody."""
        now_s = self.loop.time()
        for connection in tuple(self._open):
            if now_s >= connection.until_s and connection.overdue(now_s):
                self._drop(connection)
        self._sweeping = self.loop.call_later(self._tick_s, self._sweep) if self._open else None

    async def _meet(self, client: socket.socket, connection: Connection) -> None:
        """Shake hands. Who is too slow at it, is gone, or does not speak TLS, is not told anything."""
        encrypted = self._contexts is not None
        with contextlib.suppress(TimeoutError, OSError):
            async with asyncio.timeout(self.head_s):
                await self.loop.connect_accepted_socket(
                    lambda: connection,
                    client,
                    ssl=None if self._contexts is None else self._contexts.current(),
                    ssl_handshake_timeout=self.head_s if encrypted else None,
                    ssl_shutdown_timeout=1.0 if encrypted else None,
                )

    def _met(self, client: socket.socket, connection: Connection, task: asyncio.Task[None]) -> None:
        self._meeting.discard(task)
        if not connection.made:
            # A task that is cancelled before its first step has closed nothing; closing twice does no harm.
            with contextlib.suppress(OSError):
                client.close()
            self.gone(connection)


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
async def answering(
    listener: socket.socket, app: App, certificates: Certificates | None, most: int = MAX_CONNECTIONS
) -> AsyncIterator[None]:
    """Answer HTTP on ``listener``, in this event loop, over ``most`` connections at a time."""
    web = Web(listener, app, certificates, most)
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
        async with answering(listener, Scrapes(registry, gate, loop.time), certificates, MAX_SCRAPING):
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

    open_to_all = ()

    def __init__(self, registry: CollectorRegistry, gate: Gate, clock: Callable[[], float]) -> None:
        super().__init__({}, gate)
        self._registry = registry
        self._clock = clock
        self._made_s: deque[float] = deque(maxlen=FRESH_SCRAPES_PER_S)
        self._latest: dict[str, bytes] = {}
        self._accept = ""

    def answer(self, request: Request) -> Answer:
        """The metrics, for whoever may have them."""
        self._accept = str(request.headers.get(b"accept", b""), "ascii", "replace")
        return super().answer(request)

    def _page(self, request: Request, path: str) -> Page:
        if request.method not in (b"GET", b"HEAD"):
            return Page(405, {"error": "only GET and HEAD"})
        encode, kind = choose_encoder(self._accept)
        now_s = self._clock()
        crowded = len(self._made_s) == FRESH_SCRAPES_PER_S and now_s - self._made_s[0] < 1.0
        if kind not in self._latest or not crowded:
            self._made_s.append(now_s)
            self._latest[kind] = encode(self._registry)
        return Page(200, self._latest[kind], kind)
