"""The services of compose.yaml as plain processes: same commands, same configuration files, no containers.

What that leaves out: images, networks, mounts, limits, and Grafana, which is not to be had here.
"""

from __future__ import annotations

import contextlib
import json
import math
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.compose import DOCKER, Stand, services
from tests.dockerfile import ROOT

pytestmark = [pytest.mark.deploy, pytest.mark.timeout(240)]
PATIENCE_S = 90.0


def wait_for(what: str, look: Callable[[], bool], stand: Stand) -> None:
    """Look until it is so; what the processes wrote is in the message when it never is."""
    until_s = time.monotonic() + PATIENCE_S
    while not look():
        if time.monotonic() > until_s:
            logs = {file.name: file.read_text()[-1500:] for file in stand.folder.glob("*.log")}
            pytest.fail(f"never: {what}; " + "".join(f"\n--- {name}\n{text}" for name, text in logs.items()))
        time.sleep(0.3)


def query(stand: Stand, expression: str) -> dict[str, float]:
    """Values by job of an instant query, empty while there is no Prometheus yet."""
    words = urllib.parse.urlencode({"query": expression})
    address = f"http://127.0.0.1:{stand.ports[9090]}/api/v1/query?{words}"
    try:
        with urllib.request.urlopen(address, timeout=10) as answer:
            found: list[dict[str, Any]] = json.load(answer)["data"]["result"]
    except urllib.error.URLError:
        return {}
    return {each["metric"].get("job", ""): float(each["value"][1]) for each in found}


@pytest.mark.parametrize(
    "files", [["compose.yaml"], ["compose.yaml", "compose.secure.yaml"]], ids=["private networks", "TLS and a token"]
)
def test_cloud_agent_and_traffic_run_and_prometheus_sees_them(files: list[str], tmp_path: Path) -> None:
    secrets = tmp_path / "secrets" if len(files) > 1 else None
    if secrets is not None:
        subprocess.run([str(DOCKER / "make-secrets.sh"), str(secrets)], check=True, capture_output=True)
    stand = Stand(tmp_path, services(*files), secrets)
    with contextlib.ExitStack() as all_of_them:
        for name in ("cloud", "agent"):
            all_of_them.enter_context(stand.running(stand.command(name), f"{name}.log"))
        all_of_them.enter_context(stand.running(stand.prometheus(), "prometheus.log"))
        for name in ("cloud", "agent"):
            wait_for(
                f"{name} is healthy",
                lambda name=name: subprocess.run(stand.health(name), capture_output=True, check=False).returncode == 0,
                stand,
            )
        all_of_them.enter_context(stand.running(stand.command("traffic"), "traffic.log"))
        wait_for("both jobs are up", lambda: query(stand, "up") == {"edgemux-edge": 1.0, "edgemux-cloud": 1.0}, stand)
        for job, counter in (
            ("edgemux-edge", "edgemux_requests_total"),
            ("edgemux-cloud", "edgemux_cloud_requests_total"),
        ):
            wait_for(
                f"{counter} grows",
                lambda job=job, counter=counter: query(stand, f"sum by (job) ({counter})").get(job, 0.0) >= 5.0,
                stand,
            )
        wait_for(
            "some answers come from the cloud",
            lambda: sum(query(stand, 'sum by (job) (edgemux_requests_total{route="cloud"})').values()) > 0,
            stand,
        )
        wait_for("the autoscaler's metrics are numbers", lambda: all(map(all_finite, adapted(stand))), stand)
        assert answers_anybody(f"http://127.0.0.1:{stand.ports[9002]}/metrics") == (secrets is None)


def adapted(stand: Stand) -> list[list[float]]:
    """What the rules of prometheus-adapter give for the cloud, a pod for each address that is scraped."""
    found = []
    for rule in yaml.safe_load((ROOT / "deploy" / "helm" / "prometheus-adapter.yaml").read_text())["rules"]["custom"]:
        expression = rule["metricsQuery"].replace("<<.Series>>", rule["seriesQuery"].partition("{")[0])
        expression = expression.replace("<<.LabelMatchers>>", 'job="edgemux-cloud"').replace("<<.GroupBy>>", "job")
        found.append(list(query(stand, expression).values()))
    return found


def all_finite(values: list[float]) -> bool:
    return bool(values) and all(map(math.isfinite, values))


def answers_anybody(address: str) -> bool:
    """Whether somebody without TLS and a token gets an answer."""
    try:
        with urllib.request.urlopen(address, timeout=10):
            return True
    except OSError:
        return False
