"""The agent's state as JSON, for its HTTP page."""

from __future__ import annotations

import datetime
import math
import time
from collections.abc import Mapping
from typing import Any

import msgspec

from edgemux.edge.agent import Agent
from edgemux.edge.clouds import Cloud


def status_of_all(agents: Mapping[str, Agent]) -> dict[str, Any]:
    """What is true of the device, and by name what is true of each application; of a single one also without a name."""
    each = {name: status_of(agent) for name, agent in agents.items()}
    first, *others = agents.values()
    alone = {} if others else next(iter(each.values()))
    return device_status(first) | alone | {"applications": each}


def device_status(agent: Agent) -> dict[str, Any]:
    """What the device senses, what it may spend, how the link and the breaker stand."""
    now = time.monotonic()
    cloud = agent.cloud
    return {
        "loop_lag_seconds": round(agent.loop_lag_s, 6),
        "readings": msgspec.to_builtins(agent.sampler.latest),
        "reading_ages_seconds": agent.sampler.ages_s(now),
        "budgets": {kind: _number(left) for kind, left in agent.purse.left(now).items()},
        "budget_prices": {kind: round(price, 6) for kind, price in agent.purse.prices(now).items()},
        "cloud": None if cloud is None else _cloud(cloud, now),
    }


def _cloud(cloud: Cloud, now_s: float) -> dict[str, Any]:
    """The only cloud; of several what holds for them together, and each by its place in the configuration."""
    together = {"breaker": cloud.state(now_s).name.lower(), **_readings(cloud, now_s)}
    each = [
        {
            "breaker": peer.state(now_s).name.lower(),
            **_readings(peer, now_s),
            "server_seconds": peer.server.mean(now_s),
            "security": peer.security(),
            "refuses_for_seconds": max(0.0, round(peer.refused_until_s - now_s, 3)),
            "unserved": peer.unserved,
            "payload": peer.encoding,
        }
        for peer in cloud.peers
    ]
    return (each[0] if len(each) == 1 else together) | {"peers": each}


def _readings(cloud: Cloud, now_s: float) -> dict[str, float | None]:
    readings = cloud.readings(now_s)
    return {
        "rtt_seconds": readings["link_rtt_seconds"],
        "bytes_per_second": readings["link_bytes_per_second"],
        "queue_seconds": readings["cloud_queue_seconds"],
        "lost_share": readings["link_lost_share"],
    }


def status_of(agent: Agent) -> dict[str, Any]:
    """One application's state now."""
    now = time.monotonic()
    return {
        "bundle": agent.manifest.digest,
        "fallback": agent.fallback,
        "level": agent.affordable_level(agent.sampler.latest),
        "inputs_per_second": round(agent.rate.per_s(now), 3),
        "certificate": _certificate(agent),
        "drift": _drift(agent),
    } | _split(agent, now)


def _split(agent: Agent, now_s: float) -> dict[str, Any]:
    """Nothing where there is nothing to say: no split, and whole inputs may be sent."""
    if agent.splits is None and not agent.never_send_raw and not agent.alone:
        return {}
    said: dict[str, Any] = {"never_send_raw": agent.never_send_raw, "answers_alone": agent.silent}
    if alone := agent.left_alone(now_s):
        said["left_alone"] = {name: why.value for name, why in alone.items()}
    return {"split": said | ({} if agent.splits is None else agent.splits.status(now_s))}


def _certificate(agent: Agent) -> dict[str, Any]:
    """What the bundle's certificate says, how it stands, and certificates made here."""
    state = agent.vigil.state
    bundled = agent.manifest.certificate
    said: dict[str, Any] = msgspec.to_builtins(bundled) if bundled is not None else {}
    return said | {
        "standing": state.standing.value,
        "withdrawn_because": state.reason.value if state.reason and bundled is not None else None,
        "withdrawn_at": _date(state.since_s) if bundled is not None else None,
        "disagreement_upper_bound": state.bound,
        "made_here": {
            name: {
                "n": new.n,
                "kept": round(new.kept, 4),
                "alpha": new.alpha,
                "delta": new.delta,
                "highest_doubt": new.doubt,
                "made_at": _date(new.since_s),
            }
            for name, new in state.recertified.items()
        },
        "audits": {
            "drawn": state.draws,
            "kept_and_differ": state.differ,
            "risk_interval": state.risk,
            "agreement_interval": state.agreement,
            "confidence": state.confidence,
        },
    }


def _drift(agent: Agent) -> dict[str, Any]:
    """Whether there was an alarm, how near the next one is, and how rarely one is false."""
    state = agent.vigil.state
    settings = agent.drift
    return {
        "watched": settings.enabled,
        "alarm": state.reason.value if state.alarmed and state.reason else None,
        "alarm_at": _date(state.since_s),
        "scores": "calibrated_confidence" if agent.vigil.terms.calibrations else "learned_gates",
        "learning_what_is_usual": state.learning,
        "evidence": round(state.evidence, 6),
        "inputs_to_a_false_alarm": settings.run_length,
        "looked_at": f"one input in {settings.every}",
        "reference": state.reference,
    }


def _date(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat(timespec="seconds")


def _number(value: float) -> float | None:
    """JSON has no infinity: None is "no limit"."""
    return value if math.isfinite(value) else None
