"""Tensors over the wire: what is good arrives unchanged, what is wrong is named before anything is allocated."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from edgemux.multiplexer.bundle import Preprocessing, Tensor
from edgemux.multiplexer.errors import BadAnswer, EdgemuxError, InputError, TooLarge
from edgemux.wire import oip_pb2 as oip
from edgemux.wire.codec import (
    DTYPES,
    add_checksum,
    check_inputs,
    decode_inputs,
    get_parameters,
    intact,
    join_bytes,
    make_request,
    make_response,
    read_outputs,
    requested_outputs,
    set_parameters,
    split_bytes,
)


def read_inputs(request: Any, tensors: Any, preprocessing: Any = None, max_batch: int = 1024) -> Any:
    return decode_inputs(check_inputs(request, tensors, preprocessing, max_batch), preprocessing)


IMAGE = (Tensor("image", "UINT8", (-1, 28, 28)),)
GREY = Preprocessing("L", 28, 28)


def request(shape: list[int], raw: bytes, datatype: str = "UINT8", name: str = "image") -> Any:
    message = oip.ModelInferRequest(model_name="m")
    message.inputs.add(name=name, datatype=datatype, shape=shape)
    message.raw_input_contents.append(raw)
    return message


def refusal(message: Any, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        read_inputs(message, IMAGE, GREY, **options)
    return str(caught.value)


@given(st.data(), st.sampled_from(sorted(DTYPES)))
def test_an_array_of_any_datatype_arrives_as_it_was_sent(data: st.DataObject, datatype: str) -> None:
    shape = data.draw(hnp.array_shapes(min_dims=1, max_dims=3, max_side=4))
    elements = {"allow_nan": False, "allow_infinity": False} if datatype.startswith("FP") else None
    array = data.draw(hnp.arrays(DTYPES[datatype], shape, elements=elements))
    tensor = Tensor("x", datatype, (-1, *shape[1:]))
    message = oip.ModelInferRequest.FromString(make_request("m", {"x": array}).SerializeToString())
    np.testing.assert_array_equal(read_inputs(message, (tensor,))["x"], array)
    response = make_response("m", "1", "id", {"x": array}, {})
    np.testing.assert_array_equal(read_outputs(response, (tensor,), shape[0])["x"], array)


def test_a_dimension_of_0_is_refused_where_any_size_is_taken() -> None:
    empty = make_request("m", {"x": np.zeros((1, 0, 2), np.float32)})
    with pytest.raises(InputError, match=r"^x: shape has a dimension of 0$"):
        read_inputs(empty, (Tensor("x", "FP32", (-1, -1, 2)),))


@pytest.mark.parametrize(
    ("shape", "says"),
    [
        ([1, 28], "dimensions"),
        ([], "dimensions"),
        ([1] * 1000, "dimensions"),
        ([-1, 28, 28], "negative"),
        ([0, 28, 28], "batch of 0"),
        ([1, 28, 27], "expected"),
        ([1, 0, 28], "expected"),
        ([2**31, 2**33, 28], "expected"),
        ([2**62, 28, 28], "at most"),
        ([2, 28, 28], "784 bytes"),
    ],
)
def test_a_wrong_shape_is_refused_naming_the_tensor(shape: list[int], says: str) -> None:
    text = refusal(request(shape, bytes(784)))
    assert text.startswith("image: ")
    assert says in text


def test_an_overflowing_product_of_free_dimensions_is_refused() -> None:
    free = (Tensor("x", "FP32", (-1, -1, -1)),)
    with pytest.raises(InputError, match="x: 4 bytes"):
        read_inputs(request([1024, 2**31, 2**33], b"\0\0\0\0", "FP32", "x"), free)


@pytest.mark.parametrize("size", [0, 1, 783, 785])
def test_a_payload_of_another_size_than_claimed_is_refused(size: int) -> None:
    assert "784" in refusal(request([1, 28, 28], bytes(size)))


def test_encoded_pictures_for_a_model_without_preprocessing_are_refused_in_so_many_words() -> None:
    message = request([1], b"", "BYTES")
    del message.raw_input_contents[:]
    message.inputs[0].contents.bytes_contents.append(b"any picture")
    with pytest.raises(InputError, match=r"^image: encoded pictures are not taken here, expected UINT8$"):
        read_inputs(message, IMAGE, None)


@pytest.mark.parametrize("datatype", ["FP32", "INT8", "BF16", "uint8", "", "x" * 10_000])
def test_a_wrong_datatype_is_refused_shortly(datatype: str) -> None:
    text = refusal(request([1, 28, 28], bytes(784), datatype))
    assert "expected UINT8" in text
    assert len(text) < 200


def test_an_unknown_a_missing_and_a_doubled_input_are_named() -> None:
    assert "no such input" in refusal(request([1, 28, 28], bytes(784), name="picture"))
    assert refusal(oip.ModelInferRequest()) == "image: missing"
    twice = request([1, 28, 28], bytes(784))
    twice.inputs.append(twice.inputs[0])
    twice.raw_input_contents.append(bytes(784))
    assert "twice" in refusal(twice)


def test_raw_and_typed_contents_must_not_be_mixed() -> None:
    mixed = request([1, 28, 28], bytes(784))
    mixed.inputs[0].contents.uint_contents.extend([0] * 784)
    assert "both" in refusal(mixed)
    counts = request([1, 28, 28], bytes(784))
    counts.raw_input_contents.append(b"")
    assert "2 buffers for 1 inputs" in refusal(counts)


def test_typed_contents_are_read_and_checked() -> None:
    message = oip.ModelInferRequest()
    tensor = message.inputs.add(name="image", datatype="UINT8", shape=[1, 28, 28])
    assert "no data" in refusal(message)
    tensor.contents.uint_contents.extend(range(200))
    assert "200 values" in refusal(message)
    tensor.contents.uint_contents.extend([255] * 584)
    assert read_inputs(message, IMAGE)["image"].sum() == sum(range(200)) + 255 * 584
    tensor.contents.uint_contents[0] = 256
    assert "does not fit" in refusal(message)
    del tensor.contents.uint_contents[:]
    tensor.contents.fp32_contents.extend([0.0] * 784)
    assert "fp32_contents" in refusal(message)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_float_that_is_not_finite_is_refused(value: float) -> None:
    with pytest.raises(InputError, match="x: holds NaN or infinity"):
        read_inputs(make_request("m", {"x": np.array([[1.0, value]], np.float32)}), (Tensor("x", "FP32", (-1, 2)),))


def test_a_batch_over_the_limit_is_too_large() -> None:
    with pytest.raises(TooLarge, match="image: batch of 9, at most 8"):
        read_inputs(request([9, 28, 28], bytes(9 * 784)), IMAGE, max_batch=8)


def encoded(format_: str, mode: str = "L", size: tuple[int, int] = (28, 28)) -> bytes:
    out = io.BytesIO()
    Image.new(mode, size, 200 if mode == "L" else (200, 200, 200)).save(out, format_)
    return out.getvalue()


@pytest.mark.parametrize("format_", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_encoded_pictures_become_pixels(format_: str, mode: str) -> None:
    pictures = [encoded(format_, mode), encoded(format_, mode, (100, 50))]
    pixels = read_inputs(make_request("m", {"image": pictures}), IMAGE, GREY)["image"]
    assert (pixels.shape, pixels.dtype) == ((2, 28, 28), np.uint8)
    assert abs(int(pixels.astype(int).mean()) - 200) <= 2


@pytest.mark.parametrize(
    "content", [b"", b"\x89PNG\r\n\x1a\n", b"GIF89a" + bytes(30), encoded("PNG")[:40], b"\xff\xd8\xff" + bytes(100)]
)
def test_a_picture_that_does_not_decode_is_refused(content: bytes) -> None:
    text = refusal(make_request("m", {"image": [content]}))
    assert text == "image: not a JPEG, PNG, WEBP picture that decodes"


def test_a_picture_of_too_many_pixels_is_refused_by_its_header() -> None:
    bomb = bytearray(encoded("PNG"))
    bomb[16:24] = (30_000).to_bytes(4, "big") * 2
    with pytest.raises(InputError):
        read_inputs(make_request("m", {"image": [bytes(bomb)]}), IMAGE, GREY)


@pytest.mark.parametrize("second", ["shape", "datatype", "name", "elements", "rows"])
def test_all_inputs_are_checked_before_the_first_picture_is_decoded(
    second: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def decode(*_: Any) -> Any:
        raise AssertionError("decoded")

    monkeypatch.setattr("edgemux.wire.codec.decode_images", decode)
    both = (*IMAGE, Tensor("depth", "FP32", (-1, 2)))
    message = make_request("m", {"image": [encoded("PNG")], "depth": np.zeros((1, 2), np.float32)})
    match second:
        case "shape":
            message.inputs[1].shape[1] = 3
        case "datatype":
            message.inputs[1].datatype = "INT32"
        case "name":
            message.inputs[1].name = "image"
        case "elements":
            message.raw_input_contents[1] = bytes(7)
        case "rows":
            message = make_request("m", {"image": [encoded("PNG")], "depth": np.zeros((2, 2), np.float32)})
    with pytest.raises(InputError):
        read_inputs(message, both, GREY)


def test_a_count_of_pictures_that_was_not_sent_is_refused_before_they_are_gathered() -> None:
    message = oip.ModelInferRequest()
    tensor = message.inputs.add(name="image", datatype="BYTES", shape=[2])
    tensor.contents.bytes_contents.extend([b""] * 1000)
    assert refusal(message) == "image: 1000 elements, its shape needs 2"


def test_an_inverted_picture_is_turned_around() -> None:
    inverted = Preprocessing("L", 28, 28, invert=True)
    pixels = read_inputs(make_request("m", {"image": [encoded("PNG")]}), IMAGE, inverted)["image"]
    assert (pixels == 55).all()


@given(st.lists(st.binary(max_size=50), max_size=8))
def test_a_bytes_tensor_is_split_as_it_was_joined(elements: list[bytes]) -> None:
    assert split_bytes("x", join_bytes(elements), len(elements)) == elements


@given(st.binary(max_size=200), st.integers(0, 5))
def test_damaged_bytes_tensors_raise_only_input_errors(raw: bytes, count: int) -> None:
    try:
        elements = split_bytes("x", raw, count)
    except InputError:
        return
    assert join_bytes(elements) == raw


@given(st.binary(max_size=300))
def test_arbitrary_requests_raise_only_typed_errors(content: bytes) -> None:
    try:
        message = oip.ModelInferRequest.FromString(content)
    except Exception:
        return
    try:
        read_inputs(message, IMAGE, GREY)
    except EdgemuxError as error:
        assert "/" not in str(error).replace("JPEG/PNG", "")


def test_requested_outputs_keep_the_client_s_order_and_unknown_ones_are_named() -> None:
    outputs = (Tensor("probabilities", "FP32", (-1, 10)), Tensor("label", "INT64", (-1,)))
    message = oip.ModelInferRequest()
    assert requested_outputs(message, outputs) == ["probabilities", "label"]
    message.outputs.add(name="label")
    assert requested_outputs(message, outputs) == ["label"]
    message.outputs.add(name="logits")
    with pytest.raises(InputError, match="logits"):
        requested_outputs(message, outputs)


def test_parameters_of_every_kind_survive() -> None:
    values: dict[str, Any] = {"a": True, "b": 3, "c": 0.5, "d": "text"}
    message = oip.ModelInferRequest()
    set_parameters(message, values)
    message.parameters["empty"].SetInParent()
    assert get_parameters(message) == values


def test_an_answer_prefers_raw_contents_and_reads_typed_ones() -> None:
    tensor = Tensor("p", "FP32", (-1, 2))
    response = make_response("m", "1", "", {"p": np.array([[0.25, 0.75]], np.float32)}, {})
    response.outputs[0].contents.SetInParent()  # one server sends both, the typed one empty
    assert read_outputs(response, (tensor,), 1)["p"].tolist() == [[0.25, 0.75]]
    del response.raw_output_contents[:]
    add_checksum(response)
    with pytest.raises(BadAnswer, match="p: wrong size"):
        read_outputs(response, (tensor,), 1)
    response.outputs[0].contents.fp32_contents.extend([0.5, 0.5])
    assert read_outputs(response, (tensor,), 1)["p"].tolist() == [[0.5, 0.5]]


@given(st.binary(min_size=1, max_size=64), st.integers(0, 63), st.integers(0, 7))
def test_any_bit_that_flips_in_the_contents_of_a_request_is_noticed(content: bytes, byte: int, bit: int) -> None:
    request = make_request("m", {"x": np.frombuffer(content, np.uint8)[None]}, request_id="7")
    add_checksum(request)
    assert intact(request)
    damaged = bytearray(content)
    damaged[byte % len(content)] ^= 1 << bit
    request.raw_input_contents[0] = bytes(damaged)
    assert not intact(request)
    with pytest.raises(InputError, match="edgemux_crc32"):
        read_inputs(request, [Tensor("x", "UINT8", (-1, len(content)))])


def test_what_else_an_answer_is_trusted_for_is_under_its_checksum_too() -> None:
    def response() -> Any:
        return make_response("m", "1", "7", {"y": np.ones((1, 2), np.float32)}, {"edgemux_model_digest": "ab"}, True)

    assert intact(response())
    for spoil in (
        lambda message: setattr(message, "id", "8"),
        lambda message: setattr(message.parameters["edgemux_model_digest"], "string_param", "ac"),
    ):
        damaged = response()
        spoil(damaged)
        assert not intact(damaged)
        with pytest.raises(BadAnswer):
            read_outputs(damaged, [Tensor("y", "FP32", (-1, 2))], rows=1)


def test_a_message_of_other_software_has_no_checksum_and_is_taken() -> None:
    assert intact(make_request("m", {"x": np.zeros((1, 2), np.uint8)}))


def test_an_answer_that_gives_an_output_twice_is_none() -> None:
    response = make_response("m", "1", "", {"y": np.ones((1, 2), np.float32)}, {})
    response.outputs.add().CopyFrom(response.outputs[0])
    response.raw_output_contents.append(np.zeros((1, 2), np.float32).tobytes())
    add_checksum(response)
    with pytest.raises(BadAnswer, match="more than once"):
        read_outputs(response, (Tensor("y", "FP32", (-1, 2)),), 1)
