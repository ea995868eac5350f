"""Inputs that want the cloud at the same moment go as the rows of one call.

A call costs gRPC in Python some half a millisecond of the device's CPU, a row next to nothing. An input that finds no
call under way goes at once, alone; those that come meanwhile wait for the event loop's next turn, and no longer.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import msgspec
from numpy.typing import NDArray

from edgemux.wire.codec import add_checksum
from edgemux.wire.payload import ENCODING
from edgemux.wire.tracing import Trace

T = TypeVar("T")


class Row(msgspec.Struct, frozen=True):
    """One input as a request of its own, with raw contents and a checksum; when it is too late for its answer.

    ``trace``: of sending it, None where nothing is traced.
    """

    request: Any
    deadline_s: float
    trace: Trace | None = None

    def fits(self, other: Row) -> bool:
        """Whether both can be rows of one message."""
        return [_form(each) for each in self.request.inputs] == [_form(each) for each in other.request.inputs]


class Reply(msgspec.Struct, frozen=True):
    """What came back for one input: its probabilities FP32 [classes], the whole answer, the bytes of the call."""

    response: Any
    row: NDArray[Any]
    size: int


def _form(message: Any) -> tuple[Any, ...]:
    encoding = message.parameters[ENCODING].string_param if ENCODING in message.parameters else ""
    return message.name, message.datatype, tuple(message.shape[1:]), encoding


def merged(rows: Sequence[Row]) -> Any:
    """One request for rows that fit each other, under the first one's id."""
    request = type(rows[0].request)()
    request.CopyFrom(rows[0].request)
    for at, message in enumerate(request.inputs):
        message.shape[0] = len(rows)
        # Elements of BYTES have their lengths before them: they too are one after the other.
        request.raw_input_contents[at] = b"".join(row.request.raw_input_contents[at] for row in rows)
    add_checksum(request)
    return request


def groups(rows: Sequence[Row], most: int) -> list[list[int]]:
    """Which rows go together, by their places: in order, all that fit each other, at most so many."""
    made: list[list[int]] = []
    for at, row in enumerate(rows):
        open_one = next((g for g in made if len(g) < most and rows[g[0]].fits(row)), None)
        if open_one is None:
            made.append([at])
        else:
            open_one.append(at)
    return made


class Together:
    """Calls with one row or several. One event loop owns it."""

    def __init__(
        self,
        call: Callable[[Sequence[Row]], Awaitable[Sequence[T]]],
        most: Callable[[], int],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """call: sends rows that fit each other, with the latest deadline among them, and gives an answer to each.

        most: rows of a call, by now.
        """
        self._call = call
        self._most = most
        self._clock = clock
        self._under_way = 0
        self._waiting: list[tuple[Row, asyncio.Future[Any]]] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def ask(self, row: Row) -> Any:
        """The answer to one row. Raises what the call raises, TimeoutError at the row's own deadline."""
        if self._most() <= 1 or not (self._under_way or self._waiting):
            return (await self._counted([row]))[0]
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        if not self._waiting:
            loop.call_soon(self._send)
        self._waiting.append((row, future))
        async with asyncio.timeout(max(0.0, row.deadline_s - self._clock())):
            return await future

    async def _counted(self, rows: Sequence[Row]) -> Sequence[Any]:
        self._under_way += 1
        try:
            return await self._call(rows)
        finally:
            self._under_way -= 1

    def _send(self) -> None:
        waiting = [(row, future) for row, future in self._waiting if not future.done()]
        self._waiting = []
        for places in groups([row for row, _ in waiting], max(1, self._most())):
            task = asyncio.ensure_future(self._settle([waiting[at] for at in places]))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _settle(self, waiting: Sequence[tuple[Row, asyncio.Future[Any]]]) -> None:
        """Make one call, and give each row its answer, or the error of all."""
        call: asyncio.Future[Sequence[Any]] = asyncio.ensure_future(self._counted([row for row, _ in waiting]))  # noqa: RUF006 - awaited below
        left = len(waiting)

        def gone(_: object) -> None:
            nonlocal left
            left -= 1
            if not left:  # nobody waits any more
                call.cancel()

        for _, future in waiting:
            future.add_done_callback(gone)
        try:
            answers = await call
        except BaseException as error:
            for _, future in waiting:
                if not future.done():
                    future.set_exception(error) if isinstance(error, Exception) else future.cancel()
            return
        for (_, future), answer in zip(waiting, answers, strict=True):
            if not future.done():
                future.set_result(answer)
