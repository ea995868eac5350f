"""The cloud server on Ray Serve: real processes, a replica that is killed, load that comes and goes.

Run by ``make test-ray``, in an environment that has the ray extra. Ray takes some 15 s to start.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
import pytest
import tritonclient.grpc as triton
from grpc_health.v1 import health_pb2, health_pb2_grpc
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2_grpc

pytest.importorskip("ray", reason="the ray extra is not installed; make test-ray")
pytestmark = pytest.mark.timeout(300)

MODEL = "fashion-mnist"
STARTER = Path(__file__).parents[2] / "deploy" / "bundles" / MODEL
PATIENCE_S = 60.0


@contextlib.contextmanager
def on_ray(serving: Callable[..., Any], bundle: Path, *options: str) -> Iterator[Any]:
    """A cloud server on Ray that is stopped in order: killed, it would leave processes of Ray's behind."""
    with serving("cloud", "--bundle", str(bundle), "--engine", "ray", "--insecure", *options) as server:
        try:
            yield server
        finally:
            assert server.stop() == 0


@pytest.fixture(scope="module")
def ray_cloud(tiny_bundle: Path, serving: Callable[..., Any]) -> Iterator[Any]:
    with on_ray(serving, tiny_bundle, "--replicas", "2") as server:
        yield server


def replicas(server: Any) -> list[int]:
    """Process ids of the server's replicas."""
    found = []
    for process in psutil.Process(server.popen.pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if "ServeReplica" in " ".join((process.name(), *process.cmdline())):
                found.append(process.pid)
    return found


class Asking:
    """Clients that ask one after the other until told to stop, and what they were told."""

    def __init__(self, address: str, message: Any, clients: int) -> None:
        self.told: Counter[Any] = Counter()
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(address, message)) for _ in range(clients)]

    def _ask(self, address: str, message: Any) -> None:
        with grpc.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            while not self._over.is_set():
                try:
                    stub.ModelInfer(message, timeout=PATIENCE_S)
                    self.told[grpc.StatusCode.OK] += 1
                except grpc.RpcError as error:
                    self.told[error.code()] += 1
                    self._over.wait(0.02)

    def __enter__(self) -> Asking:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()


def wait_until(condition: Callable[[], bool]) -> None:
    """The test's own timeout ends it."""
    while not condition():
        time.sleep(0.05)


def test_a_stock_client_is_answered(ray_cloud: Any, samples: dict[str, NDArray[Any]]) -> None:
    with ray_cloud.client() as client:
        assert client.is_server_ready()
        assert client.is_model_ready(MODEL)
        answer = client.ask(samples["images"][:3], request_id="abc")
        assert answer.as_numpy("probabilities").shape == (3, 10)
        assert answer.get_response().id == "abc"
        assert client.get_model_metadata(MODEL).name == MODEL


def test_a_stream_is_answered_in_order(ray_cloud: Any, samples: dict[str, NDArray[Any]]) -> None:
    told: list[Any] = []
    enough = threading.Event()

    def tell(result: Any, error: Any) -> None:
        told.append(error or result.get_response().id)
        if len(told) == 5:
            enough.set()

    tensor = triton.InferInput("image", [1, 28, 28], "UINT8")
    tensor.set_data_from_numpy(samples["images"][:1])
    with ray_cloud.client() as client:
        client.start_stream(tell)
        for number in range(5):
            client.async_stream_infer("other" if number == 3 else MODEL, [tensor], request_id=str(number))
        assert enough.wait(PATIENCE_S)
        client.stop_stream()
    assert [each for each in told if isinstance(each, str)] == ["0", "1", "2", "4"]
    assert "no such model" in str(told[3])


@pytest.mark.parametrize(
    ("ask", "code"),
    [
        (lambda client, images: client.ask(images, model="other"), "NOT_FOUND"),
        (lambda client, images: client.ask(images[:, :27]), "INVALID_ARGUMENT"),
        (lambda client, images: client.ask(images, client_timeout=1e-4), "DEADLINE_EXCEEDED"),
        (lambda client, images: client.ask(np.zeros((5000, 28, 28), np.uint8)), "INVALID_ARGUMENT"),
        (lambda client, images: client.get_cuda_shared_memory_status(), "UNIMPLEMENTED"),
        (lambda client, images: client.load_model("other"), "UNIMPLEMENTED"),
    ],
)
def test_errors_have_the_codes_of_the_process(
    ray_cloud: Any, samples: dict[str, NDArray[Any]], ask: Callable[..., Any], code: str
) -> None:
    with ray_cloud.client() as client, pytest.raises(triton.InferenceServerException) as refusal:
        ask(client, samples["images"][:1])
    assert refusal.value.status() == f"StatusCode.{code}"
    assert "Traceback" not in refusal.value.message()


def test_health_pages_and_metrics_are_there(ray_cloud: Any) -> None:
    with grpc.insecure_channel(ray_cloud.grpc) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for service in ("", MODEL):
            asked = health_pb2.HealthCheckRequest(service=service)
            assert health.Check(asked, timeout=PATIENCE_S).status == health_pb2.HealthCheckResponse.SERVING
            assert next(health.Watch(asked, timeout=PATIENCE_S)).status == health_pb2.HealthCheckResponse.SERVING
    assert ray_cloud.get("/v2/health/ready")[0] == 200
    assert ray_cloud.get("/status")[1]["ready"] is True
    assert ray_cloud.get("/nowhere")[0] == 404
    assert any(name.startswith("haproxy_") for name in ray_cloud.scrape())


def test_rest_is_answered_too(ray_cloud: Any, samples: dict[str, NDArray[Any]]) -> None:
    tensor = {"name": "image", "datatype": "UINT8", "shape": [1, 28, 28], "data": samples["images"][0].ravel().tolist()}
    body = json.dumps({"id": "9", "inputs": [tensor]}).encode()
    asked = urllib.request.Request(f"http://{ray_cloud.http}/v2/models/{MODEL}/infer", body)
    with urllib.request.urlopen(asked, timeout=PATIENCE_S) as response:
        answer = json.load(response)
    assert (answer["id"], answer["model_name"]) == ("9", MODEL)


def test_no_client_of_an_agent_notices_that_a_replica_is_killed(
    ray_cloud: Any, tiny_bundle: Path, serving: Callable[..., Any], message: Any
) -> None:
    wait_until(lambda: len(replicas(ray_cloud)) == 2)
    with (
        serving("edge", "--bundle", str(tiny_bundle), "--cloud", ray_cloud.grpc) as agent,
        Asking(agent.grpc, message, clients=4) as at_agent,
        Asking(ray_cloud.grpc, message, clients=2) as at_cloud,
    ):
        wait_until(lambda: min(at_agent.told.total(), at_cloud.told.total()) > 50)
        victim = replicas(ray_cloud)[0]
        psutil.Process(victim).kill()
        wait_until(lambda: len(replicas(ray_cloud)) == 2 and victim not in replicas(ray_cloud))
        asked = at_agent.told.total()
        wait_until(lambda: at_agent.told.total() > asked + 200)
    assert set(at_agent.told) == {grpc.StatusCode.OK}
    # Who asks the cloud directly may lose what was under way, and is told so in a way that is worth another try.
    assert set(at_cloud.told) <= {grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE}
    assert at_cloud.told[grpc.StatusCode.UNAVAILABLE] <= 2


def test_refusals_say_when_to_come_back_and_load_starts_replicas(
    serving: Callable[..., Any], message: Any, tmp_path: Path
) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("a-token-of-more-than-16-characters\n")
    config = tmp_path / "cloud.toml"
    config.write_text("[batching]\nmax_batch = 1\n[admission]\nmax_queue = 8\n[ray]\ncpus_per_replica = 0.5\n")
    options = ("--config", str(config), "--token-file", str(tokens), "--max-replicas", "2", "--target-ongoing", "2")
    bearer = (("authorization", "Bearer a-token-of-more-than-16-characters"),)
    # A model that takes long enough for others to wait.
    with on_ray(serving, STARTER, *options) as server, grpc.insecure_channel(server.grpc) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        with pytest.raises(grpc.RpcError) as stranger:
            stub.ModelInfer(message, timeout=PATIENCE_S)
        assert stranger.value.code() is grpc.StatusCode.UNAUTHENTICATED
        pushbacks: list[str] = []
        started = len(replicas(server))
        # More at once than a queue of eight takes; and more than one replica is for, so another is started.
        while not (pushbacks and len(replicas(server)) > started):
            calls = [stub.ModelInfer.future(message, timeout=PATIENCE_S, metadata=bearer) for _ in range(64)]
            for call in calls:
                assert call.code() in (grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED), call.details()
                pushbacks += [value for key, value in call.trailing_metadata() if key == "grpc-retry-pushback-ms"]
        assert all(int(value) >= 1 for value in pushbacks)
        assert (started, len(replicas(server))) == (1, 2)


def test_what_was_under_way_at_sigterm_is_answered(
    tiny_bundle: Path, serving: Callable[..., Any], message: Any
) -> None:
    with (
        on_ray(serving, tiny_bundle) as server,
        Asking(server.grpc, message, clients=8) as asking,
    ):
        wait_until(lambda: asking.told.total() > 50)
        assert server.stop() == 0
    assert set(asking.told) == {grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE}
    assert not [process for process in psutil.process_iter() if server.popen.pid in (process.pid, process.ppid())]


def test_the_command_is_refused_where_the_port_would_be_open_to_others(
    ended: Callable[..., Any], tiny_bundle: Path
) -> None:
    if all(name.startswith("lo") for name in psutil.net_if_addrs()):
        pytest.skip("there are no others here")
    done = ended("cloud", "--bundle", str(tiny_bundle), "--engine", "ray")
    assert done.returncode == 2
    assert "--insecure" in done.stderr
