"""The Helm chart, rendered by Helm's own library: every combination is what schemas want and says what the code has.

Rendering is done in a process of its own: the library brings the Go runtime, with its threads and signal handlers.
"""

from __future__ import annotations

import base64
import copy
import functools
import json
import platform
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from edgemux.cloud import config as cloud
from edgemux.cloud.config import CloudConfig
from edgemux.cloud.metrics import Metrics
from tests import dockerfile
from tests.authority import OPENSSL, Authority
from tests.compose import services
from tests.dockerfile import ROOT

HELM = ROOT / "deploy" / "helm"
CHART = HELM / "edgemux-cloud"
# The oldest that the chart is for, and a new one.
KUBERNETES = ("1.27", "1.34")
READ = functools.cache(kubernetes_validate.utils.schema_contents)
CORE = ("apps/", "autoscaling/", "networking.k8s.io/", "policy/", "v1")
LISTEN = CloudConfig(bundle=Path("b")).listen
PORTS = {"grpc": LISTEN.grpc_port, "http": LISTEN.http_port, "metrics": LISTEN.metrics_port}

pytestmark = pytest.mark.skipif(
    platform.machine() != "x86_64", reason="Helm's library comes as a wheel for x86-64 only"
)

TLS = {"enabled": True, "existingSecret": "certificate"}
TOKEN = {"enabled": True, "existingSecret": "tokens"}
MONITORED = {"serviceMonitor": {"enabled": True, "labels": {"release": "p"}}, "prometheusRule": {"enabled": True}}
CASES: dict[str, dict[str, Any]] = {
    "default": {},
    "tls and token": {"tls": TLS, "token": TOKEN},
    "clients' certificates": {"tls": TLS | {"clientCaKey": "ca.crt", "serverName": "cloud"}},
    "own secrets": {
        "tls": {"enabled": True, "cert": "C", "key": "K", "ca": "A"},
        "token": {"enabled": True, "tokens": ["a" * 16, "b" * 16]},
        **MONITORED,
    },
    "monitored": MONITORED,
    "monitored with tls": {**MONITORED, "tls": TLS, "token": TOKEN},
    "fixed": {"autoscaling": {"enabled": False}, "replicaCount": 3},
    "model in an image": {"model": {"initImage": "models:1", "existingClaim": ""}},
    "several models": {"model": {"path": ""}, "config": 'models = [{bundle = "/models/a"}, {bundle = "/models/b"}]'},
    "other ports": {"ports": {"grpc": 5001, "http": 5000, "metrics": 5002}, "drainSeconds": 60, "preStopSeconds": 20},
    "everything": {
        "fullnameOverride": "eyes",
        "image": {"digest": f"sha256:{'0' * 64}", "pullPolicy": "Always"},
        "imagePullSecrets": [{"name": "pull"}],
        "podAnnotations": {"a": "1"},
        "podLabels": {"b": "2"},
        "extraEnv": [{"name": "A", "value": "1"}],
        "nodeSelector": {"kubernetes.io/arch": "arm64"},
        "tolerations": [{"key": "k", "operator": "Exists"}],
        "affinity": {"nodeAffinity": {}},
        "priorityClassName": "high",
        "service": {"annotations": {"c": "3"}},
        "serviceAccount": {"annotations": {"d": "4"}},
        "networkPolicy": {
            "extraFrom": [{"ipBlock": {"cidr": "192.0.2.0/24"}}],
            "egress": [{"ports": [{"port": 4317}]}],
        },
        "podDisruptionBudget": {"minAvailable": "50%"},
        "autoscaling": {"targetQueueSeconds": 0.029},
    },
    "bare": {
        name: {"enabled": False} for name in ("autoscaling", "podDisruptionBudget", "networkPolicy", "topologySpread")
    }
    | {"serviceAccount": {"create": False}},
}
# What the page shows, on top of what it says to make by hand.
PAGE = (ROOT / "docs" / "deploy-cloud.md").read_text()
CASES |= {
    f"page {number}": yaml.safe_load(text)
    for number, text in enumerate(re.findall(r"```yaml\n# values\n(.*?)```", PAGE, re.DOTALL))
}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a misspelt value": ({"replicas": 3}, "replicas"),
    "a misspelt value further in": ({"tls": {"enable": True}}, "enable"),
    "a port that takes being root": ({"ports": {"http": 80}}, "/ports/http"),
    "a digest that is none": ({"image": {"digest": "latest"}}, "/image/digest"),
    "a short token": ({"token": {"enabled": True, "tokens": ["short"]}}, "/token/tokens"),
    "a number as text": ({"autoscaling": {"maxReplicas": "9"}}, "maxReplicas"),
    "tls without a certificate": ({"tls": {"enabled": True}}, "give tls.existingSecret, or tls.cert and tls.key"),
    "a token in plaintext": ({"token": TOKEN}, "enable tls too"),
    "tokens that are nowhere": ({"tls": TLS, "token": {"enabled": True}}, "give token.existingSecret or token.tokens"),
    "clients' certificates without tls": ({"tls": {"clientCaKey": "ca.crt"}}, "needs tls.enabled"),
    "no model": ({"model": {"existingClaim": ""}}, "give model.existingClaim or model.initImage"),
    "a nested place for an image's model": ({"model": {"path": "a/b", "initImage": "i"}}, "one folder"),
    "scrapes that trust nobody": (
        {"serviceMonitor": {"enabled": True}, "tls": {"enabled": True, "cert": "C", "key": "K"}},
        "give tls.ca",
    ),
}
_CHILD = """
import json, pathlib, runpy, sys, tarfile, tempfile
import helm_python
made = runpy.run_path(sys.argv[1])
found = {"plain": made["plain"](), "lint": helm_python.lint(str(made["CHART"]), strict=True), "cases": {}}
with tempfile.TemporaryDirectory() as folder, helm_python.Chart.load(made["CHART"]) as chart:
    with tarfile.open(chart.save(folder)) as packed:
        files = [each for each in packed if "/rules/" in each.name]
        found["packed"] = {pathlib.Path(each.name).name: packed.extractfile(each).read().decode() for each in files}
for name, values in json.load(sys.stdin).items():
    try:
        with helm_python.Chart.load(made["CHART"]) as chart:
            chart.validate_schema(values)
        found["cases"][name] = made["rendered"](values, namespace="there")
    except helm_python.HelmError as error:
        found["cases"][name] = str(error)
json.dump(found, sys.stdout)
"""


@pytest.fixture(scope="module")
def helm() -> dict[str, Any]:
    """What Helm makes of the cases: texts by template, or why it refused; and what its linter says."""
    cases = json.dumps(CASES | {name: values for name, (values, _) in REFUSED.items()})
    command = [sys.executable, "-c", _CHILD, str(HELM / "render.py")]
    done = subprocess.run(command, input=cases, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def objects(helm: dict[str, Any], case: str) -> dict[str, Any]:
    """The objects of a case by kind; Secrets by their names."""
    made = helm["cases"][case]
    assert isinstance(made, dict), made
    return copy.deepcopy(parsed("\n---\n".join(text for name, text in made.items() if name != "NOTES.txt")))


@functools.cache
def parsed(text: str) -> dict[str, Any]:
    every = [each for each in yaml.load_all(text, yaml.CSafeLoader) if each is not None]
    found = {each["kind"] if each["kind"] != "Secret" else each["metadata"]["name"]: each for each in every}
    assert len(found) == len(every)
    return found


def container(found: dict[str, Any]) -> Any:
    (only,) = found["Deployment"]["spec"]["template"]["spec"]["containers"]
    return only


# --- what Helm and Kubernetes say ---


def test_the_linter_has_nothing_to_say(helm: dict[str, Any]) -> None:
    assert helm["lint"]["errors"] == []
    assert [each["error"] for each in helm["lint"]["messages"]] == ["icon is recommended"]


@pytest.fixture
def read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The validator reads megabytes of schemas for every object; here it gets those that it has read before."""
    monkeypatch.setattr(kubernetes_validate.utils, "schema_contents", READ)


@pytest.mark.usefixtures("read_once")
@pytest.mark.parametrize("version", KUBERNETES)
def test_objects_are_what_kubernetes_takes(helm: dict[str, Any], version: str) -> None:
    distinct = {json.dumps(each): each for case in CASES for each in objects(helm, case).values()}
    core = [each for each in distinct.values() if each["apiVersion"].startswith(CORE)]
    kinds = {"ConfigMap", "Deployment", "HorizontalPodAutoscaler", "NetworkPolicy", "PodDisruptionBudget"}
    assert {each["kind"] for each in core} == kinds | {"Secret", "Service", "ServiceAccount"}
    for each in core:
        kubernetes_validate.validate(each, version, strict=True)


def test_the_check_of_objects_sees_what_is_wrong(helm: dict[str, Any]) -> None:
    deployment = objects(helm, "default")["Deployment"]
    deployment["spec"]["template"]["spec"]["containers"][0]["portz"] = []
    with pytest.raises(kubernetes_validate.ValidationError, match="portz"):
        kubernetes_validate.validate(deployment, KUBERNETES[-1], strict=True)


@pytest.mark.parametrize("case", REFUSED)
def test_wrong_values_are_refused_and_named(helm: dict[str, Any], case: str) -> None:
    said = helm["cases"][case]
    assert isinstance(said, str), "it was rendered"
    assert REFUSED[case][1] in said


def test_the_schema_knows_every_value_and_its_defaults() -> None:
    values, schema = (CHART / "values.yaml").read_text(), json.loads((CHART / "values.schema.json").read_text())
    jsonschema.Draft7Validator.check_schema(schema)
    jsonschema.validate(yaml.safe_load(values), schema)

    def names(described: dict[str, Any], at: str = "") -> set[str]:
        inner = described.get("properties", {})
        return {f"{at}{key}" for key in inner}.union(
            *(names(each, f"{at}{key}.") for key, each in inner.items()), set()
        )

    def given(value: Any, at: str = "") -> set[str]:
        if not isinstance(value, dict) or at in ("resources.", "networkPolicy.clientLabels."):
            return set()
        return {f"{at}{key}" for key in value}.union(
            *(given(each, f"{at}{key}.") for key, each in value.items()), set()
        )

    known = {name for name in names(schema) if not name.startswith("resources.") and name != "global"}
    assert given(yaml.safe_load(values)) == known


def test_chart_image_and_package_have_one_version() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"] == version
    tags = {each["image"] for each in services("compose.yaml").values() if each["image"].startswith("edgemux-")}
    assert tags == {f"edgemux-cloud:{version}", f"edgemux-edge:{version}"}
    assert f"image: edgemux-cloud:{version}" in (ROOT / "deploy" / "kserve" / "cloud.yaml").read_text()


def test_the_plain_manifest_is_what_the_chart_gives(helm: dict[str, Any]) -> None:
    assert (ROOT / "deploy" / "kubernetes" / "cloud.yaml").read_text() == helm["plain"], "run deploy/helm/render.py"


def test_a_packed_chart_holds_the_repository_s_rules(helm: dict[str, Any]) -> None:
    ours = {path.name: path.read_text() for path in (ROOT / "deploy" / "prometheus" / "rules").iterdir()}
    assert {"recording.yml", "alerts.yml"} <= ours.keys()
    assert helm["packed"] == ours


# --- what the code says ---


@pytest.mark.parametrize("case", CASES)
def test_the_configuration_is_one_that_the_server_takes(helm: dict[str, Any], case: str, tmp_path: Path) -> None:
    found = objects(helm, case)
    file = tmp_path / "cloud.toml"
    file.write_text(found["ConfigMap"]["data"]["cloud.toml"])
    settings = cloud.load(file, {})
    ports = {name: getattr(settings.listen, f"{name}_port") for name in PORTS}
    assert ports == {**PORTS, **CASES[case].get("ports", {})}
    assert {port["name"]: port["containerPort"] for port in container(found)["ports"]} == ports
    assert {port["name"]: port["port"] for port in found["Service"]["spec"]["ports"]} == ports
    pod = found["Deployment"]["spec"]["template"]["spec"]
    sleep_s = float(container(found)["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["terminationGracePeriodSeconds"] > sleep_s + settings.listen.drain_s
    mounted = {each["mountPath"] for each in container(found)["volumeMounts"]}
    paths = [settings.bundle, settings.listen.token_file, settings.listen.tls.cert, settings.listen.tls.client_ca]
    for path in filter(None, paths):
        assert any(str(path).startswith(f"{folder}/") for folder in mounted), path
    assert {each["name"] for each in container(found)["volumeMounts"]} == {each["name"] for each in pod["volumes"]}
    authenticated = settings.listen.token_file is not None or settings.listen.tls.client_ca is not None
    assert settings.listen.insecure == (not (settings.listen.tls.cert is not None and authenticated))


@pytest.mark.parametrize("case", CASES)
def test_probes_ask_what_answers_them(helm: dict[str, Any], case: str) -> None:
    found = objects(helm, case)
    values = CASES[case].get("tls", {})
    for name in ("startupProbe", "readinessProbe", "livenessProbe"):
        probe = container(found)[name]
        if values.get("clientCaKey"):
            assert "httpGet" not in probe
            continue
        assert probe["httpGet"]["port"] == "http"
        assert probe["httpGet"]["scheme"] == ("HTTPS" if values.get("enabled") else "HTTP")
        assert probe["httpGet"]["path"] == f"/v2/health/{'live' if name == 'livenessProbe' else 'ready'}"


@pytest.mark.skipif(OPENSSL is None, reason="needs openssl")
def test_the_probe_of_a_server_that_wants_certificates_is_a_command_that_works(
    helm: dict[str, Any], tiny_bundle: Path, tmp_path: Path
) -> None:
    """The server as configured by the ConfigMap, with a Secret as files, and the probe's command, on a free port."""
    authority = Authority(tmp_path)
    pair = authority.issue("cloud", "DNS:cloud")
    secret = {"tls.crt": pair.cert, "tls.key": pair.key, "ca.crt": authority.ca}
    for name, source in secret.items():
        shutil.copyfile(source, tmp_path / name)
    found = objects(helm, "clients' certificates")
    text = found["ConfigMap"]["data"]["cloud.toml"].replace("/run/secrets/tls", str(tmp_path))
    text = re.sub(r"_port = \d+", "_port = 0", text).replace("0.0.0.0", "127.0.0.1")
    (tmp_path / "cloud.toml").write_text(text.replace("/models/bundle", str(tiny_bundle)))
    args = [word.replace("/etc/edgemux", str(tmp_path)) for word in container(found)["args"]]
    command = [sys.executable, "-m", "edgemux.cli.main"]
    with subprocess.Popen([*command, *args], stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            http = re.search(r" http=(\S+)", server.stdout.readline())
            assert http is not None
            entry, *words = container(found)["readinessProbe"]["exec"]["command"]
            words = [
                word.replace("127.0.0.1:8000", http[1]).replace("/run/secrets/tls", str(tmp_path)) for word in words
            ]
            assert entry == "edgemux"
            assert subprocess.run([*command, *words], capture_output=True, timeout=100, check=False).returncode == 0
        finally:
            server.terminate()


@pytest.mark.parametrize("case", CASES)
def test_everything_is_about_the_same_pods(helm: dict[str, Any], case: str) -> None:
    found = objects(helm, case)
    spec = {kind: each.get("spec", {}) for kind, each in found.items()}
    labels = spec["Deployment"]["selector"]["matchLabels"]
    assert labels.items() <= spec["Deployment"]["template"]["metadata"]["labels"].items()
    assert spec["Service"]["selector"] == labels
    assert spec["Service"]["clusterIP"] == "None"
    places = {"PodDisruptionBudget": "selector", "NetworkPolicy": "podSelector", "ServiceMonitor": "selector"}
    for kind, place in places.items():
        assert kind not in spec or spec[kind][place]["matchLabels"] == labels
    assert ("replicas" in spec["Deployment"]) == ("HorizontalPodAutoscaler" not in found)
    if "HorizontalPodAutoscaler" in found:
        scaled = spec["HorizontalPodAutoscaler"]["scaleTargetRef"]
        assert scaled["name"] == found["Deployment"]["metadata"]["name"]
    assert all(each["metadata"].get("namespace") in (None, "there") for each in found.values())


@pytest.mark.parametrize("case", CASES)
def test_pods_run_as_the_image_s_user_and_may_do_nothing_else(helm: dict[str, Any], case: str) -> None:
    pod = objects(helm, case)["Deployment"]["spec"]["template"]["spec"]
    image = dockerfile.read(ROOT / "deploy" / "docker" / "cloud.Dockerfile")[-1]
    ids = [pod["securityContext"][name] for name in ("runAsUser", "runAsGroup")]
    assert ":".join(map(str, ids)) == image.last("USER")
    assert pod["securityContext"]["runAsNonRoot"]
    assert not pod["automountServiceAccountToken"]
    # What the Pod Security Standard "restricted" asks for beside what is below.
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
    kinds = {kind for volume in pod["volumes"] for kind in volume if kind != "name"}
    assert kinds <= {"configMap", "emptyDir", "persistentVolumeClaim", "secret"}
    for each in [*pod["containers"], *pod.get("initContainers", [])]:
        assert each["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
    assert image.command("CMD") == pod["containers"][0]["args"]


def test_the_autoscaler_reads_metrics_that_the_adapter_makes_of_ours(helm: dict[str, Any]) -> None:
    metrics = Metrics()
    metrics.of("m")
    exported = {sample.name for family in metrics.registry.collect() for sample in family.samples}
    made = set()
    for rule in yaml.safe_load((HELM / "prometheus-adapter.yaml").read_text())["rules"]["custom"]:
        series = rule["seriesQuery"].partition("{")[0]
        naming = rule.get("name", {"matches": "$^", "as": ""})
        made.add(re.sub(naming["matches"], naming["as"], series))
        asked = set(re.findall(r"edgemux_\w+", rule["metricsQuery"].replace("<<.Series>>", series)))
        assert asked | {series} <= exported
    spec = objects(helm, "default")["HorizontalPodAutoscaler"]["spec"]
    assert {each["pods"]["metric"]["name"] for each in spec["metrics"]} == made
    assert spec["metrics"][0]["pods"]["target"]["averageValue"] == "20m"
    odd = objects(helm, "everything")["HorizontalPodAutoscaler"]["spec"]
    assert odd["metrics"][0]["pods"]["target"]["averageValue"] == "29m"


# --- secrets, and what the Prometheus Operator reads ---


def test_secrets_that_the_chart_makes_are_those_that_it_mounts(helm: dict[str, Any]) -> None:
    found = objects(helm, "own secrets")
    certificate, tokens = found["edgemux-cloud-tls"], found["edgemux-cloud-token"]
    assert certificate["stringData"] == {"tls.crt": "C", "tls.key": "K", "ca.crt": "A"}
    assert tokens["stringData"] == {"tokens": f"{'a' * 16}\n{'b' * 16}", "scrape": "a" * 16}
    volumes = {each["name"]: each for each in found["Deployment"]["spec"]["template"]["spec"]["volumes"]}
    assert volumes["tls"]["secret"]["secretName"] == certificate["metadata"]["name"]
    assert volumes["token"]["secret"]["secretName"] == tokens["metadata"]["name"]
    for text in helm["cases"]["own secrets"].values():
        if "kind: Secret" not in text:
            assert "aaaa" not in text and base64.b64encode(b"a" * 15).decode() not in text
    assert not any("Secret" in each["kind"] for each in objects(helm, "tls and token").values())


@pytest.mark.parametrize("case", ["own secrets", "monitored", "monitored with tls"])
def test_monitors_and_rules_have_the_fields_of_their_kinds(helm: dict[str, Any], case: str) -> None:
    """Against fields written down from the operator's API reference: its own schemas are not to be had here."""
    found = objects(helm, case)
    monitor, rule = found["ServiceMonitor"], found["PrometheusRule"]
    assert monitor["apiVersion"] == rule["apiVersion"] == "monitoring.coreos.com/v1"
    (endpoint,) = monitor["spec"]["endpoints"]
    jsonschema.validate(endpoint, ENDPOINT)
    jsonschema.validate(rule["spec"], RULES)
    assert endpoint["port"] in {port["name"] for port in found["Service"]["spec"]["ports"]}
    assert monitor["spec"]["selector"]["matchLabels"].items() <= found["Service"]["metadata"]["labels"].items()
    assert {"targetLabel": "job", "replacement": "edgemux-cloud"} in endpoint["relabelings"]
    assert (endpoint.get("scheme") == "https") == ("tlsConfig" in endpoint) == ("tls" in CASES[case])
    files = [yaml.safe_load((CHART / "rules" / name).read_text()) for name in ("recording.yml", "alerts.yml")]
    assert rule["spec"]["groups"] == [group for file in files for group in file["groups"]]
    annotations = found["Deployment"]["spec"]["template"]["metadata"]["annotations"]
    assert "prometheus.io/scrape" not in annotations


def _fields(required: list[str], **properties: Any) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": False, "required": required, "properties": properties}


_TEXT = {"type": "string"}
_KEY = _fields(["name", "key"], name=_TEXT, key=_TEXT)
_FILE = _fields(["secret"], secret=_KEY)
ENDPOINT = _fields(
    ["port"],
    port=_TEXT,
    path=_TEXT,
    interval={"type": "string", "pattern": "^[0-9]+(ms|s|m)$"},
    scheme={"enum": ["http", "https"]},
    relabelings={"type": "array", "items": _fields(["targetLabel"], targetLabel=_TEXT, replacement=_TEXT)},
    tlsConfig=_fields(["ca"], ca=_FILE, cert=_FILE, keySecret=_KEY, serverName=_TEXT),
    authorization=_fields(["credentials"], credentials=_KEY),
)
_TEXTS = {"type": "object", "additionalProperties": _TEXT}
_RULE = _fields(["expr"], record=_TEXT, alert=_TEXT, expr={}, labels=_TEXTS, annotations=_TEXTS, **{"for": _TEXT})
_RULE["properties"]["keep_firing_for"] = _TEXT
RULES = _fields(
    ["groups"],
    groups={
        "type": "array",
        "minItems": 1,
        "items": _fields(["name", "rules"], name=_TEXT, interval=_TEXT, rules={"type": "array", "items": _RULE}),
    },
)
