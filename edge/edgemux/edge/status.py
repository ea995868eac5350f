"""The agent's state as JSON, for its HTTP page."""

from __future__ import annotations

import math
import time
from typing import Any

import msgspec

from edgemux.edge.agent import Agent


def status_of(agent: Agent) -> dict[str, Any]:
    """The agent's state now: what it senses, what it may spend, how the link and the breaker stand."""
    now = time.monotonic()
    readings = agent.sampler.latest
    allowance = agent.allowance(now)
    cloud = agent.cloud
    return {
        "bundle": agent.manifest.digest,
        "level": agent.affordable_level(readings),
        "inputs_per_second": round(agent.rate.per_s(now), 3),
        "loop_lag_seconds": round(agent.loop_lag_s, 6),
        "readings": msgspec.to_builtins(readings),
        "budgets": {"offloads": _number(allowance.offloads), "bytes": _number(allowance.sent_bytes)},
        "budget_prices": None
        if cloud is None
        else {"offloads": round(cloud.offloads.price(now), 6), "bytes": round(cloud.sent_bytes.price(now), 6)},
        "cloud": None
        if cloud is None
        else {
            "breaker": cloud.breaker.state(now).name.lower(),
            "rtt_seconds": cloud.link.rtt_s(now),
            "bytes_per_second": cloud.link.bytes_per_s(now),
            "server_seconds": cloud.server.mean(now),
        },
        "certificate": msgspec.to_builtins(agent.manifest.certificate),
    }


def _number(value: float) -> float | None:
    """JSON has no infinity: None is "no limit"."""
    return value if math.isfinite(value) else None
