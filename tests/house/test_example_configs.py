"""The example configurations say what the defaults are, and are right about it."""

from __future__ import annotations

from pathlib import Path

from edgemux.cloud import config as cloud
from edgemux.edge import config as edge

CONFIGS = Path(__file__).parents[2] / "deploy" / "config"


def test_the_agent_s_example_holds_the_defaults_and_a_cloud() -> None:
    example = edge.load(CONFIGS / "edge.toml", {})
    defaults = edge.load(None, {"bundle": example.bundle, "cloud.address": "127.0.0.1:8001"})
    assert example == defaults


def test_the_cloud_s_example_holds_the_defaults() -> None:
    example = cloud.load(CONFIGS / "cloud.toml", {})
    assert example == cloud.load(None, {"bundle": str(example.bundle)})
