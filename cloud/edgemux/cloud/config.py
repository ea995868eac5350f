"""The cloud server's configuration: one TOML file, one struct per component."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from edgemux.cloud.admission import AdmissionSettings
from edgemux.cloud.engine import BatchingSettings
from edgemux.cloud.ray_settings import RaySettings
from edgemux.wire.process import Listen
from edgemux.wire.settings import load_settings

MAX_THREADS = 256


class CloudConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole file. ``threads``: CPU threads that one batch may use."""

    bundle: Path
    listen: Listen = Listen(grpc_port=8001, http_port=8000, metrics_port=8002)
    batching: BatchingSettings = BatchingSettings()
    admission: AdmissionSettings = AdmissionSettings()
    threads: int = 1
    ray: RaySettings = RaySettings()

    def __post_init__(self) -> None:
        if not 1 <= self.threads <= MAX_THREADS:
            raise ValueError(f"threads must be between 1 and {MAX_THREADS}")
        if self.admission.max_queue < self.batching.max_batch:
            raise ValueError("admission.max_queue must be at least batching.max_batch")


def load(path: Path | None, overrides: Mapping[str, Any]) -> CloudConfig:
    """The configuration from a file, with overrides by dotted key. Raises ConfigError naming the key."""
    return load_settings(CloudConfig, path, overrides)
