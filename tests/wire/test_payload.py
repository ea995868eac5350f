"""Smaller forms of inputs: what loses nothing is the same tensor, what loses something is near, the rest is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from edgemux.multiplexer.bundle import Preprocessing, Tensor
from edgemux.multiplexer.errors import InputError
from edgemux.wire.codec import check_inputs, decode_inputs, make_request
from edgemux.wire.payload import ENCODING, LOSSLESS, RAW, encode, encodings, mark, size_of

COLOUR = Preprocessing("RGB", 9, 7)
PICTURE = Tensor("x", "UINT8", (-1, 9, 7, 3))
VECTOR = Tensor("x", "FP32", (-1, 5))
floats = arrays.arrays(np.float32, (3, 5), elements=st.floats(-1e4, 1e4, width=32))


def received(encoding: str, rows: Any, tensor: Tensor, preprocessing: Preprocessing | None) -> Any:
    """What our servers make of a request with the input in that form."""
    request = make_request("m", {"x": encode(encoding, rows, preprocessing)})
    mark(request.inputs[0], encoding)
    return decode_inputs(check_inputs(request, [tensor], preprocessing), preprocessing)["x"]


@settings(deadline=None, max_examples=25)
@given(arrays.arrays(np.uint8, (2, 9, 7, 3)), st.booleans())
def test_what_loses_nothing_arrives_as_it_was(rows: Any, invert: bool) -> None:
    how = Preprocessing("RGB", 9, 7, invert=invert)
    for encoding in LOSSLESS:
        assert (received(encoding, rows, PICTURE, how) == rows).all()


@pytest.mark.parametrize("encoding", [each for each in encodings(PICTURE, COLOUR) if each not in LOSSLESS])
def test_what_loses_something_is_still_that_picture(encoding: str) -> None:
    rows = np.full((2, 9, 7, 3), (200, 100, 50), np.uint8)
    found = received(encoding, rows, PICTURE, COLOUR)
    assert found.shape == rows.shape
    assert np.abs(found.astype(int) - rows).max() <= 8


@given(floats)
@example(np.array([[0, 1e-45, 1e-45, 1e-45, 1e-45]] * 3, np.float32))
def test_eight_bits_are_off_by_half_a_step_of_the_row_at_most(rows: Any) -> None:
    found = received("u8", rows, VECTOR, None)
    step = (rows.max(axis=1) - rows.min(axis=1)) / 255
    assert found.dtype == np.float32
    tiny = np.finfo(np.float32).tiny
    assert (np.abs(found - rows) <= 0.51 * step[:, None] + 1e-5 * np.abs(rows).max() + tiny).all()


@given(floats)
def test_sixteen_bits_are_off_by_a_thousandth_at_most(rows: Any) -> None:
    found = received("fp16", rows, VECTOR, None)
    assert found.dtype == np.float32
    assert (np.abs(found - rows) <= 1e-3 * np.abs(rows) + 1e-6).all()


def test_only_what_fits_an_input_is_offered() -> None:
    assert encodings(PICTURE, None) == (RAW,)
    assert encodings(Tensor("x", "INT64", (-1, 5)), None) == (RAW,)
    assert encodings(Tensor("x", "FP32", (-1, -1)), None) == (RAW,)
    assert encodings(VECTOR, None) == (RAW, "fp16", "u8")
    with pytest.raises(ValueError, match="gif"):
        encode("gif", np.zeros((1, 9, 7, 3), np.uint8), COLOUR)


def test_the_size_is_that_in_the_message() -> None:
    rows = np.zeros((2, 5), np.float32)
    for encoding in encodings(VECTOR, None):
        packed = encode(encoding, rows, None)
        assert size_of(packed) == len(make_request("m", {"x": packed}).raw_input_contents[0])


def bent(encoding: str, bend: Any) -> Any:
    request = make_request("m", {"x": encode(encoding, np.ones((2, 5), np.float32), None)})
    mark(request.inputs[0], encoding)
    bend(request)
    return request


def said(text: str) -> Any:
    return lambda request: setattr(request.inputs[0].parameters[ENCODING], "string_param", text)


@pytest.mark.parametrize(
    ("encoding", "bend", "tensor"),
    [
        ("u8", said("u4"), VECTOR),
        ("u8", said("fp16"), VECTOR),
        ("fp16", said("u8"), VECTOR),
        ("u8", lambda r: None, Tensor("x", "FP32", (-1, 6))),
        ("u8", lambda r: None, Tensor("x", "FP32", (-1, -1))),
        ("u8", lambda r: None, Tensor("x", "FP64", (-1, 5))),
        ("fp16", lambda r: None, Tensor("x", "FP32", (-1, 6))),
        ("fp16", lambda r: r.raw_input_contents.__setitem__(0, b"\x00\x7c" * 10), VECTOR),
        ("u8", lambda r: r.raw_input_contents.__setitem__(0, (b"\x0d\0\0\0" + b"\xff" * 13) * 2), VECTOR),
        ("u8", lambda r: r.raw_input_contents.__delitem__(0), VECTOR),
        ("u8", lambda r: r.raw_input_contents.__setitem__(0, b"\xff"), VECTOR),
    ],
)
def test_what_is_not_such_a_form_is_refused(encoding: str, bend: Any, tensor: Tensor) -> None:
    with pytest.raises(InputError, match="x"):
        check_inputs(bent(encoding, bend), [tensor])


def test_sixteen_bits_that_do_not_say_so_are_refused_as_ever() -> None:
    request = make_request("m", {"x": np.ones((2, 5), np.float16)})
    with pytest.raises(InputError, match="expected FP32"):
        check_inputs(request, [VECTOR])
