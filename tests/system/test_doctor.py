"""The doctor as a process, beside a cloud and an agent that run."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.authority import DAY, Authority


def doctor(*options: str) -> tuple[int, dict[str, dict[str, Any]]]:
    """Its exit status, and its findings by part and what they are about."""
    command = [sys.executable, "-m", "edgemux.cli.main", "doctor", "--json", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.stderr == ""
    return done.returncode, {f"{f['part']}: {f['about']}": f for f in json.loads(done.stdout)["findings"]}


def test_a_real_cloud_is_reached_to_the_last_step(cloud: Any, tiny_bundle: Path) -> None:
    status, found = doctor("--bundle", str(tiny_bundle), "--cloud", cloud.grpc)
    assert status == 0
    for step in ("TCP", "TLS", "model", "round trip"):
        assert found[f"cloud: {cloud.grpc} {step}"]["grade"] == "ok", step
    # Later than the deadline, on a machine that is busy enough, is a note.
    assert found[f"cloud: {cloud.grpc} offload"]["grade"] != "problem"


def test_a_cloud_with_another_model_is_found_out(cloud: Any) -> None:
    starter = Path(__file__).parents[2] / "deploy/bundles/fashion-mnist"
    status, found = doctor("--bundle", str(starter), "--cloud", cloud.grpc)
    assert status == 0
    model = found[f"cloud: {cloud.grpc} model"]
    assert (model["grade"], "another model" in model["says"]) == ("problem", True)


def test_an_agent_that_runs_is_seen_at_its_ports(agent: Any, tiny_bundle: Path, tmp_path: Path) -> None:
    ports = {name: getattr(agent, name).rpartition(":")[2] for name in ("grpc", "http", "metrics")}
    lines = [f"{name}_port = {number}" for name, number in ports.items()]
    settings = tmp_path / "edge.toml"
    settings.write_text("\n".join([f'bundle = "{tiny_bundle}"', "[listen]", *lines]))
    status, found = doctor("--config", str(settings))
    assert status == 0
    assert "a server that is ready" in found["ports: listen.http_port"]["says"]
    assert [found[f"ports: listen.{name}_port"]["grade"] for name in ports] == ["ok"] * 3


@pytest.mark.parametrize("expired", [False, True])
def test_a_cloud_s_token_and_certificate_are_tried(
    serving: Callable[..., Any], tiny_bundle: Path, authority: Authority, tmp_path: Path, expired: bool
) -> None:
    dates = {"first": -9 * DAY, "last": -DAY} if expired else {}
    pair = authority.issue(f"doctor-cloud-{expired}", **dates)
    tokens = tmp_path / "tokens"
    tokens.write_text("a-token-of-twenty-ch")
    secured = ("--tls-cert", str(pair.cert), "--tls-key", str(pair.key), "--token-file", str(tokens))
    with serving("cloud", "--bundle", str(tiny_bundle), *secured) as server:
        settings = tmp_path / "edge.toml"
        settings.write_text(
            f'bundle = "{tiny_bundle}"\n[cloud]\naddress = "{server.grpc}"\n[cloud.tls]\nca = "{authority.ca}"\n'
        )
        status, found = doctor("--config", str(settings))
        assert status == 0
        tls = found[f"cloud: {server.grpc} TLS"]
        if expired:
            assert (tls["grade"], "expired" in tls["says"]) == ("problem", True)
            return
        # Ends within two weeks.
        assert (tls["grade"], "until" in tls["says"] or "ends" in tls["says"]) == ("note", True)
        assert "cloud.token_file" in found[f"cloud: {server.grpc} gRPC"]["fix"]
        settings.write_text(
            f'bundle = "{tiny_bundle}"\n[cloud]\naddress = "{server.grpc}"\ntoken_file = "{tokens}"\n'
            f'[cloud.tls]\nca = "{authority.ca}"\n'
        )
        status, found = doctor("--config", str(settings))
        assert (status, found[f"cloud: {server.grpc} model"]["grade"]) == (0, "ok")


def test_a_cloud_s_own_file_is_looked_at_too(tiny_bundle: Path, tmp_path: Path) -> None:
    ports = "grpc_port = 0\nhttp_port = 0\nmetrics_port = 0"
    settings = tmp_path / "cloud.toml"
    settings.write_text(f'threads = 1\nbundle = "{tiny_bundle}"\n[listen]\n{ports}\n')
    status, found = doctor("--config", str(settings))
    assert (status, found["models: bundle"]["grade"]) == (0, "ok")
    settings.write_text(f'[[models]]\nonnx = "{tmp_path}/nowhere.onnx"\n[listen]\n{ports}\n')
    status, found = doctor("--config", str(settings))
    assert (status, found["models: models[0]"]["stops"]) == (1, True)
