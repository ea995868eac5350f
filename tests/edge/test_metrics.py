"""What the agent exports of its certificate, budgets, levels and readings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edgemux.edge.budget import Readings
from edgemux.edge.config import DriftSettings, LimitSettings
from edgemux.edge.gauges import export
from edgemux.edge.metrics import NOBODY, EdgeMetrics, EnergyProxy
from edgemux.edge.purse import BudgetSettings, Purse, Tariff, fill
from edgemux.edge.vigil import Standing, Withdrawal
from edgemux.edge.watch import sense
from edgemux.multiplexer.limits import TokenBucket

MODEL = "fashion-mnist"
HAS_PROC = Path("/proc/self/stat").exists()


def ones(agent: Any, name: str, label: str) -> set[str]:
    """The values of a label at which a metric is 1; it has to be 0 at all others."""
    found = set()
    for family in agent.metrics.registry.collect():
        for sample in family.samples:
            if sample.name == name:
                assert sample.value in (0, 1)
                if sample.value:
                    found.add(sample.labels[label])
    return found


async def test_the_page_tells_how_the_certificate_stands_and_what_it_says(agent_of: Any) -> None:
    async with agent_of(None) as agent:
        value = agent.metrics.registry.get_sample_value
        assert ones(agent, "edgemux_certificate", "standing") == {"in_force"}
        assert ones(agent, "edgemux_drift_alarm", "cause") == set()
        assert value("edgemux_certificate_alpha", {"model": MODEL}) == 0.02
        assert value("edgemux_certificate_confidence", {"model": MODEL}) == 0.9
        agent.vigil.withdraw(Withdrawal.INPUT_SHIFT)
        export(agent, 0.0)
        assert ones(agent, "edgemux_certificate", "standing") == {"withdrawn"}
        assert ones(agent, "edgemux_drift_alarm", "cause") == {"input_shift"}
        ends = [value("edgemux_disagreement_interval", {"model": MODEL, "end": end}) for end in ("low", "high")]
        assert ends == [0.0, 1.0]
        agent.vigil.state = msgspec.structs.replace(agent.vigil.state, standing=Standing.RE_CERTIFIED)
        export(agent, 0.0)
        assert ones(agent, "edgemux_certificate", "standing") == {"re_certified"}
        assert ones(agent, "edgemux_drift_alarm", "cause") == set()


async def test_a_certificate_that_nobody_watches_is_told_apart(agent_of: Any) -> None:
    async with agent_of(None, drift=DriftSettings(enabled=False)) as agent:
        assert ones(agent, "edgemux_certificate", "standing") == {"unwatched"}


async def test_where_there_is_no_certificate_nothing_is_promised(agent_of: Any) -> None:
    async with agent_of(None) as agent:
        agent.metrics = EdgeMetrics(MODEL, agent.manifest.multiplexer.routes, EnergyProxy())
        agent.manifest = msgspec.structs.replace(agent.manifest, certificate=None)
        export(agent, 0.0)
        value = agent.metrics.registry.get_sample_value
        assert value("edgemux_disagreement_upper_bound", {"model": MODEL}) is not None
        for name in ("edgemux_certificate_alpha", "edgemux_certificate_confidence"):
            assert value(name, {"model": MODEL}) is None


async def test_budgets_are_shown_beside_what_was_spent_of_them(agent_of: Any, cloud: Any) -> None:
    limits = LimitSettings(offloads_per_s=2.0, burst_s=5.0)
    budgets = (BudgetSettings("offloads", 3600.0, "hour"),)
    async with agent_of(cloud.address, limits=limits, budgets=budgets) as agent:
        value = agent.metrics.registry.get_sample_value
        offloads = {"budget": "offloads"}
        assert value("edgemux_budget_amount", offloads | {"per": "second"}) == 2.0
        assert value("edgemux_budget_amount", offloads | {"per": "hour"}) == 3600.0
        # Of the hour's amount a tenth is the bucket and the rest comes in an hour.
        assert value("edgemux_budget_rate", offloads) == pytest.approx(0.9)
        assert value("edgemux_budget_spent_total", offloads) == 0.0
        now_s = 1e9
        assert agent.purse.pay({"offloads": 4.0}, now_s)
        export(agent, now_s)
        export(agent, now_s)
        assert value("edgemux_budget_spent_total", offloads) == 4.0
        assert value("edgemux_budget_left_share", offloads) == pytest.approx(0.6)
        assert value("edgemux_budget_rate", {"budget": "money"}) is None


def test_of_several_budgets_of_a_kind_the_tightest_is_told() -> None:
    purse = Purse(Tariff(), call_bytes=100.0)
    assert purse.limits(0.0) == {}
    purse.limit("offloads", TokenBucket(1.0, 10.0))
    fill(purse, [BudgetSettings("offloads", 100.0, "hour")], {})
    purse.limit("bytes", TokenBucket(float("inf"), 10.0))
    (kind, limit), *others = purse.limits(0.0).items()
    assert not others and kind == "offloads"
    assert limit.rate_per_s == pytest.approx(90 / 3600)
    assert limit.left_share == 0.0
    purse.limit("joules", TokenBucket(1.0, 10.0))
    purse.used(15.0, 0.0)
    assert purse.limits(0.0)["joules"].left_share == -0.5
    purse.limit("money", TokenBucket(0.0, 0.0))
    assert purse.limits(0.0)["money"].left_share == 0.0


def test_changes_of_the_level_are_counted_by_direction() -> None:
    metrics = EdgeMetrics("m", ("level1", "cloud"), EnergyProxy())
    for level in (4, 4, 1, 1, 3, 4, 2):
        metrics.gave(level, 0.5)
    changes = {
        way: metrics.registry.get_sample_value("edgemux_level_changes_total", {"model": "m", "direction": way})
        for way in ("raise", "lower")
    }
    assert changes == {"raise": 2.0, "lower": 2.0}


def test_what_asks_for_no_model_has_no_certificate_and_no_level() -> None:
    metrics = EdgeMetrics("m", ("level1", "cloud"), EnergyProxy())
    nobody = metrics.of_nobody()
    nobody.refused("unknown_model")
    nobody.inflight += 1
    theirs = {
        sample.name: sample.value
        for family in metrics.registry.collect()
        for sample in family.samples
        if sample.labels.get("model") == NOBODY and sample.value
    }
    assert theirs == {"edgemux_refused_total": 1.0, "edgemux_inflight": 1.0}
    assert metrics.inflight == 0


def test_usual_routes_are_counted_from_zero_on() -> None:
    value = EdgeMetrics("m", ("level1", "level2", "cloud"), EnergyProxy()).registry.get_sample_value
    usual = [("edge", "level1", "confident"), ("edge", "level2", "confident")]
    usual += [("cloud", "cloud", "offloaded"), ("cloud", "cloud", "deferred")]
    for route, variant, reason in usual:
        labels = {"model": "m", "route": route, "variant": variant, "reason": reason}
        assert value("edgemux_requests_total", labels) == 0.0


async def test_version_process_and_default_deadline_are_told(agent_of: Any) -> None:
    async with agent_of(None) as agent:
        value = agent.metrics.registry.get_sample_value
        assert value("edgemux_default_timeout_seconds") == 1.0
        families: Mapping[str, Any] = {family.name: family for family in agent.metrics.registry.collect()}
        (build,) = families["edgemux_build_info"].samples
        assert build.value == 1 and set(build.labels) == {"version"}
        if HAS_PROC:
            assert value("process_resident_memory_bytes") > 1e6


async def test_readings_are_of_a_closed_set(agent_of: Any, cloud: Any, monkeypatch: Any) -> None:
    beside = {"loop_lag_seconds", "inputs_per_second", "cloud_queue_seconds"}
    beside |= {"link_rtt_seconds", "link_bytes_per_second", "link_lost_share"}
    async with agent_of(cloud.address) as agent:
        seen: dict[str, float | None] = {}
        monkeypatch.setattr(agent.metrics, "sensed", seen.update)
        sense([agent], 0.0)
        assert set(seen) == set(Readings.__struct_fields__) | beside
