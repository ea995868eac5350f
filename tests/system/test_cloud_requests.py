"""What clients of the cloud server get: a stock tritonclient, then somebody whose requests are wrong."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2_grpc

MODEL = "fashion-mnist"
PATIENCE_S = 60.0


@pytest.fixture
def client(cloud: Any) -> Iterator[Any]:
    with cloud.client() as opened:
        yield opened


def is_answered(client: Any, samples: dict[str, NDArray[Any]]) -> None:
    """A good request gets a right answer."""
    result = client.ask(samples["images"][:3])
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
    result = client.ask(samples["images"][:20], request_id="seven")
    assert list(result.as_numpy("label")) == list(samples["labels"][:20])
    assert result.as_numpy("probabilities").shape == (20, 10)
    assert result.as_numpy("probabilities").dtype == np.float32
    response = result.get_response()
    assert response.id == "seven"
    assert re.fullmatch("[0-9a-f]{64}", response.parameters["edgemux_model_digest"].string_param)
    assert response.parameters["edgemux_queue_ms"].double_param >= 0


def test_only_requested_outputs_are_sent(client: Any, samples: dict[str, NDArray[Any]]) -> None:
    wanted = [triton.InferRequestedOutput("label")]
    result = client.ask(samples["images"][:1], outputs=wanted)
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


@pytest.fixture
def stub(cloud: Any) -> Iterator[Any]:
    with grpc.insecure_channel(cloud.grpc) as channel:
        yield service_pb2_grpc.GRPCInferenceServiceStub(channel)


def test_typed_contents_are_classified(stub: Any, message: Any, samples: dict[str, NDArray[Any]]) -> None:
    del message.raw_input_contents[:]
    message.inputs[0].contents.uint_contents.extend(samples["images"][0].reshape(-1).tolist())
    response = stub.ModelInfer(message, timeout=PATIENCE_S)
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
    what: str, stub: Any, message: Any, client: Any, samples: dict[str, NDArray[Any]], tiny_bundle: Path
) -> None:
    change, field = BAD[what]
    change(message)
    with pytest.raises(grpc.RpcError) as refusal:
        stub.ModelInfer(message, timeout=PATIENCE_S)
    assert refusal.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert field in refusal.value.details().partition(": ")[0]
    leaks_nothing(refusal.value.details(), tiny_bundle)
    is_answered(client, samples)


def test_bytes_that_do_not_parse_are_an_invalid_argument(
    cloud: Any, client: Any, samples: dict[str, NDArray[Any]], tiny_bundle: Path
) -> None:
    with grpc.insecure_channel(cloud.grpc) as channel:
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
        lambda: client.ask(samples["images"][:1], name, model_version=version),
        lambda: client.get_model_metadata(name, version, client_timeout=PATIENCE_S),
    ):
        with pytest.raises(triton.InferenceServerException) as refusal:
            ask()
        assert refusal.value.status() == "StatusCode.NOT_FOUND"
        leaks_nothing(refusal.value.message(), tiny_bundle)
    is_answered(client, samples)


def test_an_expired_deadline_is_told_and_an_absurd_one_is_capped(client: Any, samples: dict[str, NDArray[Any]]) -> None:
    one = samples["images"][:1]
    for arguments in ({"client_timeout": -1.0}, {"timeout": 1}):
        with pytest.raises(triton.InferenceServerException) as refusal:
            client.ask(one, **arguments)
        assert refusal.value.status() == "StatusCode.DEADLINE_EXCEEDED"
    client.ask(one, client_timeout=1e8)
    client.ask(one, timeout=2**62, client_timeout=None)
    client.ask(one, client_timeout=None)
