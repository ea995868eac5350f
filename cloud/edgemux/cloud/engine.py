"""The asyncio shell around batcher and admission: one worker, one model."""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgemux.cloud.admission import Admission, AdmissionSettings, BatchTime, Refusal, Refused
from edgemux.cloud.backends import Backend
from edgemux.cloud.batcher import Batch, Batcher, Expired, Item, Wait
from edgemux.cloud.metrics import Metrics
from edgemux.multiplexer.errors import DeadlineExceeded, ExecutionError, Overloaded, TooLarge, Unreachable
from edgemux.wire.worker import Worker

# Handing a batch to a thread and its result back costs 0.15-0.2 ms: quicker models run in the event loop itself.
INLINE_ROW_S = 1e-3
# ... unless a full batch would keep the loop from reading and writing for longer than this.
INLINE_FULL_S = 10e-3

_MESSAGES = {
    Refused.FULL: "the queue is full",
    Refused.WAIT: "the queue is too long for the request's deadline",
}

_log = logging.getLogger("edgemux.cloud")


class BatchingSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """max_batch: rows that run together. linger_s: the longest wait of a batch's first item for company."""

    max_batch: int = 32
    linger_s: float = 0.0

    def __post_init__(self) -> None:
        if not 1 <= self.max_batch <= 1024:
            raise ValueError("max_batch must be between 1 and 1024")
        if not 0 <= self.linger_s <= 1:
            raise ValueError("linger_s must be between 0 and 1")


class Answer(msgspec.Struct, frozen=True):
    """Probabilities FP32 [rows, classes], and what it took: seconds queued and computed, rows of its batch."""

    probabilities: NDArray[Any]
    queue_s: float
    compute_s: float
    batch_rows: int


class Engine:
    """Answers rows of images, in batches. Lives in one event loop; ``close`` it there."""

    def __init__(
        self,
        backend: Backend,
        timing: BatchTime,
        batching: BatchingSettings,
        admission: AdmissionSettings,
        metrics: Metrics,
    ) -> None:
        self.timing = timing
        self.batcher = Batcher(batching.max_batch, batching.linger_s, timing)
        self.admission = Admission(admission, timing, batching.max_batch)
        self.draining = False
        self._backend = backend
        self._metrics = metrics
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._started_s = 0.0
        self._running_rows = 0
        self.inline = timing.expected_s(1) < INLINE_ROW_S and timing.expected_s(batching.max_batch) < INLINE_FULL_S
        self._worker = None if self.inline else Worker("edgemux-model", self._loop)

    async def infer(self, images: NDArray[Any], deadline_s: float) -> Answer:
        """Answer images UINT8 [N, ...] by ``deadline_s`` on the event loop's clock.

        Raises TooLarge, DeadlineExceeded, Overloaded, Unreachable when draining, ExecutionError when the model fails.
        """
        now_s = self._loop.time()
        rows = images.shape[0]
        self._admit(rows, deadline_s, now_s)
        future: asyncio.Future[Answer] = self._loop.create_future()
        item = Item(rows, deadline_s, (images, future))
        self.batcher.add(item, now_s)
        self._advance()
        try:
            return await future
        except asyncio.CancelledError:
            self.batcher.discard(item)
            raise

    async def answer(self, images: NDArray[Any]) -> NDArray[Any]:
        """Probabilities FP32 [N, classes], computed where batches are, but counted and learned from nowhere.

        Raises what the backend raises.
        """
        if self._worker is None:
            return self._backend.run(images)
        answered: asyncio.Future[NDArray[Any]] = self._loop.create_future()

        def work() -> NDArray[Any] | Exception:
            try:
                return self._backend.run(images)
            except Exception as error:
                return error

        def done(result: NDArray[Any] | Exception) -> None:
            if answered.done():
                return
            if isinstance(result, Exception):
                answered.set_exception(result)
            else:
                answered.set_result(result)

        self._worker.submit(work, done)
        return await answered

    async def close(self) -> None:
        """Take nothing more and stop the worker; a batch that runs is not waited for."""
        self.draining = True
        if self._timer is not None:
            self._timer.cancel()
        if self._worker is not None:
            self._worker.stop()

    def _admit(self, rows: int, deadline_s: float, now_s: float) -> None:
        """Refuse, or return."""
        refused = self._metrics.refused
        if rows > self.batcher.max_batch:
            raise TooLarge("inputs", f"a batch of {rows}, at most {self.batcher.max_batch}")
        if self.draining:
            refused[Refused.DRAINING].inc()
            raise Unreachable("the server is stopping")
        if deadline_s <= now_s:
            refused[Refused.EXPIRED].inc()
            raise DeadlineExceeded("the deadline had passed when the request came")
        refusal = self.admission.check(rows, deadline_s - now_s, self.batcher.queued_rows, self._running_left_s(now_s))
        if isinstance(refusal, Refusal):
            refused[refusal.reason].inc()
            raise Overloaded(_MESSAGES[refusal.reason], refusal.retry_after_s)

    def _running_left_s(self, now_s: float) -> float | None:
        """What the running batch is expected to take still, None when none runs."""
        if not self.batcher.busy:
            return None
        return max(0.0, self._started_s + self.timing.expected_s(self._running_rows) - now_s)

    def _advance(self) -> None:
        """Take every step that the batcher has ready, then sleep until its next."""
        while True:
            step = self.batcher.poll(self._loop.time())
            match step:
                case Batch():
                    self._start(step)
                case Expired():
                    for item in step.items:
                        _refuse(item, DeadlineExceeded("the deadline passed in the queue"))
                case Wait():
                    self._wake_at(step.until_s)
                    return

    def _wake_at(self, until_s: float) -> None:
        """At most one timer, set to the earliest time asked for; waking too early is harmless."""
        if self._timer is not None:
            if self._timer.when() <= until_s:
                return
            self._timer.cancel()
            self._timer = None
        if until_s != float("inf"):
            self._timer = self._loop.call_at(until_s, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self._advance()

    def _start(self, batch: Batch) -> None:
        self._started_s = self._loop.time()
        self._running_rows = batch.rows
        if self._worker is None:
            self._finish(batch, *self._compute(batch))
        else:
            self._worker.submit(partial(self._compute, batch), partial(self._on_computed, batch))

    def _on_computed(self, batch: Batch, computed: tuple[NDArray[Any] | None, float]) -> None:
        """The thread is done with a batch; runs in the event loop."""
        self._finish(batch, *computed)
        self._advance()

    def _compute(self, batch: Batch) -> tuple[NDArray[Any] | None, float]:
        """Probabilities of the whole batch and the seconds it took; None when the model failed. In the worker."""
        images = [item.payload[0] for item in batch.items]
        started_s = self._loop.time()
        try:
            result = self._backend.run(images[0] if len(images) == 1 else np.concatenate(images))
        except Exception:  # whatever a model raises must not end the worker
            _log.exception("a batch of %d rows failed", batch.rows)
            return None, self._loop.time() - started_s
        return result, self._loop.time() - started_s

    def _finish(self, batch: Batch, result: NDArray[Any] | None, compute_s: float) -> None:
        self.batcher.finished()
        if result is None:
            for item in batch.items:
                _refuse(item, ExecutionError("the model failed"))
            return
        # From start to here, the way into the thread and back included: it is what the next request waits for.
        self.timing.observe(batch.rows, self._loop.time() - self._started_s)
        self._metrics.batch_size.observe(batch.rows)
        self._metrics.compute_seconds.observe(compute_s)
        self._metrics.inputs.inc(batch.rows)
        at = 0
        for item in batch.items:
            queue_s = self._started_s - item.arrived_s
            self._metrics.queue_seconds.observe(queue_s)
            future = item.payload[1]
            if not future.done():
                future.set_result(Answer(result[at : at + item.rows], queue_s, compute_s, batch.rows))
            at += item.rows


def _refuse(item: Item, error: Exception) -> None:
    future = item.payload[1]
    if not future.done():
        future.set_exception(error)
