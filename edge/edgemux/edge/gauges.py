"""What the agent knows of itself, as gauges. Ten times a second, whatever the number of requests."""

from __future__ import annotations

from edgemux.edge.agent import Agent
from edgemux.edge.config import EdgeConfig
from edgemux.edge.metrics import ENDS, EdgeMetrics
from edgemux.edge.vigil import Standing, State, Withdrawal
from edgemux.multiplexer.bundle import Certificate


def export_settings(metrics: EdgeMetrics, config: EdgeConfig) -> None:
    """What the configuration says, for comparison with what happens."""
    metrics.default_timeout.set(config.request.default_timeout_s)
    limits = config.limits
    for kind, rate in (("offloads", limits.offloads_per_s), ("bytes", limits.bytes_per_s)):
        if rate < float("inf"):
            metrics.amount.labels(kind, "second").set(rate)
    for budget in config.budgets:
        metrics.amount.labels(budget.of, budget.per).set(budget.amount)


def export(agent: Agent, now_s: float) -> None:
    """Bring an application's gauges up to date, and those of the budgets and the breaker."""
    metrics = agent.metrics
    if agent.cloud is not None:
        metrics.breaker.set(agent.cloud.state(now_s))
        for number, peer in enumerate(agent.cloud.peers):
            metrics.peer_breaker.labels(str(number)).set(peer.state(now_s))
    _show_budgets(agent, now_s)
    _show_splits(agent, now_s)
    _show_vigil(metrics, agent.manifest.name, agent.vigil.state, agent.manifest.certificate)
    metrics.resident.set(agent.resident_bytes)
    metrics.gave(agent.planned, agent.share)
    metrics.level.set(agent.affordable_level(agent.sampler.latest))


def _show_splits(agent: Agent, now_s: float) -> None:
    agent.metrics.left_alone({name: why.value for name, why in agent.left_alone(now_s).items()})
    if agent.splits is not None:
        whole = None if agent.never_send_raw else agent.manifest.cloud.name
        agent.metrics.chose(agent.splits.chosen or whole)


def _show_budgets(agent: Agent, now_s: float) -> None:
    metrics, purse = agent.metrics, agent.purse
    for kind, left in purse.left(now_s).items():
        metrics.budget.labels(kind).set(left)
    for kind, price in purse.prices(now_s).items():
        metrics.toll.labels(kind).set(price)
    for kind, limit in purse.limits(now_s).items():
        metrics.rate.labels(kind).set(limit.rate_per_s)
        metrics.share.labels(kind).set(limit.left_share)
        metrics.spent(kind, limit.spent)


def _show_vigil(metrics: EdgeMetrics, model: str, state: State, certificate: Certificate | None) -> None:
    if metrics.seen is state:  # it is a value: nothing has changed
        return
    metrics.seen = state
    for standing in Standing:
        metrics.certificate.labels(model, standing.value).set(standing is state.standing)
    for cause in Withdrawal:
        metrics.alarm.labels(model, cause.value).set(state.alarmed and cause is state.reason)
    if certificate is not None:
        metrics.alpha.labels(model).set(max(certificate.alpha))
        metrics.confidence.labels(model).set(1.0 - certificate.delta)
    metrics.bound.set(state.bound)
    metrics.drift.set(state.alarmed)
    metrics.evidence.set(state.evidence)
    for end, share in zip(ENDS, state.risk, strict=True):
        metrics.risk.labels(model, end).set(share)
