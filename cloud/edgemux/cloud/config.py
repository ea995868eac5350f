"""The cloud server's configuration: one TOML file, one struct per component."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from edgemux.cloud.admission import AdmissionSettings
from edgemux.cloud.batcher import BatchingSettings
from edgemux.cloud.ray_settings import RaySettings
from edgemux.wire.admin import Admin
from edgemux.wire.log_format import LogOptions
from edgemux.wire.process import Listen
from edgemux.wire.security import ClientTls
from edgemux.wire.settings import load_settings
from edgemux.wire.tracing import TracingSettings

MAX_THREADS = 256
MAX_PROCESSES = 256
KINDS = ("bundle", "onnx", "torch", "address")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_VERSION = re.compile(r"[1-9][0-9]{0,17}")
_ADDRESS = re.compile(r"[A-Za-z0-9._:%\[\]-]+:[0-9]{1,5}")


class ModelSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One model. name: on the wire; a bundle's own, or the file's, when left out.

    Exactly one of ``bundle``, ``onnx``, ``torch`` (a file, or a folder of versions: ``1/model.onnx``, ``2/...``) and
    ``address`` (of another server that answers for it). versions: of a folder, those that are served. version: what
    a single one is called. max_batch: None for ``batching.max_batch``. device, dtype, compile and graphs
    (whether a CUDA device records its runs): torch's. model: its name at the other server, None for the same; tls and
    token_file: how that one is known, and we to it.
    """

    name: str | None = None
    bundle: Path | None = None
    onnx: Path | None = None
    torch: Path | None = None
    address: str | None = None
    version: str | None = None
    versions: Literal["latest", "all"] | tuple[int, ...] = "latest"
    max_batch: int | None = None
    device: Literal["cpu", "cuda", "auto"] = "auto"
    dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    compile: bool = False
    graphs: bool = True
    model: str | None = None
    tls: ClientTls = ClientTls()
    token_file: Path | None = None

    def __post_init__(self) -> None:
        if sum(getattr(self, kind) is not None for kind in KINDS) != 1:
            raise ValueError(f"exactly one of {', '.join(KINDS)} is needed")
        if self.name is not None and not _NAME.fullmatch(self.name):
            raise ValueError("name must be letters, digits, '.', '_' and '-', at most 128")
        if self.version is not None and not _VERSION.fullmatch(self.version):
            raise ValueError("version must be a whole number from 1")
        if self.max_batch is not None and not 1 <= self.max_batch <= 1024:
            raise ValueError("max_batch must be between 1 and 1024")
        if self.address is not None and (self.name is None or not _ADDRESS.fullmatch(self.address)):
            raise ValueError("address must be HOST:PORT, and needs a name")

    @property
    def kind(self) -> str:
        """Which of KINDS it is."""
        return next(kind for kind in KINDS if getattr(self, kind) is not None)

    @property
    def path(self) -> Path:
        """Where it is on the disk."""
        path = self.bundle or self.onnx or self.torch
        assert path is not None  # an address has none
        return path


class CloudConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole file: one ``bundle``, or ``models``.

    threads: CPU threads that one batch may use. processes: whole servers behind the same ports. reload_s: how often it
    is looked whether models on the disk have changed; 0 for never.
    """

    bundle: Path | None = None
    models: tuple[ModelSettings, ...] = ()
    listen: Listen = Listen(grpc_port=8001, http_port=8000, metrics_port=8002)
    batching: BatchingSettings = BatchingSettings()
    admission: AdmissionSettings = AdmissionSettings()
    threads: int = 1
    processes: int = 1
    reload_s: float = 0.0
    admin: Admin = Admin()
    ray: RaySettings = RaySettings()
    log: LogOptions = LogOptions()
    tracing: TracingSettings = TracingSettings()

    def __post_init__(self) -> None:
        if self.bundle is None and not self.models:
            raise ValueError("bundle: missing, and there are no models either")
        if self.bundle is not None and self.models:
            raise ValueError("bundle and models exclude each other")
        if not 1 <= self.threads <= MAX_THREADS:
            raise ValueError(f"threads must be between 1 and {MAX_THREADS}")
        if not 1 <= self.processes <= MAX_PROCESSES:
            raise ValueError(f"processes must be between 1 and {MAX_PROCESSES}")
        if not 0 <= self.reload_s < math.inf:
            raise ValueError("reload_s must not be negative")
        if self.processes > 1 and self.admin.grpc_port is not None:
            raise ValueError("admin.grpc_port would change one of several processes; use reload_s")
        if self.admission.max_queue < self.batching.max_batch:
            raise ValueError("admission.max_queue must be at least batching.max_batch")
        if any(self.admission.max_queue < (each.max_batch or 1) for each in self.models):
            raise ValueError("admission.max_queue must be at least every model's max_batch")

    def every_model(self) -> tuple[ModelSettings, ...]:
        """What is to be served."""
        return self.models if self.bundle is None else (ModelSettings(bundle=self.bundle),)

    def batching_of(self, model: ModelSettings) -> BatchingSettings:
        """How one model's requests are put together."""
        if model.max_batch is None:
            return self.batching
        return msgspec.structs.replace(self.batching, max_batch=model.max_batch)


def load(path: Path | None, overrides: Mapping[str, Any]) -> CloudConfig:
    """The configuration from a file, with overrides by dotted key. Raises ConfigError naming the key."""
    return load_settings(CloudConfig, path, overrides)
