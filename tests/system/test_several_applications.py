"""One agent process that serves two applications, asked by a stock client."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tritonclient.utils import InferenceServerException

TWO = """
[limits]
memory_bytes = {memory}

[[applications]]
bundle = "{bundle}"
name = "door"
latency_s = 0.05

[[applications]]
bundle = "{bundle}"
name = "till"
policy = "fixed-level(level=1)"
"""


@pytest.fixture
def config(tiny_bundle: Path, tmp_path: Path) -> Path:
    file = tmp_path / "edge.toml"
    file.write_text(TWO.format(bundle=tiny_bundle, memory=1_000_000))
    return file


def test_both_are_served_by_name_from_one_set_of_ports(config: Path, serving: Any, samples: Any) -> None:
    images, labels = samples["images"][:50], samples["labels"][:50]
    with serving("edge", "--config", str(config)) as running, running.client() as client:
        right = {}
        for name in ("door", "till"):
            assert client.is_model_ready(name)
            answer = client.ask(images, name)
            assert answer.get_response().model_name == name
            right[name] = float(np.mean(answer.as_numpy("label") == labels))
        assert right["door"] > right["till"]
        assert not client.is_model_ready("fashion-mnist")
        with pytest.raises(InferenceServerException, match="model_name"):
            client.ask(images, "fashion-mnist")
        assert {model.name for model in client.get_model_repository_index().models} == {"door", "till"}
        with grpc.insecure_channel(running.grpc) as channel:
            for name in ("door", "till"):
                check = health_pb2.HealthCheckRequest(service=name)
                assert health_pb2_grpc.HealthStub(channel).Check(check).status == 1
        scraped = running.scrape()
        for name in ("door", "till"):
            assert scraped[f'edgemux_request_duration_seconds_count{{model="{name}",route="edge"}}'] == 50
            assert scraped[f'edgemux_plan_level{{model="{name}"}}'] == 4
            assert running.get(f"/v2/models/{name}")[1]["name"] == name
        status = running.get("/status")[1]
        assert set(status["applications"]) == {"door", "till"}
        assert status["ready"]
        assert running.stop() == 0


def test_the_memory_bound_of_the_configuration_holds(tiny_bundle: Path, config: Path, serving: Any) -> None:
    sizes = [(tiny_bundle / f"level-{number}.onnx").stat().st_size for number in range(1, 5)]
    config.write_text(TWO.format(bundle=tiny_bundle, memory=sum(sizes) + sizes[0]))
    with serving("edge", "--config", str(config)) as running:
        scraped = running.scrape()
    resident = [scraped[f'edgemux_resident_bytes{{model="{name}"}}'] for name in ("door", "till")]
    assert 2 * sizes[0] < sum(resident) <= sum(sizes) + sizes[0]


def test_a_bundle_on_the_command_line_beside_applications_is_refused(
    config: Path, tiny_bundle: Path, ended: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    done = ended("edge", "--config", str(config), "--bundle", str(tiny_bundle))
    assert done.returncode == 2
    assert "not both" in done.stderr
