"""Small whole numbers in as many bits as they need: bit planes, eight numbers to a byte."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

MAX_BITS = 8
PER_BYTE = 8


def bits_for(largest: int) -> int:
    """How many bits the numbers 0 to ``largest`` take, at least one."""
    return max(1, int(largest).bit_length())


def pack(values: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Numbers below 2**bits, uint8 of any shape, as planes uint8 [bits, ceil(n / 8)]; the lowest bit's plane first.

    Number i is bit i % 8 of byte i // 8; what is left of the last byte is zero. Raises ValueError for numbers that do
    not fit.
    """
    flat = values.reshape(-1)
    if not 1 <= bits <= MAX_BITS or (flat.size and int(flat.max()) >> bits):
        raise ValueError(f"numbers up to {int(flat.max(initial=0))} do not fit {bits} bits")
    planes = (flat[None, :] >> np.arange(bits, dtype=np.uint8)[:, None]) & 1
    return np.packbits(planes.astype(np.uint8), axis=1, bitorder="little")


def unpack(planes: NDArray[np.uint8], shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """What ``pack`` was given, uint8 of this shape."""
    count = int(np.prod(shape, dtype=np.int64))
    single = np.unpackbits(planes, axis=1, count=count, bitorder="little")
    places = (1 << np.arange(len(planes), dtype=np.uint8))[:, None].astype(np.uint8)
    return (single * places).sum(axis=0, dtype=np.uint8).reshape(shape)
