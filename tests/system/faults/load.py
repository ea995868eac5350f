"""A load on the agent, open loop or closed, whose every request is in the client's ledger."""

from __future__ import annotations

import asyncio
import bisect
import contextlib
import itertools
import math
import secrets
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
from numpy.typing import NDArray

from edgemux.wire.channel import open_channel
from edgemux.wire.codec import get_parameters, make_request
from edgemux.wire.service import Stub
from tests.system.faults.ledgers import ANSWERED, BUSY_S, GRACE_S, Entry
from tests.system.faults.proxy import Backstage

# How often a waiting test looks again.
_GLANCE_S = 0.005
# How often the kernel's account of the agent is read.
_WATCH_S = 0.02
# A last resort against a test that waits for ever.
_PATIENCE_S = 60.0


def waited_for_cpu_s(pid: int) -> float | None:
    """For how long threads of a process have been ready to run while others ran, as Linux counts it, in sum.

    Of all threads, because the event loop also waits for one that was sent away with the interpreter's lock in its
    hands. None where nobody counts.
    """
    waited_ns, counts = 0, False
    for thread in Path(f"/proc/{pid}/task").glob("*"):
        # Threads come and go.
        with contextlib.suppress(OSError):
            waited_ns += int((thread / "schedstat").read_text().split()[1])
            counts = True
    return waited_ns / 1e9 if counts else None


class Load:
    """Requests at a rate (open loop) or by so many clients, one after the other each (closed loop).

    ``with Load(...) as load:`` sends from the beginning to the end of the block, then waits for what is under way.
    ``entries`` holds every request in the order of sending. The deadline goes along as the protocol's own parameter;
    the call itself may take longer, so that a late answer is seen to be late.
    """

    def __init__(
        self,
        backstage: Backstage,
        address: str,
        images: NDArray[np.uint8],
        *,
        model: str = "fashion-mnist",
        rate_per_s: float | None = 80.0,
        clients: int = 1,
        timeout_s: float = 0.4,
        order: Sequence[int] | None = None,
        pid: int | None = None,
    ) -> None:
        """``images`` UINT8 [n, 28, 28]; ``order``: which of them, again and again. rate_per_s None: a closed loop.

        pid: the agent's process, to know when it was kept from running.
        """
        self.entries: list[Entry] = []
        self._backstage = backstage
        self._address = address
        self._images = images
        self._model = model
        self._rate_per_s = rate_per_s
        self._clients = clients
        self._timeout_s = timeout_s
        self._order = itertools.cycle(order if order is not None else range(len(images)))
        self._name = secrets.token_hex(4)
        self._infer: Any = None
        self._requests: set[asyncio.Task[None]] = set()
        self._tasks: list[asyncio.Task[None]] = []
        self._stack = contextlib.ExitStack()
        self._pid = pid
        self._waits: list[tuple[float, float]] = []

    def __enter__(self) -> Load:
        self._backstage.run(self._start())
        return self

    def __exit__(self, *_: object) -> None:
        self._backstage.run(self._stop())

    async def _start(self) -> None:
        self._channel = open_channel(self._address)
        await self._channel.channel_ready()
        self._infer = Stub(self._channel).ModelInfer
        if self._rate_per_s is not None:
            self._tasks = [asyncio.create_task(self._open_loop(self._rate_per_s))]
        else:
            self._tasks = [asyncio.create_task(self._closed_loop()) for _ in range(self._clients)]
        self._tasks.append(asyncio.create_task(self._watch()))

    async def _stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._requests:
            await asyncio.wait(set(self._requests), timeout=_PATIENCE_S)
        await self._channel.close()
        self._look()
        for entry in self.entries:
            entry.starved_s = self._starved_s(entry.sent_s, entry.ended_s)

    async def _watch(self) -> None:
        while True:
            self._look()
            await asyncio.sleep(_WATCH_S)

    def _look(self) -> None:
        if self._pid is not None and (waited_s := waited_for_cpu_s(self._pid)) is not None:
            self._waits.append((time.monotonic(), waited_s))

    def _starved_s(self, begin_s: float, end_s: float) -> float:
        """For how long the agent was kept from running, from the look before ``begin_s`` to the one after ``end_s``."""
        if not self._waits:
            return 0.0
        before = max(0, bisect.bisect_right(self._waits, (begin_s, math.inf)) - 1)
        after = min(len(self._waits) - 1, bisect.bisect_left(self._waits, (end_s, 0.0)))
        return self._waits[after][1] - self._waits[before][1]

    async def _open_loop(self, rate_per_s: float) -> None:
        now = asyncio.get_running_loop().time
        start_s = now()
        for index in itertools.count():
            due_s = start_s + index / rate_per_s
            await asyncio.sleep(max(0.0, due_s - now()))
            self._send()

    async def _closed_loop(self) -> None:
        while True:
            await asyncio.shield(self._send())

    def _send(self) -> asyncio.Task[None]:
        """A task of its own for each request: the loop's end cancels none."""
        picture = next(self._order)
        entry = Entry(f"{self._name}-{len(self.entries)}", picture, self._timeout_s, time.monotonic())
        self.entries.append(entry)
        task = asyncio.create_task(self._ask(entry))
        self._requests.add(task)
        task.add_done_callback(self._requests.discard)
        return task

    async def _ask(self, entry: Entry) -> None:
        pixels = self._images[entry.picture : entry.picture + 1]
        timeout = {"timeout": round(self._timeout_s * 1e6)}
        request = make_request(self._model, {"image": pixels}, request_id=entry.id, parameters=timeout)
        request.outputs.add(name="label")
        entry.sent_s = time.monotonic()
        try:
            response = await self._infer(request, timeout=self._timeout_s + GRACE_S + 2 * BUSY_S)
        except grpc.aio.AioRpcError as error:
            entry.elapsed_s = time.monotonic() - entry.sent_s
            entry.outcome = error.code().name
            return
        entry.elapsed_s = time.monotonic() - entry.sent_s
        if response is None or response.id != entry.id:
            entry.outcome = "answer to another request"
            return
        said = get_parameters(response)
        entry.label = int(np.frombuffer(response.raw_output_contents[0], np.int64)[0])
        entry.route, entry.variant = str(said.get("edgemux_route")), str(said.get("edgemux_variant"))
        entry.reason, entry.degraded = str(said.get("edgemux_reason")), bool(said.get("edgemux_degraded"))
        entry.outcome = ANSWERED  # last: whoever waits for it may read the rest

    def more(self, count: int) -> None:
        """Wait until ``count`` requests that are sent from now on have an outcome."""
        start = len(self.entries)
        self.wait(lambda: len(self.entries) >= start + count and all(e.outcome for e in self.entries[start:][:count]))

    def first(self, wanted: Callable[[Entry], bool], within_s: float, since_s: float = 0.0) -> Entry:
        """The earliest outcome that is ``wanted``, of a request sent at ``since_s`` or later. Fails without any."""

        def found() -> list[Entry]:
            return [e for e in list(self.entries) if e.sent_s >= since_s and e.outcome and wanted(e)]

        self.wait(lambda: bool(found()), within_s)
        return min(found(), key=lambda entry: entry.ended_s)

    def wait(self, until: Callable[[], bool], within_s: float = _PATIENCE_S) -> None:
        """Wait for a condition while the load goes on. Fails after ``within_s``."""
        give_up_s = time.monotonic() + within_s
        while not until():
            assert time.monotonic() < give_up_s, f"not within {within_s:g} s"
            time.sleep(_GLANCE_S)
