"""The demo as a user runs it: separate processes, real sockets, a cloud that is really killed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

REQUESTS = 150
KEYS = {
    "requests",
    "answered",
    "errors",
    "late",
    "accuracy",
    "routes",
    "reasons",
    "offload_share",
    "latency_ms",
    "cloud_compute_saved",
    "sent_bytes",
    "by_route",
}
PHASES = ["normal", "narrow_link", "busy_device", "slow_link", "cloud_killed", "cloud_back"]


def demo(bundle: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    # The timeout is generous: these tests are about answers, not about how fast this machine is just now.
    command = [sys.executable, "-m", "edgemux.cli.main", "demo", "--bundle", str(bundle), "--timeout", "10", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)


@pytest.fixture(scope="module")
def report(tiny_bundle: Path) -> dict[str, Any]:
    ended = demo(tiny_bundle, "--json", "--strict", "--requests", str(REQUESTS), "--rate", "50", "--seed", "5")
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == ""
    found: dict[str, Any] = json.loads(ended.stdout)
    return found


def test_every_request_of_every_phase_is_answered(report: dict[str, Any]) -> None:
    assert report["requests"] == report["answered"] == REQUESTS
    assert report["errors"] == report["late"] == 0
    assert list(report["phases"]) == PHASES
    for phase in report["phases"].values():
        assert phase["requests"] == phase["answered"] > 0


def test_the_report_is_complete_in_total_and_per_phase(report: dict[str, Any]) -> None:
    for part in (report, *report["phases"].values()):
        assert set(part) >= KEYS
        assert set(part["accuracy"]) == {"edge_only", "cloud_only", "multiplexed"}
        assert set(part["latency_ms"]) == {"p50", "p95", "p99"}
        assert set(part["routes"]) == {"edge", "cloud", "split"}
        assert sum(part["routes"].values()) == sum(part["reasons"].values()) == part["answered"]
        assert all(0 <= share <= 1 for share in (*part["accuracy"].values(), part["offload_share"]))
        assert part["cloud_compute_saved"] is not None
        assert 0 < part["latency_ms"]["p50"] <= part["latency_ms"]["p95"] <= part["latency_ms"]["p99"]


def test_the_totals_are_sums_but_accuracy_and_offload_share_are_of_the_normal_phase(report: dict[str, Any]) -> None:
    phases = report["phases"].values()
    for key in ("requests", "answered", "errors", "late"):
        assert report[key] == sum(phase[key] for phase in phases)
    for route, count in report["routes"].items():
        assert count == sum(phase["routes"][route] for phase in phases)
    assert report["accuracy"] == report["phases"]["normal"]["accuracy"]
    assert report["offload_share"] == report["phases"]["normal"]["offload_share"]


def test_the_cloud_model_alone_is_better_than_the_device_model_alone(report: dict[str, Any]) -> None:
    # True by construction of the tiny bundle: the reference answers come from really running its models.
    assert report["accuracy"]["edge_only"] < report["accuracy"]["cloud_only"]


def test_readers_get_tables_and_a_verdict(tiny_bundle: Path) -> None:
    ended = demo(tiny_bundle, "--requests", "25", "--rate", "50")
    assert ended.returncode == 0, ended.stderr
    assert "cloud killed" in ended.stdout
    assert "answers by reason" in ended.stdout
    assert "All 25 requests were answered within their deadline" in ended.stdout


def test_on_a_narrow_link_the_starter_bundle_is_answered_by_splits_and_readers_are_told() -> None:
    starter = Path(__file__).parents[2] / "deploy" / "bundles" / "fashion-mnist"
    ended = demo(starter, "--strict", "--requests", "600")
    assert ended.returncode == 0, ended.stderr
    assert "Splits (" in ended.stdout and "[split] max_loss" in ended.stdout
    assert "answers by route" in ended.stdout
    (line,) = re.findall(
        r"^Narrow link: (\d+) of \d+ answers from the cloud came by a split.*$", ended.stdout, re.MULTILINE
    )
    assert int(line) > 0


def test_a_demo_that_is_killed_leaves_no_process_behind(tiny_bundle: Path) -> None:
    if sys.platform != "linux":
        pytest.skip("the kernel ends children with their parent on Linux only")
    import psutil

    command = [sys.executable, "-m", "edgemux.cli.main", "demo", "--bundle", str(tiny_bundle)]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert running.stdout is not None
    with running:
        for line in running.stdout:
            if line.startswith("warming up"):
                break
        children = psutil.Process(running.pid).children(recursive=True)
        assert len(children) >= 2
        running.kill()
    gone, alive = psutil.wait_procs(children, timeout=20)
    assert not alive, [process.cmdline() for process in alive]
    assert len(gone) == len(children)


def test_a_bundle_that_is_damaged_is_refused_by_name_before_any_request(tiny_bundle: Path, tmp_path: Path) -> None:
    for entry in os.scandir(tiny_bundle):
        (tmp_path / entry.name).write_bytes(Path(entry.path).read_bytes())
    (tmp_path / "level-1.onnx").write_bytes(b"not a model")
    ended = demo(tmp_path, "--json", "--requests", "25")
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert ended.stderr.count("\n") == 1
    assert "level-1.onnx" in ended.stderr
