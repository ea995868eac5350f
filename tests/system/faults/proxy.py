"""The fault proxy: the demo's emulated link, and what can befall bytes and connections beside it.

``FaultLink`` lives in an event loop; ``FaultProxy`` is the same for tests, which run in another thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
import threading
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import ContextVar
from typing import Any, Literal, TypeVar

import msgspec

from edgemux.cli.link import Conditions, Link

T = TypeVar("T")
UP, DOWN = 0, 1
# A link that is no hindrance.
CLEAR = Conditions(round_trip_s=0.0, bits_per_s=1e9)
# A connection closed like this sends RST, whatever is under way.
_NO_LINGER = struct.pack("ii", 1, 0)
_PATIENCE_S = 60.0
# Linux's shortest retransmission time-out.
RETRANSMIT_S = 0.2
# In which generation a connection was made; each has a context of its own.
_BORN: ContextVar[int] = ContextVar("generation")


class Trouble(msgspec.Struct, frozen=True):
    """What befalls the bytes of a connection. ``ways``: which directions, UP and DOWN.

    corrupt: the share of chunks in which one bit is flipped. corrupt_nth: only in this chunk of each connection's
    direction, counted from 1. truncate_after: this many chunks pass, of the next a half, then the connection breaks.
    only_small: chunks of more bytes get stuck for good, as where a path's MTU is smaller than its ends believe.
    lose: the share of chunks that take RETRANSMIT_S longer, and hold up those behind them, as lost packets do.
    """

    ways: tuple[int, ...] = (UP, DOWN)
    corrupt: float = 0.0
    corrupt_nth: int = 0
    truncate_after: int | None = None
    only_small: int | None = None
    lose: float = 0.0


class FaultLink(Link):
    """The link, with a listener that can refuse, hang, stay silent or talk nonsense."""

    def __init__(self, open_socket: Callable[[str, int], socket.socket] | None = None, seed: int = 0) -> None:
        super().__init__(CLEAR)
        self.trouble = Trouble()
        # What whoever connects hears instead of the target: b"" for nothing at all, None for the target.
        self.greeting: bytes | None = None
        self.accepted = 0
        self._open_socket = open_socket
        self._chance = random.Random(seed)
        self._counts = [0, 0]
        self._held: list[socket.socket] = []
        self._generation = 0

    async def __aenter__(self) -> FaultLink:
        # Bound for good and never listening: while nobody listens, connecting is refused and nobody takes the port.
        self._port = socket.socket()
        self._port.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._port.bind(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._port.getsockname()[1]}"
        await self.listen()
        return self

    async def __aexit__(self, *_: object) -> None:
        await super().__aexit__()
        self._release()
        self._port.close()

    async def listen(self) -> None:
        """Accept connections, again."""
        self._release()
        if self._server is None or not self._server.is_serving():
            host, _, port = self.address.rpartition(":")
            self._server = await asyncio.start_server(self._accept, host, int(port))

    def refuse(self) -> None:
        """Break every connection with RST and refuse new ones: as where no process listens."""
        assert self._server is not None
        self._server.close()
        self._release()
        self.reset()

    async def drop_syns(self) -> None:
        """Answer no connection attempt any more: the listener's queue is full. Connections that are open stay."""
        assert self._server is not None
        self._server.close()
        await asyncio.sleep(0)
        host, _, port = self.address.rpartition(":")
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, int(port)))
        listener.listen(0)
        self._held.append(listener)
        for _ in range(3):
            filler = socket.socket()
            filler.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                filler.connect((host, int(port)))
            self._held.append(filler)

    def reset(self) -> int:
        """Break every connection with RST; returns how many were open."""
        connections = list(self._connections.values())
        for writers in connections:
            for writer in writers:
                sock = writer.get_extra_info("socket")
                with contextlib.suppress(OSError):
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
                writer.transport.abort()
        return len(connections)

    def strand(self) -> None:
        """Leave every connection open for good, with nobody at its other end: no byte, no end, no RST."""
        self._generation += 1

    async def connect(self, host: str, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """The way to the target, through a socket of somebody else's making if there is one."""
        if self._open_socket is None:
            return await super().connect(host, port)
        connected = await asyncio.to_thread(self._open_socket, host, port)
        return await asyncio.open_connection(sock=connected)

    def passing(self, way: int, chunk: bytes) -> bytes:
        """Flip a bit, cut, or hold back, as the trouble says."""
        self._counts[way] += 1
        if _BORN.get() < self._generation:
            raise _Stuck
        trouble = self.trouble
        if way not in trouble.ways:
            return chunk
        if trouble.only_small is not None and len(chunk) > trouble.only_small:
            raise _Stuck
        if trouble.truncate_after is not None and self._counts[way] > trouble.truncate_after:
            raise _Cut(chunk[: len(chunk) // 2])
        if self._chance.random() < trouble.corrupt or self._counts[way] == trouble.corrupt_nth:
            spoilt = bytearray(chunk)
            spoilt[self._chance.randrange(len(spoilt))] ^= 1 << self._chance.randrange(8)
            return bytes(spoilt)
        return chunk

    async def _carry(
        self, task: asyncio.Task[None], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.accepted += 1
        _BORN.set(self._generation)
        if self.greeting is None:
            self._counts = [0, 0]
            await super()._carry(task, reader, writer)
            return
        if self.greeting:
            writer.write(self.greeting)
        while await reader.read(65536):
            pass
        writer.close()

    async def _enter(self, reader: asyncio.StreamReader, queue: Any, way: int) -> None:
        try:
            await super()._enter(reader, _Lossy(queue, self), way)
        except _Cut as cut:
            queue.put(0.0, cut.rest)
            queue.put(0.0, b"")
        except _Stuck:
            await asyncio.Event().wait()

    def loses(self) -> bool:
        """Whether the next chunk has to be sent again."""
        return self._chance.random() < self.trouble.lose

    def _release(self) -> None:
        for held in self._held:
            held.close()
        self._held.clear()


class _Lossy:
    """A queue on whose way packets get lost and are sent again."""

    def __init__(self, queue: Any, link: FaultLink) -> None:
        self._queue = queue
        self._link = link
        self.room = queue.room

    def put(self, arrives_s: float, chunk: bytes) -> None:
        self._queue.put(arrives_s + RETRANSMIT_S * self._link.loses(), chunk)


class _Cut(Exception):
    def __init__(self, rest: bytes) -> None:
        self.rest = rest


class _Stuck(Exception):
    pass


class Backstage:
    """An event loop in a thread: proxies, simulated clouds and clients live in it, so that a test may block."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="backstage", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T], timeout_s: float = _PATIENCE_S) -> T:
        """Run a coroutine there and wait for its result."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(timeout_s)

    def call(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call a function there and wait for its result."""

        async def call() -> T:
            return function(*arguments)

        return self.run(call())

    def enter(self, manager: contextlib.AbstractAsyncContextManager[T], stack: contextlib.ExitStack) -> T:
        """Enter an asynchronous context there; it is left with ``stack``."""
        entered: Awaitable[T] = manager.__aenter__()
        result = self.run(_awaited(entered))
        stack.callback(lambda: self.run(_awaited(manager.__aexit__(None, None, None))))
        return result

    def close(self) -> None:
        """End the loop and the thread; what still runs there is cancelled."""

        async def cancel() -> None:
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        self.run(cancel())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(_PATIENCE_S)
        self.loop.close()


async def _awaited(work: Awaitable[T]) -> T:
    return await work


class FaultProxy:
    """A FaultLink backstage. Every method has taken effect when it returns."""

    def __init__(self, backstage: Backstage, link: FaultLink) -> None:
        self._backstage = backstage
        self._link = link
        self.address = link.address

    @classmethod
    def open(cls, backstage: Backstage, stack: contextlib.ExitStack, **how: Any) -> FaultProxy:
        """A proxy that listens until ``stack`` is closed; ``how`` as for FaultLink."""
        return cls(backstage, backstage.enter(FaultLink(**how), stack))  # type: ignore[arg-type]

    def lead_to(self, target: str) -> None:
        """Connections from now on end at HOST:PORT."""
        self._backstage.call(self._link.lead_to, target)

    def heal(self) -> None:
        """From now on the link is clear and the listener listens. Connections that are open stay."""

        async def heal() -> None:
            self._link.trouble, self._link.greeting = Trouble(), None
            self._link.set(CLEAR)
            self._link.hurry()
            await self._link.listen()

        self._backstage.run(heal())

    def link(self, **conditions: Any) -> None:
        """A delay, a rate, a jitter: the fields of Conditions, the others as on a clear link."""
        self._backstage.call(self._link.set, msgspec.structs.replace(CLEAR, **conditions))

    def stall(self, state: Literal["stalled", "deaf", "mute"] = "stalled") -> None:
        """Nothing gets through: at all, to the target, or from the target."""
        self.link(state=state)

    def trouble(self, **what: Any) -> None:
        """The fields of Trouble."""
        self._backstage.call(setattr, self._link, "trouble", Trouble(**what))

    def strand(self) -> None:
        """Connections that are open stay open, with nobody at their other end; new ones are as good as any."""
        self._backstage.call(self._link.strand)

    def reset(self) -> int:
        """Break every connection with RST; returns how many there were."""
        return self._backstage.call(self._link.reset)

    def refuse(self) -> None:
        """Break every connection and refuse new ones."""
        self._backstage.call(self._link.refuse)

    def drop_syns(self) -> None:
        """Leave connection attempts without an answer; break what is open."""

        async def drop() -> None:
            await self._link.drop_syns()
            self._link.reset()

        self._backstage.run(drop())

    def greet(self, greeting: bytes) -> None:
        """Break every connection; who connects from now on is accepted and hears this, b"" for nothing."""

        def greet() -> None:
            self._link.greeting = greeting
            self._link.reset()

        self._backstage.call(greet)

    @property
    def accepted(self) -> int:
        """Connections accepted so far."""
        return self._link.accepted
