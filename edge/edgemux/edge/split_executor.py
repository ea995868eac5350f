"""Running the head of a model here and its tail in the cloud: what leaves the device is what the head makes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgemux.edge.cloud_executor import CloudExecutor
from edgemux.edge.clouds import Cloud
from edgemux.edge.device_executor import INLINE_S, DeviceExecutor
from edgemux.edge.heads import Alone, Head, loaded_bytes
from edgemux.edge.metrics import EdgeMetrics
from edgemux.edge.packing import LOOK_S, LOOK_SHARE
from edgemux.edge.sample import Sample
from edgemux.edge.split_planning import SplitChoice, link_of
from edgemux.edge.variants import Family
from edgemux.multiplexer.bundle import Split
from edgemux.multiplexer.chain import Activations
from edgemux.multiplexer.codes import within
from edgemux.multiplexer.domain import Placement, Prediction, Reason, Route
from edgemux.multiplexer.errors import DeadlineExceeded, ExecutionError
from edgemux.multiplexer.estimate import DurationEstimate, LinkEstimate
from edgemux.multiplexer.onnx_model import OnnxModel, Stop
from edgemux.multiplexer.planner import Conditions
from edgemux.wire.tracing import Attribute, Stage

Clock = Callable[[], float]

# The same choice for all inputs of such a while.
PLAN_S = 0.02
# How long the whole input is offered to find out about the link, until one is sent.
LOOKING_S = 1.0
# Whole inputs and parts say something of the same link when there is at most so much time between them.
TOGETHER_S = 1.0
# A head that has failed is left alone for so long.
FAILED_S = 30.0
# What is no reason of the device's.
OF_TAIL = frozenset({Alone.CLOUD_INCOMPATIBLE, Alone.CLOUD_DENIED, Alone.TAIL_FAILING})


class Timed(msgspec.Struct, frozen=True):
    """What a head has made, UINT8 [1, ...]; seconds of the head alone, of all that was run, and of its CPU time."""

    sent: NDArray[np.uint8]
    head_s: float
    head_cpu_s: float
    elapsed_s: float
    cpu_s: float


class Half:
    """A head here, and its tail in the cloud; what the head takes on this device."""

    def __init__(self, head: Head, tail: Cloud) -> None:
        self.head = head
        self.split = head.split
        self.tail = tail
        self.route = Route(self.split.name, Placement.SPLIT)
        self.latency = DurationEstimate(self.split.head_ms / 1000)
        self.compute = DurationEstimate(self.split.head_ms / 1000)
        self.failed_s = float("-inf")

    def alone(self, resident: int, now_s: float) -> Alone | None:
        """Why it is left alone now, None where it can be had. resident: the highest level that is loaded."""
        if self.head.unfit is not None:
            return self.head.unfit
        if self.head.wrong:
            return Alone.HEAD_WRONG
        if now_s - self.failed_s < FAILED_S:
            return Alone.HEAD_FAILED
        if self.split.level > resident or not self.head.loaded:
            return Alone.MEMORY if self.split.level <= resident and not self.head.wanted else Alone.DEVICE_BUSY
        if self.tail.incompatible:
            return Alone(next(peer.unserved for peer in self.tail.peers if peer.unserved is not None))
        return Alone.TAIL_FAILING if self.tail.failing(now_s) else None

    def blocked(self, resident: int, now_s: float, lot: float) -> Reason | None:
        """Why the input that drew ``lot`` must not be answered like this, None when it may."""
        alone = self.alone(resident, now_s)
        if alone in (Alone.DEVICE_BUSY, Alone.MEMORY):
            return Reason.DEVICE_BUSY
        return self.tail.blocked(now_s, lot) if alone is None or alone in OF_TAIL else Reason.DEVICE_FAILED


def fits(split: Split, sent: NDArray[Any]) -> bool:
    """Whether this is one input of the tail: so it was for golden inputs, and may not be for strange ones."""
    return sent.dtype == np.uint8 and sent.shape == (1, *split.sent.shape[1:]) and within(split.bits, sent)


class SplitExecutor:
    """Every split of one application that may be used. Not thread-safe: one event loop owns it."""

    def __init__(
        self,
        halves: Sequence[Half],
        choice: SplitChoice,
        cloud: Cloud,
        device: DeviceExecutor,
        family: Family,
        metrics: EdgeMetrics,
        never_send_raw: bool,
        clock: Clock = time.monotonic,
    ) -> None:
        """halves: at least one."""
        self.halves: Mapping[str, Half] = {half.split.name: half for half in halves}
        self._choice = choice
        self._cloud = cloud
        self._device = device
        self._family = family
        self._metrics = metrics
        self.never_send_raw = never_send_raw
        self._clock = clock
        self._latest = next(iter(self.halves.values()))
        self._plans: dict[tuple[int, tuple[str, ...]], tuple[float, str | None]] = {}
        # What was chosen last, None for the whole input.
        self.chosen: str | None = None
        # Seconds that the whole input is expected to take on the link, and when that was found out last by sending it.
        self._whole_s = float("inf")
        self._looked_s = float("-inf")

    def offered(self, sample: Sample, resident: int, now_s: float) -> Half | None:
        """The split by which an input is sent now, None where it is sent whole."""
        if sample.exact and not self.never_send_raw:
            return None
        ready = tuple(name for name, half in self.halves.items() if half.alone(resident, now_s) is None)
        if not ready:
            return self._latest if self.never_send_raw else None
        key = sample.activations.reached, ready
        planned_s, name = self._plans.get(key, (float("-inf"), None))
        if now_s - planned_s >= PLAN_S:
            name = self._choice.choose(*key, self._conditions(now_s))
            self._plans = {key: (now_s, name)} if len(self._plans) > 64 else self._plans | {key: (now_s, name)}
            self.chosen = name
        return None if name is None or self._looks(sample, now_s) else self.halves[name]

    def tried(self, sample: Sample, resident: int, now_s: float) -> Half | None:
        """The split by which an input would be sent with nobody waiting: one whose tail has failed comes first."""
        for half in self.halves.values():
            if half.alone(resident, now_s) is Alone.TAIL_FAILING and half.tail.wants_shadow(now_s, Reason.BREAKER):
                return half
        return self.offered(sample, resident, now_s)

    def loses(self, name: str) -> float:
        """The share of right answers that a split is measured to lose against the cloud; 0 for what is no split."""
        half = self.halves.get(name)
        return 0.0 if half is None else max(0.0, self._choice.accuracy - half.split.accuracy)

    def cheaper(self, half: Half | None, resident: int, now_s: float) -> list[Half]:
        """The splits that can be had besides ``half``, those of the fewest bytes first."""
        ready = [each for each in self.halves.values() if each is not half and each.alone(resident, now_s) is None]
        return sorted(ready, key=lambda each: each.tail.request_bytes)

    def _looks(self, sample: Sample, now_s: float) -> bool:
        """Whether the whole input is sent for once: a link that carried little may carry more by now.

        Only where that is expected to take at most a share of the time that is left, and only one: many at once
        would be in each other's way, on a link that is slow as it is.
        """
        if not self._choice.has_whole or self._cloud.offload_age_s(now_s) < LOOK_S:
            return False
        if now_s - self._cloud.asked_s < LOOK_S:
            return False
        if self._whole_s > LOOK_SHARE * (sample.deadline_s - now_s):
            return False
        if now_s - self._looked_s >= LOOK_S:
            self._looked_s = now_s
        return now_s - self._looked_s < LOOKING_S

    def link(self, now_s: float) -> tuple[float, float] | None:
        """Round trip and bytes a second, from what was sent lately; None while that is not known."""
        part = min((half.tail for half in self.halves.values()), key=lambda tail: tail.offload_age_s(now_s))
        small_s, older_s = self._cloud.small_s(now_s), self._cloud.offload_age_s(now_s) - part.offload_age_s(now_s)
        # One kind and the smallest calls are enough: of the other it is only known how the link was.
        whole = None if small_s is not None and older_s > TOGETHER_S else self._cloud.offload_seen(now_s)
        parts = None if small_s is not None and -older_s > TOGETHER_S else part.offload_seen(now_s)
        if parts is not None and parts[0] <= LinkEstimate.SMALL_BYTES:  # too few bytes to tell a bandwidth by
            parts = None
        return link_of(small_s, whole, parts)

    def _conditions(self, now_s: float) -> Conditions | None:
        """How things stand; None while that is not known."""
        link = self.link(now_s)
        if link is None:
            if self._cloud.small_s(now_s) is not None:  # the link is there, and nothing was sent for long
                self._choice.forget()
            return None
        rtt_s, bytes_per_s = link
        readings = self._cloud.readings(now_s)
        self._whole_s = rtt_s + self._cloud.request_bytes / bytes_per_s
        return Conditions(
            rtt_s,
            bytes_per_s,
            readings["cloud_queue_seconds"] or 0.0,
            self.slowdown,
            readings["link_lost_share"] or 0.0,
        )

    @property
    def unserved(self) -> list[CloudExecutor]:
        """The clouds that lack a tail, for each tail that they lack."""
        return [peer for half in self.halves.values() for peer in half.tail.peers if peer.incompatible]

    @property
    def slowdown(self) -> float:
        """How many times as long a head takes here as on its maker's machine."""
        latest = self._latest
        return latest.latency.mean_s / (latest.split.head_ms / 1000) if latest.split.head_ms > 0 else 1.0

    def predict_s(self, half: Half, now_s: float) -> float:
        """Seconds that the tail's call is expected to take: as the last ones did, before the first as the link is."""
        seen_s = half.tail.predict_s(now_s)
        link = None if half.tail.offload_seen(now_s) is not None else self.link(now_s)
        if link is None:
            return seen_s
        return max(seen_s, link[0] + half.tail.request_bytes / link[1] + half.split.tail_ms / 1000)

    def work_s(self, half: Half, reached: int) -> tuple[float, float]:
        """Seconds, and of CPU time, that the device is expected to take after level ``reached``."""
        level = half.split.level
        latency_s, compute_s = half.latency.mean_s, half.compute.mean_s
        if reached < level:
            latency_s += self._device.latency[level - 1].mean_s
            compute_s += self._device.compute[level - 1].mean_s
        return latency_s, compute_s

    async def run(self, route: Route, sample: Sample, timeout_s: float) -> Prediction:
        """Answer with a head here and its tail there. Raises ExecutionError; a bare one where the head has failed."""
        half = self.halves[route.variant]
        until_s = self._clock() + timeout_s
        cut = await self._cut(half, sample, timeout_s)
        return await half.tail.run(route, cut, self._left_s(until_s))

    async def shadow(self, route: Route, sample: Sample, timeout_s: float, kept_for: Reason) -> Prediction:
        """Send what the tail's ``wants_shadow`` wants. Raises like ``run``."""
        half = self.halves[route.variant]
        until_s = self._clock() + timeout_s
        cut = await self._cut(half, sample, timeout_s)
        return await half.tail.shadow(route, cut, self._left_s(until_s), kept_for)

    def _left_s(self, until_s: float) -> float:
        left_s = until_s - self._clock()
        if left_s <= 0:
            raise DeadlineExceeded("the head took all the time there was")
        return left_s

    async def _cut(self, half: Half, sample: Sample, timeout_s: float) -> Sample:
        """What the head makes of an input, as an input of the tail."""
        sent = await self._sent(half, sample, timeout_s)
        cut = Sample({half.split.sent.name: sent}, sample.scores, sample.deadline_s, sample.client, sample.trace)
        cut.lot = sample.lot
        return cut

    async def _sent(self, half: Half, sample: Sample, timeout_s: float) -> NDArray[np.uint8]:
        self._latest = half
        expected_s, _ = self.work_s(half, sample.activations.reached)
        work = partial(self._timed, half, half.head.held(), sample.activations)
        try:
            if expected_s <= INLINE_S:
                made = work()
            else:
                made = await self._device.beside_the_loop(work, expected_s, sample.client, timeout_s)
        except TimeoutError as error:
            self._traced(sample, half, timeout_s, "timeout")
            raise DeadlineExceeded("the head had no time left") from error
        except Exception as error:  # whatever the library raises, the multiplexer has other routes
            self._traced(sample, half, 0.0, "failed")
            half.failed_s = self._clock()
            raise ExecutionError("the head failed") from error
        half.latency.observe(made.head_s)
        half.compute.observe(made.head_cpu_s)
        self._metrics.stage("device", made.elapsed_s)
        self._traced(sample, half, made.elapsed_s)
        self._device.charge(made.cpu_s)
        return made.sent

    def _traced(self, sample: Sample, half: Half, seconds: float, failed: str | None = None) -> None:
        if sample.trace is not None:
            sample.trace.took(Stage.DEVICE, seconds, {Attribute.LEVEL: half.split.level}, failed=failed)

    def _timed(self, half: Half, model: OnnxModel, activations: Activations, stop: Stop | None = None) -> Timed:
        """The level below it, where it is not there yet, and the head."""
        wall, cpu = time.perf_counter(), time.thread_time()
        if half.split.level:
            (activations.chain or self._family.chain).reach(half.split.level, activations, stop)
        head_wall, head_cpu = time.perf_counter(), time.thread_time()
        sent = half.head.run(model, activations, stop)
        if not fits(half.split, sent):
            raise ExecutionError("the head made what cannot be sent")
        ended, cpu_ended = time.perf_counter(), time.thread_time()
        return Timed(sent, ended - head_wall, cpu_ended - head_cpu, ended - wall, cpu_ended - cpu)

    def warm_up(self, tensors: Mapping[str, NDArray[Any]], times: int = 5) -> None:
        """Measure every loaded head on this device: the first run allocates and is not counted."""
        for half in self.halves.values():
            if not half.head.loaded:
                continue
            activations = Activations(tensors)
            self._timed(half, half.head.held(), activations)
            runs = [self._timed(half, half.head.held(), activations) for _ in range(times)]
            for made in runs:
                half.latency.observe(made.head_s)
            half.compute.warmed_up([made.head_cpu_s for made in runs])

    async def look(self, first: Mapping[str, NDArray[Any]]) -> None:
        """Have every head that can be had make the codes of the ``first`` golden input again, counted nowhere.

        One that makes others is left alone until it makes these.
        """
        chain = self._family.chain
        for half in self.halves.values():
            if half.head.loaded and half.split.level <= len(chain):
                work = partial(half.head.look, first, chain)
                if self.work_s(half, 0)[0] <= INLINE_S:
                    work()
                else:
                    await self._device.aside(work)

    @property
    def heads(self) -> tuple[Head, ...]:
        """Of all splits, loaded or not."""
        return tuple(half.head for half in self.halves.values())

    @property
    def resident_bytes(self) -> int:
        """Bytes of the files of the heads that are loaded."""
        return loaded_bytes(self.heads)

    def left_alone(self, now_s: float) -> dict[str, Alone]:
        """By name, why splits are not used now."""
        resident = self._family.resident
        found = {name: half.alone(resident, now_s) for name, half in self.halves.items()}
        return {name: alone for name, alone in found.items() if alone is not None}

    def status(self, now_s: float) -> dict[str, Any]:
        """For the status page: what is chosen now, and how each split stands."""
        link = self.link(now_s)
        return {
            "chosen": self.chosen,
            "bytes_per_second": None if link is None or math.isinf(link[1]) else round(link[1], 1),
            "routes": [
                {
                    "name": half.split.name,
                    "level": half.split.level,
                    "bits": half.split.bits,
                    "bytes": half.tail.request_bytes,
                    "head_seconds": round(half.latency.mean_s, 6),
                    "unserved": next((peer.unserved for peer in half.tail.peers if peer.unserved), None),
                }
                for half in self.halves.values()
            ],
        }
