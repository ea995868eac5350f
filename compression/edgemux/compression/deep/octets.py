"""Reads fields from bytes that nobody vouches for."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgemux.compression.deep import huffman
from edgemux.multiplexer.errors import ArtifactError


class Octets:
    """A cursor over bytes; every read is checked against what is left, so no field makes it allocate more than that."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._at = 0

    @property
    def left(self) -> int:
        """Bytes not yet read."""
        return len(self._content) - self._at

    def take(self, count: int) -> bytes:
        """The next ``count`` bytes. Raises ArtifactError when there are fewer."""
        if count > self.left:
            raise ArtifactError("container: ends too early")
        self._at += count
        return self._content[self._at - count : self._at]

    def number(self, width: int) -> int:
        """An unsigned number of ``width`` bytes, lowest first."""
        return int.from_bytes(self.take(width), "little")

    def words(self, count: int) -> NDArray[np.uint32]:
        """``count`` numbers of four bytes."""
        return np.frombuffer(self.take(4 * count), "<u4").astype(np.uint32)

    def symbols(self, alphabet: int, count: int) -> NDArray[np.uint16]:
        """What ``coded`` wrote: ``count`` symbols below ``alphabet``. Raises ArtifactError for a damaged stream."""
        halves = np.frombuffer(self.take((alphabet + 1) // 2), np.uint8)
        lengths = np.stack([halves >> 4, halves & 15], 1).reshape(-1)[:alphabet]
        return huffman.decode(self.take(self.number(4)), lengths, count)


def number(value: int, width: int) -> bytes:
    """The inverse of ``Octets.number``."""
    return value.to_bytes(width, "little")


def words(values: NDArray[np.uint32]) -> bytes:
    """The inverse of ``Octets.words``."""
    return values.astype("<u4").tobytes()


def coded(symbols: NDArray[np.integer], alphabet: int) -> bytes:
    """Table and stream of a Huffman code made for these symbols: half a byte a symbol, size in 4 bytes, bits."""
    lengths = huffman.code_lengths(np.bincount(symbols, minlength=alphabet))
    even = np.append(lengths, np.zeros(alphabet % 2, np.uint8))
    stream = huffman.encode(symbols, lengths)
    return (even[0::2] << 4 | even[1::2]).tobytes() + number(len(stream), 4) + stream


def coded_bytes(symbols: NDArray[np.integer], alphabet: int) -> int:
    """Size of what ``coded`` gives."""
    counts = np.bincount(symbols, minlength=alphabet)
    return (alphabet + 1) // 2 + 4 + (huffman.coded_bits(counts) + 7) // 8
