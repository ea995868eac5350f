"""What can be known of KServe's manifest without a cluster: it parses, and says what the code has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgemux.cloud.config import CloudConfig

yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")

DEPLOY = Path(__file__).parents[2] / "deploy"
LISTEN = CloudConfig(bundle=Path("b")).listen
PORTS = {"grpc": LISTEN.grpc_port, "http": LISTEN.http_port, "metrics": LISTEN.metrics_port}


def probes(of: Any) -> list[Any]:
    return [of[name] for name in ("startupProbe", "readinessProbe", "livenessProbe") if name in of]


def test_the_runtime_of_kserve_says_the_same() -> None:
    runtime, service = yaml.safe_load_all((DEPLOY / "kserve" / "cloud.yaml").read_text())
    (container,) = runtime["spec"]["containers"]
    assert [port["containerPort"] for port in container["ports"]] == [PORTS["grpc"]]
    assert runtime["spec"]["annotations"]["prometheus.kserve.io/port"] == str(PORTS["metrics"])
    for probe in probes(container):
        assert probe.get("grpc", {}).get("port", PORTS["grpc"]) == PORTS["grpc"]
        assert probe.get("httpGet", {}).get("port", PORTS["http"]) == PORTS["http"]
    model = service["spec"]["predictor"]["model"]
    assert model["runtime"] == runtime["metadata"]["name"]
    assert model["modelFormat"]["name"] in {each["name"] for each in runtime["spec"]["supportedModelFormats"]}
    assert model["protocolVersion"] in runtime["spec"]["protocolVersions"]


@pytest.mark.parametrize("folder", ["kubernetes", "kserve"])
def test_whoever_reads_a_manifest_is_told_that_it_was_not_run(folder: str) -> None:
    assert "NOT RUN" in (DEPLOY / folder / "cloud.yaml").read_text()
