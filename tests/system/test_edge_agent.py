"""The agent as a process, spoken to by a stock tritonclient; then by somebody who means harm."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import msgspec
import numpy as np
import pytest
import tritonclient.grpc as triton
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tritonclient.utils import InferenceServerException

MODEL = "fashion-mnist"
INFER = "/inference.GRPCInferenceService/ModelInfer"


class Running(msgspec.Struct):
    """A server process and the addresses of its ready line."""

    process: subprocess.Popen[str]
    grpc: str
    http: str
    metrics: str


def start(*arguments: str, wait: bool = True) -> Running:
    command = [sys.executable, "-m", "edgemux.cli.main", *arguments]
    command += ["--grpc-port", "0", "--http-port", "0", "--metrics-port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    line = process.stdout.readline()
    assert " ready " in line, process.communicate(timeout=30)
    words = dict(word.split("=", 1) for word in line.split() if "=" in word)
    return Running(process, words["grpc"], words["http"], words["metrics"])


def stop(running: Running, number: int = signal.SIGTERM) -> tuple[int, str]:
    if running.process.poll() is None:
        running.process.send_signal(number)
    _, err = running.process.communicate(timeout=60)
    return running.process.returncode, err


@pytest.fixture(scope="module")
def cloud(tiny_bundle: Path) -> Iterator[Running]:
    running = start("cloud", "--bundle", str(tiny_bundle))
    yield running
    stop(running, signal.SIGKILL)


@pytest.fixture(scope="module")
def agent(tiny_bundle: Path, cloud: Running) -> Iterator[Running]:
    running = start("edge", "--bundle", str(tiny_bundle), "--cloud", cloud.grpc)
    yield running
    stop(running, signal.SIGKILL)


@pytest.fixture
def client(agent: Running) -> Iterator[Any]:
    with triton.InferenceServerClient(agent.grpc) as client:
        yield client


def image_input(images: Any) -> Any:
    tensor = triton.InferInput("image", list(images.shape), "UINT8")
    tensor.set_data_from_numpy(images)
    return tensor


def good(client: Any, pictures: Callable[..., Any]) -> Any:
    return client.infer(MODEL, [image_input(pictures(1, 1)[0])], client_timeout=30)


def test_a_stock_client_finds_a_live_and_ready_server_with_one_model(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready(MODEL)
    assert not client.is_model_ready("other")
    metadata = client.get_model_metadata(MODEL)
    assert [(t.name, t.datatype, list(t.shape)) for t in metadata.inputs] == [("image", "UINT8", [-1, 28, 28])]
    outputs = [(t.name, t.datatype, list(t.shape)) for t in metadata.outputs]
    assert outputs == [("probabilities", "FP32", [-1, 10]), ("label", "INT64", [-1])]
    assert [(m.name, m.state) for m in client.get_model_repository_index().models] == [(MODEL, "READY")]
    assert client.get_server_metadata().name == "edgemux-edge"


def test_every_reply_says_its_route_variant_reason_and_score(client: Any, pictures: Callable[..., Any]) -> None:
    images, labels = pictures(80, 21)
    routes = set()
    right = 0
    for image, label in zip(images, labels, strict=True):
        result = client.infer(MODEL, [image_input(image[None])], request_id="x7", client_timeout=30)
        said = dict(result.get_response().parameters.items())
        routes.add(said["edgemux_route"].string_param)
        assert said["edgemux_variant"].string_param in {"level-1", "level-2", "level-3", "level-4", "cloud"}
        assert said["edgemux_reason"].string_param
        assert 0 <= said["edgemux_score"].double_param <= 1
        assert said["edgemux_degraded"].WhichOneof("parameter_choice") == "bool_param"
        assert result.get_response().id == "x7"
        probabilities, answer = result.as_numpy("probabilities"), result.as_numpy("label")
        assert (probabilities.shape, probabilities.dtype, answer.dtype) == ((1, 10), np.float32, np.int64)
        right += int(answer[0] == label)
    assert routes == {"edge", "cloud"}
    assert right > 70


def test_raw_typed_and_encoded_inputs_give_the_same_answer(
    client: Any, agent: Running, pictures: Callable[..., Any]
) -> None:
    import io

    from PIL import Image

    image = pictures(1, 22)[0][0]
    raw = client.infer(MODEL, [image_input(image[None])], client_timeout=30).as_numpy("label")
    out = io.BytesIO()
    Image.fromarray(image).save(out, "PNG")
    tensor = triton.InferInput("image", [1], "BYTES")
    tensor.set_data_from_numpy(np.array([out.getvalue()], dtype=np.object_))
    assert client.infer(MODEL, [tensor], client_timeout=30).as_numpy("label") == raw
    request = triton.service_pb2.ModelInferRequest(model_name=MODEL)
    typed = request.inputs.add(name="image", datatype="UINT8", shape=[1, 28, 28])
    typed.contents.uint_contents.extend(int(pixel) for pixel in image.reshape(-1))
    answer = triton.InferResult(send(agent, request)).as_numpy("label")
    assert answer == raw


def test_a_batch_is_answered_row_by_row_in_order(client: Any, pictures: Callable[..., Any]) -> None:
    images, _ = pictures(32, 23)
    together = client.infer(MODEL, [image_input(images)], client_timeout=60)
    alone = [client.infer(MODEL, [image_input(i[None])], client_timeout=30).as_numpy("label")[0] for i in images]
    assert together.as_numpy("label").tolist() == alone
    assert len(together.get_response().parameters["edgemux_route"].string_param.split(",")) == 32


def test_only_the_requested_outputs_are_sent(client: Any, pictures: Callable[..., Any]) -> None:
    wanted = [triton.InferRequestedOutput("label")]
    result = client.infer(MODEL, [image_input(pictures(1, 1)[0])], outputs=wanted, client_timeout=30)
    assert [output.name for output in result.get_response().outputs] == ["label"]


def test_health_is_checked_and_watched_per_model(agent: Running) -> None:
    with grpc.insecure_channel(agent.grpc) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        for service in ("", MODEL):
            request = health_pb2.HealthCheckRequest(service=service)
            assert stub.Check(request, timeout=30).status == health_pb2.HealthCheckResponse.SERVING
        watch = stub.Watch(health_pb2.HealthCheckRequest(service=MODEL), timeout=30)
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        watch.cancel()


def send(agent: Running, content: Any, method: str = INFER, timeout: float = 30) -> Any:
    """Send a message, or bytes that are none, straight to the port."""
    with grpc.insecure_channel(agent.grpc) as channel:
        raw = content if isinstance(content, bytes) else content.SerializeToString()
        answer = channel.unary_unary(method)(raw, timeout=timeout)
        return triton.service_pb2.ModelInferResponse.FromString(answer)


def bad(**changes: Any) -> Any:
    request = triton.service_pb2.ModelInferRequest(model_name=changes.get("model", MODEL))
    shape = changes.get("shape", [1, 28, 28])
    request.inputs.add(name=changes.get("name", "image"), datatype=changes.get("datatype", "UINT8"), shape=shape)
    request.raw_input_contents.append(changes.get("raw", bytes(784)))
    return request


def with_output(name: str) -> Any:
    request = bad()
    request.outputs.add(name=name)
    return request


def with_timeout(**value: Any) -> Any:
    request = bad()
    parameter = request.parameters["timeout"]
    for field, content in value.items():
        setattr(parameter, field, content)
    return request


BAD = {
    "malformed message": (b"\xff\xff\xff\xff", "INVALID_ARGUMENT", "request"),
    "deep nesting": (b"\x2a\x7f" * 5000, "INVALID_ARGUMENT", "request"),
    "unknown model": (bad(model="resnet"), "NOT_FOUND", "model_name"),
    "a model name with a NUL": (bad(model="a\0b"), "NOT_FOUND", "model_name"),
    "a very long model name": (bad(model="x" * 10**6), "NOT_FOUND", "model_name"),
    "unknown input": (bad(name="picture"), "INVALID_ARGUMENT", "picture"),
    "wrong datatype": (bad(datatype="FP32"), "INVALID_ARGUMENT", "image"),
    "wrong rank": (bad(shape=[28, 28]), "INVALID_ARGUMENT", "image"),
    "rank of a thousand": (bad(shape=[1] * 1000), "INVALID_ARGUMENT", "image"),
    "negative dimension": (bad(shape=[-1, 28, 28]), "INVALID_ARGUMENT", "image"),
    "zero dimension": (bad(shape=[0, 28, 28], raw=b""), "INVALID_ARGUMENT", "image"),
    "overflowing shape": (bad(shape=[2**31, 2**33, 28]), "INVALID_ARGUMENT", "image"),
    "huge batch": (bad(shape=[10**9, 28, 28]), "INVALID_ARGUMENT", "image"),
    "claimed size is not the payload": (bad(shape=[200, 28, 28]), "INVALID_ARGUMENT", "image"),
    "no payload": (bad(raw=b""), "INVALID_ARGUMENT", "image"),
    "a picture that does not decode": (
        bad(datatype="BYTES", shape=[1], raw=b"\4\0\0\0abcd"),
        "INVALID_ARGUMENT",
        "image",
    ),
    "a cut length": (bad(datatype="BYTES", shape=[1], raw=b"\xff\xff"), "INVALID_ARGUMENT", "image"),
    "unknown output": (with_output("logits"), "INVALID_ARGUMENT", "logits"),
    "a timeout that is text": (with_timeout(string_param="1s"), "INVALID_ARGUMENT", "timeout"),
    "a negative timeout": (with_timeout(int64_param=-5), "INVALID_ARGUMENT", "timeout"),
    "an expired timeout": (with_timeout(int64_param=1), "DEADLINE_EXCEEDED", "deadline"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_input_gets_a_typed_error_that_names_the_field_and_the_next_request_is_served(
    what: str, agent: Running, client: Any, pictures: Callable[..., Any]
) -> None:
    content, code, field = BAD[what]
    with pytest.raises(grpc.RpcError) as caught:
        send(agent, content)
    details = caught.value.details()
    assert caught.value.code().name == code
    assert field in details
    assert len(details) < 300
    for leak in ("Traceback", ".py", "/home", "/root", "/tmp", "edgemux.", "ValueError"):
        assert leak not in details
    assert good(client, pictures).as_numpy("label") is not None


def test_a_deadline_that_is_over_is_exceeded_and_an_absurd_one_is_capped(
    agent: Running, client: Any, pictures: Callable[..., Any]
) -> None:
    with pytest.raises(InferenceServerException, match="DEADLINE_EXCEEDED"):
        client.infer(MODEL, [image_input(pictures(1, 1)[0])], client_timeout=-1.0)
    assert send(agent, bad(), timeout=3600 * 24 * 365 * 10).model_name == MODEL


def test_refusals_make_no_new_metric_series(agent: Running) -> None:
    def series() -> set[str]:
        with urllib.request.urlopen(f"http://{agent.metrics}/metrics", timeout=30) as page:
            lines = page.read().decode().splitlines()
        return {line.rsplit(" ", 1)[0] for line in lines if not line.startswith("#")}

    send(agent, bad())
    before = series()
    for content, _, _ in BAD.values():
        with pytest.raises(grpc.RpcError):
            send(agent, content)
    # The sensors' readings may come and go; nothing else may.
    assert {s for s in series() ^ before if not s.startswith(("edgemux_resource", "edgemux_requests_total"))} == set()


def test_http_pages_tell_health_metadata_and_state(agent: Running) -> None:
    def get(path: str) -> tuple[int, Any]:
        try:
            with urllib.request.urlopen(f"http://{agent.http}{path}", timeout=30) as page:
                return page.status, json.loads(page.read())
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())

    assert get("/v2/health/live") == (200, {"live": True})
    assert get("/v2/health/ready")[0] == 200
    assert get(f"/v2/models/{MODEL}")[1]["inputs"][0]["shape"] == [-1, 28, 28]
    status, state = get("/status")
    assert status == 200
    assert state["cloud"]["breaker"] == "closed"
    assert state["certificate"]["delta"] == 0.1
    assert state["certificate"]["standing"] == "in_force"
    assert state["drift"]["alarm"] is None
    assert state["drift"]["inputs_to_a_false_alarm"] == 100_000
    assert get("/../../etc/passwd")[0] == 404


@pytest.mark.parametrize("damage", ["missing", "truncated", "flipped", "swapped"])
def test_a_damaged_bundle_is_refused_at_start_naming_the_file(tiny_bundle: Path, tmp_path: Path, damage: str) -> None:
    import shutil

    folder = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    target = folder / "level-3.onnx"
    content = target.read_bytes()
    match damage:
        case "missing":
            target.unlink()
        case "truncated":
            target.write_bytes(content[:-7])
        case "flipped":
            target.write_bytes(content[:100] + bytes([content[100] ^ 1]) + content[101:])
        case "swapped":
            target.write_bytes((folder / "level-2.onnx").read_bytes())
    command = [sys.executable, "-m", "edgemux.cli.main", "edge", "--bundle", str(folder), "--grpc-port", "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "level-3.onnx" in done.stderr


@pytest.mark.parametrize("kind", ["grpc", "http", "metrics"])
def test_a_port_in_use_is_named_and_never_shared(agent: Running, tiny_bundle: Path, kind: str) -> None:
    port = getattr(agent, kind).rsplit(":", 1)[1]
    ports = {"grpc": "0", "http": "0", "metrics": "0"} | {kind: port}
    flags = [word for name, number in ports.items() for word in (f"--{name}-port", number)]
    command = [sys.executable, "-m", "edgemux.cli.main", "edge", "--bundle", str(tiny_bundle), *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert f"--{kind}-port {port}" in done.stderr
    assert done.stderr.count("\n") == 1


def test_sigterm_answers_what_was_accepted(tiny_bundle: Path, pictures: Callable[..., Any]) -> None:
    running = start("edge", "--bundle", str(tiny_bundle))
    images, _ = pictures(1, 1)
    outcomes: list[str] = []
    stopped = threading.Event()

    def ask() -> None:
        with triton.InferenceServerClient(running.grpc) as client:
            while not stopped.is_set():
                try:
                    client.infer(MODEL, [image_input(images)], client_timeout=30)
                    outcomes.append("ok")
                except InferenceServerException as error:
                    outcomes.append(str(error.status()))
                    return

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    while len(outcomes) < 50:
        pass
    code, err = stop(running)
    stopped.set()
    for thread in threads:
        thread.join()
    assert code == 0, err
    # Later requests are turned away as unavailable; none that was taken in is cut off.
    assert set(outcomes) <= {"ok", "StatusCode.UNAVAILABLE"}


def test_a_killed_cloud_fails_no_request_and_its_return_is_noticed(
    tiny_bundle: Path, pictures: Callable[..., Any]
) -> None:
    cloud = start("cloud", "--bundle", str(tiny_bundle))
    running = start("edge", "--bundle", str(tiny_bundle), "--cloud", cloud.grpc)
    images, _ = pictures(120, 31)

    def ask_all() -> set[str]:
        with triton.InferenceServerClient(running.grpc) as client:
            results = [client.infer(MODEL, [image_input(i[None])], client_timeout=30) for i in images]
        return {result.get_response().parameters["edgemux_route"].string_param for result in results}

    try:
        assert ask_all() == {"edge", "cloud"}
        stop(cloud, signal.SIGKILL)
        assert ask_all() == {"edge"}
        port = cloud.grpc.rsplit(":", 1)[1]
        command = [sys.executable, "-m", "edgemux.cli.main", "cloud", "--bundle", str(tiny_bundle)]
        command += ["--grpc-port", port, "--http-port", "0", "--metrics-port", "0"]
        again = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            assert again.stdout is not None
            assert " ready " in again.stdout.readline()
            for _ in range(100):
                if "cloud" in ask_all():
                    break
            else:
                pytest.fail("the cloud that came back was not used")
        finally:
            again.kill()
            again.communicate()
    finally:
        stop(running, signal.SIGKILL)
        if cloud.process.poll() is None:
            os.kill(cloud.process.pid, signal.SIGKILL)


def picture(side: int = 28) -> bytes:
    import io

    from PIL import Image

    out = io.BytesIO()
    Image.new("L", (side, side)).save(out, "PNG")
    return out.getvalue()


def pictures_request(*counts: int, side: int = 28) -> Any:
    """An input for each count, which it claims as its shape, of that many pictures at least."""
    request = triton.service_pb2.ModelInferRequest(model_name=MODEL)
    element = picture(side)
    for count in counts:
        request.inputs.add(name="image", datatype="BYTES", shape=[count])
        request.raw_input_contents.append((len(element).to_bytes(4, "little") + element) * abs(count))
    return request


SWELLING = {
    "empty inputs": (b"\x2a\x00" * 2**20, "inputs"),
    "empty parameters of one input": (b"\x2a\x80\x80\x40" + b"\x22\x00" * 2**19, "inputs"),
    "a thousand inputs with a thousand parameters": ((b"\x2a\xd0\x0f" + b"\x22\x00" * 1000) * 1000, "inputs"),
    "empty outputs": (b"\x32\x00" * 2**20, "outputs"),
    "empty parameters": (b"\x22\x00" * 2**20, "parameters"),
    "empty buffers": (b"\x3a\x00" * 2**20, "raw_input_contents"),
    "an endless shape": (bad(shape=[1] * 2**20).SerializeToString(), "image"),
    "more pictures than any batch": (pictures_request(300, -300).SerializeToString(), "image"),
    "pictures that are counted away": (pictures_request(9, -9).SerializeToString(), "image"),
    "pictures of too many pixels together": (pictures_request(5, side=4800).SerializeToString(), "image"),
}


@pytest.mark.parametrize("what", SWELLING)
def test_a_message_that_would_swell_is_refused_before_it_does(
    what: str, agent: Running, client: Any, pictures: Callable[..., Any]
) -> None:
    content, field = SWELLING[what]
    with pytest.raises(grpc.RpcError) as caught:
        send(agent, content)
    assert caught.value.code().name == "INVALID_ARGUMENT"
    assert caught.value.details().startswith(f"{field}: ")
    assert good(client, pictures).as_numpy("label") is not None


def test_a_message_over_the_limit_is_refused_and_the_next_request_is_served(
    agent: Running, client: Any, pictures: Callable[..., Any]
) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        send(agent, bad(raw=bytes(4 * 2**20)))
    assert caught.value.code().name == "RESOURCE_EXHAUSTED"
    assert good(client, pictures).as_numpy("label") is not None


# An agent that says when it begins to decode a picture, and needs ages for it.
SLOW = """
import sys, time
from edgemux.edge import server
from edgemux.edge.config import load
from edgemux.wire import image

def pixels(*_):
    print("decoding", flush=True)
    time.sleep(1000)

image._pixels = pixels
ports = {f"listen.{name}_port": 0 for name in ("grpc", "http", "metrics")}
server.serve(load(None, {"bundle": sys.argv[1], "request.default_timeout_s": float(sys.argv[2]), **ports}))
"""


@pytest.fixture
def slow_agent(tiny_bundle: Path) -> Iterator[Callable[[float], Running]]:
    started: list[Running] = []

    def start_slow(default_timeout_s: float) -> Running:
        command = [sys.executable, "-c", SLOW, str(tiny_bundle), str(default_timeout_s)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert process.stdout is not None
        words = dict(word.split("=", 1) for word in process.stdout.readline().split() if "=" in word)
        started.append(Running(process, words["grpc"], words["http"], words["metrics"]))
        return started[-1]

    yield start_slow
    for running in started:
        if running.process.poll() is None:
            running.process.kill()
        running.process.communicate(timeout=60)


def test_a_request_without_a_deadline_has_the_default_from_when_it_came_while_its_pictures_are_decoded(
    slow_agent: Callable[[float], Running], pictures: Callable[..., Any]
) -> None:
    running = slow_agent(0.2)
    with grpc.insecure_channel(running.grpc) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary(INFER)(pictures_request(2).SerializeToString())
        assert caught.value.code().name == "DEADLINE_EXCEEDED"
        assert caught.value.details().startswith("deadline: ")
    with triton.InferenceServerClient(running.grpc) as client:
        assert good(client, pictures).as_numpy("label") is not None


def test_a_second_signal_waits_for_no_picture_and_its_caller_hears_unavailable(
    slow_agent: Callable[[float], Running],
) -> None:
    running = slow_agent(60.0)
    out = running.process.stdout
    assert out is not None
    with grpc.insecure_channel(running.grpc) as channel:
        call = channel.unary_unary(INFER).future(pictures_request(100).SerializeToString())
        assert out.readline() == "decoding\n"
        running.process.send_signal(signal.SIGTERM)
        with pytest.raises(urllib.error.HTTPError):
            while True:
                urllib.request.urlopen(f"http://{running.http}/v2/health/ready", timeout=30).close()
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(60) == 0
        assert call.code().name == "UNAVAILABLE"


def test_a_message_size_that_is_too_small_ends_it_with_status_2_naming_the_setting(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    config = tmp_path / "edge.toml"
    config.write_text("[listen]\nmax_message_bytes = 1000\n")
    command = [sys.executable, "-m", "edgemux.cli.main", "edge", "--bundle", str(tiny_bundle), "--config", str(config)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "max_message_bytes" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("policy", "reason"),
    [("max-sofmax(0.9)", "installed: "), ("max-softmax", "needs threshold"), ("entropy(level=1)", "it has threshold")],
)
def test_a_wrong_policy_ends_it_with_status_2_and_says_what_there_is(
    tiny_bundle: Path, tmp_path: Path, policy: str, reason: str
) -> None:
    config = tmp_path / "edge.toml"
    config.write_text(f'policy = "{policy}"\n')
    command = [sys.executable, "-m", "edgemux.cli.main", "edge", "--bundle", str(tiny_bundle), "--config", str(config)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "policy: " in done.stderr
    assert reason in done.stderr
    assert done.stderr.count("\n") == 1
