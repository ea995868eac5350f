"""Rows 31 to 33, and the promise about row 4 that takes many requests to tell: how the agent comes back."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from msgspec.structs import replace

from edgemux.edge.breaker import RAMP_FROM, Breaker, BreakerSettings, Call, State
from tests.system.faults.ledgers import Entry, percentile
from tests.system.faults.proxy import FaultProxy
from tests.system.faults.rows import BUSY_RECOVERY_S, RECOVERY_S, WAITED
from tests.system.faults.stage import Scene, Stage, agent_process, found_by
from tests.system.faults.table import Found

FLAPS, UP_S, DOWN_S = 10, 0.5, 0.5
# Medians and tails of two samples of the device's own answers differ by this much on a busy machine.
BUSY_RATIO, BUSY_S = 1.5, 0.003
# Requests during which the agent was kept from running for so long say nothing about it.
STARVED_S = 0.005
# So many others are enough, and so many parts of 250 are asked for them.
ENOUGH, PARTS = 1000, 8


def test_row_31_a_hundred_that_wait_make_one_probe_and_none_of_them_waits_for_it(
    on_stage: Stage, report: Callable[[Found], None]
) -> None:
    """The cloud fails, then thinks for long about the first request that it gets when it is asked again."""
    stage = on_stage
    stage.lead_to_the_simulated_cloud()
    stage.well()
    stage.answer(stage.simulated.refusing(grpc.StatusCode.UNAVAILABLE))
    with stage.load(rate_per_s=None, clients=100, timeout_s=5.0) as load:
        load.wait(lambda: stage.agent.breaker() == State.OPEN)
        # What was under way when it opened has come in when the cloud has not been asked for a while.
        load.wait(lambda: quiet(stage, 0.2))
        release, before = Gate(stage), stage.simulated.seen
        stage.answer(release.answer)
        load.wait(lambda: stage.simulated.seen > before)
        asked_s = time.monotonic()
        load.more(300)
        assert stage.simulated.seen == before + 1
        release.open()
        recovery_s = stage.recovery_s(load, time.monotonic())
    verdict = stage.judge(load)
    report(found_by(verdict, 31, "half-open, 100 waiting: 1 probe", load, recovery_s))
    assert verdict.faults + verdict.refused == ()
    probed = [e for e in load.entries if asked_s <= e.sent_s and e.ended_s < asked_s + 0.5 and e.route == "edge"]
    assert {e.reason for e in probed} <= {"breaker", "confident", "device_busy"}
    assert recovery_s <= RECOVERY_S + BUSY_RECOVERY_S


def quiet(stage: Stage, for_s: float) -> bool:
    seen = stage.simulated.seen
    time.sleep(for_s)
    return stage.simulated.seen == seen and stage.agent.breaker() != State.CLOSED


class Gate:
    """An answer that is held back until the gate is open: the slow probe."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._open = stage.backstage.call(asyncio.Event)

    async def answer(self, request: Any, context: Any) -> Any:
        await self._open.wait()
        return await self._stage.simulated.well(request, context)

    def open(self) -> None:
        self._stage.backstage.call(self._open.set)


def reconnection(
    settings: BreakerSettings, edges: int, rate_per_s: float, outage_s: float, after_s: float, seed: int
) -> list[float]:
    """When the cloud is asked, in seconds after its return, by ``edges`` that all met the same outage.

    Each has ``rate_per_s`` inputs a second that want the cloud, at random. An outage fails at once.
    """
    asked: list[float] = []
    for number in range(edges):
        chance = random.Random(seed * 1_000_003 + number)
        breaker = Breaker(settings, chance.random)
        now_s = -outage_s - 10.0
        while (now_s := now_s + chance.expovariate(rate_per_s)) < after_s:
            up = now_s < -outage_s or now_s >= 0
            state = breaker.state(now_s)
            if state is State.CLOSED and not breaker.admits(now_s, chance.random()):
                continue
            call: Call | None = breaker.begin(now_s)
            if call is None:
                continue
            if now_s >= 0:
                asked.append(now_s)
            if up:
                breaker.succeeded(call, 0.01, now_s)
            else:
                breaker.failed(call, now_s)
    return asked


@pytest.mark.parametrize("outage_s", [10.0, 600.0])
def test_row_32_a_thousand_edges_come_back_a_share_at_a_time(outage_s: float, report: Callable[[Found], None]) -> None:
    edges, rate_per_s, ramp_s = 1000, 2.0, BreakerSettings().ramp_s
    full_per_s = edges * rate_per_s
    asked = reconnection(BreakerSettings(), edges, rate_per_s, outage_s, after_s=12.0, seed=1)
    per_s = [sum(second <= at < second + 1 for at in asked) for second in range(12)]
    tenths = [sum(tenth <= at * 10 < tenth + 1 for at in asked) for tenth in range(120)]
    loads = " ".join(f"{count / full_per_s:.2f}" for count in per_s[:8])
    report(Found(32, f"1,000 edges after {outage_s:g} s", 0, note=f"simulated; load by second: {loads}"))
    # A second's load is at most what the ramp allows at its end, and each edge's probe and first request.
    for second in range(int(ramp_s)):
        allowed = RAMP_FROM + (1 - RAMP_FROM) * (second + 1) / ramp_s
        assert per_s[second] <= full_per_s * allowed + 2 * edges * (second < 2)
    # Nowhere a spike: no tenth of a second brings more than the full load would.
    assert max(tenths[: int(ramp_s * 10)]) <= 1.2 * full_per_s / 10
    assert per_s[0] <= 0.75 * full_per_s
    assert per_s[9] >= 0.9 * full_per_s


def test_the_simulation_of_row_32_shows_the_herd_where_edges_do_not_ramp() -> None:
    asked = reconnection(BreakerSettings(ramp_s=0.0, jitter=0.0), 1000, 2.0, 10.0, after_s=3.0, seed=1)
    assert sum(1.5 <= at < 2.5 for at in asked) > 0.9 * 2000


@pytest.mark.parametrize("how", ["refused", "stalled"])
def test_row_33_a_flapping_link_wastes_one_offload_a_flap(
    how: str, on_stage: Stage, report: Callable[[Found], None]
) -> None:
    stage = on_stage
    flaps: list[tuple[float, float]] = []
    with stage.load() as load:
        load.more(40)
        for _ in range(FLAPS):
            down_s = time.monotonic()
            if how == "refused":
                stage.proxy.refuse()
            else:
                stage.proxy.stall()
            time.sleep(DOWN_S)
            flaps.append((down_s, stage.heal()))
            time.sleep(UP_S)
        recovery_s = stage.recovery_s(load, flaps[-1][1])
    verdict = stage.judge(load)
    wasted = [wasted_in(load.entries, *flap) for flap in flaps]
    note = f"wasted: {' '.join(map(str, wasted))}"
    report(found_by(verdict, 33, f"{FLAPS} flaps of {DOWN_S:g} s, {how}", load, recovery_s, note))
    assert verdict.faults + verdict.refused == ()
    assert all(count <= 1 for count in wasted[1:]), wasted
    # The first is an outage like any other: three to find out.
    assert wasted[0] <= 3
    assert 0 in wasted[1:], "the pauses do not grow beyond a flap"
    assert recovery_s <= RECOVERY_S + BUSY_RECOVERY_S


def wasted_in(entries: list[Entry], down_s: float, up_s: float) -> int:
    """Requests that were sent into a down period and waited, beside those that nobody could have warned.

    Of requests that wait together only the first counts: the others were sent before any had failed.
    """
    waited = sorted(
        (e for e in entries if down_s <= e.sent_s < up_s and e.reason in WAITED), key=lambda entry: entry.sent_s
    )
    wasted, known_s = 0, float("-inf")
    for entry in waited:
        if entry.sent_s >= known_s:
            wasted, known_s = wasted + 1, entry.ended_s
    return wasted


@pytest.fixture
def usual(on_stage: Stage, serving: Any, tmp_path: Path, tiny_bundle: Path) -> Iterator[tuple[Scene, FaultProxy]]:
    """An agent with every default, behind a proxy of its own."""

    class Behind(Scene):
        def mend(self) -> None:
            proxy.heal()

    with contextlib.ExitStack() as stack:
        proxy = FaultProxy.open(on_stage.backstage, stack)
        proxy.lead_to(on_stage.real)
        agent = stack.enter_context(agent_process(serving, tmp_path, tiny_bundle, proxy.address))
        scene = Behind(on_stage.backstage, agent, on_stage.pictures)
        scene.well()
        yield scene, proxy


def test_row_4_once_the_breaker_is_open_requests_take_no_longer_than_on_a_device_without_a_cloud(
    usual: tuple[Scene, FaultProxy], report: Callable[[Found], None]
) -> None:
    """p99 <= the device's own p99 + 2 ms, by the agent's clock, both measured here and in turn, a closed loop each."""
    scene, proxy = usual
    seen = scene.pictures
    doubtful, sure = range(seen.doubtful), range(seen.doubtful, len(seen.images))
    own: list[float] = []
    open_: list[float] = []
    with scene.load(order=doubtful) as load:
        load.more(20)
        proxy.stall()
        load.wait(lambda: scene.agent.breaker() != State.CLOSED)
        load.more(40)
    entries = list(load.entries)
    for _ in range(PARTS):
        if min(len(own), len(open_)) >= ENOUGH:
            break
        for order, times, wanted in ((sure, own, "confident"), (doubtful, open_, "breaker")):
            with scene.load(order=order, rate_per_s=None) as part:
                part.more(250)
            lines = {line.id: line for line in scene.agent.ledger(part.entries).lines}
            undisturbed = [e for e in part.entries if e.reason == wanted and e.starved_s < STARVED_S]
            times += [lines[e.id].elapsed_s for e in undisturbed]
            entries += part.entries
    with scene.load(order=doubtful) as last:
        repaired_s = scene.heal()
        recovery_s = scene.recovery_s(last, repaired_s)
    load.entries = entries + last.entries
    verdict = scene.judge(load)
    ms = [percentile(times, 0.99) * 1000 for times in (own, open_)]
    note = f"p99 device {ms[0]:.2f} ms, breaker open {ms[1]:.2f} ms"
    found = found_by(verdict, 4, "the breaker being open, usual ramp", load, recovery_s, note)
    report(replace(found, open_ms=ms[1] - ms[0]))
    assert verdict.faults + verdict.refused == ()
    assert min(len(own), len(open_)) >= 200, "the machine is too busy for this"
    assert percentile(open_, 0.99) <= percentile(own, 0.99) * BUSY_RATIO + 0.002 + BUSY_S
    assert percentile(open_, 0.5) <= percentile(own, 0.5) * BUSY_RATIO + 0.002
    assert recovery_s <= RECOVERY_S + BUSY_RECOVERY_S
