"""The load generator of our own, a process by itself: it reads an Order as JSON from stdin, prints a Passed.

Closed loop: every connection sends its next request when it has the answer to the last. Open loop (``rate``): requests
are due at times drawn by chance, Poisson; a latency counts from when the request was due, not from when it could be
sent, so a server that stalls is charged with all that came meanwhile. ``late_ms``: how late the generator itself was.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import random
import selectors
import sys
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from serving_bench.http1 import Http1
from serving_bench.http2 import Http2

PATIENCE_S = 10.0
POOL = 32
PR_SET_TIMERSLACK = 29


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What to do. body: a file with one request in the form that is sent (HTTP/1.1: with its headers).

    kind: ``unary``, ``stream`` (of gRPC), ``http``. least: bytes that an answer has at least. rate: a second; 0 for the
    closed loop.
    """

    kind: str
    address: str
    path: str
    body: str
    least: int
    connections: int = 1
    seconds: float = 3.0
    rate: float = 0.0
    seed: int = 0


class Passed(msgspec.Struct, frozen=True, kw_only=True):
    """What came of it. Durations in ms; rps: good answers a second."""

    good: int
    failed: int
    rps: float
    p50_ms: float
    p99_ms: float
    worst_ms: float
    late_ms: float = 0.0


class Load:
    """The requests of one order and what they took."""

    def __init__(self, order: Order) -> None:
        self.order = order
        self.body = Path(order.body).read_bytes()
        self.taken: list[float] = []
        self.late: list[float] = []
        self.failed = 0
        self.ended_s = 0.0

    def count(self, due_s: float, size: int) -> None:
        now_s = time.perf_counter()
        if size >= self.order.least:
            self.taken.append(now_s - due_s)
            self.ended_s = now_s
        else:
            self.failed += 1

    async def connect(self) -> tuple[Any, Callable[..., None]]:
        """A connection, and how a request is sent on it."""
        host, _, port = self.order.address.rpartition(":")
        loop = asyncio.get_running_loop()
        if self.order.kind == "http":
            _, plain = await loop.create_connection(Http1, host, int(port))
            return plain, plain.call
        make = partial(Http2, self.order.address, self.order.path)
        _, carrier = await loop.create_connection(make, host, int(port))
        return carrier, carrier.exchange if self.order.kind == "stream" else carrier.call

    async def closed(self) -> float:
        """One request under way a connection; the seconds it took."""
        connections = [await self.connect() for _ in range(self.order.connections)]
        begin_s = time.perf_counter()
        until_s = begin_s + self.order.seconds
        over = asyncio.Event()
        running = len(connections)

        def again(send: Callable[..., None], due_s: float, size: int) -> None:
            nonlocal running
            self.count(due_s, size)
            now_s = time.perf_counter()
            if now_s < until_s and self.failed < 1000:
                send(self.body, partial(again, send, now_s))
                return
            running -= 1
            if not running:
                over.set()

        for _, send in connections:
            send(self.body, partial(again, send, time.perf_counter()))
        await self._end(over, [each for each, _ in connections])
        return self.ended_s - begin_s

    async def open(self) -> float:
        """Requests as they are due, each on the connection with the least to do; the seconds it took."""
        order, draw = self.order, random.Random(self.order.seed)
        connections = [await self.connect() for _ in range(order.connections or POOL)]
        free = deque(connections)
        waiting: deque[float] = deque()
        begin_s = time.perf_counter() + 0.01
        over, still = asyncio.Event(), 0
        all_sent = False

        def send_one(connection: tuple[Any, Callable[..., None]], due_s: float) -> None:
            connection[1](self.body, partial(answered, connection, due_s))

        def answered(connection: tuple[Any, Callable[..., None]], due_s: float, size: int) -> None:
            nonlocal still
            self.count(due_s, size)
            still -= 1
            if waiting:
                send_one(connection, waiting.popleft())
            else:
                free.appendleft(connection)
            if all_sent and not still:
                over.set()

        due_s = begin_s
        while (due_s := due_s + draw.expovariate(order.rate)) < begin_s + order.seconds:
            if (wait_s := due_s - time.perf_counter()) > 0:
                await asyncio.sleep(wait_s)
            self.late.append(time.perf_counter() - due_s)
            still += 1
            if free:
                send_one(free.popleft(), due_s)
            else:
                waiting.append(due_s)
        all_sent = True
        if not still:
            over.set()
        await self._end(over, [each for each, _ in connections])
        return order.seconds

    async def _end(self, over: asyncio.Event, connections: list[Any]) -> None:
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(over.wait(), self.order.seconds + PATIENCE_S)
        self.failed += sum(each.inside for each in connections)
        for each in connections:
            each.close()


def quantile(ordered: list[float], share: float) -> float:
    """Of values in order, the one that ``share`` of them do not exceed; 0 of none."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


async def carry_out(order: Order) -> Passed:
    """Load a server as ordered."""
    load = Load(order)
    seconds = await (load.open() if order.rate else load.closed())
    taken, late = sorted(load.taken), sorted(load.late)
    return Passed(
        good=len(taken),
        failed=load.failed,
        rps=len(taken) / seconds if seconds > 0 else 0.0,
        p50_ms=1e3 * quantile(taken, 0.5),
        p99_ms=1e3 * quantile(taken, 0.99),
        worst_ms=1e3 * quantile(taken, 1.0),
        late_ms=1e3 * quantile(late, 0.99),
    )


def main() -> None:
    """Timers as exact as the system has them: select() where epoll counts in milliseconds."""
    order = msgspec.json.decode(sys.stdin.buffer.read(), type=Order)
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_TIMERSLACK, 1000, 0, 0, 0)
    gc.disable()
    loop = asyncio.SelectorEventLoop(selectors.SelectSelector())
    asyncio.set_event_loop(loop)
    passed = loop.run_until_complete(carry_out(order))
    print(msgspec.json.encode(passed).decode())


if __name__ == "__main__":
    main()
