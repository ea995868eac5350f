"""Overload in simulated time: admission and batcher as the engine drives them, no clock but the simulation's."""

from __future__ import annotations

import heapq
import random

import pytest

from edgemux.cloud.admission import Admission, AdmissionSettings, BatchTime
from edgemux.cloud.batcher import Batch, Batcher, Expired, Item, Wait

MAX_BATCH = 8
TIMEOUT_S = 0.25
# Rows per second of full batches that take 10 ms and 2.5 ms a row.
CAPACITY = MAX_BATCH / (0.010 + 0.0025 * MAX_BATCH)


class Server:
    """Requests of one row arrive evenly; batches take their time, give or take ``noise``."""

    def __init__(self, noise: float, seed: int) -> None:
        self.timing = BatchTime(0.0125, 0.030, MAX_BATCH)
        self.batcher = Batcher(MAX_BATCH, 0.0, self.timing)
        self.admission = Admission(AdmissionSettings(max_queue=64), self.timing, MAX_BATCH)
        self.random = random.Random(seed)
        self.noise = noise
        self.running: tuple[float, float, Batch] | None = None
        self.in_time = self.late = self.refused = self.expired = 0

    def offer(self, rate: float, start_s: float, seconds: float) -> None:
        """Requests at ``rate`` per second; then nothing, until all are done."""
        events = [start_s + number / rate for number in range(int(rate * seconds))]
        heapq.heapify(events)
        arrivals = set(events)
        while events:
            now_s = heapq.heappop(events)
            if self.running is not None and self.running[1] <= now_s:
                self.finish(now_s)
            if now_s in arrivals:
                self.arrive(now_s)
            wake_s = self.advance(now_s)
            if wake_s is not None:
                heapq.heappush(events, wake_s)

    def arrive(self, now_s: float) -> None:
        left_s = None
        if self.running is not None:
            left_s = max(0.0, self.running[0] + self.timing.expected_s(self.running[2].rows) - now_s)
        if self.admission.check(1, TIMEOUT_S, self.batcher.queued_rows, left_s) is None:
            self.batcher.add(Item(1, now_s + TIMEOUT_S), now_s)
        else:
            self.refused += 1

    def advance(self, now_s: float) -> float | None:
        """The time of the next event that this one causes."""
        while not isinstance(step := self.batcher.poll(now_s), Wait):
            if isinstance(step, Expired):
                self.expired += len(step.items)
                continue
            takes_s = (0.010 + 0.0025 * step.rows) * self.random.uniform(1 - self.noise, 1 + self.noise)
            self.running = (now_s, now_s + takes_s, step)
            return self.running[1]
        return None

    def finish(self, now_s: float) -> None:
        assert self.running is not None
        started_s, _, batch = self.running
        self.running = None
        self.batcher.finished()
        self.timing.observe(batch.rows, now_s - started_s)
        in_time = sum(item.deadline_s >= now_s for item in batch.items)
        self.in_time += in_time
        self.late += batch.rows - in_time


@pytest.mark.parametrize("load", [2, 10, 100])
@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_an_overloaded_server_answers_in_time_nearly_as_much_as_it_can(load: int, noise: float) -> None:
    server = Server(noise, seed=load)
    server.offer(CAPACITY * load, 0.0, 10.0)
    assert server.in_time >= 0.9 * CAPACITY * 10.0
    assert server.late + server.expired <= 0.02 * server.in_time


def test_everything_is_answered_again_as_soon_as_the_load_is_gone() -> None:
    server = Server(0.2, seed=1)
    server.offer(CAPACITY * 20, 0.0, 5.0)
    before = server.refused + server.late + server.expired
    server.offer(CAPACITY * 0.5, 10.0, 5.0)
    assert server.refused + server.late + server.expired == before


@pytest.mark.parametrize("load", [0.1, 0.5, 0.8])
def test_a_server_with_capacity_to_spare_refuses_nothing(load: float) -> None:
    server = Server(0.2, seed=3)
    server.offer(CAPACITY * load, 0.0, 10.0)
    assert server.refused == server.late == server.expired == 0
