"""The agent's configuration: one TOML file, one struct per component."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from edgemux.edge.breaker import BreakerSettings
from edgemux.edge.metrics import EnergyProxy
from edgemux.wire.process import Listen
from edgemux.wire.settings import load_settings


def _positive(settings: Any, *names: str) -> None:
    for name in names:
        if not getattr(settings, name) > 0:
            raise ValueError(f"{name} must be positive")


def _not_negative(settings: Any, *names: str) -> None:
    for name in names:
        if not getattr(settings, name) >= 0:
            raise ValueError(f"{name} must not be negative")


class CloudSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The cloud: ``address`` HOST:PORT, None for none; ``model`` its name there, None for the bundle's.

    probe_interval_s: the longest the link goes unmeasured while requests come in.
    """

    address: str | None = None
    model: str | None = None
    probe_interval_s: float = 0.5

    def __post_init__(self) -> None:
        if self.address is not None:
            host, _, port = self.address.rpartition(":")
            if not host or not port.isdigit() or not 0 < int(port) < 65536:
                raise ValueError("address must be HOST:PORT")
        _positive(self, "probe_interval_s")


class LimitSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Hard limits. Rates are long-run, with a burst of ``burst_s`` seconds' worth; infinite means no limit.

    compute_share: how much of the free CPU the device models may use. memory_bytes: for the levels' weights.
    """

    offloads_per_s: float = math.inf
    bytes_per_s: float = math.inf
    burst_s: float = 10.0
    compute_share: float = 0.5
    memory_bytes: float = math.inf

    def __post_init__(self) -> None:
        _positive(self, "burst_s", "memory_bytes")
        _not_negative(self, "offloads_per_s", "bytes_per_s")
        if not 0 < self.compute_share <= 1:
            raise ValueError("compute_share must be in (0, 1]")


class RequestSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Deadlines and sizes. margin_s: kept back from every deadline for the way home."""

    default_timeout_s: float = 1.0
    max_timeout_s: float = 60.0
    margin_s: float = 0.02
    max_batch: int = 256

    def __post_init__(self) -> None:
        _positive(self, "default_timeout_s", "max_timeout_s", "max_batch")
        _not_negative(self, "margin_s")


class EdgeConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole file. ``policy`` names a plug-in of ``edgemux.policies``."""

    bundle: Path
    cloud: CloudSettings = CloudSettings()
    listen: Listen = Listen(grpc_port=9001, http_port=9000, metrics_port=9002)
    limits: LimitSettings = LimitSettings()
    request: RequestSettings = RequestSettings()
    breaker: BreakerSettings = BreakerSettings()
    energy: EnergyProxy = EnergyProxy()
    policy: str = "expected-gain"
    sensors: tuple[str, ...] = ("cpu", "memory", "heat", "battery")
    sensor_interval_s: float = 0.25
    audit_share: float = 0.01

    def __post_init__(self) -> None:
        _positive(self, "sensor_interval_s")
        if not 0 <= self.audit_share <= 1:
            raise ValueError("audit_share must be in [0, 1]")


def load(path: Path | None, overrides: Mapping[str, Any]) -> EdgeConfig:
    """The configuration from a file, with overrides by dotted key. Raises ConfigError naming the key."""
    return load_settings(EdgeConfig, path, overrides)
