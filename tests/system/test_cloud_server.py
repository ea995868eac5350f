"""The cloud server as a process of its own, spoken to by a stock tritonclient."""

from __future__ import annotations

import io
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import msgspec
import numpy as np
import pytest
import tritonclient.grpc as triton
from grpc_health.v1 import health_pb2, health_pb2_grpc
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2, service_pb2_grpc

from edgemux.multiplexer.bundle import Bundle

MODEL = "fashion-mnist"
PATIENCE_S = 60.0
COMMAND = [sys.executable, "-c", "from edgemux.cli.main import main; main()", "cloud"]
READY = re.compile(r"^edgemux cloud ready model=(\S+) grpc=(\S+) http=(\S+) metrics=(\S+)$")

# A server whose model takes as long as its last argument says, a row at a time.
SLOW = """
import sys, time
from edgemux.cloud import server
from edgemux.cloud.config import load

class Slow(server.OnnxBackend):
    seconds = 0.0
    def run(self, image):
        time.sleep(Slow.seconds)
        return super().run(image)

measure = server.measure
def measured(backend, image, max_batch):
    Slow.seconds = 0.02
    timing = measure(backend, image, max_batch)
    Slow.seconds = float(sys.argv[2])
    return timing

server.OnnxBackend, server.measure = Slow, measured
ports = {f"listen.{name}_port": 0 for name in ("grpc", "http", "metrics")}
server.serve(load(None, {"bundle": sys.argv[1], "batching.max_batch": 1, "listen.drain_s": 60.0, **ports}))
"""


class Process(msgspec.Struct):
    """A running server and where it listens."""

    popen: Any
    grpc: str
    http: str
    metrics: str

    def stop(self, times: int = 1) -> int:
        """Signal it and return its exit status."""
        for _ in range(times):
            self.popen.send_signal(signal.SIGTERM)
        return int(self.popen.wait(PATIENCE_S))

    def get(self, path: str) -> tuple[int, Any]:
        try:
            with urllib.request.urlopen(f"http://{self.http}{path}", timeout=PATIENCE_S) as response:
                return response.status, json.load(response)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error)


def start(command: list[str]) -> Process:
    popen = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    line = popen.stdout.readline() if popen.stdout else ""
    ready = READY.match(line.strip())
    assert ready, f"no ready line but {line!r}"
    return Process(popen, *ready.groups()[1:])


def finish(process: Process) -> None:
    if process.popen.poll() is None:
        process.popen.kill()
    process.popen.wait(PATIENCE_S)
    process.popen.stdout.close()


def cloud(bundle: Path, *options: str) -> list[str]:
    ports = ["--grpc-port", "0", "--http-port", "0", "--metrics-port", "0"]
    return [*COMMAND, "--bundle", str(bundle), *ports, *options]


@pytest.fixture(scope="module")
def server(tiny_bundle: Path) -> Iterator[Process]:
    process = start(cloud(tiny_bundle))
    yield process
    finish(process)


@pytest.fixture
def own_server(tiny_bundle: Path) -> Iterator[Process]:
    process = start(cloud(tiny_bundle))
    yield process
    finish(process)


@pytest.fixture
def slow_server(tiny_bundle: Path) -> Iterator[Callable[[float], Process]]:
    processes: list[Process] = []

    def start_slow(seconds: float) -> Process:
        processes.append(start([sys.executable, "-c", SLOW, str(tiny_bundle), str(seconds)]))
        return processes[-1]

    yield start_slow
    for process in processes:
        finish(process)


@pytest.fixture
def client(server: Process) -> Iterator[Any]:
    with triton.InferenceServerClient(server.grpc) as opened:
        yield opened


@pytest.fixture(scope="module")
def samples(tiny_bundle: Path) -> dict[str, NDArray[Any]]:
    return Bundle.open(tiny_bundle).arrays("samples.npz")


def tensor(images: NDArray[np.uint8]) -> Any:
    made = triton.InferInput("image", list(images.shape), "UINT8")
    made.set_data_from_numpy(images)
    return made


def is_answered(client: Any, samples: dict[str, NDArray[Any]]) -> None:
    """A good request gets a right answer."""
    result = client.infer(MODEL, [tensor(samples["images"][:3])], client_timeout=PATIENCE_S)
    assert list(result.as_numpy("label")) == list(samples["labels"][:3])


def test_the_server_is_live_ready_and_describes_itself(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready(MODEL)
    assert client.is_model_ready(MODEL, "1")
    assert not client.is_model_ready("other")
    assert not client.is_model_ready(MODEL, "7")
    assert client.get_server_metadata().name == "edgemux-cloud"
    metadata = client.get_model_metadata(MODEL, as_json=True)
    assert metadata["inputs"] == [{"name": "image", "datatype": "UINT8", "shape": ["-1", "28", "28"]}]
    assert metadata["outputs"] == [
        {"name": "probabilities", "datatype": "FP32", "shape": ["-1", "10"]},
        {"name": "label", "datatype": "INT64", "shape": ["-1"]},
    ]
    index = client.get_model_repository_index()
    assert [(model.name, model.version, model.state) for model in index.models] == [(MODEL, "1", "READY")]


def test_raw_pixels_are_classified(client: Any, samples: dict[str, NDArray[Any]]) -> None:
    result = client.infer(MODEL, [tensor(samples["images"][:20])], request_id="seven", client_timeout=PATIENCE_S)
    assert list(result.as_numpy("label")) == list(samples["labels"][:20])
    assert result.as_numpy("probabilities").shape == (20, 10)
    assert result.as_numpy("probabilities").dtype == np.float32
    response = result.get_response()
    assert response.id == "seven"
    assert re.fullmatch("[0-9a-f]{64}", response.parameters["edgemux_model_digest"].string_param)
    assert response.parameters["edgemux_queue_ms"].double_param >= 0


def test_only_requested_outputs_are_sent(client: Any, samples: dict[str, NDArray[Any]]) -> None:
    wanted = [triton.InferRequestedOutput("label")]
    result = client.infer(MODEL, [tensor(samples["images"][:1])], outputs=wanted, client_timeout=PATIENCE_S)
    assert [output.name for output in result.get_response().outputs] == ["label"]


def encoded(image: NDArray[np.uint8], kind: str = "PNG") -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind)
    return buffer.getvalue()


def test_encoded_pictures_are_classified(client: Any, samples: dict[str, NDArray[Any]]) -> None:
    pictures = np.array([encoded(image) for image in samples["images"][:4]], dtype=object)
    made = triton.InferInput("image", [4], "BYTES")
    made.set_data_from_numpy(pictures)
    result = client.infer(MODEL, [made], client_timeout=PATIENCE_S)
    assert list(result.as_numpy("label")) == list(samples["labels"][:4])


def good_request(samples: dict[str, NDArray[Any]]) -> Any:
    request = service_pb2.ModelInferRequest(model_name=MODEL)
    request.inputs.add(name="image", datatype="UINT8", shape=[1, 28, 28])
    request.raw_input_contents.append(samples["images"][0].tobytes())
    return request


@pytest.fixture
def stub(server: Process) -> Iterator[Any]:
    with grpc.insecure_channel(server.grpc) as channel:
        yield service_pb2_grpc.GRPCInferenceServiceStub(channel)


def test_typed_contents_are_classified(stub: Any, samples: dict[str, NDArray[Any]]) -> None:
    request = good_request(samples)
    del request.raw_input_contents[:]
    request.inputs[0].contents.uint_contents.extend(samples["images"][0].reshape(-1).tolist())
    response = stub.ModelInfer(request, timeout=PATIENCE_S)
    label = next(i for i, output in enumerate(response.outputs) if output.name == "label")
    assert np.frombuffer(response.raw_output_contents[label], "<i8")[0] == samples["labels"][0]


def shape(*sizes: int) -> Callable[[Any], None]:
    def change(request: Any) -> None:
        request.inputs[0].shape[:] = sizes

    return change


def datatype(name: str) -> Callable[[Any], None]:
    def change(request: Any) -> None:
        request.inputs[0].datatype = name

    return change


def raw(*buffers: bytes) -> Callable[[Any], None]:
    def change(request: Any) -> None:
        request.raw_input_contents[:] = buffers

    return change


def contents(field: str, *values: Any) -> Callable[[Any], None]:
    def change(request: Any) -> None:
        del request.raw_input_contents[:]
        getattr(request.inputs[0].contents, field).extend(values)

    return change


def pictures(*elements: bytes) -> Callable[[Any], None]:
    def change(request: Any) -> None:
        request.inputs[0].datatype = "BYTES"
        request.inputs[0].shape[:] = [len(elements)]
        request.raw_input_contents[:] = [b"".join(len(e).to_bytes(4, "little") + e for e in elements)]

    return change


def cut_picture(request: Any) -> None:
    pictures(b"xxxx")(request)
    request.raw_input_contents[0] = request.raw_input_contents[0][:-1]


def both_kinds(request: Any) -> None:
    request.inputs[0].contents.uint_contents.append(1)


def twice(request: Any) -> None:
    request.inputs.add().CopyFrom(request.inputs[0])
    request.raw_input_contents.append(request.raw_input_contents[0])


def without_inputs(request: Any) -> None:
    del request.inputs[:], request.raw_input_contents[:]


def other_input(request: Any) -> None:
    request.inputs[0].name = "picture"


def other_output(request: Any) -> None:
    request.outputs.add(name="logits")


def text_timeout(request: Any) -> None:
    request.parameters["timeout"].string_param = "soon"


NO_DATA = raw()
# What is wrong, and the field that the answer must name.
BAD: dict[str, tuple[Callable[[Any], None], str]] = {
    "wrong datatype": (datatype("FP32"), "image"),
    "no such datatype": (datatype("FLOAT\n\x00"), "image"),
    "too few dimensions": (shape(28, 28), "image"),
    "too many dimensions": (shape(1, 1, 28, 28), "image"),
    "no dimensions": (shape(), "image"),
    "wrong dimensions": (shape(1, 28, 29), "image"),
    "negative batch": (shape(-1, 28, 28), "image"),
    "negative dimension": (shape(1, -28, -28), "image"),
    "batch of zero": (shape(0, 28, 28), "image"),
    "dimensions that overflow to zero": (shape(2**31, 2**33, 28), "image"),
    "batch that overflows": (shape(2**62, 28, 28), "image"),
    "batch above the bound": (shape(33, 28, 28), "image"),
    "claims more than it sends": (shape(2, 28, 28), "image"),
    "sends too little": (raw(b"\x00" * 783), "image"),
    "sends too much": (raw(b"\x00" * 785), "image"),
    "sends nothing": (raw(b""), "image"),
    "has no data": (NO_DATA, "image"),
    "two buffers for one input": (raw(b"\x00" * 784, b""), "raw_input_contents"),
    "both raw and typed": (both_kinds, "image"),
    "wrong typed field": (contents("fp32_contents", *[0.0] * 784), "image"),
    "typed value that does not fit": (contents("uint_contents", *[300] * 784), "image"),
    "too few typed values": (contents("uint_contents", 1, 2, 3), "image"),
    "unknown input": (other_input, "picture"),
    "input given twice": (twice, "image"),
    "no inputs": (without_inputs, "image"),
    "unknown output": (other_output, "logits"),
    "picture that does not decode": (pictures(b"GIF89a nonsense"), "image"),
    "picture that is cut short": (cut_picture, "image"),
    "empty picture": (pictures(b""), "image"),
    "timeout that is a text": (text_timeout, "timeout"),
}


def leaks_nothing(text: str, bundle: Path) -> None:
    for word in (str(bundle), "/", "Traceback", ".py", "Exception", "<class", "edgemux."):
        assert word not in text, text
    assert text.isprintable()


@pytest.mark.parametrize("what", list(BAD))
def test_a_bad_request_is_refused_by_field_and_the_next_is_answered(
    what: str, stub: Any, client: Any, samples: dict[str, NDArray[Any]], tiny_bundle: Path
) -> None:
    change, field = BAD[what]
    request = good_request(samples)
    change(request)
    with pytest.raises(grpc.RpcError) as refusal:
        stub.ModelInfer(request, timeout=PATIENCE_S)
    assert refusal.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert field in refusal.value.details().partition(": ")[0]
    leaks_nothing(refusal.value.details(), tiny_bundle)
    is_answered(client, samples)


def test_bytes_that_do_not_parse_are_an_invalid_argument(
    server: Process, client: Any, samples: dict[str, NDArray[Any]], tiny_bundle: Path
) -> None:
    with grpc.insecure_channel(server.grpc) as channel:
        for method in ("ModelInfer", "ServerReady", "RepositoryIndex"):
            call = channel.unary_unary(f"/inference.GRPCInferenceService/{method}")
            with pytest.raises(grpc.RpcError) as refusal:
                call(b"\x0a\xff\xff\xff\xff\xff", timeout=PATIENCE_S)
            assert refusal.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            leaks_nothing(refusal.value.details(), tiny_bundle)
    is_answered(client, samples)


@pytest.mark.parametrize(("name", "version"), [("other", ""), (MODEL, "9"), ("", ""), ("x" * 5000, "")])
def test_an_unknown_model_is_not_found(
    client: Any, samples: dict[str, NDArray[Any]], name: str, version: str, tiny_bundle: Path
) -> None:
    for ask in (
        lambda: client.infer(name, [tensor(samples["images"][:1])], model_version=version, client_timeout=PATIENCE_S),
        lambda: client.get_model_metadata(name, version, client_timeout=PATIENCE_S),
    ):
        with pytest.raises(triton.InferenceServerException) as refusal:
            ask()
        assert refusal.value.status() == "StatusCode.NOT_FOUND"
        leaks_nothing(refusal.value.message(), tiny_bundle)
    is_answered(client, samples)


def test_an_expired_deadline_is_told_and_an_absurd_one_is_capped(client: Any, samples: dict[str, NDArray[Any]]) -> None:
    one = [tensor(samples["images"][:1])]
    for arguments in ({"client_timeout": -1.0}, {"timeout": 1, "client_timeout": PATIENCE_S}):
        with pytest.raises(triton.InferenceServerException) as refusal:
            client.infer(MODEL, one, **arguments)
        assert refusal.value.status() == "StatusCode.DEADLINE_EXCEEDED"
    client.infer(MODEL, one, client_timeout=1e8)
    client.infer(MODEL, one, timeout=2**62)
    client.infer(MODEL, one)


def test_a_deadline_is_kept_while_a_long_batch_runs(
    slow_server: Callable[[float], Process], samples: dict[str, NDArray[Any]]
) -> None:
    process = slow_server(50.0)
    with triton.InferenceServerClient(process.grpc) as client, ThreadPoolExecutor(1) as other:
        first = other.submit(client.infer, MODEL, [tensor(samples["images"][:1])], client_timeout=5.0)
        wait_until(lambda: process.get("/status")[1]["queue"]["busy"])
        with pytest.raises(triton.InferenceServerException) as refusal:
            client.infer(MODEL, [tensor(samples["images"][:1])], timeout=300_000, client_timeout=40.0)
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


def test_health_check_and_watch(own_server: Process) -> None:
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
        assert own_server.stop(0) == 0


def test_the_pages_say_how_it_is(server: Process, client: Any, samples: dict[str, NDArray[Any]]) -> None:
    is_answered(client, samples)
    assert server.get("/v2/health/live") == (200, {"live": True})
    assert server.get("/v2/health/ready") == (200, {"ready": True})
    assert server.get("/v2")[1]["name"] == "edgemux-cloud"
    assert server.get(f"/v2/models/{MODEL}")[1]["inputs"][0]["name"] == "image"
    assert server.get(f"/v2/models/{MODEL}/ready")[0] == 200
    assert server.get("/v2/models/other/ready")[0] == 404
    status, page = server.get("/status")
    assert status == 200
    assert page["counters"]["requests.answered"] >= 1
    assert page["ready"] is True


def test_the_metrics_count_requests_rows_and_batches(
    server: Process, client: Any, samples: dict[str, NDArray[Any]]
) -> None:
    def scrape() -> dict[str, float]:
        with urllib.request.urlopen(f"http://{server.metrics}/metrics", timeout=PATIENCE_S) as response:
            lines = response.read().decode().splitlines()
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")}

    before = scrape()
    is_answered(client, samples)
    after = scrape()
    grown = {name: after[name] - before[name] for name in after}
    assert grown['edgemux_cloud_requests_total{model="fashion-mnist",outcome="answered"}'] == 1
    assert grown["edgemux_cloud_inputs_total"] == 3
    for histogram in ("batch_size", "queue_seconds", "compute_seconds"):
        assert grown[f"edgemux_cloud_{histogram}_count"] == 1
    assert after["edgemux_cloud_inflight"] == 0
    assert after['edgemux_cloud_refused_total{reason="full"}'] == 0


def test_what_was_accepted_before_sigterm_is_answered(
    slow_server: Callable[[float], Process], samples: dict[str, NDArray[Any]]
) -> None:
    process = slow_server(0.05)
    with grpc.insecure_channel(process.grpc) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        calls = [stub.ModelInfer.future(good_request(samples), timeout=PATIENCE_S) for _ in range(30)]
        wait_until(lambda: process.get("/status")[1]["queue"]["requests"] >= 20)
        assert process.stop() == 0
        assert Counter(call.code() for call in calls) == {grpc.StatusCode.OK: 30}


def test_a_client_that_goes_on_asking_is_never_cut_off_by_sigterm(
    own_server: Process, samples: dict[str, NDArray[Any]]
) -> None:
    ended: Counter[Any] = Counter()
    answered = threading.Semaphore(0)

    def ask() -> None:
        with grpc.insecure_channel(own_server.grpc) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            while True:
                try:
                    stub.ModelInfer(good_request(samples), timeout=PATIENCE_S)
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


def test_a_second_signal_does_not_wait_for_a_long_batch(
    slow_server: Callable[[float], Process], samples: dict[str, NDArray[Any]]
) -> None:
    process = slow_server(1000.0)
    with grpc.insecure_channel(process.grpc) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        call = stub.ModelInfer.future(good_request(samples), timeout=PATIENCE_S)
        wait_until(lambda: process.get("/status")[1]["queue"]["busy"])
        process.popen.send_signal(signal.SIGTERM)
        wait_until(lambda: process.get("/v2/health/ready")[0] == 503)
        assert process.stop() == 0
        assert call.code() is not grpc.StatusCode.OK


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)


@pytest.mark.parametrize("flag", ["--grpc-port", "--http-port", "--metrics-port"])
def test_a_port_in_use_ends_it_with_status_2_naming_the_port(tiny_bundle: Path, flag: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        ended = run(cloud(tiny_bundle, flag, port))
    assert ended.returncode == 2
    assert f"{flag} {port}" in " ".join(ended.stderr.split())
    assert "Traceback" not in ended.stderr
    assert ended.stdout == ""


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
    tiny_bundle: Path, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    folder = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    damage(folder)
    ended = run(cloud(folder))
    assert ended.returncode not in (0, None)
    assert "cloud.onnx" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert ended.stdout == ""


def test_a_bundle_that_is_not_there_is_refused(tmp_path: Path) -> None:
    ended = run(cloud(tmp_path / "nowhere"))
    assert ended.returncode not in (0, None)
    assert "nowhere" in "".join(ended.stderr.split())
    assert "Traceback" not in ended.stderr
