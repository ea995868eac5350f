"""The part of an examination that a cloud server's machine gets: what an agent's has too, and its models' files."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from pathlib import Path

from edgemux.cloud.config import CloudConfig, ModelSettings
from edgemux.edge.doctor import probes, timing
from edgemux.edge.doctor.access import file_findings, port_findings, tracing_findings
from edgemux.edge.doctor.models import runtime_findings
from edgemux.edge.doctor.resources import clock_findings, descriptor_findings
from edgemux.multiplexer.bundle import Bundle
from edgemux.multiplexer.errors import ArtifactError
from edgemux.multiplexer.findings import Finding, Findings

MODEL_TIMEOUT_S = 60.0


def examine(config: CloudConfig) -> Iterator[Finding]:
    """Every finding as it is made. Raises nothing that a machine causes."""
    now = datetime.datetime.now(datetime.UTC)
    yield from descriptor_findings(probes.look_at_descriptors())
    yield from clock_findings(now, config.listen.tls.cert is not None)
    yield from file_findings(probes.look_at_own_files(config.listen), now)
    yield from port_findings(probes.look_at_ports(config.listen))
    yield from tracing_findings(config.tracing.endpoint, probes.look_at_tracing(config.tracing))
    yield from runtime_findings(timing.look_at_runtime())
    found = Findings("models")
    for number, model in enumerate(config.every_model()):
        _model("bundle" if config.bundle is not None else f"models[{number}]", model, found)
    yield from found.all


def _model(about: str, model: ModelSettings, found: Findings) -> None:
    """Whether what a model is made of is there; a bundle's files are digested."""
    try:
        says = probes.within(MODEL_TIMEOUT_S, lambda: _looked(model))
    except TimeoutError:
        says = f"it cannot be read within {MODEL_TIMEOUT_S:g} s"
        found.problem(about, says, "look at the disk, or a network mount of it", stops=True)
    except (ArtifactError, OSError) as error:
        says = str(error) if isinstance(error, ArtifactError) else f"cannot be read ({error.strerror})"
        found.problem(about, says, "copy it again, whole, or correct its path", stops=True)
    else:
        found.ok(about, says)


def _looked(model: ModelSettings) -> str:
    """What is there. Raises ArtifactError or OSError for what is not."""
    if model.bundle is not None:
        bundle = Bundle.open(model.bundle)
        bundle.verify()
        return f"{bundle.manifest.name} version {bundle.manifest.version}: digests hold"
    path: Path | None = model.onnx or model.torch
    if path is None:
        return f"answered by {model.address}, which is not asked here"
    path.stat()
    return "a folder of versions" if path.is_dir() else "a file"
