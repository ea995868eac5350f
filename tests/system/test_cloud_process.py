"""The cloud server as a process: health, pages and metrics, how it ends, and what it does not start with."""

from __future__ import annotations

import contextlib
import shutil
import signal
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
import tritonclient.grpc as triton
from grpc_health.v1 import health_pb2, health_pb2_grpc
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2_grpc

from tests.system.conftest import SLOW

MODEL = "fashion-mnist"
PATIENCE_S = 60.0


@pytest.fixture
def own_server(tiny_bundle: Path, serving: Callable[..., Any]) -> Iterator[Any]:
    with serving("cloud", "--bundle", str(tiny_bundle)) as server:
        yield server


@pytest.fixture
def slow_server(tiny_bundle: Path, serving_by: Callable[..., Any]) -> Iterator[Callable[[float], Any]]:
    with contextlib.ExitStack() as running:
        yield lambda seconds: running.enter_context(serving_by(SLOW, str(tiny_bundle), str(seconds)))


def test_a_deadline_is_kept_while_a_long_batch_runs(
    slow_server: Callable[[float], Any], samples: dict[str, NDArray[Any]]
) -> None:
    process = slow_server(50.0)
    with process.client() as client, ThreadPoolExecutor(1) as other:
        first = other.submit(client.ask, samples["images"][:1], client_timeout=5.0)
        wait_until(lambda: process.get("/status")[1]["queue"]["busy"])
        with pytest.raises(triton.InferenceServerException) as refusal:
            client.ask(samples["images"][:1], timeout=300_000, client_timeout=40.0)
        assert refusal.value.status() == "StatusCode.DEADLINE_EXCEEDED"
        assert refusal.value.message() == "the deadline passed in the queue"
        with pytest.raises(triton.InferenceServerException) as late:
            first.result()
        assert late.value.status() == "StatusCode.DEADLINE_EXCEEDED"


def wait_until(condition: Callable[[], bool]) -> None:
    """The test's own timeout ends it."""
    pause = threading.Event()
    while not condition():
        pause.wait(0.02)


def test_health_check_and_watch(own_server: Any) -> None:
    with grpc.insecure_channel(own_server.grpc) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        serving, stopping = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
        for service in ("", MODEL):
            answer = health.Check(health_pb2.HealthCheckRequest(service=service), timeout=PATIENCE_S)
            assert answer.status == serving
        with pytest.raises(grpc.RpcError) as refusal:
            health.Check(health_pb2.HealthCheckRequest(service="other"), timeout=PATIENCE_S)
        assert refusal.value.code() is grpc.StatusCode.NOT_FOUND
        watch = health.Watch(health_pb2.HealthCheckRequest(service=MODEL), timeout=PATIENCE_S)
        assert next(watch).status == serving
        own_server.popen.send_signal(signal.SIGTERM)
        assert next(watch).status == stopping
        assert own_server.ended() == 0


def test_the_pages_say_how_it_is(cloud: Any, samples: dict[str, NDArray[Any]]) -> None:
    with cloud.client() as client:
        client.ask(samples["images"][:1])
    assert cloud.get("/v2/health/live") == (200, {"live": True})
    assert cloud.get("/v2/health/ready") == (200, {"ready": True})
    assert cloud.get("/v2")[1]["name"] == "edgemux-cloud"
    assert cloud.get(f"/v2/models/{MODEL}")[1]["inputs"][0]["name"] == "image"
    assert cloud.get(f"/v2/models/{MODEL}/ready")[0] == 200
    assert cloud.get("/v2/models/other/ready")[0] == 404
    status, page = cloud.get("/status")
    assert status == 200
    assert page["counters"]["requests.answered"] >= 1
    assert page["ready"] is True


def test_the_metrics_count_requests_rows_and_batches(cloud: Any, samples: dict[str, NDArray[Any]]) -> None:
    before = cloud.scrape()
    with cloud.client() as client:
        client.ask(samples["images"][:3])
    after = cloud.scrape()
    grown = {name: after[name] - before[name] for name in after}
    assert grown['edgemux_cloud_requests_total{model="fashion-mnist",outcome="answered"}'] == 1
    assert grown['edgemux_cloud_inputs_total{model="fashion-mnist"}'] == 3
    for histogram in ("batch_size", "queue_seconds", "compute_seconds"):
        assert grown[f'edgemux_cloud_{histogram}_count{{model="fashion-mnist"}}'] == 1
    assert after['edgemux_cloud_inflight{model="fashion-mnist"}'] == 0
    assert after['edgemux_cloud_refused_total{model="fashion-mnist",reason="full"}'] == 0


def test_what_was_accepted_before_sigterm_is_answered(slow_server: Callable[[float], Any], message: Any) -> None:
    process = slow_server(0.05)
    with grpc.insecure_channel(process.grpc) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        calls = [stub.ModelInfer.future(message, timeout=PATIENCE_S) for _ in range(30)]
        wait_until(lambda: process.get("/status")[1]["queue"]["requests"] >= 20)
        assert process.stop() == 0
        assert Counter(call.code() for call in calls) == {grpc.StatusCode.OK: 30}


def test_a_client_that_goes_on_asking_is_never_cut_off_by_sigterm(own_server: Any, message: Any) -> None:
    ended: Counter[Any] = Counter()
    answered = threading.Semaphore(0)

    def ask() -> None:
        with grpc.insecure_channel(own_server.grpc) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            while True:
                try:
                    stub.ModelInfer(message, timeout=PATIENCE_S)
                    answered.release()
                except grpc.RpcError as error:
                    ended[error.code()] += 1
                    return

    clients = [threading.Thread(target=ask) for _ in range(8)]
    for each in clients:
        each.start()
    for _ in range(50):
        answered.acquire(timeout=PATIENCE_S)
    status = own_server.stop()
    for each in clients:
        each.join(PATIENCE_S)
    assert status == 0
    assert ended == {grpc.StatusCode.UNAVAILABLE: 8}


def test_a_second_signal_does_not_wait_for_a_long_batch(slow_server: Callable[[float], Any], message: Any) -> None:
    process = slow_server(1000.0)
    with grpc.insecure_channel(process.grpc) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        call = stub.ModelInfer.future(message, timeout=PATIENCE_S)
        wait_until(lambda: process.get("/status")[1]["queue"]["busy"])
        process.popen.send_signal(signal.SIGTERM)
        wait_until(lambda: process.get("/v2/health/ready")[0] == 503)
        assert process.stop() == 0
        assert call.code() is not grpc.StatusCode.OK


@pytest.mark.parametrize("flag", ["--grpc-port", "--http-port", "--metrics-port"])
def test_a_port_in_use_ends_it_with_status_2_naming_the_port(
    ended: Callable[..., Any], tiny_bundle: Path, flag: str
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = ended("cloud", "--bundle", str(tiny_bundle), flag, port)
    assert done.returncode == 2
    assert f"{flag} {port}" in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def truncate(folder: Path) -> None:
    content = (folder / "cloud.onnx").read_bytes()
    (folder / "cloud.onnx").write_bytes(content[: len(content) // 2])


def flip(folder: Path) -> None:
    content = bytearray((folder / "cloud.onnx").read_bytes())
    content[len(content) // 2] ^= 4
    (folder / "cloud.onnx").write_bytes(content)


def swap(folder: Path) -> None:
    shutil.copyfile(folder / "level-1.onnx", folder / "cloud.onnx")


def remove(folder: Path) -> None:
    (folder / "cloud.onnx").unlink()


@pytest.mark.parametrize("damage", [truncate, flip, swap, remove])
def test_a_damaged_bundle_is_refused_naming_the_file(
    ended: Callable[..., Any], tiny_bundle: Path, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    folder = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    damage(folder)
    done = ended("cloud", "--bundle", str(folder))
    assert done.returncode not in (0, None)
    assert "cloud.onnx" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_a_bundle_that_is_not_there_is_refused(ended: Callable[..., Any], tmp_path: Path) -> None:
    done = ended("cloud", "--bundle", str(tmp_path / "nowhere"))
    assert done.returncode not in (0, None)
    assert "nowhere" in "".join(done.stderr.split())
    assert "Traceback" not in done.stderr
