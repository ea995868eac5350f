"""Canonical Huffman codes of small alphabets, whole arrays at a time.

Every symbol takes at least one bit, so what a stream decodes to is bounded by its size.
"""

from __future__ import annotations

import heapq

import numpy as np
from numpy.typing import NDArray

from edgemux.multiplexer.errors import ArtifactError

# Lengths are stored in half a byte each.
MAX_LENGTH = 15
# Symbols coded, and bytes decoded, at a time: bounds the memory for positions of single bits.
CHUNK = 1 << 16

Lengths = NDArray[np.uint8]


def code_lengths(counts: NDArray[np.int64]) -> Lengths:
    """Bits of each symbol's code, uint8 [symbols]; 0 for symbols that never occur, 1 when only one does.

    counts: how often each symbol occurs, [symbols], at most 2**14 symbols. Huffman 1952; where a code would be longer
    than MAX_LENGTH, rare symbols are taken to be less rare until none is.
    """
    lengths = _unlimited(counts)
    while lengths.max(initial=0) > MAX_LENGTH:
        counts = (counts + 1) // 2
        lengths = _unlimited(counts)
    return lengths.astype(np.uint8)


def _unlimited(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    lengths = np.zeros(len(counts), np.int64)
    # The second entry makes the order, and with it the code, independent of the heap's implementation.
    heap = [(int(counts[symbol]), int(symbol), [int(symbol)]) for symbol in np.flatnonzero(counts)]
    if len(heap) == 1:
        lengths[heap[0][2]] = 1
    heapq.heapify(heap)
    while len(heap) > 1:
        (one, first, members), (other, second, others) = heapq.heappop(heap), heapq.heappop(heap)
        merged = members + others
        lengths[merged] += 1
        heapq.heappush(heap, (one + other, min(first, second), merged))
    return lengths


def coded_bits(counts: NDArray[np.int64]) -> int:
    """Size of a stream with these counts, in bits, without its table."""
    return int((counts * code_lengths(counts)).sum())


def _codes(lengths: Lengths) -> NDArray[np.int64]:
    """Canonical codes, [symbols]: counting up in the order of (length, symbol)."""
    codes = np.zeros(len(lengths), np.int64)
    code, last = 0, 0
    for symbol in sorted(np.flatnonzero(lengths), key=lambda at: (int(lengths[at]), int(at))):
        code <<= int(lengths[symbol]) - last
        last = int(lengths[symbol])
        codes[symbol] = code
        code += 1
    return codes


def encode(symbols: NDArray[np.integer], lengths: Lengths) -> bytes:
    """The symbols' codes one after the other, highest bit first, filled up with zeros to whole bytes."""
    codes, parts = _codes(lengths), []
    for start in range(0, len(symbols), CHUNK):
        part = symbols[start : start + CHUNK]
        sizes = lengths[part].astype(np.int64)
        ends = np.cumsum(sizes)
        # How many bits of the same code follow each bit.
        behind = np.repeat(ends, sizes) - np.arange(int(ends[-1])) - 1
        parts.append((np.repeat(codes[part], sizes) >> behind & 1).astype(np.uint8))
    return np.packbits(np.concatenate(parts)).tobytes() if parts else b""


def decode(content: bytes, lengths: Lengths, count: int) -> NDArray[np.uint16]:
    """The inverse of ``encode``: ``count`` symbols, uint16.

    Raises ArtifactError unless the lengths are those of a Huffman code and the stream is exactly so many symbols.
    """
    if count > 8 * len(content):
        raise ArtifactError("Huffman stream: shorter than the symbols it is said to hold")
    sizes, values = _table(lengths)
    padded = np.frombuffer(content + b"\0\0", np.uint8).astype(np.uint32)
    found: list[NDArray[np.uint16]] = [np.zeros(0, np.uint16)]
    at, left = 0, count
    for start in range(0, len(content), CHUNK):
        windows = _windows(padded[start : start + CHUNK + 2])
        steps = sizes[windows].tobytes()
        begins = list[int]()
        position = at - 8 * start
        while position < len(steps) and len(begins) < left:
            begins.append(position)
            position += steps[position]
        at, left = 8 * start + position, left - len(begins)
        found.append(values[windows[begins]])
        if not sizes[windows[begins]].all():
            raise ArtifactError("Huffman stream: holds a code that there is not")
    if left or (at + 7) // 8 != len(content) or (at % 8 and content[-1] & (0xFF >> at % 8)):
        raise ArtifactError("Huffman stream: does not end where its last symbol does")
    return np.concatenate(found)


def _windows(padded: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """The MAX_LENGTH bits from every bit on, [8 * (bytes - 2)]."""
    words = padded[:-2] << 16 | padded[1:-1] << 8 | padded[2:]
    shifts = np.arange(24 - MAX_LENGTH, 16 - MAX_LENGTH, -1, dtype=np.uint32)
    return (words[:, None] >> shifts & (2**MAX_LENGTH - 1)).reshape(-1)


def _table(lengths: Lengths) -> tuple[NDArray[np.uint8], NDArray[np.uint16]]:
    """Length and symbol of the code that each sequence of MAX_LENGTH bits begins with; length 0 where none does."""
    used = lengths[lengths > 0].astype(np.int64)
    room = int((1 << (MAX_LENGTH - used)).sum()) if used.max(initial=0) <= MAX_LENGTH else 0
    # Kraft's sum is one, but for the code of a single symbol and that of none.
    if room != 1 << MAX_LENGTH and used.tolist() not in ([1], []):
        raise ArtifactError("Huffman table: not the lengths of a Huffman code")
    sizes, values = np.zeros(1 << MAX_LENGTH, np.uint8), np.zeros(1 << MAX_LENGTH, np.uint16)
    codes = _codes(lengths)
    for symbol in np.flatnonzero(lengths):
        spare = MAX_LENGTH - int(lengths[symbol])
        block = slice(int(codes[symbol]) << spare, (int(codes[symbol]) + 1) << spare)
        sizes[block], values[block] = lengths[symbol], symbol
    return sizes, values
