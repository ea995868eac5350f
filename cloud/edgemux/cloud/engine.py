"""The asyncio shell around batcher and admission: one worker, one model."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Hashable, Sequence
from functools import partial
from typing import Any, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgemux.cloud.admission import Admission, AdmissionSettings, BatchTime, Refusal, Refused
from edgemux.cloud.backend import Arrays, Backend, Room, batched
from edgemux.cloud.batcher import Batch, Batcher, BatchingSettings, Expired, Item, Wait
from edgemux.cloud.events import BatchFailed, ModelNotClosed, ModelSlow
from edgemux.cloud.spans import batch_ran
from edgemux.cloud.statistics import Tally
from edgemux.multiplexer.errors import BadAnswer, DeadlineExceeded, ExecutionError, Overloaded, TooLarge, Unreachable
from edgemux.wire.events import kind, places, tell
from edgemux.wire.tracing import Trace
from edgemux.wire.worker import Worker

# Handing a batch to a thread and its result back costs 0.15-0.2 ms: quicker models run in the event loop itself.
INLINE_ROW_S = 1e-3
# ... unless a full batch would keep the loop from reading and writing for longer than this.
INLINE_FULL_S = 10e-3
# What the running mean of inline runs takes from each: a model that turns out to take longer goes over to a thread,
# one that was held up by something else does not.
INLINE_FADE = 0.05

# Where batches are hardly ever more than one request, the queue only costs time; but for one in LOOKED.
COMPANY = 1.3
COMPANY_FADE = 0.2
LOOKED = 16
# One in so many of those that are run at once teaches how long batches take.
LEARNED = 8

_MESSAGES = {
    Refused.FULL: "the queue is full",
    Refused.WAIT: "the queue is too long for the request's deadline",
}

# The clock of the event loop, to the nanosecond: uvloop's own stands still between two looks at the sockets.
_now_s = time.monotonic

_log = logging.getLogger("edgemux.cloud")


class Answer(msgspec.Struct, frozen=True):
    """Outputs by name, [rows, ...], and what it took: seconds queued and computed, rows of its batch."""

    outputs: dict[str, NDArray[Any]]
    queue_s: float
    compute_s: float
    batch_rows: int


class Answers(Protocol):
    """What answers for a model: an engine here, or another server."""

    async def infer(
        self,
        inputs: Arrays,
        outputs: Sequence[str],
        deadline_s: float,
        priority: int = 0,
        trace: Trace | None = None,
    ) -> Answer: ...

    def status(self) -> dict[str, Any]: ...

    async def close(self) -> None: ...


class _Asked(msgspec.Struct, frozen=True):
    """What a queued item is about, and who waits for it."""

    inputs: Arrays
    outputs: Sequence[str]
    future: asyncio.Future[Answer] | None
    trace: Trace | None = None


class Engine:
    """Answers rows of inputs, in batches. Lives in one event loop; ``close`` it there."""

    def __init__(
        self,
        backend: Backend,
        timing: BatchTime,
        batching: BatchingSettings,
        admission: AdmissionSettings,
        tally: Tally,
    ) -> None:
        self.timing = timing
        self.batched = batched(backend.inputs, backend.outputs)
        max_batch = batching.max_batch if self.batched else 1
        self.batcher = Batcher(max_batch, batching.linger_s, timing)
        self.admission = Admission(admission, timing, max_batch)
        self.draining = False
        self._backend = backend
        self._room: Room | None = getattr(backend, "room", None)
        self._tally = tally
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_s = math.inf
        self._started_s = 0.0
        self._running: Batch | None = None
        # The earliest deadline of those that run, while any of them waits.
        self._running_until_s = math.inf
        self._scheduled = False
        self._company = 2.0  # requests in a batch, a running mean
        self._turns = 0
        self._default_priority = batching.default_priority
        # Runs of one shape and one choice of outputs go together; where nothing is free there is but one shape.
        self._shapeless = all(-1 not in tensor.shape[1:] for tensor in backend.inputs) and self.batched
        self.inline = timing.expected_s(1) < INLINE_ROW_S and timing.expected_s(max_batch) < INLINE_FULL_S
        self._worker = None if self.inline else Worker("edgemux-model", self._loop)
        self._inline_s = 0.0  # a run, a running mean

    async def infer(
        self,
        inputs: Arrays,
        outputs: Sequence[str],
        deadline_s: float,
        priority: int = 0,
        trace: Trace | None = None,
    ) -> Answer:
        """The named outputs for ``inputs``, [N, ...], by ``deadline_s`` on the event loop's clock.

        Raises TooLarge, DeadlineExceeded, Overloaded, Unreachable when draining, ExecutionError when the model fails.
        """
        now_s = _now_s()
        rows = len(next(iter(inputs.values()))) if self.batched else 1
        self._check(rows, deadline_s, now_s)
        if self._alone():
            return self._at_once(_Asked(inputs, outputs, None, trace), rows, now_s)
        priority = priority or self._default_priority
        self._admit(rows, deadline_s, priority, now_s)
        future: asyncio.Future[Answer] = self._loop.create_future()
        item = Item(rows, deadline_s, _Asked(inputs, outputs, future, trace), self._key(inputs, outputs), priority)
        self.batcher.add(item, now_s)
        if self._worker is not None or self.batcher.max_batch == 1:
            self._advance()
        elif not self._scheduled:
            # When the loop is done with what it has at hand: what comes together runs together. To wait longer gains
            # nothing: the library takes calls in one by one, slower than a quick model runs (measured: 250 us each).
            self._scheduled = True
            self._loop.call_soon(self._advance)
        try:
            return await future
        except asyncio.CancelledError:
            self.batcher.discard(item)
            raise

    def _alone(self) -> bool:
        """Whether to run a request as it comes: inline, where batches have lately been no more than one request."""
        if self._worker is not None or self._scheduled or (self._company > COMPANY and self.batcher.max_batch > 1):
            return False
        self._turns += 1
        return self._turns % LOOKED != 0 or self.batcher.max_batch == 1

    def _at_once(self, asked: _Asked, rows: int, now_s: float) -> Answer:
        """What the way through the queue gives, in less time."""
        self._started_s = now_s
        ran = self._run([asked], rows)
        self._ran_inline(_now_s() - now_s)
        if asked.trace is not None and asked.trace.recording:
            batch_ran([(asked.trace, 0.0)], _now_s() - now_s, rows, 1, ran is not None)
        if ran is None:
            raise ExecutionError("the model failed")
        if self._turns % LEARNED == 0:
            self.timing.observe(rows, _now_s() - now_s)
        self._tally.queue.observe(0.0)
        self._tally.ran(rows, 1, ran.input_s, ran.infer_s, 0.0)
        return Answer(ran.answer, 0.0, ran.infer_s, rows)

    def _ran_inline(self, seconds: float) -> None:
        """What was quick when it was measured may be slow with other inputs, and then keep the loop from its work."""
        self._inline_s += INLINE_FADE * (seconds - self._inline_s)
        if self._inline_s > INLINE_FULL_S:
            tell(_log, ModelSlow(seconds=self._inline_s))
            self.inline = False
            self._worker = Worker("edgemux-model", self._loop)

    def _key(self, inputs: Arrays, outputs: Sequence[str]) -> Hashable:
        wanted = tuple(outputs)
        return wanted if self._shapeless else (wanted, *(inputs[name].shape[1:] for name in sorted(inputs)))

    async def answer(self, inputs: Arrays, outputs: Sequence[str]) -> dict[str, NDArray[Any]]:
        """The named outputs, computed where batches are, but counted and learned from nowhere.

        Raises what the backend raises.
        """
        if self._worker is None:
            return self._backend.run(inputs, outputs)
        return await self._worker.result(partial(self._backend.run, inputs, outputs))

    def status(self) -> dict[str, Any]:
        """The engine at a glance."""
        timing, batcher = self.timing, self.batcher
        return {
            "worker": "inline" if self.inline else "thread",
            "queue": {"requests": len(batcher), "rows": batcher.queued_rows, "busy": batcher.busy},
            "batch_ms": {"fixed": timing.fixed_s * 1e3, "per_row": timing.per_row_s * 1e3},
        }

    async def close(self) -> None:
        """Take nothing more, stop the worker and close the backend; a batch that runs is not waited for."""
        self.draining = True
        if self._timer is not None:
            self._timer.cancel()
        if self._worker is None:
            self._close_backend()
        else:
            self._worker.submit(self._close_backend, lambda _: None)
            self._worker.stop()

    def _close_backend(self) -> None:
        try:
            self._backend.close()
        except Exception as error:  # with any of a library's types, at the end of a thread
            tell(_log, ModelNotClosed(error=kind(error), at=places(error)))

    def _check(self, rows: int, deadline_s: float, now_s: float) -> None:
        """Refuse what is refused however little there is to do, or return."""
        refused = self._tally.refused
        if rows > self.batcher.max_batch:
            raise TooLarge("inputs", f"a batch of {rows}, at most {self.batcher.max_batch}")
        if self.draining:
            refused[Refused.DRAINING] += 1
            raise Unreachable("the server is stopping")
        if deadline_s <= now_s:
            refused[Refused.EXPIRED] += 1
            raise DeadlineExceeded("the deadline had passed when the request came")

    def _admit(self, rows: int, deadline_s: float, priority: int, now_s: float) -> None:
        """Refuse what would not be done in time, or return."""
        batcher = self.batcher
        refusal = self.admission.check(
            rows, deadline_s - now_s, batcher.queued_rows, self._running_left_s(now_s), batcher.rows_before(priority)
        )
        if isinstance(refusal, Refusal):
            self._tally.refused[refusal.reason] += 1
            raise Overloaded(_MESSAGES[refusal.reason], refusal.retry_after_s)

    def _running_left_s(self, now_s: float) -> float | None:
        """What the running batch is expected to take still, None when none runs."""
        if self._running is None:
            return None
        return max(0.0, self._started_s + self.timing.expected_s(self._running.rows) - now_s)

    def _advance(self) -> None:
        """Take every step that the batcher has ready, then sleep until its next."""
        self._scheduled = False
        while True:
            step = self.batcher.poll(_now_s())
            match step:
                case Batch():
                    self._start(step)
                case Expired():
                    for item in step.items:
                        _refuse(item, DeadlineExceeded("the deadline passed in the queue"))
                case Wait():
                    self._wake_at(min(step.until_s, self._running_until_s))
                    return

    def _wake_at(self, until_s: float) -> None:
        """At most one timer, set to the earliest time asked for; waking too early is harmless."""
        if self._timer_s <= until_s:
            return
        if self._timer is not None:
            self._timer.cancel()
        # Whole milliseconds, rounded up: loops that know no less would wake too early, and again and again.
        delay_s = math.ceil((until_s - _now_s()) * 1e3) / 1e3
        self._timer_s = until_s
        self._timer = self._loop.call_later(max(0.0, delay_s), self._on_timer)

    def _on_timer(self) -> None:
        self._timer_s = math.inf
        self._timer = None
        now_s = _now_s()
        if self._running is not None and now_s >= self._running_until_s:
            self._refuse_late(self._running, now_s)
        self._advance()

    def _refuse_late(self, running: Batch, now_s: float) -> None:
        """Tell those whose time is over while they are computed; nobody waits for what they will get."""
        self._running_until_s = math.inf
        for item in running.items:
            if item.deadline_s <= now_s:
                _refuse(item, DeadlineExceeded("the deadline passed while the model ran"))
            else:
                self._running_until_s = min(self._running_until_s, item.deadline_s)

    def _start(self, batch: Batch) -> None:
        self._started_s = _now_s()
        if self._worker is None:
            self._finish(batch, self._compute(batch))
            self._ran_inline(_now_s() - self._started_s)
        else:
            self._running = batch
            self._running_until_s = min(item.deadline_s for item in batch.items)
            self._worker.submit(partial(self._compute, batch), partial(self._on_computed, batch))

    def _on_computed(self, batch: Batch, ran: _Ran | None) -> None:
        """The thread is done with a batch; runs in the event loop."""
        self._finish(batch, ran)
        self._advance()

    def _compute(self, batch: Batch) -> _Ran | None:
        """``_run`` for a batch. In the worker, where there is one."""
        return self._run([item.payload for item in batch.items], batch.rows)

    def _run(self, asked: Sequence[_Asked], rows: int) -> _Ran | None:
        """All outputs together, and the seconds it took; None when the model failed."""
        started_s = _now_s()
        try:
            inputs, outputs = _together(asked, self._room)
            gathered_s = _now_s()
            answer = self._backend.run(inputs, outputs)
            for name in outputs:
                if self.batched and len(answer[name]) != rows:
                    raise BadAnswer(f"{name}: not {rows} rows")
        except Exception as error:  # whatever a model raises must not end the worker
            tell(_log, BatchFailed(rows=rows, error=kind(error), at=places(error)))
            return None
        return _Ran(answer, gathered_s - started_s, _now_s() - gathered_s)

    def _finish(self, batch: Batch, ran: _Ran | None) -> None:
        now_s = _now_s()
        self._company += COMPANY_FADE * (len(batch.items) - self._company)
        self._running, self._running_until_s = None, math.inf
        self.batcher.finished(now_s)
        self._traced(batch, now_s, ran is not None)
        if ran is None:
            for item in batch.items:
                _refuse(item, ExecutionError("the model failed"))
            return
        # From start to here, the way into the thread and back included: it is what the next request waits for.
        self.timing.observe(batch.rows, now_s - self._started_s)
        at = 0
        for item in batch.items:
            queue_s = self._started_s - item.arrived_s
            self._tally.queue.observe(queue_s)
            asked = item.payload
            if not asked.future.done():
                if len(batch.items) == 1:
                    outputs = {name: ran.answer[name] for name in asked.outputs}
                else:
                    outputs = {name: ran.answer[name][at : at + item.rows] for name in asked.outputs}
                asked.future.set_result(Answer(outputs, queue_s, ran.infer_s, batch.rows))
            at += item.rows
        self._tally.ran(batch.rows, len(batch.items), ran.input_s, ran.infer_s, _now_s() - now_s)

    def _traced(self, batch: Batch, now_s: float, well: bool) -> None:
        queued = [
            (item.payload.trace, self._started_s - item.arrived_s)
            for item in batch.items
            if item.payload.trace is not None and item.payload.trace.recording
        ]
        if queued:
            batch_ran(queued, now_s - self._started_s, batch.rows, len(batch.items), well)


class _Ran(msgspec.Struct, frozen=True):
    """What a batch gave, and the seconds that gathering its inputs and running it took."""

    answer: dict[str, NDArray[Any]]
    input_s: float
    infer_s: float


def _together(asked: Sequence[_Asked], room: Room | None) -> tuple[Arrays, Sequence[str]]:
    """The inputs of all, one after the other, where the backend wants them, and the outputs that all of them want."""
    first = asked[0]
    if len(asked) == 1:
        return first.inputs, first.outputs
    inputs = {}
    for name, array in first.inputs.items():
        parts = [each.inputs[name] for each in asked]
        there = None if room is None else room(name, (sum(map(len, parts)), *array.shape[1:]))
        inputs[name] = np.concatenate(parts, out=there)
    return inputs, first.outputs


def _refuse(item: Item, error: Exception) -> None:
    future = item.payload.future
    if not future.done():
        future.set_exception(error)
