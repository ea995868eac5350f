"""The agent's HTTP pages: health, metadata, and its state as JSON."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import msgspec

from edgemux.edge.agent import Agent
from edgemux.edge.ingress_grpc import SERVER, EdgeServicer
from edgemux.wire.http import Page


def pages(agent: Agent, servicer: EdgeServicer) -> dict[str, Callable[[], Page]]:
    """Every path that the agent answers."""
    manifest = agent.manifest
    model = f"/v2/models/{manifest.name}"
    metadata = {
        "name": manifest.name,
        "versions": [manifest.version],
        "platform": "edgemux",
        "inputs": msgspec.to_builtins(manifest.inputs),
        "outputs": msgspec.to_builtins(manifest.outputs),
    }

    def ready() -> Page:
        return Page(200 if servicer.ready else 503, {"ready": servicer.ready})

    return {
        "/": lambda: Page(200, {"name": SERVER, "see": ["/status", "/v2", model]}),
        "/status": lambda: Page(200, status(agent, servicer.ready)),
        "/v2": lambda: Page(200, {"name": SERVER, "version": manifest.version, "extensions": ["parameters"]}),
        "/v2/health/live": lambda: Page(200, {"live": True}),
        "/v2/health/ready": ready,
        model: lambda: Page(200, metadata),
        f"{model}/ready": ready,
    }


def status(agent: Agent, ready: bool) -> dict[str, Any]:
    """The agent's state now: what it senses, what it may spend, how the link and the breaker stand."""
    now = time.monotonic()
    readings = agent.sampler.latest
    allowance = agent.allowance(now)
    cloud = agent.cloud
    return {
        "ready": ready,
        "bundle": {"name": agent.manifest.name, "digest": agent.manifest.digest},
        "level": agent.affordable_level(readings),
        "inputs_per_second": round(agent.rate.per_s(now), 3),
        "loop_lag_seconds": round(agent.loop_lag_s, 6),
        "readings": msgspec.to_builtins(readings),
        "budgets": {"offloads": _number(allowance.offloads), "bytes": _number(allowance.sent_bytes)},
        "cloud": None
        if cloud is None
        else {
            "breaker": cloud.breaker.state(now).name.lower(),
            "rtt_seconds": cloud.link.rtt_s(now),
            "bytes_per_second": cloud.link.bytes_per_s(now),
            "server_seconds": cloud.server.mean_s,
        },
        "certificate": msgspec.to_builtins(agent.manifest.certificate),
    }


def _number(value: float) -> float | None:
    """JSON has no infinity: None is "no limit"."""
    return value if math.isfinite(value) else None
