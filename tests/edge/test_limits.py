"""The buckets that an agent starts with."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import pytest

from edgemux.edge.config import LimitSettings
from edgemux.edge.gauges import export
from edgemux.edge.purse import BudgetSettings, PriceSettings
from edgemux.edge.status import device_status
from edgemux.edge.store import FILE
from edgemux.multiplexer.domain import Placement, Reason


async def test_a_low_rate_still_lets_one_call_through(cloud: Any, agent_of: Any) -> None:
    async with agent_of(cloud.address, limits=LimitSettings(offloads_per_s=1e-3, bytes_per_s=1e-3)) as agent:
        allowance = agent.allowance(time.monotonic())
        assert allowance.offloads >= 1
        assert agent.cloud.request_bytes <= allowance.sent_bytes < math.inf


async def test_a_rate_of_nothing_lets_nothing_through(cloud: Any, agent_of: Any) -> None:
    async with agent_of(cloud.address, limits=LimitSettings(offloads_per_s=0.0, bytes_per_s=0.0)) as agent:
        allowance = agent.allowance(time.monotonic())
        assert (allowance.offloads, allowance.sent_bytes) == (0.0, 0.0)


async def served(agent: Any, images: Any) -> list[Any]:
    """Answers to pictures, one after the other, with as much time as they need."""
    return [(await agent.infer({"image": images[i : i + 1]}, 20.0))[0] for i in range(len(images))]


def offloads(answers: list[Any]) -> int:
    return sum(answer.prediction.route.placement is Placement.CLOUD for answer in answers)


async def test_without_a_limit_nothing_has_a_toll(cloud: Any, agent_of: Any, pictures: Any) -> None:
    async with agent_of(cloud.address) as agent:
        await served(agent, pictures(60, 1)[0])
        assert agent.purse.toll(agent.cloud.request_bytes, time.monotonic()) == 0.0


async def test_scarce_tokens_have_a_toll_and_what_is_kept_for_it_is_degraded(
    cloud: Any, agent_of: Any, pictures: Any
) -> None:
    limits = LimitSettings(offloads_per_s=1e-3, burst_s=5e3)
    async with agent_of(cloud.address, limits=limits) as agent:
        answers = await served(agent, pictures(120, 1)[0])
        assert offloads(answers) == cloud.seen <= 5
        prices = agent.purse.prices(time.monotonic())
        assert prices.pop("offloads") > 0.0
        assert set(prices.values()) == {0.0}
    kept = [answer for answer in answers if answer.reason is Reason.BUDGET]
    assert kept
    assert all(answer.degraded for answer in kept)


async def test_spending_fully_offloads_more_than_is_certified(cloud: Any, agent_of: Any, pictures: Any) -> None:
    images = pictures(120, 1)[0]
    counts = []
    for spend in ("needed", "fully"):
        limits = LimitSettings(offloads_per_s=100.0, burst_s=10.0, spend=spend)  # type: ignore[arg-type]
        async with agent_of(cloud.address, limits=limits) as agent:
            answers = await served(agent, images)
            assert not any(answer.degraded for answer in answers)
            counts.append(offloads(answers))
    assert counts[1] > counts[0]


async def test_the_status_page_and_the_metrics_show_the_tolls(cloud: Any, agent_of: Any, pictures: Any) -> None:
    async with agent_of(cloud.address, limits=LimitSettings(offloads_per_s=1e-3)) as agent:
        await served(agent, pictures(60, 1)[0])
        export(agent, time.monotonic())
        shown = device_status(agent)["budget_prices"]
        gauge = agent.metrics.registry.get_sample_value("edgemux_budget_price", {"budget": "offloads"})
        assert shown["offloads"] == pytest.approx(gauge, abs=1e-3)
        assert gauge > 0
    async with agent_of(None) as agent:
        assert set(device_status(agent)["budget_prices"].values()) == {0.0}


async def test_joules_that_are_spent_keep_larger_levels_from_running_and_never_the_smallest(
    agent_of: Any, pictures: Any, tmp_path: Path
) -> None:
    images = pictures(40, 1)[0]
    budgets = (BudgetSettings("joules", 0.01, "day"),)
    async with agent_of(None, budgets=budgets, state_dir=tmp_path) as agent:
        levels = [answer.prediction.route.level for answer in await served(agent, images)]
        assert agent.purse.left(time.monotonic())["joules"] < 0, "the smallest level goes on, into debt"
    assert levels[0] == 4
    assert set(levels[-20:]) == {1}


async def test_money_stops_offloads_before_it_is_overspent(cloud: Any, agent_of: Any, pictures: Any) -> None:
    prices = PriceSettings(money_per_offload=0.25)
    async with agent_of(
        cloud.address, budgets=(BudgetSettings("money", 1.0, "month"),), prices=prices, state_dir=None
    ) as agent:
        assert agent.purse.left(time.monotonic())["money"] == pytest.approx(0.0, abs=1e-5), "nothing is known: empty"
        answers = await served(agent, pictures(60, 1)[0])
    assert offloads(answers) == cloud.seen == 0
    assert Reason.BUDGET in {answer.reason for answer in answers}


async def test_what_is_left_of_a_budget_outlives_an_orderly_stop_and_is_nothing_after_a_crash(
    cloud: Any, agent_of: Any, pictures: Any, tmp_path: Path
) -> None:
    images = pictures(120, 1)[0]

    def opened() -> Any:
        return agent_of(cloud.address, budgets=(BudgetSettings("offloads", 50, "month"),), state_dir=tmp_path)

    async with opened() as agent:
        assert agent.purse.left(time.monotonic())["offloads"] == 5, "a tenth of the amount, at first"
        spent = 0
        while not spent:
            spent = offloads(await served(agent, images[:5]))
            images = images[5:]
        assert spent < 5
    async with opened() as agent:
        assert agent.purse.left(time.monotonic())["offloads"] == pytest.approx(5 - spent, abs=0.01)
        unfinished = (tmp_path / FILE).read_bytes()
    (tmp_path / FILE).write_bytes(unfinished)
    async with opened() as agent:
        assert agent.purse.left(time.monotonic())["offloads"] == pytest.approx(0.0, abs=0.01)
