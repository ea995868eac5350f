"""Fields are counted before a request is parsed: what honest clients send passes, what would swell is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgemux.multiplexer.errors import InputError, TooLarge
from edgemux.wire import oip_pb2 as oip
from edgemux.wire.codec import make_request
from edgemux.wire.fields import MAX_FIELDS, check_fields

FILLING = b"\x3a\xd0\x0f" + bytes(2000)  # raw_input_contents, large enough that the rest is looked at


@given(
    st.integers(1, 40),
    st.text(max_size=300),
    st.dictionaries(st.text(max_size=9), st.one_of(st.booleans(), st.integers(-9, 2**62), st.floats(), st.text())),
)
def test_what_our_own_client_makes_is_taken(rows: int, request_id: str, parameters: dict[str, bool | int]) -> None:
    array = np.zeros((rows, 9, 99), np.float32)
    request = make_request("m", {"a": array, "b": [b"x"] * rows}, request_id=request_id, parameters=parameters)
    for name in ("probabilities", "label"):
        request.outputs.add(name=name)
    check_fields(request.SerializeToString())


def test_packed_numbers_are_one_field_however_many() -> None:
    request = oip.ModelInferRequest()
    contents = request.inputs.add(name="image", datatype="UINT8", shape=[64, 28, 28]).contents
    contents.uint_contents.extend([255] * 64 * 784)
    check_fields(request.SerializeToString())


def test_the_elements_of_typed_bytes_are_counted() -> None:
    request = oip.ModelInferRequest()
    contents = request.inputs.add(name="image", datatype="BYTES", shape=[5000]).contents
    contents.bytes_contents.extend([b"x"] * 5000)
    with pytest.raises(TooLarge, match=f"^contents: the message has more than {MAX_FIELDS} fields"):
        check_fields(request.SerializeToString())


@pytest.mark.parametrize(
    ("tag", "field"),
    [(0x22, "parameters"), (0x2A, "inputs"), (0x32, "outputs"), (0x3A, "raw_input_contents"), (0x7A, "request")],
)
def test_too_many_fields_are_refused_naming_the_one(tag: int, field: str) -> None:
    check_fields(FILLING + bytes([tag, 0]) * (MAX_FIELDS - 1))
    with pytest.raises(TooLarge, match=f"^{field}: the message has more than {MAX_FIELDS} fields"):
        check_fields(FILLING + bytes([tag, 0]) * MAX_FIELDS)


@pytest.mark.parametrize(("tag", "field"), [(b"\x2a", "inputs"), (b"\x32", "outputs")])
def test_fields_within_inputs_and_outputs_count_together(tag: bytes, field: str) -> None:
    entry = tag + b"\x28" + b"\x22\x00" * 20  # with twenty parameters
    check_fields(FILLING + entry * 47)
    with pytest.raises(TooLarge, match=f"^{field}: "):
        check_fields(FILLING + entry * 48)


@pytest.mark.parametrize(
    "damage",
    [
        b"\x2a",  # no length
        b"\x2a\x05\x0a",  # longer than the message
        b"\x2a\x02\x0a\x05",  # a field longer than its input
        b"\x2a\x01\x0a",  # an input that ends within a field
        b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",  # a length of 2**64
        b"\x3a" + b"\xff" * 20,  # a length without end
        b"\xff" * 20,  # a tag without end
        b"\x08",  # a number that is missing
        b"\x09\x00",  # ... or cut short
        b"\x0b\x0c",  # a group
    ],
)
def test_what_is_no_message_is_refused_as_that(damage: bytes) -> None:
    with pytest.raises(InputError, match=r"^request: not a valid message") as caught:
        check_fields(FILLING + damage)
    assert not isinstance(caught.value, TooLarge)


@given(st.binary(max_size=300))
def test_no_bytes_that_parse_are_refused_and_none_raise_anything_else(content: bytes) -> None:
    message = FILLING + content
    try:
        check_fields(message)
    except InputError:
        parsed = oip.ModelInferRequest()
        try:
            parsed.ParseFromString(message)
        except Exception:
            return
        # Groups, which this protocol never had, are all that the runtime would have skipped.
        assert any(byte & 7 in (3, 4) for byte in content)
