"""What can be known of the manifests without a cluster: they parse, and say what the code has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgemux.cloud import config as cloud
from edgemux.cloud.config import CloudConfig
from edgemux.cloud.metrics import Metrics

yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")

DEPLOY = Path(__file__).parents[2] / "deploy"
LISTEN = CloudConfig(bundle=Path("b")).listen
PORTS = {"grpc": LISTEN.grpc_port, "http": LISTEN.http_port, "metrics": LISTEN.metrics_port}
LABELS = {"app": "edgemux-cloud"}


@pytest.fixture
def objects() -> dict[str, Any]:
    return {each["kind"]: each for each in yaml.safe_load_all((DEPLOY / "kubernetes" / "cloud.yaml").read_text())}


@pytest.fixture
def container(objects: dict[str, Any]) -> Any:
    (only,) = objects["Deployment"]["spec"]["template"]["spec"]["containers"]
    return only


def probes(of: Any) -> list[Any]:
    return [of[name] for name in ("startupProbe", "readinessProbe", "livenessProbe") if name in of]


def test_the_ports_are_the_defaults(objects: dict[str, Any], container: Any) -> None:
    assert {port["name"]: port["containerPort"] for port in container["ports"]} == PORTS
    assert {port["name"]: port["port"] for port in objects["Service"]["spec"]["ports"]} == PORTS
    annotations = objects["Deployment"]["spec"]["template"]["metadata"]["annotations"]
    assert annotations["prometheus.io/port"] == str(PORTS["metrics"])


def test_the_configuration_is_one_that_the_server_takes(objects: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "cloud.toml"
    file.write_text(objects["ConfigMap"]["data"]["cloud.toml"])
    settings = cloud.load(file, {})
    assert {name: getattr(settings.listen, f"{name}_port") for name in PORTS} == PORTS
    pod = objects["Deployment"]["spec"]["template"]["spec"]
    sleep_s = float(pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["terminationGracePeriodSeconds"] > sleep_s + settings.listen.drain_s


def test_probes_ask_ports_that_answer_them(container: Any) -> None:
    for probe in probes(container):
        assert probe.get("grpc", {}).get("port", PORTS["grpc"]) == PORTS["grpc"]
        assert probe.get("httpGet", {}).get("port", PORTS["http"]) == PORTS["http"]


def test_everything_is_about_the_same_pods(objects: dict[str, Any]) -> None:
    spec = {kind: each.get("spec", {}) for kind, each in objects.items()}
    assert spec["Deployment"]["selector"]["matchLabels"] == LABELS
    assert spec["Deployment"]["template"]["metadata"]["labels"] == LABELS
    assert spec["Service"]["selector"] == LABELS
    assert spec["Service"]["clusterIP"] == "None"
    assert spec["PodDisruptionBudget"]["selector"]["matchLabels"] == LABELS
    assert spec["NetworkPolicy"]["podSelector"]["matchLabels"] == LABELS
    scaled = spec["HorizontalPodAutoscaler"]["scaleTargetRef"]
    assert (scaled["kind"], scaled["name"]) == ("Deployment", objects["Deployment"]["metadata"]["name"])
    assert "replicas" not in spec["Deployment"]


def test_the_autoscaler_reads_a_metric_that_there_is(objects: dict[str, Any]) -> None:
    metrics = Metrics()
    metrics.of("m")
    known = {family.name for family in metrics.registry.collect()}
    (metric,) = objects["HorizontalPodAutoscaler"]["spec"]["metrics"]
    assert metric["pods"]["metric"]["name"] in known


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
