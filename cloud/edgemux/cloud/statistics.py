"""What happened, counted exactly: plain numbers that one event loop writes and anybody may read."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Sequence
from enum import StrEnum
from typing import Any

from edgemux.cloud.admission import Refused
from edgemux.wire import oip_pb2 as oip
from edgemux.wire.described import duration

SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Outcome(StrEnum):
    """How a request ended; the closed set of the ``outcome`` label."""

    ANSWERED = "answered"
    REFUSED = "refused"  # by choice: full, would wait too long, draining
    EXPIRED = "expired"  # its deadline passed first
    INVALID = "invalid"  # it can never be answered as it stands
    CANCELLED = "cancelled"  # the client went away
    FAILED = "failed"  # the model or the server did


class Spread:
    """A histogram: ``counts[i]`` values were at most ``bounds[i]``, the last count has what was above all."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count a value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def add(self, other: Spread) -> None:
        """Count what another, of the same bounds, has counted."""
        self.counts = [mine + others for mine, others in zip(self.counts, other.counts, strict=True)]
        self.total += other.total


class BatchTally:
    """Batches of one size: how many, and the seconds that they took in all."""

    __slots__ = ("count", "infer_s", "input_s", "output_s")

    def __init__(self) -> None:
        self.count = 0
        self.input_s = self.infer_s = self.output_s = 0.0


class Tally:
    """The counts of one version of a model.

    Seconds of requests: ``success_s`` and ``fail_s`` from the time they came to the time they were answered; the parts
    of those that were answered are ``queue_s``, and their batches' input, infer and output times.
    """

    def __init__(self) -> None:
        self.inflight = 0
        self.requests = dict.fromkeys(Outcome, 0)
        self.refused = dict.fromkeys(Refused, 0)
        self.rows = 0
        self.batches = 0
        self.batch_rows = Spread(ROWS)
        self.queue = Spread(SECONDS)
        self.compute = Spread(SECONDS)
        self.success_s = self.fail_s = 0.0
        self.input_s = self.infer_s = self.output_s = 0.0
        self.by_size: dict[int, BatchTally] = {}
        self.last_ms = 0

    def ended(self, outcome: Outcome, seconds: float) -> None:
        """Count a request that took ``seconds``, whatever came of it."""
        self.requests[outcome] += 1
        if outcome is Outcome.ANSWERED:
            self.success_s += seconds
        else:
            self.fail_s += seconds

    def ran(self, rows: int, requests: int, input_s: float, infer_s: float, output_s: float) -> None:
        """Count a batch: gathering its inputs, running the model, handing the outputs out."""
        self.rows += rows
        self.batches += 1
        self.batch_rows.observe(rows)
        self.compute.observe(infer_s)
        self.input_s += input_s * requests
        self.infer_s += infer_s * requests
        self.output_s += output_s * requests
        size = self.by_size.get(rows)
        if size is None:
            size = self.by_size[rows] = BatchTally()
        size.count += 1
        size.input_s += input_s
        size.infer_s += infer_s
        size.output_s += output_s
        self.last_ms = time.time_ns() // 1_000_000


def model_statistics(name: str, version: str, tally: Tally) -> Any:
    """A tally as the protocol's extension has it: counts and nanoseconds."""
    answered = tally.requests[Outcome.ANSWERED]
    computed = sum(tally.queue.counts)
    statistics = oip.ModelStatistics(
        name=name,
        version=version,
        last_inference=tally.last_ms,
        inference_count=tally.rows,
        execution_count=tally.batches,
        inference_stats=oip.InferStatistics(
            success=duration(answered, tally.success_s),
            fail=duration(sum(tally.requests.values()) - answered, tally.fail_s),
            queue=duration(computed, tally.queue.total),
            compute_input=duration(computed, tally.input_s),
            compute_infer=duration(computed, tally.infer_s),
            compute_output=duration(computed, tally.output_s),
        ),
    )
    for rows, size in sorted(tally.by_size.items()):
        statistics.batch_stats.add(
            batch_size=rows,
            compute_input=duration(size.count, size.input_s),
            compute_infer=duration(size.count, size.infer_s),
            compute_output=duration(size.count, size.output_s),
        )
    return statistics
