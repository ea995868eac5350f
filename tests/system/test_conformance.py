"""The protocol as Triton speaks it, or a written reason: our servers as processes, and the real Triton and MLServer.

The peers' environments are made by ``benchmarks/serving_bench/peers.py make``; without them their tests are skipped.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from edgemux.multiplexer.bundle import Bundle, tail_model
from tests.split_bundle import COARSE

ROOT = Path(__file__).parents[2]
REASONS = ROOT / "proto" / "edgemux" / "wire" / "conformance" / "reasons"


def _peers() -> Any:
    path = ROOT / "benchmarks" / "serving_bench" / "peers.py"
    spec = importlib.util.spec_from_file_location("edgemux_peers", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


PEERS = _peers()


def conform(grpc: str, http: str, *options: str) -> tuple[int, list[dict[str, Any]]]:
    """Exit status and rows of the command."""
    where = ["--http", http] if http else []
    command = [sys.executable, "-m", "edgemux.wire.conformance", grpc, *where, "--json", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def failed(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What was answered otherwise for no reason."""
    return [row for row in rows if not row["ok"]]


def test_the_cloud_answers_as_triton_or_for_a_reason(cloud: Any) -> None:
    status, rows = conform(cloud.grpc, cloud.http)
    assert failed(rows) == []
    assert status == 0
    assert len(rows) >= 200
    # What no bundle's model can be asked, and nothing else.
    assert sum(row["got"] == "-" and not row["probe"].startswith("admin/") for row in rows) <= 3


def test_the_agent_answers_as_triton_or_for_a_reason(agent: Any) -> None:
    status, rows = conform(agent.grpc, agent.http)
    assert failed(rows) == []
    assert status == 0


def test_a_model_of_an_onnx_file_is_served_by_the_same_rules(tiny_bundle: Path, serving: Any, tmp_path: Path) -> None:
    config = tmp_path / "cloud.toml"
    config.write_text(f'[[models]]\nname = "any"\nonnx = "{cloud_model(tiny_bundle)}"\n[admin]\ngrpc_port = 0\n')
    with serving("cloud", "--config", str(config)) as server:
        status, rows = conform(server.grpc, server.http, "--model", "any", "--admin", server.admin)
    assert failed(rows) == []
    assert status == 0
    assert all(row["got"] != "-" for row in rows if row["probe"].startswith("admin/"))


def test_a_bundle_with_splits_and_a_tail_are_served_by_the_same_rules(
    split_bundle: Path, serving: Any, tmp_path: Path
) -> None:
    name = Bundle.open(split_bundle).manifest.name
    config = tmp_path / "cloud.toml"
    config.write_text(f'bundle = "{split_bundle}"\n[admin]\ngrpc_port = 0\n')
    with serving("cloud", "--config", str(config)) as server:
        for model, options in ((name, ("--admin", server.admin)), (tail_model(name, COARSE), ())):
            status, rows = conform(server.grpc, server.http, "--model", model, *options)
            assert failed(rows) == []
            assert status == 0


def cloud_model(bundle: Path) -> Path:
    """The bundle's largest model: an ONNX file like anybody's."""
    return bundle / Bundle.open(bundle).manifest.cloud.files[0]


def peer(name: str, bundle: Path, *options: str) -> AbstractContextManager[Any]:
    """A running one with the bundle's cloud model; the test is skipped where it cannot be had."""
    if not PEERS.ready_to_use(name):
        pytest.skip(f"{name} has no environment here; benchmarks/serving_bench/peers.py make {name}")
    batch = 1 if name == "mlserver" else 16
    found: AbstractContextManager[Any] = PEERS.serve(name, cloud_model(bundle), max_batch=batch, options=options)
    return found


def test_triton_answers_as_the_suite_says_it_does(tiny_bundle: Path) -> None:
    with peer("triton", tiny_bundle) as triton:
        status, rows = conform(triton.grpc, triton.http)
    assert failed(rows) == []
    assert status == 0
    assert all(row["got"] in (row["expected"], "-") for row in rows)


def test_triton_takes_orders_as_the_suite_says_it_does(tiny_bundle: Path) -> None:
    with peer("triton", tiny_bundle, "--model-control-mode=explicit", "--load-model=*") as triton:
        status, rows = conform(triton.grpc, "", "--admin", triton.grpc, "--only", "admin/")
    assert [row["got"] for row in rows] == [row["expected"] for row in rows]
    assert status == 0


def test_mlserver_answers_as_is_written_down(tiny_bundle: Path) -> None:
    with peer("mlserver", tiny_bundle) as mlserver:
        status, rows = conform(mlserver.grpc, mlserver.http, "--reasons", str(REASONS / "mlserver.toml"))
    assert failed(rows) == []
    assert status == 0
