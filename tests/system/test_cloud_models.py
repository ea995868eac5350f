"""A cloud server that is told to load and unload models, by stock clients, over its own address for that."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import tritonclient.grpc as triton
from grpc_health.v1 import health_pb2, health_pb2_grpc
from numpy.typing import NDArray

PATIENCE_S = 60.0
MODEL = "pictures"


@pytest.fixture
def folder(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A folder of versions with one in it."""
    shutil.copytree(tiny_bundle, tmp_path / "models" / "1")
    return tmp_path / "models"


@pytest.fixture
def server(folder: Path, tmp_path: Path, serving: Callable[..., Any]) -> Iterator[Any]:
    config = tmp_path / "cloud.toml"
    config.write_text(f'[[models]]\nname = "{MODEL}"\nbundle = "{folder}"\n[admin]\ngrpc_port = 0\n')
    with serving("cloud", "--config", str(config)) as running:
        yield running


def test_a_new_version_takes_over_under_load_and_no_request_fails(
    server: Any, folder: Path, samples: dict[str, NDArray[Any]]
) -> None:
    over, answered, failed = threading.Event(), [], []

    def ask() -> None:
        with server.client() as client:
            while not over.is_set():
                try:
                    answered.append(client.ask(samples["images"][:1], MODEL).get_response().model_version)
                except triton.InferenceServerException as error:
                    failed.append(error)

    clients = [threading.Thread(target=ask) for _ in range(4)]
    for each in clients:
        each.start()
    with triton.InferenceServerClient(server.admin) as orders:
        shutil.copytree(folder / "1", folder / "2")
        orders.load_model(MODEL)
        index = orders.get_model_repository_index()
        assert [(each.version, each.state) for each in index.models] == [("2", "READY")]
        broken = folder / "3"
        shutil.copytree(folder / "1", broken)
        (broken / "cloud.onnx").write_bytes(b"broken")
        with pytest.raises(triton.InferenceServerException, match=r"cloud\.onnx"):
            orders.load_model(MODEL)
        index = orders.get_model_repository_index()
        assert [(each.version, each.state) for each in index.models] == [("2", "READY"), ("3", "UNAVAILABLE")]
    over.set()
    for each in clients:
        each.join(PATIENCE_S)
    assert failed == []
    assert set(answered) == {"1", "2"}
    assert answered[-1] == "2"


def test_health_follows_what_is_loaded_and_orders_are_taken_only_where_they_are_expected(server: Any) -> None:
    status = health_pb2.HealthCheckResponse
    with grpc.insecure_channel(server.grpc) as channel, triton.InferenceServerClient(server.admin) as orders:
        watch = health_pb2_grpc.HealthStub(channel).Watch(
            health_pb2.HealthCheckRequest(service=MODEL), timeout=PATIENCE_S
        )
        assert next(watch).status == status.SERVING
        orders.unload_model(MODEL)
        assert next(watch).status == status.NOT_SERVING
        with server.client() as client:
            assert client.is_model_ready(MODEL) is False
            with pytest.raises(triton.InferenceServerException) as refusal:
                client.load_model(MODEL)
            assert refusal.value.status() == "StatusCode.UNIMPLEMENTED"
        orders.load_model(MODEL)
        assert next(watch).status == status.SERVING
        with pytest.raises(triton.InferenceServerException) as refusal:
            orders.load_model("other")
        assert refusal.value.status() == "StatusCode.NOT_FOUND"


def test_stock_clients_read_configuration_and_statistics(server: Any, samples: dict[str, NDArray[Any]]) -> None:
    with server.client() as client:
        client.ask(samples["images"][:3], MODEL)
        config = client.get_model_config(MODEL, as_json=True)["config"]
        assert config["max_batch_size"] == 32
        assert config["input"][0]["dims"] == ["28", "28"]
        (statistics,) = client.get_inference_statistics(MODEL, as_json=True)["model_stats"]
        assert statistics["inference_count"] == "3"
        assert statistics["inference_stats"]["success"]["count"] == "1"
        assert client.get_trace_settings(MODEL).settings["trace_level"].value == ["OFF"]
        assert client.get_log_settings().settings["log_error"].bool_param is True


def test_an_admin_address_for_strangers_needs_tls_and_a_token(tiny_bundle: Path, ended: Any, tmp_path: Path) -> None:
    config = tmp_path / "cloud.toml"
    config.write_text(f'bundle = "{tiny_bundle}"\n[admin]\ngrpc_port = 0\nhost = "0.0.0.0"\n')
    done = ended("cloud", "--config", str(config))
    assert done.returncode == 2
    assert "admin.host" in done.stderr
