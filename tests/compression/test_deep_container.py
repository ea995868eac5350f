# ruff: noqa: E402 - nothing here can be imported without torch
"""The Deep Compression container: every bit comes back, and nothing that is not one is believed."""

from __future__ import annotations

import hashlib
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgemux.multiplexer.errors import ArtifactError

pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")

from edgemux.compression.deep import container, huffman, tensors
from edgemux.compression.deep.octets import Octets, coded, coded_bytes, number
from edgemux.compression.deep.scaling import parted, same_bits, scaled

COUNTS = st.lists(st.integers(0, 10**9), min_size=1, max_size=64)


def a_model(weights: dict[str, Any]) -> Any:
    """x -> the sum of x and each weight, which must be a row as long as x."""
    helper = onnx.helper
    x, y = (helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", "m"]) for name in "xy")
    nodes = [helper.make_node("Identity", ["x"], ["y"])]
    constants = [onnx.numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "g", [x], [y], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def sparse(shape: tuple[int, ...], share: float = 0.9, values: int = 15) -> Any:
    rng = np.random.default_rng(7)
    codebook = rng.normal(size=values).astype(np.float32)
    return np.where(rng.random(shape) < share, np.float32(0), codebook[rng.integers(0, values, shape)])


def sealed(body: bytes) -> bytes:
    """With the digest that a forger would compute as well."""
    digest = hashlib.blake2b(body, digest_size=container.DIGEST_BYTES).digest()
    return container.MAGIC + bytes([container.VERSION]) + digest + body


@settings(max_examples=30, deadline=None)
@given(COUNTS, st.integers(0, 2**32 - 1))
def test_a_huffman_code_gives_back_what_it_coded(counts: list[int], seed: int) -> None:
    frequencies = np.array(counts, np.int64)
    lengths = huffman.code_lengths(frequencies)
    assert ((lengths > 0) == (frequencies > 0)).all()
    assert lengths.max() <= huffman.MAX_LENGTH
    used = np.flatnonzero(frequencies)
    symbols = np.random.default_rng(seed).choice(used, 200) if len(used) else used
    assert np.array_equal(huffman.decode(huffman.encode(symbols, lengths), lengths, len(symbols)), symbols)


@settings(max_examples=30, deadline=None)
@given(COUNTS)
def test_a_huffman_code_is_within_a_bit_of_the_entropy_and_never_worse_than_equal_lengths(counts: list[int]) -> None:
    """Where the limit on lengths does not bind: frequencies within a factor of 2**9."""
    frequencies = np.array(counts, np.int64) % 512
    total = int(frequencies.sum())
    if np.count_nonzero(frequencies) < 2:
        return
    p = frequencies[frequencies > 0] / total
    bits = huffman.coded_bits(frequencies)
    assert -(p * np.log2(p)).sum() <= bits / total + 1e-9
    assert bits / total < -(p * np.log2(p)).sum() + 1
    assert bits <= total * int(np.ceil(np.log2(len(p))))


def test_frequencies_like_fibonacci_numbers_keep_to_the_longest_code() -> None:
    counts = [1, 1]
    while len(counts) < 40:
        counts.append(counts[-1] + counts[-2])
    lengths = huffman.code_lengths(np.array(counts))
    assert lengths.max() == huffman.MAX_LENGTH
    assert (2.0 ** -lengths.astype(float)).sum() == 1.0


def test_streams_of_many_chunks_come_back() -> None:
    symbols = np.random.default_rng(1).geometric(0.3, 3 * huffman.CHUNK + 5).clip(0, 30)
    lengths = huffman.code_lengths(np.bincount(symbols))
    stream = huffman.encode(symbols, lengths)
    assert len(stream) > huffman.CHUNK
    assert np.array_equal(huffman.decode(stream, lengths, len(symbols)), symbols)


@pytest.mark.parametrize("lengths", [[1, 1, 1], [2, 2], [15], [1, 2]])
def test_lengths_of_no_huffman_code_are_refused(lengths: list[int]) -> None:
    with pytest.raises(ArtifactError, match="lengths"):
        huffman.decode(b"\0" * 9, np.array(lengths, np.uint8), 3)


def test_a_stream_that_is_too_short_too_long_or_padded_with_ones_is_refused() -> None:
    lengths = np.array([1, 2, 2], np.uint8)
    stream = huffman.encode(np.array([0, 1, 2]), lengths)
    assert len(stream) == 1
    for content, count in ((stream, 40), (b"", 1), (stream + b"\0", 3), (bytes([stream[0] | 1]), 3), (stream, 2)):
        with pytest.raises(ArtifactError):
            huffman.decode(content, lengths, count)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 9), max_size=60))
def test_the_predicted_size_of_a_code_is_its_size(symbols: list[int]) -> None:
    values = np.array(symbols, np.int64)
    assert coded_bytes(values, 11) == len(coded(values, 11))


@given(
    st.integers(0, 700),
    st.sampled_from([0.0, 0.5, 0.97, 1.0]),
    st.sampled_from([1, 2, 16, 300]),
    st.integers(0, 2**32 - 1),
)
@settings(max_examples=40, deadline=None)
def test_any_tensor_comes_back_bit_for_bit(count: int, zeros: float, values: int, seed: int) -> None:
    """Empty, all zero, of one value, of too many to share; with NaN and signed zeros."""
    rng = np.random.default_rng(seed)
    codebook = np.concatenate([[np.nan, -0.0, np.inf], rng.normal(size=values)]).astype(np.float32)[-values:]
    value = np.where(rng.random(count) < zeros, np.float32(0), codebook[rng.integers(0, values, count)])
    content = tensors.encode(value)
    octets = Octets(content)
    assert same_bits(tensors.decode(octets, count), value)
    assert octets.left == 0


@settings(max_examples=40, deadline=None)
@given(st.sets(st.integers(0, 400), max_size=30), st.integers(1, 40))
def test_fillers_bridge_every_gap_and_are_as_few_as_can_be(chosen: set[int], reach: int) -> None:
    places = np.array(sorted(chosen), np.int64)
    stored = tensors.stored_places(places, 401, reach)
    steps = np.diff(stored, prepend=-1)
    assert stored[-1] == 400
    assert set(places) <= set(stored)
    assert steps.min() >= 1
    assert steps.max() <= reach
    ends = np.union1d(places, [400])
    assert len(stored) == sum(-(-int(step) // reach) for step in np.diff(ends, prepend=-1))


def test_a_tensor_of_zeros_takes_a_share_of_its_elements() -> None:
    """So that a small file cannot ask for much memory: every stored value reaches 256 elements at most."""
    content = tensors.encode(np.zeros(2**20, np.float32))
    assert 2**20 / 256 / 4 <= len(content) < 2000
    with pytest.raises(ArtifactError, match="elements"):
        tensors.decode(Octets(content), 2**40)


def test_a_container_gives_back_the_model_and_is_small() -> None:
    model = a_model({"w": sparse((500, 800)), "bias": np.ones(7, np.float32), "k": np.array([3], np.int64)})
    content = container.encode(model)
    assert container.decode(content).SerializeToString() == model.SerializeToString()
    assert len(content) < 500 * 800 * 4 / 30


def test_scaled_channels_share_one_codebook_and_come_back_bit_for_bit() -> None:
    """What export makes of a convolution and a batch norm; one scale is negative, one channel is all zero."""
    rng = np.random.default_rng(2)
    weight = sparse((32, 16, 3, 3))
    weight[5] = 0.0
    scale = rng.normal(size=32).astype(np.float32)
    model = a_model({"w": scaled(weight, scale)})
    content = container.encode(model, [np.ones((32, 16, 3, 3), np.float32), weight])
    assert same_bits(onnx.numpy_helper.to_array(container.decode(content).graph.initializer[0]), scaled(weight, scale))
    assert len(content) < len(container.encode(model)) / 2


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_a_scale_is_found_for_any_weights_and_only_where_there_is_one(seed: int) -> None:
    rng = np.random.default_rng(seed)
    weight = rng.normal(size=(4, 9)).astype(np.float32)
    value = scaled(weight, np.exp(3 * rng.normal(size=4)).astype(np.float32))
    found, scale = parted(value, [weight])
    assert scale is not None
    assert same_bits(scaled(found, scale), value)
    value[0, 0] *= np.float32(1.01)
    assert parted(value, [weight])[1] is None


def test_every_truncation_and_every_flipped_bit_is_noticed() -> None:
    content = container.encode(a_model({"w": sparse((20, 30))}))
    for end in range(len(content)):
        with pytest.raises(ArtifactError):
            container.decode(content[:end])
    for bit in range(8 * len(content)):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ArtifactError):
            container.decode(bytes(damaged))
    with pytest.raises(ArtifactError):
        container.decode(content + b"\0")


BODY = container.encode(a_model({"w": sparse((40, 30)), "v": sparse((20, 30), values=600)}))[20:]


@given(st.data())
@settings(max_examples=80, deadline=None)
def test_a_forged_container_decodes_to_something_small_or_is_refused(data: st.DataObject) -> None:
    """With a digest that fits: whatever the fields say, ArtifactError or a model, and never much memory."""
    body = bytearray(BODY)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(body) - 1))
        body[at] = data.draw(st.integers(0, 255))
    body = body[: data.draw(st.integers(len(body) - 3, len(body)))]
    try:
        model = container.decode(sealed(bytes(body)))
    except ArtifactError:
        return
    assert model.ByteSize() < 2**20


def test_a_shape_larger_than_what_is_stored_is_refused_before_anything_is_allocated() -> None:
    model = a_model({"w": sparse((40, 30))})
    record = container.encode(model)
    model.graph.initializer[0].dims[:] = [2**31, 2**31]
    model.graph.initializer[0].ClearField("raw_data")
    plain = model.SerializeToString()
    packed = zlib.compress(plain)
    start = 28 + int.from_bytes(record[24:28], "little")
    body = number(len(plain), 4) + number(len(packed), 4) + packed + record[start:]
    with pytest.raises(ArtifactError, match="elements"):
        container.decode(sealed(body))


def test_a_version_to_come_is_named() -> None:
    content = bytearray(container.encode(a_model({})))
    content[3] = 9
    with pytest.raises(ArtifactError, match="format 9, this version reads 1"):
        container.decode(bytes(content))
