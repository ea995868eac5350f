"""One float32 tensor as bytes: what is not zero, as gaps and as entries of a codebook, both Huffman-coded.

Works on bit patterns, so decoding gives back every bit, of signed zeros and NaN too. Layout: kind, gap bits (one byte
each), count of stored values (4), [codebook size (2), codebook], stored values, [gaps]. A gap is the number of zeros
before a stored value; where it does not fit the gap bits, and at the end, a zero is stored as a filler (Han et al.
2016, section 2). So elements <= count * 2**gap bits, which bounds what a file can make its reader allocate.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemux.compression.deep.octets import Octets, coded, coded_bytes, number, words
from edgemux.multiplexer.errors import ArtifactError

SPARSE, SHARED = 1, 2
MAX_GAP_BITS = 8
# Larger codebooks than this share too little to pay for themselves, and ONNX stores codes as bytes.
MAX_CODEBOOK = 256
# With more values than this that are not zero, a gap each takes more than a code for zero: not tried.
MOST_STORED = 7 / 8

Patterns = NDArray[np.uint32]


def encode(value: NDArray[Any]) -> bytes:
    """The smallest of: all values or those that are not zero, as they are or through a codebook. float32, any shape."""
    patterns = np.ascontiguousarray(value, np.float32).reshape(-1).view(np.uint32)
    forms = [_dense(patterns)]
    if np.count_nonzero(patterns) <= MOST_STORED * len(patterns):
        forms.append(_sparse(patterns))
    return min(forms, key=len)


def decode(octets: Octets, count: int) -> NDArray[np.float32]:
    """The next tensor, float32 [count]. Raises ArtifactError when it is not one of so many elements."""
    kind, gap_bits, stored = octets.number(1), octets.number(1), octets.number(4)
    if kind & ~(SPARSE | SHARED) or gap_bits > MAX_GAP_BITS or bool(kind & SPARSE) != bool(gap_bits):
        raise ArtifactError("container: a tensor is of no known kind")
    if count > stored << gap_bits or stored > count:
        raise ArtifactError("container: a tensor has not as many elements as its shape")
    values = _read_values(octets, bool(kind & SHARED), stored)
    if not kind & SPARSE:
        return values.view(np.float32)
    steps = octets.symbols(1 << gap_bits, stored).astype(np.int64) + 1
    places = np.cumsum(steps) - 1
    if int(steps.sum()) != count:
        raise ArtifactError("container: a tensor has not as many elements as its shape")
    full = np.zeros(count, np.uint32)
    full[places] = values
    return full.view(np.float32)


def _dense(patterns: Patterns) -> bytes:
    kind, content = _values(patterns)
    return bytes([kind, 0]) + number(len(patterns), 4) + content


def _sparse(patterns: Patterns) -> bytes:
    """With the number of gap bits that makes the gaps and the fillers smallest."""
    choices, sharing = [], len(np.unique(patterns)) <= MAX_CODEBOOK
    for bits in range(1, MAX_GAP_BITS + 1):
        places = stored_places(np.flatnonzero(patterns), len(patterns), 1 << bits)
        gaps = np.diff(places, prepend=-1) - 1
        # Half a byte a filler is near enough for codes.
        values = len(places) // 2 if sharing else 4 * len(places)
        choices.append((coded_bytes(gaps, 1 << bits) + values, bits, places, gaps))
    _, bits, places, gaps = min(choices, key=lambda choice: choice[:2])
    kind, content = _values(patterns[places])
    return bytes([kind | SPARSE, bits]) + number(len(places), 4) + content + coded(gaps, 1 << bits)


def stored_places(places: NDArray[np.int64], count: int, reach: int) -> NDArray[np.int64]:
    """``places`` (rising, below ``count``) and as few more that no step is longer than ``reach``, with the last one."""
    ends = np.union1d(places, np.arange(count)[-1:])
    steps = np.diff(ends, prepend=-1)
    fillers = (steps - 1) // reach
    starts = np.repeat(ends - steps, fillers)
    order = np.arange(int(fillers.sum())) - np.repeat(np.cumsum(fillers) - fillers, fillers)
    return np.sort(np.concatenate([ends, starts + (order + 1) * reach]))


def _values(patterns: Patterns) -> tuple[int, bytes]:
    """Their kind, and codebook and codes, or the values themselves where there are too many to share."""
    plain = words(patterns)
    codebook, codes = np.unique(patterns, return_inverse=True)
    if not 0 < len(codebook) <= MAX_CODEBOOK:
        return 0, plain
    shared = number(len(codebook), 2) + words(codebook) + coded(codes.reshape(-1), len(codebook))
    return (SHARED, shared) if len(shared) < len(plain) else (0, plain)


def _read_values(octets: Octets, shared: bool, count: int) -> Patterns:
    if not shared:
        return octets.words(count)
    size = octets.number(2)
    if not 0 < size <= MAX_CODEBOOK:
        raise ArtifactError("container: a codebook has no allowed size")
    codebook = octets.words(size)
    # Codes are below the size of the codebook because the alphabet is.
    return codebook[octets.symbols(size, count)]
