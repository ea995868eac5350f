"""What a split takes of each budget is its own: its bytes, its head's time, its toll. Another way is taken instead of
one that cannot be paid for.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgemux.edge.breaker import BreakerSettings
from edgemux.edge.config import LimitSettings
from edgemux.edge.peer import CALL_OVERHEAD_BYTES
from edgemux.edge.purse import BudgetSettings, PriceSettings, Purse, Tariff, fill
from edgemux.edge.sample import Sample
from edgemux.edge.split_planning import SplitSettings
from edgemux.multiplexer.bundle import Bundle
from edgemux.multiplexer.domain import Budget, Candidate, Case, Cost, Placement, Prediction, Reason, Route
from edgemux.multiplexer.policy import lacking
from tests.simulated_cloud import listening
from tests.split_stand import PLAIN, SplitCloud, with_splits

PATIENT_S = 20.0
ALWAYS, NEVER_RAW = SplitSettings(use="always"), SplitSettings(never_send_raw=True)
NEVER_OPENS = BreakerSettings(failures=10**6, window=10**6, slow_s=PATIENT_S)
WHOLE = "fashion-mnist"
CALL_BYTES = 1000.0


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_splits(tiny_bundle, tmp_path_factory.mktemp("splits") / "bundle", (PLAIN,))


@pytest.fixture
async def there(bundle: Path) -> AsyncIterator[SplitCloud]:
    async with listening(SplitCloud(Bundle.open(bundle))) as cloud:
        assert isinstance(cloud, SplitCloud)
        yield cloud


def dear_purse(now_s: float, *budgets: BudgetSettings, tariff: Tariff | None = None) -> Purse:
    """Budgets that are empty, and were wanted again and again."""
    purse = Purse(tariff or Tariff(), CALL_BYTES)
    fill(purse, budgets, {})
    for _ in range(100):
        purse.settle(Cost(offloads=1, sent_bytes=CALL_BYTES, money=1.0), now_s)
    return purse


@given(st.floats(1.0, 5000.0), st.floats(1.0, 5000.0))
def test_the_toll_of_bytes_goes_with_the_bytes_that_are_sent(size: float, other: float) -> None:
    purse = dear_purse(0.0, BudgetSettings("bytes", 1e6, "hour"))
    assert purse.toll(CALL_BYTES, 0.0) > 0.1
    assert purse.toll(size, 0.0) / size == pytest.approx(purse.toll(other, 0.0) / other)
    assert purse.toll(CALL_BYTES, 0.0) == pytest.approx(sum(purse.prices(0.0).values()))


def test_the_toll_of_offloads_is_the_same_for_every_way_and_that_of_money_is_what_each_costs() -> None:
    offloads = dear_purse(0.0, BudgetSettings("offloads", 100, "hour"))
    assert offloads.toll(1.0, 0.0) == offloads.toll(1e6, 0.0) > 0.1 and not offloads.dear(0.0)
    tariff = Tariff(money_per_offload=0.5, money_per_byte=5e-4)
    money = dear_purse(0.0, BudgetSettings("money", 100, "hour"), tariff=tariff)
    assert money.toll(0.0, 0.0) == pytest.approx(money.toll(CALL_BYTES, 0.0) / 2) and money.dear(0.0)
    assert Purse(Tariff(), CALL_BYTES).toll(CALL_BYTES, 0.0) == 0.0


def test_what_is_lacking_counts_as_much_as_it_would_have_taken() -> None:
    small, large = (Purse(Tariff(), CALL_BYTES) for _ in range(2))
    for purse, size in ((small, 100.0), (large, CALL_BYTES)):
        fill(purse, (BudgetSettings("bytes", 1e6, "hour"),), {})
        for _ in range(10):
            purse.settle(Cost(offloads=1, sent_bytes=size), 0.0)
    assert small.prices(0.0)["bytes"] == pytest.approx(large.prices(0.0)["bytes"] / 10)


def test_what_is_there_for_a_split_is_not_lacking() -> None:
    purse = Purse(Tariff(), CALL_BYTES)
    fill(purse, (BudgetSettings("bytes", 1e4, "hour"),), {"bytes/hour": 500.0})
    purse.settle(Cost(offloads=1, sent_bytes=200.0), 0.0)
    assert purse.prices(0.0)["bytes"] == 0.0
    purse.settle(Cost(offloads=1, sent_bytes=600.0), 0.0)
    assert purse.prices(0.0)["bytes"] > 0.0


def test_only_the_cost_of_what_lacks_tokens_alone_is_lacking() -> None:
    held = Prediction(Route("level-1", Placement.EDGE, 1), 0, np.array([0.6, 0.4], np.float32), 0.5)
    cost = Cost(offloads=1, sent_bytes=100.0)
    split = Candidate(Route("plain", Placement.SPLIT), 0.9, cost, 0.1)
    assert lacking(Case(Budget(sent_bytes=99.0), (split,), held)) is cost
    assert lacking(Case(Budget(sent_bytes=100.0), (split,), held)) is None
    assert lacking(Case(Budget(sent_bytes=99.0), (split,), held, failure=Reason.CLOUD_TIMEOUT)) is None


def offered(agent: Any, budget: Budget, client: str = "", left_s: float = PATIENT_S) -> Candidate:
    """The way to the cloud for an input that nothing has answered yet."""
    now = time.monotonic()
    sample = Sample({"image": np.zeros((1, 28, 28), np.uint8)}, np.ones((1, 5), np.float32), now + left_s, client)
    *_, away = agent._offers.above(None, 0.0, sample, sample.scores, budget, now)
    assert isinstance(away, Candidate)
    return away


async def test_whichever_way_can_be_paid_for_is_taken(there: SplitCloud, agent_of: Any, bundle: Path) -> None:
    async with agent_of(there.address, bundle=bundle, split=ALWAYS, breaker=NEVER_OPENS) as agent:
        half = agent.splits.halves[PLAIN]
        half.tail.request_bytes, agent.cloud.request_bytes = 200, 1000
        assert offered(agent, Budget()).route == half.route
        for budget in (Budget(compute_s=1e-9), Budget(memory_bytes=1.0)):
            assert offered(agent, budget).route.placement is Placement.CLOUD, "what the device has no room for"
        agent.splits.offered = lambda *_: None  # on a quick link
        assert offered(agent, Budget()).route.placement is Placement.CLOUD
        assert offered(agent, Budget(sent_bytes=500.0)).route == half.route
        assert offered(agent, Budget(sent_bytes=100.0)).route.placement is Placement.CLOUD, "neither can be"
        assert offered(agent, Budget(energy_j=0.0)).route.placement is Placement.CLOUD


async def test_where_bytes_are_dear_a_split_is_worth_more_unless_it_loses_more_than_it_saves(
    there: SplitCloud, agent_of: Any, tiny_bundle: Path, tmp_path: Path
) -> None:
    accuracy = Bundle.open(tiny_bundle).manifest.cloud.accuracy
    for number, (lost, taken) in enumerate(((0.0, True), (0.004, True), (0.6, False))):
        folder = with_splits(tiny_bundle, tmp_path / str(number), (PLAIN,), accuracy=accuracy - lost)
        loose = SplitSettings(max_loss=1.0)
        async with agent_of(there.address, bundle=folder, split=loose, breaker=NEVER_OPENS) as agent:
            half, now = agent.splits.halves[PLAIN], time.monotonic()
            half.tail.request_bytes, agent.cloud.request_bytes = 200, 1000
            agent.splits.offered = lambda *_: None  # on a quick link
            agent._offers._purse = dear_purse(now, BudgetSettings("bytes", 1e6, "hour"))
            away = offered(agent, Budget())
            assert (away.route == half.route) is taken
            assert away.toll == pytest.approx(agent._offers._purse.toll(away.cost.sent_bytes, now), rel=1e-3)
            agent._offers._purse = dear_purse(now, BudgetSettings("offloads", 100, "hour"))
            assert offered(agent, Budget()).route.placement is Placement.CLOUD, "each counts as one offload"


async def test_a_slow_head_needs_the_device_s_time_and_a_fair_share_of_it(
    there: SplitCloud, agent_of: Any, bundle: Path
) -> None:
    for split, instead in ((ALWAYS, Placement.CLOUD), (NEVER_RAW, Placement.SPLIT)):
        async with agent_of(there.address, bundle=bundle, split=split, breaker=NEVER_OPENS) as agent:
            half = agent.splits.halves[PLAIN]
            half.latency.mean_s = 0.05
            assert offered(agent, Budget(), "greedy").blocked is None
            agent.device.backlog.enter("greedy", 0.9)
            away = offered(agent, Budget(), "greedy", left_s=1.0)
            assert away.route.placement is instead
            assert away.blocked is (Reason.OVERLOADED if instead is Placement.SPLIT else None)
            half.latency.mean_s = 1e-5
            assert offered(agent, Budget(), "greedy", left_s=5.0).route == half.route, "it runs at once"


async def test_a_tight_byte_budget_is_spent_on_splits_and_is_never_overdrawn(
    there: SplitCloud, agent_of: Any, bundle: Path, pictures: Any
) -> None:
    images, _ = pictures(300, 31)
    limits = LimitSettings(bytes_per_s=1e-3, burst_s=5e6)  # 5,000 bytes: five whole inputs
    async with agent_of(
        there.address, bundle=bundle, split=ALWAYS, breaker=NEVER_OPENS, limits=limits, policy="cloud-only"
    ) as agent:
        answers = [(await agent.infer({"image": image[None]}, PATIENT_S))[0] for image in images]
        spent = agent.purse.limits(time.monotonic())["bytes"].spent
    cut = sum(answer.prediction.route.placement is Placement.SPLIT for answer in answers)
    assert spent <= 5000.0 and cut > 10
    assert {a.reason for a in answers if a.prediction.route.placement is Placement.EDGE} <= {
        Reason.BUDGET,
        Reason.CLOUD_OVERLOADED,
    }


async def test_joules_of_heads_and_of_what_they_send_are_paid(
    there: SplitCloud, agent_of: Any, bundle: Path, pictures: Any
) -> None:
    images, _ = pictures(40, 32)
    budgets = (BudgetSettings("joules", 1e9, "hour"), BudgetSettings("money", 1e9, "hour"))
    prices = PriceSettings(money_per_offload=1.0, money_per_byte=0.01)
    async with agent_of(
        there.address,
        bundle=bundle,
        split=ALWAYS,
        breaker=NEVER_OPENS,
        budgets=budgets,
        prices=prices,
        policy="cloud-only",
        there={"probe_interval_s": 3600.0},
    ) as agent:
        await agent.infer({"image": images}, PATIENT_S)
        spent = agent.purse.limits(time.monotonic())
        sent = agent.metrics.registry.get_sample_value("edgemux_offload_bytes_total")
        paid = len(images) + 0.01 * sent
        assert paid - 1e-6 <= spent["money"].spent <= paid + 0.01 * 100 * CALL_OVERHEAD_BYTES, "and looks at the link"
        assert spent["joules"].spent > sent * agent.purse.tariff.joules_per_byte > 0


async def test_where_only_splits_are_sent_a_budget_that_pays_for_one_is_not_said_to_be_spent(
    there: SplitCloud, agent_of: Any, bundle: Path
) -> None:
    limits = LimitSettings(bytes_per_s=1e-3, burst_s=5e5)  # 500 bytes: half a whole input
    for split, one in ((NEVER_RAW, 220.0), (ALWAYS, 984.0)):
        async with agent_of(there.address, bundle=bundle, split=split, limits=limits) as agent:
            assert agent.purse.one_offload["bytes"] == one
