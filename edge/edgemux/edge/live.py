"""What the agent's live page shows, as JSON: the status, and what changes too fast to be in it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import msgspec

from edgemux.edge.agent import Agent
from edgemux.edge.gallery import Gallery
from edgemux.edge.status import device_status, status_of


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
    answers, refused = agent.metrics.totals()
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


def _held(agent: Agent) -> list[dict[str, Any]]:
    return [
        {**msgspec.to_builtins(each), "left": round(each.left, 6), "price": round(each.price, 6)}
        for each in agent.purse.held(time.monotonic())
    ]
