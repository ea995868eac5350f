"""Made-up traces of a link, and how the planner fares on them against the best in hindsight. Pure.

No traces of real links are to be had where this is run, so these wander and jump as cells and tunnels make links do.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Sequence

import msgspec

from edgemux.multiplexer.estimate import LinkEstimate
from edgemux.multiplexer.planner import Conditions, Planner, Price, Table, Way

STEP_S = 0.1
SMALL_BYTES = 100
QUEUE_S = 0.002


def walk(seed: int, steps: int) -> list[Conditions]:
    """A link that wanders over two decades, 0.24 to 80 Mbit/s and 4 to 200 ms, with a sudden change every ten seconds
    or so; the device is at times two or six times as slow.
    """
    draw = random.Random(seed)
    rate, rtt, slowdown, trace = 1e6, 0.03, 1.0, []
    for _ in range(steps):
        if draw.random() < 0.01:
            rate, rtt = 10 ** draw.uniform(4.5, 7), 10 ** draw.uniform(-2.3, -0.7)
            slowdown = draw.choice([1.0, 2.0, 6.0])
        rate = min(1e7, max(3e4, rate * math.exp(draw.gauss(0, 0.05))))
        rtt = min(0.2, max(0.004, rtt * math.exp(draw.gauss(0, 0.03))))
        trace.append(Conditions(rtt, rate, draw.uniform(0, 2 * QUEUE_S), slowdown))
    return trace


def hindsight(ways: Sequence[Way], trace: Sequence[Conditions], large_bytes: float) -> float:
    """What plans took that were made from what was seen of the link, as a multiple of the best way at each step.

    Seen are calls of two sizes at each step, after it was planned: the smallest, and one of ``large_bytes``.
    """
    link, table = LinkEstimate(), Table(ways, Price())
    planner, spent, best = Planner(table), 0.0, 0.0
    for step, now in enumerate(trace):
        now_s = STEP_S * step
        rtt, rate = link.rtt_s(now_s), link.bytes_per_s(now_s)
        known = None if rtt is None or rate is None else Conditions(rtt, rate, QUEUE_S, now.slowdown)
        taken = table.latencies_s(now)
        spent += float(taken[table.ways.index(planner.plan(known))])
        best += float(taken.min())
        for size in (float(SMALL_BYTES), large_bytes):
            link.observe(size, now.rtt_s + size / now.bytes_per_s, now_s)
    return spent / best


class Planning(msgspec.Struct, frozen=True):
    """How well and how fast: mean and worst multiple of the best over traces; ms of a plan, and of one with its table.

    choice: in words, among what.
    """

    choice: str
    ways: int
    traces: int
    steps: int
    mean: float
    worst: float
    plan_ms: float
    table_ms: float


def planning(choice: str, ways: Sequence[Way], large_bytes: float, traces: int, steps: int) -> Planning:
    """Over so many traces; of the times the medians, CPU time of this thread."""
    found = [hindsight(ways, walk(seed, steps), large_bytes) for seed in range(traces)]
    planner, trace = Planner(Table(ways)), walk(0, 200)
    plans = sorted(_timed_ms(lambda now=now: planner.plan(now)) for now in trace)  # type: ignore[misc]
    tables = sorted(_timed_ms(lambda: Planner(Table(ways)).plan(trace[0])) for _ in range(5))
    return Planning(
        choice, len(ways), traces, steps, sum(found) / traces, max(found), plans[len(plans) // 2], tables[2]
    )


def _timed_ms(run: object) -> float:
    assert callable(run)
    began = time.thread_time()
    run()
    return 1e3 * (time.thread_time() - began)
