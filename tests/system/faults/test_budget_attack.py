"""Row 51: whatever sequence of inputs an enemy makes up, offloads and bytes stay within their budgets."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgemux.multiplexer.limits import TokenBucket
from edgemux.multiplexer.toll import TolledBudget
from tests.system.faults.stage import Agent, Pictures, Stage, agent_process, found_by
from tests.system.faults.table import Found

STEPS = 1_000_000
ROUNDINGS = 1e-6


class Enemy:
    """Time goes on by chance, or stands still, or jumps; units are asked for in floods or now and then."""

    def __init__(self, seed: int) -> None:
        self._chance = random.Random(seed)
        self.rate = self._chance.choice((0.01, 0.5, 5.0, 1000.0))
        self.burst = self._chance.choice((1.0, 2.5, 50.0))
        self._mood = 0

    def pause_s(self) -> float:
        if self._chance.random() < 0.01:
            self._mood = self._chance.randrange(4)
        match self._mood:
            case 0:
                return 0.0
            case 1:
                return self._chance.random() / self.rate
            case 2:
                return self._chance.expovariate(self.rate * 10)
            case _:
                # A clock that steps back, as a monotonic one never does, must give nothing either.
                return self._chance.choice((0.0, 1e-9, self.burst / self.rate, -1.0))

    def wants(self, unit: float) -> float:
        return unit * self._chance.choice((1.0, 1.0, 1.0, 0.5, 2.0))


def test_a_million_steps_of_an_enemy_take_no_more_than_rate_and_burst_allow(report: Callable[[Found], None]) -> None:
    runs = 50
    taken_in_all = 0
    for seed in range(runs):
        enemy = Enemy(seed)
        budget = TolledBudget(TokenBucket(enemy.rate, enemy.burst), unit=1.0)
        now_s = latest_s = 0.0
        budget.available(now_s)
        # The least of (taken - rate * time) so far: what is taken since then may exceed the rate by one burst.
        taken = lowest = 0.0
        for _ in range(STEPS // runs):
            now_s += enemy.pause_s()
            latest_s = max(latest_s, now_s)
            price = budget.price(now_s)
            assert 0.0 <= price <= 1.0
            wanted = enemy.wants(1.0)
            got = budget.take(wanted, now_s)
            taken_in_all += got
            lowest = min(lowest, taken - enemy.rate * latest_s)
            taken += wanted if got else 0.0
            assert taken - enemy.rate * latest_s - lowest <= enemy.burst + ROUNDINGS * (1 + taken)
            budget.settle(not got, now_s)
    assert taken_in_all > 10_000
    report(Found(51, "adversarial sequences on the budget", STEPS, note=f"{taken_in_all:,} taken, 0 over the budget"))


def test_an_agent_whose_inputs_all_want_the_cloud_sends_no_more_than_its_budget(
    on_stage: Stage, serving: Any, tiny_bundle: Path, tmp_path: Path, seen: Pictures, report: Callable[[Found], None]
) -> None:
    rate, burst_s = 5.0, 2.0
    limits = {"offloads_per_s": rate, "burst_s": burst_s, "spend": "fully"}
    with agent_process(serving, tmp_path, tiny_bundle, on_stage.proxy.address, limits=limits) as agent:
        load = agent.load(on_stage.backstage, seen, rate_per_s=150.0, order=range(seen.doubtful))
        with load:
            load.more(1000)
        verdict = on_stage.judge_of(agent, load)
        sent = offloads(agent)
    took_s = max(entry.ended_s for entry in load.entries) - load.entries[0].sent_s
    assert verdict.faults + verdict.refused == ()
    assert 0 < sent <= rate * (burst_s + took_s) + 1
    note = f"{sent:.0f} offloads, {rate * (burst_s + took_s):.0f} allowed"
    report(found_by(verdict, 51, "every input wants the cloud", load, note=note))


def offloads(agent: Agent) -> float:
    return agent.metric("edgemux_offload_attempts_total")
