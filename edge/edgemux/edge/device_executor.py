"""Running a route on the device: answers with a Prediction or raises an ExecutionError; learns what it takes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from edgemux.edge.admission import Backlog
from edgemux.edge.metrics import EdgeMetrics
from edgemux.edge.sample import Sample
from edgemux.edge.variants import Family
from edgemux.multiplexer.chain import Activations
from edgemux.multiplexer.domain import Prediction, Route
from edgemux.multiplexer.errors import DeadlineExceeded, ExecutionError
from edgemux.multiplexer.estimate import DurationEstimate
from edgemux.multiplexer.onnx_model import Stop
from edgemux.wire.tracing import Attribute, Stage

T = TypeVar("T")

# A model that takes longer than this leaves the event loop for a thread: a hop costs 0.15-0.2 ms, blocking costs all.
INLINE_S = 0.002
# Less weight for such a thread: a third of the event loop's, where both want the same core.
NICER = 5


def _yield_to_the_loop() -> None:
    """Where both want the same core, the event loop goes first: a refusal that comes late is worth nothing."""
    with contextlib.suppress(OSError, AttributeError):  # on Linux a thread has a niceness of its own
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), os.getpriority(os.PRIO_PROCESS, 0) + NICER)


def _traced(sample: Sample, route: Route, seconds: float, failed: str | None = None) -> None:
    if sample.trace is not None:
        sample.trace.took(Stage.DEVICE, seconds, {Attribute.LEVEL: route.level}, failed=failed)


class DeviceExecutor:
    """Runs levels of the nested family, and learns what each takes."""

    def __init__(
        self, family: Family, priors_s: tuple[float, ...], metrics: EdgeMetrics, spent: Callable[[float], None]
    ) -> None:
        """``priors_s``: seconds per level, by rising level, as the bundle's maker measured them. ``spent`` is told the
        CPU seconds of every run.
        """
        self._family = family
        self._metrics = metrics
        self._spent = spent
        self.latency = [DurationEstimate(prior) for prior in priors_s]
        self.compute = [DurationEstimate(prior) for prior in priors_s]
        self.backlog = Backlog()
        self.spent_s = 0.0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="edgemux-device", initializer=_yield_to_the_loop)

    async def run(self, route: Route, sample: Sample, timeout_s: float) -> Prediction:
        """Answer on the device. Raises ExecutionError when the model fails or has no time left."""
        fresh = sample.activations.reached == 0
        try:
            if self.inline(route.level):
                probabilities, elapsed, cpu_s = self._timed(route.level, sample.activations)
            else:
                probabilities, elapsed, cpu_s = await self._in_thread(route.level, sample, timeout_s)
        except TimeoutError as error:
            _traced(sample, route, timeout_s, "timeout")
            raise DeadlineExceeded("the device model had no time left") from error
        except Exception as error:  # whatever the library raises, the multiplexer has other routes
            _traced(sample, route, 0.0, "failed")
            raise ExecutionError("the device model failed") from error
        if fresh:
            self.latency[route.level - 1].observe(elapsed)
            self.compute[route.level - 1].observe(cpu_s)
        self._metrics.stage("device", elapsed)
        if sample.trace is not None:
            _traced(sample, route, elapsed)
        self.charge(cpu_s)
        row = probabilities[0]
        label = int(row.argmax())
        if not np.isfinite(row).all():
            raise ExecutionError("the device model gave no finite answer")
        return Prediction(route, label, row, float(row[label]))

    def charge(self, cpu_s: float) -> None:
        """A model has used this much of the device's CPU."""
        self.spent_s += cpu_s
        self._spent(cpu_s)

    def inline(self, level: int) -> bool:
        """Whether a level is quick enough to run on the event loop; there nothing ever waits."""
        return self.latency[level - 1].mean_s <= INLINE_S

    def fits(self, level: int, client: str, left_s: float, now_s: float) -> bool:
        """Whether a level would be done within ``left_s`` behind what waits already, and ``client`` has its share."""
        return (
            not self.latency
            or self.inline(level)
            or self.backlog.fits(client, self.latency[level - 1].mean_s, left_s, now_s)
        )

    def reserve_s(self, client: str, left_s: float, now_s: float) -> float:
        """What must be left of ``left_s`` for the device to answer after all; 0 where it could not in any case."""
        if self._family.resident == 0 or not self.fits(1, client, left_s, now_s):
            return 0.0
        return self.backlog.wait_s + self.latency[self._family.resident - 1].upper_s

    @contextlib.contextmanager
    def room_for(self, level: int, client: str) -> Iterator[None]:
        """Keep the time that a level takes, as long as something else may still leave the device to answer."""
        if self.inline(level):
            yield
            return
        with self._room(client, self.latency[level - 1].mean_s):
            yield

    @contextlib.contextmanager
    def _room(self, client: str, work_s: float) -> Iterator[None]:
        self.backlog.enter(client, work_s)
        try:
            yield
        finally:
            self.backlog.leave(client, work_s)

    async def _in_thread(self, level: int, sample: Sample, timeout_s: float) -> tuple[NDArray[Any], float, float]:
        """``_timed`` beside the event loop."""
        work = partial(self._timed, level, sample.activations)
        return await self.beside_the_loop(work, self.latency[level - 1].mean_s, sample.client, timeout_s)

    async def beside_the_loop(self, work: Callable[[Stop], T], mean_s: float, client: str, timeout_s: float) -> T:
        """``work`` in the device's thread; when nobody waits any more it ends within a node, or is never begun.

        Raises TimeoutError, and what ``work`` raises.
        """
        stop = Stop()
        with self._room(client, mean_s):
            loop = asyncio.get_running_loop()
            try:
                return await asyncio.wait_for(loop.run_in_executor(self._thread, work, stop), timeout_s)
            except BaseException:
                stop.now()
                raise

    def _timed(
        self, level: int, activations: Activations, stop: Stop | None = None
    ) -> tuple[NDArray[Any], float, float]:
        """Probabilities, seconds and CPU seconds; time spent waiting for the thread is not the model's."""
        wall, cpu = time.perf_counter(), time.thread_time()
        probabilities = self._family.run(level, activations, stop)
        return probabilities, time.perf_counter() - wall, time.thread_time() - cpu

    async def answer(self, level: int, tensors: Mapping[str, NDArray[Any]]) -> NDArray[Any] | None:
        """Probabilities FP32 [N, classes] of a level, run where requests are, but counted and learned from nowhere.

        None where the level is not loaded.
        """
        activations = Activations(tensors)
        activations.chain = self._family.chain
        if level > len(activations.chain):
            return None
        if self.inline(level):
            return self._family.run(level, activations)
        return await self.aside(partial(self._family.run, level, activations))

    async def aside(self, work: Callable[[], T]) -> T:
        """``work`` in the device's thread, behind what waits there; nobody is charged for it. Raises what it raises."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def warm_up(self, tensors: Mapping[str, NDArray[Any]], times: int = 5) -> None:
        """Measure every level on this device: the first run allocates and is not counted."""
        for index, route in enumerate(self._family.routes[: self._family.resident]):
            self._family.run(route.level, Activations(tensors))
            runs = [self._timed(route.level, Activations(tensors)) for _ in range(times)]
            for _, elapsed, _ in runs:
                self.latency[index].observe(elapsed)
            self.compute[index].warmed_up([cpu_s for _, _, cpu_s in runs])

    def close(self) -> None:
        """Let the thread end."""
        self._thread.shutdown(wait=False, cancel_futures=True)
