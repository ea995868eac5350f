"""What clients of the agent get: a stock tritonclient, then somebody who means harm."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tritonclient.utils import InferenceServerException

MODEL = "fashion-mnist"
INFER = "/inference.GRPCInferenceService/ModelInfer"


@pytest.fixture
def client(agent: Any) -> Iterator[Any]:
    with agent.client() as opened:
        yield opened


def good(client: Any, pictures: Callable[..., Any]) -> Any:
    return client.ask(pictures(1, 1)[0])


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
        result = client.ask(image[None], request_id="x7")
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
    client: Any, agent: Any, pictures: Callable[..., Any]
) -> None:
    import io

    from PIL import Image

    image = pictures(1, 22)[0][0]
    raw = client.ask(image[None]).as_numpy("label")
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
    together = client.ask(images)
    alone = [client.ask(i[None]).as_numpy("label")[0] for i in images]
    assert together.as_numpy("label").tolist() == alone
    assert len(together.get_response().parameters["edgemux_route"].string_param.split(",")) == 32


def test_only_the_requested_outputs_are_sent(client: Any, pictures: Callable[..., Any]) -> None:
    wanted = [triton.InferRequestedOutput("label")]
    result = client.ask(pictures(1, 1)[0], outputs=wanted)
    assert [output.name for output in result.get_response().outputs] == ["label"]


def test_health_is_checked_and_watched_per_model(agent: Any) -> None:
    with grpc.insecure_channel(agent.grpc) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        for service in ("", MODEL):
            request = health_pb2.HealthCheckRequest(service=service)
            assert stub.Check(request, timeout=30).status == health_pb2.HealthCheckResponse.SERVING
        watch = stub.Watch(health_pb2.HealthCheckRequest(service=MODEL), timeout=30)
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        watch.cancel()


def send(agent: Any, content: Any, method: str = INFER, timeout: float = 30) -> Any:
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
    what: str, agent: Any, client: Any, pictures: Callable[..., Any]
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
    agent: Any, client: Any, pictures: Callable[..., Any]
) -> None:
    with pytest.raises(InferenceServerException, match="DEADLINE_EXCEEDED"):
        client.ask(pictures(1, 1)[0], client_timeout=-1.0)
    assert send(agent, bad(), timeout=3600 * 24 * 365 * 10).model_name == MODEL


def test_refusals_make_no_new_metric_series(agent: Any) -> None:
    send(agent, bad())
    before = set(agent.scrape())
    for content, _, _ in BAD.values():
        with pytest.raises(grpc.RpcError):
            send(agent, content)
    # The sensors' readings may come and go; nothing else may.
    changed = before ^ set(agent.scrape())
    assert {name for name in changed if not name.startswith(("edgemux_resource", "edgemux_requests_total"))} == set()


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
    what: str, agent: Any, client: Any, pictures: Callable[..., Any]
) -> None:
    content, field = SWELLING[what]
    with pytest.raises(grpc.RpcError) as caught:
        send(agent, content)
    assert caught.value.code().name == "INVALID_ARGUMENT"
    assert caught.value.details().startswith(f"{field}: ")
    assert good(client, pictures).as_numpy("label") is not None


def test_a_message_over_the_limit_is_refused_and_the_next_request_is_served(
    agent: Any, client: Any, pictures: Callable[..., Any]
) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        send(agent, bad(raw=bytes(4 * 2**20)))
    assert caught.value.code().name == "RESOURCE_EXHAUSTED"
    assert good(client, pictures).as_numpy("label") is not None


def test_the_request_log_has_every_request_once_and_nothing_stays_in_flight(
    serving: Any, tiny_bundle: Path, tmp_path: Path, samples: Any
) -> None:
    config, log = tmp_path / "edge.toml", tmp_path / "requests.jsonl"
    config.write_text(f'[log]\nrequests = "{log}"\n')
    with serving("edge", "--bundle", str(tiny_bundle), "--config", str(config)) as running:
        with running.client() as client:
            for number in range(20):
                client.ask(samples["images"][number : number + 1], request_id=f"r{number}")
            with pytest.raises(InferenceServerException):
                client.ask(samples["images"][:1].reshape(1, 784), request_id="bad")
        assert running.scrape()['edgemux_inflight{model="fashion-mnist"}'] == 0
        running.stop()
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["id"] for line in lines] == [*(f"r{number}" for number in range(20)), "bad"]
    assert {line["outcome"] for line in lines[:20]} == {"answered"}
    assert lines[20]["outcome"] == "input"
    assert lines[20]["labels"] == []


def test_a_stock_client_reads_the_agent_s_configuration_and_statistics(
    client: Any, pictures: Callable[..., Any]
) -> None:
    def counted() -> tuple[int, int, int]:
        (statistics,) = client.get_inference_statistics(MODEL).model_stats
        stats = statistics.inference_stats
        assert (stats.success.ns > 0) is (stats.success.count > 0)
        return statistics.inference_count, stats.success.count, stats.fail.count

    before = counted()
    client.ask(pictures(3, 1)[0])
    with pytest.raises(InferenceServerException):
        client.ask(np.zeros((1, 3, 3), np.uint8))
    assert [now - then for now, then in zip(counted(), before, strict=True)] == [3, 1, 1]
    config = client.get_model_config(MODEL, as_json=True)["config"]
    assert config["input"][0]["dims"] == ["28", "28"]
    assert "dynamic_batching" not in config
