"""JSON and binary tensors: what is written is read again, and whatever else comes is refused by name."""

from __future__ import annotations

import base64
import contextlib
import gzip
import json
import time
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgemux.multiplexer.errors import BadAnswer, InputError, TooLarge
from edgemux.wire import oip_pb2 as oip
from edgemux.wire.codec import DTYPES, join_bytes, make_response
from edgemux.wire.rest_answer import plain, write_infer
from edgemux.wire.rest_codec import MAX_JSON_ELEMENTS, Wanted, read_infer, seconds, unfold

NUMBERS = sorted(DTYPES)
ALL_BINARY = Wanted(binary=True)
# A busy machine is no failure.
patient = settings(deadline=None)


def read(value: Any, binary: bytes = b"") -> tuple[Any, Wanted]:
    """What a body of ``value`` as JSON and ``binary`` after it is read as."""
    head = value if isinstance(value, bytes) else json.dumps(value).encode()
    return read_infer(head + binary, len(head) if binary else None, "m", "1")


def tensor(data: Any, shape: list[int], datatype: str = "FP32", **more: Any) -> dict[str, Any]:
    return {"inputs": [{"name": "x", "datatype": datatype, "shape": shape, "data": data, **more}]}


@st.composite
def arrays(draw: Any) -> tuple[str, Any]:
    datatype = draw(st.sampled_from(NUMBERS))
    dtype = DTYPES[datatype].newbyteorder("=")
    finite = {"allow_nan": False, "allow_infinity": False} if dtype.kind == "f" else {}
    elements = hnp.from_dtype(dtype, **finite)
    return datatype, draw(hnp.arrays(dtype, hnp.array_shapes(max_dims=4, max_side=4), elements=elements))


@patient
@given(arrays(), st.booleans())
def test_numbers_in_json_flat_or_nested_become_the_bytes_of_the_array(made: tuple[str, Any], nested: bool) -> None:
    datatype, array = made
    data = array.tolist() if nested else array.reshape(-1).tolist()
    request, _ = read(tensor(data, list(array.shape), datatype))
    assert request.raw_input_contents[0] == array.astype(DTYPES[datatype]).tobytes()
    assert list(request.inputs[0].shape) == list(array.shape)


@patient
@given(arrays(), st.booleans())
def test_an_answer_in_json_or_binary_holds_the_array(made: tuple[str, Any], binary: bool) -> None:
    datatype, array = made
    response = make_response("m", "1", "id", {"y": array}, {"a": 1, "b": 0.5, "c": "d", "e": True})
    head, pieces = write_infer(response, Wanted(binary=binary))
    answer = json.loads(head)
    assert (answer["model_name"], answer["model_version"], answer["id"]) == ("m", "1", "id")
    assert answer["parameters"] == {"a": 1, "b": 0.5, "c": "d", "e": True}
    output = answer["outputs"][0]
    assert (output["datatype"], output["shape"]) == (datatype, list(array.shape))
    if binary:
        assert output["parameters"] == {"binary_data_size": array.nbytes}
        assert pieces == (array.astype(DTYPES[datatype]).tobytes(),)
    else:
        assert pieces == ()
        assert np.array_equal(np.array(output["data"], array.dtype).reshape(array.shape), array)


@patient
@given(st.lists(st.text(), min_size=1, max_size=5))
def test_strings_become_elements_of_utf_8(texts: list[str]) -> None:
    texts = [text.encode("utf-8", "ignore").decode() for text in texts]
    request, _ = read(tensor(texts, [len(texts)], "BYTES"))
    assert request.raw_input_contents[0] == join_bytes([text.encode() for text in texts])


@patient
@given(st.lists(st.binary(), min_size=1, max_size=5))
def test_bytes_that_are_no_text_travel_as_base64(pieces: list[bytes]) -> None:
    encoded = [base64.b64encode(piece).decode() for piece in pieces]
    as_kserve = read(tensor([{"b64": piece} for piece in encoded], [len(pieces)], "BYTES"))[0]
    as_mlserver = read(tensor(encoded, [len(pieces)], "BYTES", parameters={"content_type": "base64"}))[0]
    assert as_kserve.raw_input_contents[0] == as_mlserver.raw_input_contents[0] == join_bytes(pieces)
    assert not as_mlserver.inputs[0].parameters
    response = oip.ModelInferResponse()
    response.outputs.add(name="y", datatype="BYTES", shape=[len(pieces)])
    response.raw_output_contents.append(join_bytes(pieces))
    output = json.loads(write_infer(response, Wanted())[0])["outputs"][0]
    back = output["data"]
    if "parameters" in output:
        assert output["parameters"] == {"content_type": "base64"}
        assert [base64.b64decode(text) for text in back] == pieces
    else:
        assert [text.encode() for text in back] == pieces


def test_bf16_is_the_upper_half_of_a_float_rounded_to_even() -> None:
    request, _ = read(tensor([1.0, -2.5, 1.00390625, 1.01171875], [4], "BF16"))
    bits = np.frombuffer(request.raw_input_contents[0], "<u2")
    assert bits.tolist() == [0x3F80, 0xC020, 0x3F80, 0x3F82]
    response = oip.ModelInferResponse()
    response.outputs.add(name="y", datatype="BF16", shape=[4])
    response.raw_output_contents.append(request.raw_input_contents[0])
    assert json.loads(write_infer(response, Wanted())[0])["outputs"][0]["data"] == [1.0, -2.5, 1.0, 1.015625]


@patient
@given(arrays(), st.binary(max_size=20))
def test_binary_data_are_dealt_out_in_the_order_of_the_inputs(made: tuple[str, Any], other: bytes) -> None:
    datatype, array = made
    raw = array.astype(DTYPES[datatype]).tobytes()
    inputs = [
        {"name": "a", "datatype": datatype, "shape": list(array.shape), "parameters": {"binary_data_size": len(raw)}},
        {"name": "b", "datatype": "INT8", "shape": [1], "data": [7]},
        {"name": "c", "datatype": "UINT8", "shape": [len(other)], "parameters": {"binary_data_size": len(other)}},
    ]
    for _ in range(2):  # a head that is known is read like one that is not
        request, _ = read({"inputs": inputs}, raw + other)
        assert list(request.raw_input_contents) == [raw, b"\7", other]
        request, _ = read({"inputs": [inputs[0], inputs[2]]}, raw + other)
        assert list(request.raw_input_contents) == [raw, other]
        request, _ = read({"inputs": [inputs[0]], "id": "an id"}, raw)
        assert (list(request.raw_input_contents), request.id) == ([raw], "an id")
    with pytest.raises(InputError, match="inputs: binary_data_size is"):
        read({"inputs": [inputs[0]], "id": "an id"}, raw + b"x")


def test_parameters_go_both_ways_with_their_types() -> None:
    asked = {"a": True, "b": -5, "c": 2**63, "d": 1.5, "e": "text", "timeout": 1000, "priority": 2}
    request, _ = read(tensor([1], [1]) | {"parameters": asked | {"binary_data_output": True, "timeout_ms": 20}})
    kinds = {key: slot.WhichOneof("parameter_choice") for key, slot in request.parameters.items()}
    integer = "int64_param"
    assert kinds == {
        "a": "bool_param",
        "b": integer,
        "c": "uint64_param",
        "d": "double_param",
        "e": "string_param",
        "timeout": integer,
        "priority": integer,
    }
    assert all(getattr(request.parameters[key], kinds[key]) == value for key, value in asked.items())


def test_each_output_may_be_asked_for_in_its_own_form() -> None:
    outputs = [{"name": "a", "parameters": {"binary_data": False}}, {"name": "b"}, {"name": "c", "parameters": {}}]
    request, wanted = read(tensor([1], [1]) | {"outputs": outputs, "parameters": {"binary_data_output": True}})
    assert [output.name for output in request.outputs] == ["a", "b", "c"]
    response = make_response("m", "1", "", {name: np.float32([1, 2]) for name in "abc"}, {})
    head, pieces = write_infer(response, wanted)
    assert [("data" in output) for output in json.loads(head)["outputs"]] == [True, False, False]
    assert len(pieces) == 2


@pytest.mark.parametrize("given_ms", [5, 5.0, "5"])
def test_a_timeout_is_milliseconds(given_ms: Any) -> None:
    assert read(tensor([1], [1]) | {"parameters": {"timeout_ms": given_ms}})[1].timeout_s == 0.005


@pytest.mark.parametrize("given_ms", [0, -1, "x", "", "inf", "nan", True, None, [5], 10**400])
def test_a_timeout_that_is_none_is_refused(given_ms: Any) -> None:
    with pytest.raises(InputError, match="timeout_ms: must be a positive number of milliseconds"):
        seconds(given_ms)


WRONG: list[tuple[Any, str]] = [
    (b"", "body: "),
    (b"[]", "body: "),
    (b"{", "body: "),
    (b"\xff\xfe", "body: "),
    (b'{"id":"\xff","inputs":[]}', "body: not UTF-8"),
    ({}, "body: .*inputs"),
    ({"inputs": {}}, "inputs: "),
    ({"inputs": [{"name": "x"}]}, r"inputs\[0\]: .*datatype"),
    ({"inputs": [], "id": 5}, "id: "),
    ({"inputs": [], "parameters": {"a": None}}, "parameters"),
    ({"inputs": [], "parameters": {"a": {"b": 1}}}, "parameters"),
    ({"inputs": [], "parameters": {"a": 2**64}}, r"parameters.a: is no number of 64 bits"),
    (tensor([1.0], ["a"]), "x"),  # type: ignore[list-item]
    (tensor([1.0], [-1]), "x.shape: "),
    (tensor([1.0], [2**63]), "x.shape: "),
    (tensor([1.0], [1] * 17), "x.shape: "),
    (tensor([1.0], [1] * 400), "x.shape: too long"),
    (tensor([1.0, 2.0], [3]), "x: 2 values, its shape needs 3"),
    (tensor([1.0, 2.0, 3.0, 4.0], [2]), "x: more values than the 2"),
    (tensor([[1.0, 2.0], [3.0]], [2, 2]), "x: data is nested otherwise"),
    (tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], [3, 2]), "x: data is nested otherwise"),
    (tensor([[1.0], [2.0]], [2]), "x: data is nested otherwise"),
    (tensor([], [1]), "x: 0 values"),
    (tensor(5, [1]), "x: data must be a list"),
    (tensor({"a": 1}, [1]), "x: data must be a list"),
    (tensor(None, [1]), "x: data must be a list"),
    (tensor(["1"], [1]), r"x\[0\]: Expected float"),
    (tensor([None], [1]), r"x\[0\]: Expected float"),
    (tensor([1e39], [1]), "x: a value does not fit FP32"),
    (tensor([70000.0], [1], "FP16"), "x: a value does not fit FP16"),
    (tensor([1.5], [1], "INT8"), r"x\[0\]: Expected int"),
    (tensor([128], [1], "INT8"), r"x\[0\]: "),
    (tensor([-1], [1], "UINT64"), r"x\[0\]: "),
    (tensor([2**64], [1], "UINT64"), "x: a value does not fit UINT64"),
    (tensor([2**63], [1], "INT64"), "x: a value does not fit INT64"),
    (tensor([1], [1], "BOOL"), r"x\[0\]: Expected bool"),
    (tensor([5], [1], "BYTES"), r"x\[0\]: "),
    (tensor([{"b64": "?"}], [1], "BYTES"), "x: an element is not base64"),
    (tensor([1], [1], "FP31"), "x: datatype 'FP31' is none"),
    (tensor([1], [1], parameters={"binary_data_size": 4}), "x: has both data and binary_data_size"),
    (tensor([1], [1], parameters={"shared_memory_region": "r"}), "x: shared_memory_region is not supported"),
    ({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1]}]}, "x: has no data"),
    ({"inputs": [], "outputs": [{"name": "y", "parameters": {"classification": 3}}]}, "y: classification is not"),
    (b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1],"data":[NaN]}]}', "x: holds NaN or infinity"),
    (b'{"inputs":[{"name":"x","datatype":"FP32","data":[-Infinity],"shape":[1]}]}', "x: holds NaN or infinity"),
    (b'{"inputs":[{"name":"x","datatype":"FP64","shape":[1],"data":[1e999]}]}', r"x\[0\]: Number out of range"),
]


@pytest.mark.parametrize(("body", "reason"), WRONG)
def test_what_is_wrong_is_named(body: Any, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        read(body)


def test_duplicate_keys_do_no_harm() -> None:
    body = b'{"inputs":[],"inputs":[{"name":"a","name":"x","datatype":"INT8","shape":[1],"data":[2],"data":[1]}]}'
    request, _ = read(body)
    assert (request.inputs[0].name, request.raw_input_contents[0]) == ("x", b"\1")


def claims(size: Any) -> dict[str, Any]:
    return {"inputs": [{"name": "x", "datatype": "UINT8", "shape": [4], "parameters": {"binary_data_size": size}}]}


@pytest.mark.parametrize("size", [3, 5, -1, 2**70, "4", 4.0, True])
def test_binary_data_of_another_size_are_refused(size: Any) -> None:
    with pytest.raises(InputError, match=r"binary_data_size|parameters"):
        read(claims(size), b"1234")


@pytest.mark.parametrize("length", [0, -1, 10**9])
def test_a_head_length_out_of_bounds_is_refused(length: int) -> None:
    with pytest.raises(InputError, match="Inference-Header-Content-Length: "):
        read_infer(b"{}", length, "m", "")


@patient
@given(st.binary(max_size=200), st.one_of(st.none(), st.integers(-5, 250)))
def test_any_bytes_are_read_or_refused(body: bytes, length: int | None) -> None:
    try:
        read_infer(body, length, "m", "")
    except InputError as error:
        assert len(str(error)) < 250


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=8,
)
KEYS = ("name", "datatype", "shape", "data", "parameters")
SHAPED = st.fixed_dictionaries(
    {},
    optional={
        "id": JSON,
        "parameters": JSON,
        "inputs": st.one_of(JSON, st.lists(st.fixed_dictionaries({}, optional=dict.fromkeys(KEYS, JSON)), max_size=2)),
        "outputs": st.one_of(JSON, st.lists(st.fixed_dictionaries({"name": st.text()}, optional={"parameters": JSON}))),
    },
)
NEARLY = st.fixed_dictionaries(
    {"name": st.text(max_size=3), "datatype": st.sampled_from([*NUMBERS, "BYTES", "BF16", "X"]), "shape": JSON},
    optional={"data": JSON, "parameters": JSON},
)


@patient
@given(st.one_of(SHAPED, st.fixed_dictionaries({"inputs": st.lists(NEARLY, max_size=2)})), st.binary(max_size=8))
def test_any_json_is_read_or_refused(value: Any, binary: bytes) -> None:
    head = json.dumps(value).encode("utf-8", "replace")
    for _ in range(2):
        try:
            read_infer(head + binary, len(head), "m", "")
        except InputError as error:
            assert len(str(error)) < 250


MIB = 2**20
BOMBS = {
    "lists": b'{"x":' + b"[" * (4 * MIB),
    "objects": b'{"x":' + b'{"a":' * MIB,
    "lists as data": b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1],"data":' + b"[" * (4 * MIB),
    "digits": b'{"inputs":[{"name":"x","datatype":"INT64","shape":[1],"data":[' + b"9" * (4 * MIB) + b"]}]}",
    "digits of a parameter": b'{"inputs":[],"parameters":{"a":' + b"9" * (4 * MIB) + b"}}",
    "digits in a shape": b'{"inputs":[{"name":"x","datatype":"INT64","data":[1],"shape":[' + b"9" * MIB + b"]}]}",
    "sizes": b'{"inputs":[{"name":"x","datatype":"INT64","data":[1],"shape":[' + b"1," * (2 * MIB) + b"1]}]}",
    "inputs": b'{"inputs":[' + b",".join([b'{"name":"","datatype":"","shape":[]}'] * 100_000) + b"]}",
    "parameters": b'{"inputs":[],"parameters":{' + b",".join(b'"%d":1' % n for n in range(300_000)) + b"}}",
    "elements": b'{"inputs":[{"name":"x","datatype":"INT8","shape":[2097152],"data":[' + b"0," * (2 * MIB) + b"0]}]}",
    "braces": b'{"inputs":[{"name":"x","datatype":"BYTES","shape":[1],"data":[' + b"{}," * MIB + b"{}]}]}",
}


@pytest.mark.parametrize("kind", BOMBS)
def test_a_bomb_is_refused_in_a_time_that_its_size_bounds(kind: str) -> None:
    began_s = time.process_time()
    with pytest.raises(InputError):
        read_infer(BOMBS[kind], None, "m", "")
    assert time.process_time() - began_s < 2.0  # milliseconds on an idle machine


def test_more_elements_than_the_loop_should_wait_for_are_sent_to_the_binary_form() -> None:
    count = MAX_JSON_ELEMENTS + 1
    with pytest.raises(TooLarge, match="x: more than 524288 elements of JSON in all: send them as binary data"):
        read(tensor([0] * count, [count], "INT8"))


def test_text_with_many_braces_is_no_bomb() -> None:
    request, _ = read(tensor(["{" * 5000 + '\\"{'], [1], "BYTES"))
    assert request.raw_input_contents[0][4:] == b"{" * 5000 + b'\\"{'


@pytest.mark.parametrize(("fold", "encoding"), [(gzip.compress, b"gzip"), (zlib.compress, b"deflate")])
def test_a_folded_body_is_unfolded_up_to_a_bound(fold: Any, encoding: bytes) -> None:
    assert unfold(fold(b"a" * 1000), encoding, 1000) == b"a" * 1000
    with pytest.raises(TooLarge, match="body: more than 999 bytes"):
        unfold(fold(b"a" * 1000), encoding, 999)
    with pytest.raises(TooLarge):
        unfold(fold(bytes(50 * MIB)), encoding, MIB)
    for damaged in (b"", b"abc", fold(b"a" * 1000)[:-3], fold(b"a") + b"more"):
        with pytest.raises(InputError, match="not what its content-encoding says"):
            unfold(damaged, encoding, 1000)


@patient
@given(st.binary(max_size=100), st.sampled_from([b"gzip", b"deflate"]))
def test_any_folded_bytes_are_unfolded_or_refused(body: bytes, encoding: bytes) -> None:
    with contextlib.suppress(InputError):
        assert len(unfold(body, encoding, 50)) <= 50


@pytest.mark.parametrize(
    ("datatype", "shape", "raw"), [("FP31", [1], b"1234"), ("FP32", [2], b"123"), ("BYTES", [1], b"\5\0\0\0a")]
)
def test_an_answer_that_is_none_is_ours_to_explain(datatype: str, shape: list[int], raw: bytes) -> None:
    response = oip.ModelInferResponse()
    response.outputs.add(name="y", datatype=datatype, shape=shape)
    response.raw_output_contents.append(raw)
    with pytest.raises(BadAnswer):
        write_infer(response, Wanted())
    assert write_infer(response, ALL_BINARY)[1] == (raw,)


def test_typed_contents_of_an_answer_are_written_too() -> None:
    response = oip.ModelInferResponse()
    response.outputs.add(name="y", datatype="FP32", shape=[2]).contents.fp32_contents.extend([1, 2])
    response.outputs.add(name="z", datatype="BYTES", shape=[1]).contents.bytes_contents.append(b"text")
    outputs = json.loads(write_infer(response, Wanted())[0])["outputs"]
    assert [output["data"] for output in outputs] == [[1.0, 2.0], ["text"]]
    assert write_infer(response, ALL_BINARY)[1] == (np.float32([1, 2]).tobytes(), b"\4\0\0\0text")


def test_any_message_is_shown_with_numbers_as_numbers_and_enumerations_by_name() -> None:
    response = oip.ModelConfigResponse()
    response.config.name = "m"
    response.config.input.add(name="x", data_type=oip.DataType.Value("TYPE_FP32"), dims=[1, 2**40])
    response.config.parameters["a"].string_value = "b"
    shown = plain(response)["config"]
    assert shown["input"] == [{"name": "x", "data_type": "TYPE_FP32", "dims": [1, 2**40]}]
    assert shown["parameters"] == {"a": {"string_value": "b"}}
    assert (shown["max_batch_size"], "dynamic_batching" in shown) == (0, False)
