"""Rows of small whole numbers as bytes: so many bits each, little-endian, then deflated.

What a split sends is mostly zeros and small values. Coding runs and frequencies only (zlib's RLE) made such rows
smaller than a search for repeats does, in a quarter of its time.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemux.multiplexer.bundle import BITS
from edgemux.multiplexer.errors import InputError

# A raw deflate stream: neither a header nor a checksum, the message has its own.
_RAW_DEFLATE = -zlib.MAX_WBITS


def packed_size(count: int, bits: int) -> int:
    """Bytes of so many values, before they are deflated."""
    return -(-count * bits // 8)


def packed(rows: NDArray[Any], bits: int) -> list[bytes]:
    """``rows`` UINT8 [N, ...] as N elements. Raises ValueError for other rows, and for values of more bits."""
    if bits not in BITS or rows.dtype != np.uint8 or (rows.size and int(rows.max()) >> bits):
        raise ValueError(f"not rows of UINT8 with {bits} bits")
    per_byte = 8 // bits
    flat = rows.reshape(len(rows), math.prod(rows.shape[1:]))
    padded = np.zeros((len(rows), packed_size(flat.shape[1], bits) * per_byte), np.uint8)
    padded[:, : flat.shape[1]] = flat
    octets = padded[:, ::per_byte].copy()
    for place in range(1, per_byte):
        octets |= padded[:, place::per_byte] << np.uint8(place * bits)
    return [_deflated(row.tobytes()) for row in octets]


def unpacked(
    name: str, elements: Sequence[bytes], shape: Sequence[int], bits: int, go_on: Callable[[], None] = lambda: None
) -> NDArray[np.uint8]:
    """Rows UINT8 [N, *shape] of elements that ``packed`` made. Raises InputError naming the input.

    ``go_on`` is called before each, and may raise.
    """
    count, per_byte = math.prod(shape), 8 // bits
    size = packed_size(count, bits)
    octets = np.empty((len(elements), size), np.uint8)
    for at, element in enumerate(elements):
        go_on()
        octets[at] = np.frombuffer(_inflated(name, element, size), np.uint8)
    if bits == 8:
        return octets.reshape(len(elements), *shape)
    values = np.empty((len(elements), size * per_byte), np.uint8)
    for place in range(per_byte):
        values[:, place::per_byte] = octets >> np.uint8(place * bits) & np.uint8(2**bits - 1)
    return values[:, :count].reshape(len(elements), *shape)


def _deflated(content: bytes) -> bytes:
    deflater = zlib.compressobj(6, zlib.DEFLATED, _RAW_DEFLATE, 8, zlib.Z_RLE)
    return deflater.compress(content) + deflater.flush()


def _inflated(name: str, element: bytes, size: int) -> bytes:
    """Exactly ``size`` bytes, at least 1; of a stream that holds more, no more than one byte more is made."""
    inflater = zlib.decompressobj(_RAW_DEFLATE)
    try:
        content = inflater.decompress(element, size)
        # The end of the stream is often found only by asking for more.
        more = b"" if inflater.eof else inflater.decompress(inflater.unconsumed_tail, 1)
    except zlib.error as error:
        raise InputError(name, "a row does not inflate") from error
    if len(content) != size or more or not inflater.eof or inflater.unused_data:
        raise InputError(name, f"a row does not inflate to {size} bytes")
    return content
