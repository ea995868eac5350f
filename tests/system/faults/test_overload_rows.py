"""Rows 48 and 49: ten times what an agent can do, and one client that asks for all of it; benchmarks/overload.py."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from benchmarks.overload import TIMEOUT_S, TIMES, Client, agent, build, measure

from edgemux.multiplexer.bundle import Bundle
from edgemux.wire.channel import client_options
from tests.system.faults.table import Found

SECONDS = 6.0
# The promise, and what it may fall short by on two cores that others use too; the figures are in the table.
# A queue without admission keeps 3 %. With the cores taken by others, 48 % were seen here, and 103 % without.
GOODPUT, BUSY_GOODPUT = 0.9, 0.6
RECOVERY_S, BUSY_RECOVERY_S = 1.0, 1.5

pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module")
def slow_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny bundle with a first level that takes long."""
    return build(tmp_path_factory.mktemp("slow") / "bundle")


@pytest.fixture
def picture(slow_bundle: Path) -> Any:
    """UINT8 [1, 28, 28]."""
    return Bundle.open(slow_bundle).arrays("samples.npz")["images"][:1]


def test_of_ten_times_what_it_can_do_an_agent_refuses_the_excess_and_answers_the_rest_in_time(
    slow_bundle: Path, picture: Any, report: Callable[[Found], None]
) -> None:
    with agent(slow_bundle, None) as address:
        found = asyncio.run(measure(address, picture, SECONDS))
    note = (
        f"goodput {found.goodput / found.capacity:.0%} of {found.capacity:.0f}/s; refusals p50 "
        f"{found.refusal_p50_s * 1e3:.1f} ms, p99 {found.refusal_p99_s * 1e3:.0f} ms"
    )
    requests = sum(found.codes.values())
    p99_ms = found.answered_p99_s * 1000
    report(Found(48, "ten times the capacity", requests, refused=found.refused, p99_ms=p99_ms, note=note))
    assert set(found.codes) <= {"OK", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED"}
    assert found.refused > requests // 2
    assert found.goodput >= (GOODPUT - BUSY_GOODPUT) * found.capacity
    # Most refusals come at once: 3 ms where a core is free. A queue would make all of them wait until their deadline.
    assert found.refusal_p50_s < TIMEOUT_S / 2
    assert found.late <= requests // 20
    assert found.recovery_s <= RECOVERY_S + BUSY_RECOVERY_S


async def greed(address: str, picture: Any) -> tuple[int, int]:
    """Of one who asks, waits for the answer and asks again beside one who asks for everything: answers and requests."""
    options = client_options()
    async with (
        grpc.aio.insecure_channel(address, options=options) as one,
        grpc.aio.insecure_channel(address, options=options) as another,
    ):
        polite, greedy = Client(one, picture), Client(another, picture)
        alone = [await polite.ask() for _ in range(20)]
        rate_per_s = TIMES * len(alone) / sum(outcome.elapsed_s for outcome in alone)
        storm = asyncio.create_task(greedy.open(rate_per_s, SECONDS))
        outcomes = []
        while not storm.done():
            outcomes.append(await polite.ask())
            if not outcomes[-1].good:
                await asyncio.sleep(0.05)
        await storm
    return sum(outcome.good for outcome in outcomes), len(outcomes)


def test_one_who_asks_for_everything_leaves_others_their_share(
    slow_bundle: Path, picture: Any, report: Callable[[Found], None]
) -> None:
    with agent(slow_bundle, None) as address:
        answered, asked = asyncio.run(greed(address, picture))
    report(Found(49, "beside a greedy client", asked, refused=asked - answered))
    # First in, first out, nine in ten would be refused, as the greedy one's are.
    assert answered >= asked / 2
