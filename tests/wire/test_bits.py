"""Packed bits arrive as they were; what is not exactly such a row is refused, and never grows larger than one."""

from __future__ import annotations

import tracemalloc
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from edgemux.multiplexer.bundle import Tensor
from edgemux.multiplexer.errors import InputError
from edgemux.wire.bits import packed, packed_size, unpacked
from edgemux.wire.codec import FEW_VALUES, PackedRows, check_inputs, decode_inputs, join_bytes, make_request
from edgemux.wire.payload import ENCODING, PACKED_BITS, decoder, encode, mark, size_of

bits = st.sampled_from((8, 4, 2))
shapes = st.lists(st.integers(1, 7), max_size=3).map(tuple)


@st.composite
def rows(draw: st.DrawFn) -> tuple[Any, int]:
    """Rows [N, ...] and how many bits their values have."""
    each = draw(bits)
    whole = (draw(st.integers(0, 4)), *draw(shapes))
    return draw(arrays.arrays(np.uint8, whole, elements=st.integers(0, 2**each - 1))), each


def deflated(content: bytes) -> bytes:
    deflater = zlib.compressobj(9, wbits=-15)
    return deflater.compress(content) + deflater.flush()


@settings(deadline=None)
@given(rows())
def test_every_row_arrives_as_it_was(given_rows: tuple[Any, int]) -> None:
    values, each = given_rows
    found = unpacked("x", packed(values, each), values.shape[1:], each)
    assert found.dtype == np.uint8
    assert found.shape == values.shape
    assert (found == values).all()


@pytest.mark.parametrize(("each", "content"), [(8, b"\1\2\3\0\1"), (4, b"\x21\x03\x01"), (2, b"\x39\x01")])
def test_the_first_value_has_the_lowest_bits_and_the_last_byte_is_filled_with_zeros(each: int, content: bytes) -> None:
    (element,) = packed(np.array([[1, 2, 3, 0, 1]], np.uint8), each)
    assert zlib.decompress(element, wbits=-15) == content
    assert len(content) == packed_size(5, each)


def test_rows_of_no_other_type_and_of_no_larger_values_are_packed() -> None:
    for values, each in (
        (np.full((1, 3), 16, np.uint8), 4),
        (np.full((1, 3), 4, np.uint8), 2),
        (np.zeros((1, 3), np.int8), 8),
        (np.zeros((1, 3), np.float32), 8),
        (np.zeros((1, 3), np.uint8), 3),
    ):
        with pytest.raises(ValueError, match="UINT8"):
            packed(values, each)


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=40), shapes, bits)
def test_garbage_is_refused_or_is_a_row_that_packs_to_the_same_values(
    element: bytes, shape: tuple[int, ...], each: int
) -> None:
    try:
        found = unpacked("x", [element], shape, each)
    except InputError as error:
        assert error.field == "x"
        return
    assert found.shape == (1, *shape)
    assert (found < 2**each).all()
    assert (unpacked("x", packed(found, each), shape, each) == found).all()


@settings(deadline=None)
@given(rows().filter(lambda drawn: len(drawn[0]) > 0), st.data())
def test_a_row_that_was_cut_grown_or_stretched_is_refused(given_rows: tuple[Any, int], data: st.DataObject) -> None:
    values, each = given_rows
    shape = values.shape[1:]
    element = packed(values, each)[0]
    plain = zlib.decompress(element, wbits=-15)
    for wrong in (
        element[: data.draw(st.integers(0, len(element) - 1))],
        element + data.draw(st.binary(min_size=1, max_size=5)),
        deflated(plain + b"\0"),
        deflated(plain[:-1]),
        deflated(plain + bytes(10_000)),
        zlib.compress(plain),  # with a header
    ):
        with pytest.raises(InputError, match="inflate"):
            unpacked("x", [*packed(values, each)[1:], wrong], shape, each)


def test_a_bomb_takes_no_more_memory_than_a_row() -> None:
    bomb = deflated(bytes(64 * 2**20))
    assert len(bomb) < 10**5
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match="does not inflate to 16 bytes"):
            unpacked("x", [bomb], (32,), 4)
        assert tracemalloc.get_traced_memory()[1] < 2 * 2**20
    finally:
        tracemalloc.stop()


def test_few_different_values_take_few_bytes() -> None:
    values = np.zeros((1, 64, 28, 28), np.uint8)
    values[:, ::2] = np.random.default_rng(1).integers(0, 16, (1, 32, 28, 28))
    assert size_of(packed(values, 4)) < 0.6 * packed_size(values.size, 4)


SENT = Tensor("x", "UINT8", (-1, 3, 5))


@pytest.mark.parametrize("form", PACKED_BITS)
def test_a_server_reads_what_is_marked_as_packed(form: str) -> None:
    values = np.random.default_rng(2).integers(0, 2 ** PACKED_BITS[form], (4, 3, 5)).astype(np.uint8)
    elements = encode(form, values, None)
    request = make_request("m", {"x": elements})
    mark(request.inputs[0], form)
    assert (check_inputs(request, [SENT])["x"] == values).all()
    assert (decoder(form, SENT, None)(elements) == values).all()


def bent(bend: Any) -> Any:
    request = make_request("m", {"x": encode("bits4", np.ones((2, 3, 5), np.uint8), None)})
    mark(request.inputs[0], "bits4")
    bend(request)
    return request


def said(text: str) -> Any:
    return lambda request: setattr(request.inputs[0].parameters[ENCODING], "string_param", text)


def holds(*elements: bytes) -> Any:
    return lambda request: request.raw_input_contents.__setitem__(0, join_bytes(elements))


@pytest.mark.parametrize(
    ("bend", "tensor"),
    [
        (said("bits3"), SENT),
        (said("u8"), SENT),
        (said("bits8"), SENT),
        (said("bits2"), SENT),
        (lambda r: None, Tensor("x", "UINT8", (-1, 3, 6))),
        (lambda r: None, Tensor("x", "UINT8", (-1, 3, -1))),
        (lambda r: None, Tensor("x", "INT8", (-1, 3, 5))),
        (lambda r: None, Tensor("x", "FP32", (-1, 3, 5))),
        (lambda r: r.raw_input_contents.__delitem__(0), SENT),
        (lambda r: r.inputs[0].shape.__setitem__(0, 3), SENT),
        (lambda r: setattr(r.inputs[0], "datatype", "UINT8"), SENT),
        (holds(b"", b""), SENT),
        (holds(deflated(bytes(8))), SENT),
        (holds(deflated(bytes(8)), deflated(bytes(2**20))), SENT),
    ],
)
def test_what_is_not_such_a_form_is_refused(bend: Any, tensor: Tensor) -> None:
    with pytest.raises(InputError, match="x"):
        check_inputs(bent(bend), [tensor])


def large(rows: int) -> tuple[Tensor, Any, Any]:
    """A tensor, as many rows of it that they are too large to be read at once, and a request with them."""
    tensor = Tensor("x", "UINT8", (-1, FEW_VALUES // rows + 1))
    values = np.random.default_rng(3).integers(0, 4, (rows, *tensor.shape[1:])).astype(np.uint8)
    request = make_request("m", {"x": encode("bits2", values, None)})
    mark(request.inputs[0], "bits2")
    return tensor, values, request


def test_large_rows_are_counted_at_once_and_inflated_later() -> None:
    tensor, values, request = large(3)
    checked = check_inputs(request, [tensor])
    assert isinstance(checked["x"], PackedRows)
    asked: list[int] = []
    found = decode_inputs(checked, None, lambda: asked.append(1))["x"]
    assert (found == values).all()
    assert len(asked) == 3


def test_large_rows_that_do_not_inflate_are_refused_by_name_and_nobody_waits_for_the_rest() -> None:
    tensor, _, request = large(3)
    request.raw_input_contents[0] = join_bytes([deflated(bytes(2**24))] * 3)
    with pytest.raises(InputError, match="x: a row does not inflate"):
        decode_inputs(check_inputs(request, [tensor]), None)
    request.raw_input_contents[0] = join_bytes([b"\xff"] * 2)
    with pytest.raises(InputError, match="2 elements"):
        check_inputs(request, [tensor])

    def stop() -> None:
        raise TimeoutError

    _, _, request = large(3)
    with pytest.raises(TimeoutError):
        decode_inputs(check_inputs(request, [tensor]), None, stop)
