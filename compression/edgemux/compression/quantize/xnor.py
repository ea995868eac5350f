"""Products of signs, 64 at a time: ``xnor.c`` through ctypes, or numpy where there is no C compiler.

The kernel is compiled once, for this processor, into the user's cache. Neither way needs torch.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemux.compression import places

Signs = NDArray[np.float32]
Words = NDArray[np.uint64]
WORD = 64
SOURCE = "xnor.c"
FLAGS = ("-O3", "-march=native", "-shared", "-fPIC")
COMPILE_SECONDS = 60.0
# Ones in every 16-bit number, for numpy before 2.0.
_ONES = np.array([value.bit_count() for value in range(256)], np.uint8)


def packed_signs(x: NDArray[np.floating]) -> Words:
    """Bits of x >= 0, [..., k] -> uint64 [..., ceil(k / 64)]; feature i is bit i % 64 of word i // 64."""
    words = -(-x.shape[-1] // WORD)
    packed = np.packbits(x >= 0, axis=-1, bitorder="little")
    room = np.zeros((*x.shape[:-1], words * 8), np.uint8)
    room[..., : packed.shape[-1]] = packed
    return room.view("<u8").astype(np.uint64, copy=False)


def product(weights: Words, x: Words, count: int) -> NDArray[np.int32]:
    """Products of packed signs in numpy: [rows, words] and [n, words] -> int32 [n, rows]."""
    differ = weights[None] ^ x[:, None]
    if hasattr(np, "bitwise_count"):
        ones = np.bitwise_count(differ).sum(axis=-1, dtype=np.int64)
    else:
        ones = _ONES[differ.view(np.uint8)].sum(axis=-1, dtype=np.int64)
    return (count - 2 * ones).astype(np.int32)


class SignMatrix:
    """A matrix of signs, one bit each, to multiply vectors of signs with; for one thread at a time."""

    def __init__(self, weight: NDArray[np.floating], compiled: bool | None = None) -> None:
        """weight: float [rows, count], of which the signs count (0 is positive).

        compiled: with the C kernel (True), in numpy (False), or whichever is there (None). Raises OSError when the
        kernel is asked for and cannot be built.
        """
        self.rows, self.count = weight.shape
        self.words = packed_signs(weight)
        self._kernel = None if compiled is False else kernel()
        if compiled and self._kernel is None:
            raise OSError("the XNOR kernel cannot be built: no C compiler")
        self._scratch = np.zeros(self.words.shape[1], np.uint64)
        self._y = np.zeros(self.rows, np.int32)
        # An address lookup costs as much as a small product.
        self._at = tuple(array.ctypes.data for array in (self.words, self._scratch, self._y))

    @property
    def nbytes(self) -> int:
        """Bytes of the packed signs."""
        return int(self.words.nbytes)

    def times(self, x: Signs) -> NDArray[np.int32]:
        """Product with the signs of x: float32 [count] -> int32 [rows], or [n, count] -> [n, rows].

        Raises ValueError for another length.
        """
        if x.shape[-1] != self.count or x.ndim > 2:
            raise ValueError(f"a matrix of {self.count} columns cannot take {list(x.shape)}")
        rows = np.ascontiguousarray(x, np.float32)
        if self._kernel is None:
            y = product(self.words, packed_signs(np.atleast_2d(rows)), self.count)
            return y[0] if x.ndim == 1 else y
        if x.ndim == 1:
            return self._one(rows)
        return np.stack([self._one(row) for row in rows]) if len(rows) else np.zeros((0, self.rows), np.int32)

    def _one(self, x: Signs) -> NDArray[np.int32]:
        assert self._kernel is not None
        words, scratch, y = self._at
        self._kernel.xnor_layer(words, x.ctypes.data, self.rows, self.count, scratch, y)
        return self._y.copy()

    def pack(self, x: Signs) -> None:
        """Pack the signs of one input, contiguous float32 [count], for ``multiply``: the halves of ``times``."""
        assert self._kernel is not None
        self._kernel.xnor_pack(x.ctypes.data, self.count, self._at[1])

    def multiply(self) -> NDArray[np.int32]:
        """The product with what was packed last; a view that the next product overwrites."""
        assert self._kernel is not None
        self._kernel.xnor_gemv(self._at[0], self._at[1], self.rows, self.count, self._at[2])
        return self._y


@functools.cache
def kernel() -> Any:
    """The compiled kernel, or None where none can be built."""
    try:
        library = ctypes.CDLL(str(_built()))
    except OSError:
        return None
    pointer, size = ctypes.c_void_p, ctypes.c_size_t
    library.xnor_pack.argtypes = (pointer, size, pointer)
    library.xnor_gemv.argtypes = (pointer, pointer, size, size, pointer)
    library.xnor_layer.argtypes = (pointer, pointer, size, size, pointer, pointer)
    for function in (library.xnor_pack, library.xnor_gemv, library.xnor_layer):
        function.restype = None
    return library


def _built() -> Path:
    """The shared library for this source and processor. Raises OSError when it cannot be made."""
    source = resources.files(__package__).joinpath(SOURCE).read_bytes()
    digest = hashlib.sha256(b"\0".join((source, " ".join(FLAGS).encode(), _processor()))).hexdigest()
    path = places.cache("kernels") / f"xnor-{digest[:16]}.so"
    if path.is_file():
        return path
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        raise OSError("no C compiler")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as name:
        code, made = Path(name) / SOURCE, Path(name) / path.name
        code.write_bytes(source)
        command = [compiler, *FLAGS, "-o", str(made), str(code)]
        try:
            subprocess.run(command, check=True, capture_output=True, timeout=COMPILE_SECONDS)
        except subprocess.SubprocessError as error:
            raise OSError("the compiler refused the kernel") from error
        made.replace(path)  # another process may be doing the same: both make the same file
    return path


def _processor() -> bytes:
    """What ``-march=native`` depends on: a cache may be shared by different machines."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    features = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return f"{platform.machine()} {features}".encode()
