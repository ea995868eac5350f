"""An emulated link: a TCP proxy with a round-trip time and a bandwidth, changeable while it carries traffic.

It needs no rights and no kernel module. Each direction of the link is one wire that all connections share: a chunk
occupies it for size / bandwidth, then travels for half the round trip. Delay and bandwidth do not add up chunk by
chunk, because arrivals are scheduled when a chunk enters and a separate task delivers them.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import weakref
from collections import deque
from typing import Literal

import msgspec

from edgemux.multiplexer.errors import ConfigError

CHUNK_BYTES = 4096
# What a direction of one connection holds before its sender is no longer read: a router's buffer.
BUFFER_BYTES = 64 * 1024

_TIME = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
_RATE = {"bit": 1.0, "kbit": 1e3, "mbit": 1e6, "gbit": 1e9}
_FIELD = re.compile(r"(\d+(?:\.\d+)?)([a-z]+)")


class Conditions(msgspec.Struct, frozen=True):
    """What the link does now. Half of ``round_trip_s`` is spent in each direction, ``bits_per_s`` is for each.

    Each chunk takes up to ``jitter_s`` longer, by chance. stalled: nothing gets through, connections stay; ``deaf``
    and ``mute`` are stalled in one direction, towards the target and back. refused: connections are reset and none is
    accepted.
    """

    round_trip_s: float = 0.04
    bits_per_s: float = 10e6
    state: Literal["open", "stalled", "deaf", "mute", "refused"] = "open"
    jitter_s: float = 0.0

    def flows(self, way: int) -> bool:
        """Whether anything gets through towards the target, 0, or back, 1."""
        return self.state == "open" or self.state == ("mute", "deaf")[way]

    def __str__(self) -> str:
        return f"{self.round_trip_s * 1000:g} ms, {self.bits_per_s / 1e6:g} Mbit/s"


def parse_link(text: str) -> Conditions:
    """``"40ms,10mbit"`` -> Conditions; either part may be left out. Raises ConfigError."""
    usual = Conditions()
    times: list[float] = []
    rates: list[float] = []
    for part in text.lower().replace(" ", "").split(","):
        match = _FIELD.fullmatch(part)
        number, unit = match.groups() if match else ("0", "")
        if unit in _TIME:
            times.append(float(number) * _TIME[unit])
        elif unit in _RATE and float(number) > 0:
            rates.append(float(number) * _RATE[unit])
        else:
            raise ConfigError(f"--link: {part!r} is neither a delay like 40ms nor a rate like 10mbit")
    if len(times) > 1 or len(rates) > 1:
        raise ConfigError(f"--link: {text!r} gives two delays or two rates")
    return Conditions(times[0] if times else usual.round_trip_s, rates[0] if rates else usual.bits_per_s)


def schedule(now_s: float, size_bytes: int, free_at_s: float, conditions: Conditions) -> tuple[float, float]:
    """When a chunk that enters now has left the wire's entrance, and when it arrives at the far end.

    ``free_at_s``: when the entrance is free of earlier chunks. Both results are at or after ``now_s``.
    """
    left_s = max(now_s, free_at_s) + size_bytes * 8 / conditions.bits_per_s
    return left_s, left_s + conditions.round_trip_s / 2


class Wire:
    """One direction of the link, shared by all connections."""

    def __init__(self) -> None:
        self.free_at_s = 0.0
        self._chance = random.Random(0)

    def enter(self, now_s: float, size_bytes: int, conditions: Conditions) -> float:
        """Put a chunk on the wire; returns when it arrives."""
        self.free_at_s, arrives_s = schedule(now_s, size_bytes, self.free_at_s, conditions)
        return arrives_s + self._chance.uniform(0.0, conditions.jitter_s)


class Link:
    """The proxy. Connections to ``address`` end up at the target, once one is set; until then they wait."""

    def __init__(self, conditions: Conditions) -> None:
        self.conditions = conditions
        self.address = ""
        self._target = ""
        self._has_target = asyncio.Event()
        # Towards the target, and back.
        self._flowing = (asyncio.Event(), asyncio.Event())
        self._wires = (Wire(), Wire())
        self._connections: dict[asyncio.Task[None], tuple[asyncio.StreamWriter, ...]] = {}
        self._queues: weakref.WeakSet[_Queue] = weakref.WeakSet()
        self._server: asyncio.Server | None = None
        self.set(conditions)

    async def __aenter__(self) -> Link:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        host, port = self._server.sockets[0].getsockname()[:2]
        self.address = f"{host}:{port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        tasks = list(self._connections)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def lead_to(self, target: str) -> None:
        """Set the HOST:PORT at the far end."""
        self._target = target
        self._has_target.set()

    def set(self, conditions: Conditions) -> None:
        """Change the link from now on. What is already on the wire arrives as it was scheduled."""
        self.conditions = conditions
        for way, flowing in enumerate(self._flowing):
            if conditions.flows(way):
                flowing.set()
            else:
                flowing.clear()
        if conditions.state == "refused":
            for writers in self._connections.values():
                _abort(writers)

    def hurry(self) -> None:
        """Let what is on the wire arrive now, at most one chunk of each connection as it was scheduled."""
        for wire in self._wires:
            wire.free_at_s = 0.0
        for queue in self._queues:
            queue.hurry()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.conditions.state == "refused":
            writer.transport.abort()
            return
        task = asyncio.current_task()
        assert task is not None
        self._connections[task] = (writer,)
        try:
            await self._carry(task, reader, writer)
        except (OSError, asyncio.CancelledError):
            # Cancelled only by __aexit__; start_server would report it as an unhandled error.
            _abort(self._connections[task])
        finally:
            del self._connections[task]

    async def _carry(
        self, task: asyncio.Task[None], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Connect to the target and carry both directions until one of them breaks or both have ended."""
        await self._has_target.wait()
        host, _, port = self._target.rpartition(":")
        far_reader, far_writer = await self.connect(host, int(port))
        self._connections[task] = (writer, far_writer)
        try:
            async with asyncio.TaskGroup() as directions:
                directions.create_task(self._direction(reader, far_writer, 0))
                directions.create_task(self._direction(far_reader, writer, 1))
        except* OSError:
            # One side was reset, as when the far process is killed: so is the other.
            _abort((writer, far_writer))
        else:
            writer.close()
            far_writer.close()

    async def connect(self, host: str, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """The way to the target. Raises OSError."""
        return await asyncio.open_connection(host, port)

    def passing(self, way: int, chunk: bytes) -> bytes:
        """What becomes of a chunk as it enters; here it stays what it is. Raises OSError to break the connection."""
        return chunk

    async def _direction(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: int) -> None:
        queue = _Queue()
        self._queues.add(queue)
        async with asyncio.TaskGroup() as ends:
            ends.create_task(self._enter(reader, queue, way))
            ends.create_task(self._deliver(queue, writer, self._flowing[way]))

    async def _enter(self, reader: asyncio.StreamReader, queue: _Queue, way: int) -> None:
        now = asyncio.get_running_loop().time
        while True:
            await queue.room.wait()
            chunk = await reader.read(CHUNK_BYTES)
            if chunk:
                chunk = self.passing(way, chunk)
            queue.put(self._wires[way].enter(now(), len(chunk), self.conditions), chunk)
            if not chunk:
                return

    async def _deliver(self, queue: _Queue, writer: asyncio.StreamWriter, flowing: asyncio.Event) -> None:
        now = asyncio.get_running_loop().time
        while True:
            arrives_s, chunk = await queue.get()
            if (wait_s := arrives_s - now()) > 0:
                await asyncio.sleep(wait_s)
            await flowing.wait()
            if not chunk:
                with contextlib.suppress(OSError):
                    writer.write_eof()
                return
            writer.write(chunk)
            await writer.drain()


def _abort(writers: tuple[asyncio.StreamWriter, ...]) -> None:
    for writer in writers:
        writer.transport.abort()


class _Queue:
    """Chunks under way in one direction of one connection, in order; an empty chunk is the end of the stream."""

    def __init__(self) -> None:
        self.room = asyncio.Event()
        self.room.set()
        self._some = asyncio.Event()
        self._chunks: deque[tuple[float, bytes]] = deque()
        self._held_bytes = 0
        self._latest_s = 0.0

    def put(self, arrives_s: float, chunk: bytes) -> None:
        """Add a chunk; a stream keeps its order even when the delay has just become shorter."""
        self._latest_s = max(self._latest_s, arrives_s)
        self._chunks.append((self._latest_s, chunk))
        self._held_bytes += len(chunk)
        self._some.set()
        if self._held_bytes >= BUFFER_BYTES:
            self.room.clear()

    def hurry(self) -> None:
        """Let everything arrive at once."""
        self._latest_s = 0.0
        self._chunks = deque((0.0, chunk) for _, chunk in self._chunks)

    async def get(self) -> tuple[float, bytes]:
        """The oldest chunk and when it arrives."""
        await self._some.wait()
        arrives_s, chunk = self._chunks.popleft()
        self._held_bytes -= len(chunk)
        if not self._chunks:
            self._some.clear()
        if self._held_bytes < BUFFER_BYTES:
            self.room.set()
        return arrives_s, chunk
