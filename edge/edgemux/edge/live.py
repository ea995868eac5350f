"""What the agent's live page shows, as JSON: the status, and what changes too fast to be in it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import msgspec
from prometheus_client import CollectorRegistry

from edgemux.edge.agent import Agent
from edgemux.edge.gallery import Gallery
from edgemux.edge.status import device_status, status_of

ANSWERED, REFUSED = "edgemux_requests_total", "edgemux_refused_total"


def live_of_all(agents: Mapping[str, Agent], gallery: Gallery, after: int) -> dict[str, Any]:
    """The device and each application by name; of the inputs those after that number, the oldest first."""
    first = next(iter(agents.values()))
    return {
        "kind": "edge",
        "device": device_status(first) | {"held": _held(first)},
        "applications": {name: live_of(name, agent, gallery) for name, agent in agents.items()},
        "inputs": msgspec.to_builtins(gallery.after(after)),
    }


def live_of(name: str, agent: Agent, gallery: Gallery) -> dict[str, Any]:
    """One application: its state, its levels, its plan, and what became of its inputs since the start."""
    answers, refused = totals(agent.metrics.registry, name)
    manifest = agent.manifest
    return status_of(agent) | {
        "version": manifest.version,
        "levels": [{"name": each.name, "accuracy": each.accuracy} for each in manifest.levels],
        "resident": agent.family.resident,
        "planned": agent.planned,
        "share": round(agent.share, 4),
        "inflight": agent.metrics.inflight,
        "answers": msgspec.to_builtins(answers),
        "refused": refused,
        "times": gallery.times(name),
    }


class Answers(msgspec.Struct, frozen=True):
    """So many inputs were answered so."""

    route: str
    variant: str
    reason: str
    count: int


def totals(registry: CollectorRegistry, model: str) -> tuple[list[Answers], dict[str, int]]:
    """Answered inputs of a model by what became of them, and its refused requests by reason, since the start."""
    answers, refused = [], {}
    for metric in registry.restricted_registry([ANSWERED, REFUSED]).collect():
        for sample in metric.samples:
            labels = sample.labels
            if labels.get("model") != model:
                continue
            if sample.name == ANSWERED and sample.value:
                answers.append(Answers(labels["route"], labels["variant"], labels["reason"], int(sample.value)))
            elif sample.name == REFUSED:
                refused[labels["reason"]] = int(sample.value)
    return answers, refused


def _held(agent: Agent) -> list[dict[str, Any]]:
    return [
        {**msgspec.to_builtins(each), "left": round(each.left, 6), "price": round(each.price, 6)}
        for each in agent.purse.held(time.monotonic())
    ]
