"""Everything that an agent and a cloud server can export, from their own registries with every label driven."""

from __future__ import annotations

import asyncio
from itertools import product
from pathlib import Path

import msgspec
from prometheus_client import CollectorRegistry

from edgemux.cloud.metrics import Metrics, count_processes
from edgemux.edge import EdgeConfig
from edgemux.edge.budget import Readings
from edgemux.edge.config import ApplicationSettings, CloudSettings, LimitSettings
from edgemux.edge.heads import Alone
from edgemux.edge.metrics import AUDITS, CALLS, PLACES, REFUSALS, STAGES, EdgeMetrics, EnergyProxy
from edgemux.edge.purse import KINDS, PERIOD_S, BudgetSettings
from edgemux.edge.server import open_agents
from edgemux.multiplexer.domain import Placement, Reason
from edgemux.wire.payload import EVERY_FORM
from edgemux.wire.security import Guard, ServerTls
from tests.authority import Authority

# What the agent says of the link and of itself among the sensors, beside what sensors can.
BESIDE_SENSORS = (
    *("loop_lag_seconds", "inputs_per_second"),
    *("link_rtt_seconds", "link_bytes_per_second", "link_lost_share", "cloud_queue_seconds"),
)
SENSORS = ("cpu", "memory", "heat", "battery")


class Family(msgspec.Struct):
    """A metric: its kind, and of each label the values that it can have; of histograms without ``le``."""

    kind: str
    labels: dict[str, set[str]]
    series: int = 0


def families(*registries: CollectorRegistry) -> dict[str, Family]:
    """By the name in queries; a histogram under its own name, without _bucket, _sum and _count."""
    found: dict[str, Family] = {}
    for registry in registries:
        for family in registry.collect():
            name = f"{family.name}_total" if family.type == "counter" else family.name
            if not family.samples:
                continue
            mine = found.setdefault(name, Family(family.type, {}))
            mine.series += len(family.samples)
            for sample in family.samples:
                for label, value in sample.labels.items():
                    if label != "le":
                        mine.labels.setdefault(label, set()).add(value)
    return found


def config_of(bundle: Path, models: int = 1, clouds: int = 1) -> EdgeConfig:
    """An agent with every sensor and every kind of budget; its clouds are not there."""
    addresses = tuple(f"127.0.0.1:{number}" for number in range(1, clouds + 1))
    budgets = tuple(BudgetSettings(kind, 1e6, per) for kind, per in product(KINDS, PERIOD_S))  # type: ignore[arg-type]
    names = [f"model-{number}" for number in range(models)]
    several = tuple(ApplicationSettings(bundle, name=name, cloud_model="fashion-mnist") for name in names)
    return EdgeConfig(
        bundle=None if models > 1 else bundle,
        applications=several if models > 1 else (),
        cloud=CloudSettings(addresses=addresses),
        limits=LimitSettings(offloads_per_s=10.0, bytes_per_s=1e5),
        budgets=budgets,
        sensors=SENSORS,
    )


def edge(config: EdgeConfig) -> CollectorRegistry:
    """The registry of an agent to which everything has happened that can, with every reason on every variant."""

    async def opened() -> CollectorRegistry:
        async with open_agents(config) as agents:
            each = [agent.metrics for agent in agents.values()]
            for agent in agents.values():
                _answer_all(agent.metrics, agent.manifest.multiplexer.routes)
            _offload_all(each[0], len(config.cloud.every_address()))
            each[0].sensed(dict.fromkeys((*Readings.__struct_fields__, *BESIDE_SENSORS), 1.0))
            each[0].aged(dict.fromkeys(config.sensors, 1.0))
            if len(each) > 1:
                each[0].of_nobody()
            return each[0].registry

    return asyncio.run(opened())


def _answer_all(metrics: EdgeMetrics, variants: tuple[str, ...]) -> None:
    for variant, reason in product(variants, Reason):
        place = Placement.CLOUD if variant == variants[-1] else Placement.EDGE
        metrics.answered(place, variant, reason, 0.5, 0.01)
    for reason in REFUSALS:
        metrics.refused(reason)
    for stage in STAGES:
        metrics.stage(stage, 0.001)
    for outcome in AUDITS:
        metrics.audited(outcome)
    for place in PLACES:
        metrics.spent_cpu(place, 0.01)
    metrics.paged(0.01, 1000)


def _offload_all(metrics: EdgeMetrics, clouds: int) -> None:
    metrics.sent_together(1)
    for peer in range(clouds):
        metrics.peer_breaker.labels(str(peer)).set(0)
        for error in (None, *(kind("as in a test") for kind, _ in CALLS)):
            metrics.called(peer, error)
    for form in EVERY_FORM:
        metrics.packed(form)
        metrics.offloaded(100, form)


def splits(model: str, *names: str) -> CollectorRegistry:
    """The registry of a model with splits, to which everything has happened on their routes and nothing else."""
    metrics = EdgeMetrics(model, ("level-1", "cloud"), EnergyProxy(), splits=names)
    for name, reason in product(names, Reason):
        metrics.answered(Placement.SPLIT, name, reason, 0.5, 0.01)
    for reason in Alone:  # of which a split has one at a time
        metrics.left_alone(dict.fromkeys(names, reason.value))
    return metrics.registry


def left_alone() -> CollectorRegistry:
    """The registry of a model whose splits are all left alone, each for another reason."""
    names = tuple(f"split-{reason.value}" for reason in Alone)
    metrics = EdgeMetrics("model-0", ("level-1", "cloud"), EnergyProxy(), splits=names)
    metrics.left_alone(dict(zip(names, (reason.value for reason in Alone), strict=True)))
    return metrics.registry


def cloud() -> CollectorRegistry:
    """The registry of a cloud server with one model."""
    metrics = Metrics()
    metrics.of("fashion-mnist")
    count_processes(metrics.registry)
    return metrics.registry


def tls(authority: Authority) -> CollectorRegistry:
    """What a server with a certificate exports of it."""
    issued, registry = authority.issue("exported"), CollectorRegistry()
    Guard(ServerTls(cert=issued.cert, key=issued.key), None).export(registry)
    return registry
