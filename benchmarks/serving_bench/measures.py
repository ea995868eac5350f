"""The figures that the servers are held to, each a ratio or a duration out of one run."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import msgspec
import numpy as np

from serving_bench.limit import in_process
from serving_bench.passes import INFER, OWN, Target, infer_request, run_pass
from serving_bench.running import Running
from serving_bench.table import WARM_S, Passes, Plan, middle, one_pass, ratios, rps

LOAD = 0.7
# Of the request that expires; when it is sent after the batch; how long the batch takes; quick ones before it.
EXPIRY_US = 100_000
BEHIND_S, BATCH_S, SETTLE = 0.03, 0.5, 50
SAY = Callable[[str], None]


class Figure(msgspec.Struct, frozen=True):
    """What was asked for and what came out; value None: it could not be had here. least: larger is better."""

    name: str
    value: float | None
    must: float
    goal: float
    least: bool
    unit: str
    rounds: tuple[float, ...] = ()
    note: str = ""

    @property
    def verdict(self) -> str:
        """``goal``, ``must``, ``missed``, or ``not measured``."""
        if self.value is None:
            return "not measured"
        for word, bound in (("goal", self.goal), ("must", self.must)):
            if self.value >= bound if self.least else self.value <= bound:
                return word
        return "missed"


def _of(
    name: str, values: list[float], must: float, goal: float, *, least: bool, unit: str = "×", note: str = ""
) -> Figure:
    return Figure(name, middle(values), must, goal, least, unit, tuple(values), note)


def from_table(passes: Passes, c: int) -> list[Figure]:
    """The three that the small model's table holds, at ``c`` connections."""
    cpu = [ratios(passes, "edgemux gRPC", "bare grpc.aio", each, lambda m: m.cpu_ms) for each in (1, 8, c)]
    lone, few, many = ([f"{statistics.median(each):.2f}" if each else "–"] for each in cpu)
    against = partial(_best_of, passes, c)
    return [
        against("gRPC throughput ÷ MLServer gRPC, c=32", ("MLServer gRPC", "MLServer gRPC, batching"), 2.0, 3.0),
        against("gRPC throughput ÷ LitServe HTTP, c=32", ("LitServe HTTP", "LitServe HTTP, batching"), 3.0, 5.0),
        _of(
            "CPU per request ÷ bare grpc.aio + uvloop, c=32",
            cpu[2],
            1.15,
            1.0,
            least=False,
            note=f"c=1: {lone[0]}, c=8: {few[0]}, c={c}: {many[0]}",
        ),
        *_of_two(passes, c),
        _of(
            "REST binary throughput ÷ Triton REST, c=32",
            ratios(passes, "edgemux REST binary", "Triton REST binary", c, rps),
            0.6,
            1.0,
            least=True,
        ),
    ]


def _of_two(passes: Passes, c: int) -> list[Figure]:
    """The same with two processes behind one port."""
    ours, theirs = "edgemux gRPC, 2 processes", ("MLServer gRPC", "MLServer gRPC, batching")
    rest = ratios(passes, "edgemux REST binary, 2 processes", "Triton REST binary", c, rps)
    lite = ("LitServe HTTP", "LitServe HTTP, batching")
    return [
        _best_of(passes, c, "2 processes: gRPC throughput ÷ MLServer gRPC, c=32", theirs, 2.0, 3.0, ours),
        _best_of(passes, c, "2 processes: gRPC throughput ÷ LitServe HTTP, c=32", lite, 3.0, 5.0, ours),
        _of("2 processes: REST binary throughput ÷ Triton REST, c=32", rest, 0.6, 1.0, least=True),
    ]


def _best_of(
    passes: Passes,
    c: int,
    name: str,
    others: tuple[str, ...],
    must: float,
    goal: float,
    ours: str = "edgemux gRPC",
) -> Figure:
    """Against whichever of the other's settings did best."""
    found = [ratios(passes, ours, other, c, rps) for other in others]
    best = min((each for each in found if each), key=statistics.median, default=[])
    note = ", ".join(f"{o}: {statistics.median(v):.2f}" for o, v in zip(others, found, strict=True) if v)
    return _of(name, best, must, goal, least=True, note=note)


def share_of_limit(target: Target, everyone: list[Target], onnx: Path, plan: Plan, say: SAY) -> Figure:
    """The large model at 32 connections, in turns with ONNX Runtime alone at its best batch size."""
    sizes = in_process(onnx, plan.seconds / 3)
    best = max(sizes, key=lambda batch: sizes[batch][0])
    say(f"in process: {', '.join(f'{b}: {rate:.1f}/s' for b, (rate, _) in sizes.items())}")
    values = []
    for _ in range(max(plan.rounds, 3)):
        alone = _still(everyone, onnx, plan.seconds, best)
        served = one_pass(target, everyone, 32, plan.seconds)
        if served is not None:
            values.append(100 * served.passed.rps / alone)
            say(f"{served.passed.rps:.1f}/s served, {alone:.1f}/s in process")
    rows = ", ".join(f"batch {b}: {rate:.1f}/s ({ms:.1f} ms)" for b, (rate, ms) in sizes.items())
    return _of(
        "ResNet-18-size, c=32: share of in-process best",
        values,
        90,
        97,
        least=True,
        unit="%",
        note=f"in process {rows}",
    )


def _still(everyone: list[Target], onnx: Path, seconds: float, batch: int) -> float:
    from serving_bench.running import quiet

    with quiet([*{each.server.pid: each.server for each in everyone}.values()]):
        return in_process(onnx, seconds, batch)[batch][0]


def lone_client(on: Target, off: Target, everyone: list[Target], plan: Plan, say: SAY) -> Figure:
    """Median latency of one client, batching on against batching off, in turns."""
    values = []
    for turn in range(2 * plan.rounds + 1):
        order = (on, off) if turn % 2 else (off, on)
        done = {each.label: one_pass(each, everyone, 1, plan.seconds / 2) for each in order}
        with_it, without = done[on.label], done[off.label]
        if with_it is not None and without is not None:
            values.append(with_it.passed.p50_ms / without.passed.p50_ms)
            say(f"lone client: {with_it.passed.p50_ms:.3f} ms on, {without.passed.p50_ms:.3f} ms off")
    return _of("lone client, batching on ÷ off (p50)", values, 1.2, 1.05, least=False)


def tail(target: Target, plan: Plan, say: SAY) -> Figure:
    """p99 ÷ p50 at 70 % of the throughput at 32 connections, Poisson arrivals; all by our own client."""
    values, notes, saturated = [], ["–"], 0
    run_pass(target, 32, WARM_S, OWN)
    closed = run_pass(target, 32, plan.seconds, OWN).passed
    rate = LOAD * closed.rps
    for seed in range(max(plan.rounds, 3)):
        passed = run_pass(target, 32, 2 * plan.seconds, OWN, rate=rate, seed=seed).passed
        say(f"{target.label} at {rate:.0f}/s: {passed.p50_ms:.2f}/{passed.p99_ms:.2f} ms, late {passed.late_ms:.2f}")
        if passed.p50_ms >= closed.p50_ms:
            # Half of them waited as long as with 32 clients that never pause: this was no 70 % load.
            saturated += 1
            continue
        values.append(passed.p99_ms / passed.p50_ms)
        notes.append(f"{passed.p50_ms:.2f}/{passed.p99_ms:.2f} ms, generator late p99 {passed.late_ms:.2f} ms")
    note = f"at {rate:.0f}/s; {notes[(len(notes) + 1) // 2 if values else 0]}; {saturated} rounds left out: saturated"
    return _of(f"p99 ÷ p50 at 70 % load, open loop: {target.label}", values, 4.0, 2.5, least=False, note=note)


def expiry(server: Running, attempts: int, say: SAY) -> Figure:
    """From expiry to the answer of a request with the protocol's ``timeout`` that came while a batch runs much longer.

    The server has slow_model.py's model, and before each attempt has seen only quick batches: it cannot know.
    """
    late, statuses, batch_s = [], [], list[float]()
    with grpc.insecure_channel(server.grpc, _APART) as channel, grpc.insecure_channel(server.grpc, _APART) as other:
        ask, ask_other = channel.unary_unary(INFER), other.unary_unary(INFER)
        turns = _turns(ask)
        for _ in range(attempts):
            for _ in range(SETTLE):
                ask(_slow(0), timeout=60)
            thread = threading.Thread(target=_timed, args=(ask, _slow(turns), batch_s))
            thread.start()
            time.sleep(BEHIND_S)
            status, begin_s = "OK", time.perf_counter()
            try:
                ask_other(_slow(0, timeout=EXPIRY_US), timeout=60)
            except grpc.RpcError as error:
                status = error.code().name
            late.append(1e3 * (time.perf_counter() - begin_s) - EXPIRY_US / 1e3)
            statuses.append(status)
            thread.join()
    found = ", ".join(f"{statuses.count(each)} {each}" for each in sorted(set(statuses)))
    note = f"worst {max(late):.1f} ms; {found}; the batch takes {1e3 * statistics.median(batch_s):.0f} ms"
    say(f"{server.name}: expiry to answer {middle(late):.2f} ms; {note}")
    return _of(
        f"expiry to answer behind a running batch: {server.name}", late, 10, 3, least=False, unit="ms", note=note
    )


def _slow(turns: int, **parameters: int) -> bytes:
    return infer_request(np.full((1, 1), turns, np.float32), **parameters)


def _turns(ask: Callable[..., Any]) -> int:
    """As many as take BATCH_S here."""
    taken: list[float] = []
    for _ in range(3):
        _timed(ask, _slow(100), taken)
    return max(100, round(100 * BATCH_S / min(taken)))


_APART = (("grpc.use_local_subchannel_pool", 1),)


def _timed(ask: Callable[..., Any], body: bytes, taken: list[float]) -> None:
    begin_s = time.perf_counter()
    ask(body, timeout=60)
    taken.append(time.perf_counter() - begin_s)


def markdown(figures: list[Figure]) -> str:
    """Medians of the rounds, with the rounds' range."""
    lines = ["| figure | value | rounds | must | goal | verdict | note |", "|---|---|---|---|---|---|---|"]
    for each in figures:
        sign = "≥" if each.least else "≤"
        value = "–" if each.value is None else f"{each.value:.2f} {each.unit}"
        span = f"{min(each.rounds):.2f} to {max(each.rounds):.2f}" if each.rounds else "–"
        cells = [each.name, value, span, f"{sign} {each.must:g}", f"{sign} {each.goal:g}", each.verdict, each.note]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
