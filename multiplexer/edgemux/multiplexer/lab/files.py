"""Arrays on disk that are larger than memory: an .npz archive or an .npy file, read a stretch of rows at a time."""

from __future__ import annotations

import lzma
import math
import zipfile
import zlib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from edgemux.multiplexer.errors import InputError

_LOCAL_HEADER = 30
# What numpy and zipfile raise for a file that is not what it says.
_DAMAGE = (ValueError, OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error, lzma.LZMAError)


class Stored:
    """One array of an archive, or an .npy file: shape and dtype at once, rows on demand.

    An array that was stored plain is mapped, so only the pages of the rows that are asked for are read. A compressed
    one is unpacked from its beginning, and what is not asked for is thrown away as it comes.
    """

    def __init__(self, name: str, path: Path, member: zipfile.ZipInfo | None) -> None:
        """Raises InputError naming the array when it is not a plain array of numbers, whole."""
        self.name = name
        self._path = path
        self._member = member
        try:
            with self._open() as stream:
                major, _ = npy.read_magic(stream)
                read = npy.read_array_header_1_0 if major == 1 else npy.read_array_header_2_0
                self.shape, fortran, self.dtype = read(stream)
                self._header = stream.tell()
        except _DAMAGE as error:
            raise InputError(name, "not an array as numpy saves it") from error
        if self.dtype.hasobject or self.dtype.kind not in "fiub" or self.dtype.itemsize > 8:
            raise InputError(name, f"holds {self.dtype}, not numbers of at most 64 bits")
        size = path.stat().st_size if member is None else member.file_size
        if min(self.shape, default=0) < 0 or self._header + self.dtype.itemsize * math.prod(self.shape) > size:
            raise InputError(name, "the file is damaged or ends early")
        if fortran and len(self.shape) > 1:
            raise InputError(name, "is in column order; save np.ascontiguousarray of it")

    def __len__(self) -> int:
        return self.shape[0] if self.shape else 0

    def _open(self) -> IO[bytes]:
        if self._member is None:
            return open(self._path, "rb")
        with zipfile.ZipFile(self._path) as archive:
            return archive.open(self._member)

    def stretches(self, index: NDArray[np.int64], rows: int) -> Iterator[NDArray[Any]]:
        """The rows of rising ``index``, at most ``rows`` at a time. Raises InputError when the file ends early."""
        try:
            for taken in self._unpacked(index, rows) if self._packed() else self._mapped(index, rows):
                yield taken.astype(self.dtype.newbyteorder("="), copy=False)
        except _DAMAGE as error:
            raise InputError(self.name, "the file is damaged or ends early") from error

    def _packed(self) -> bool:
        return self._member is not None and self._member.compress_type != zipfile.ZIP_STORED

    def _mapped(self, index: NDArray[np.int64], rows: int) -> Iterator[NDArray[Any]]:
        offset = self._header
        if self._member is not None:
            with open(self._path, "rb") as file:
                file.seek(self._member.header_offset)
                local = file.read(_LOCAL_HEADER)
            offset += self._member.header_offset + _LOCAL_HEADER
            offset += int.from_bytes(local[26:28], "little") + int.from_bytes(local[28:30], "little")
        for start in range(0, len(index), rows):
            # Mapped anew each time: the pages of a mapping count as ours for as long as it lasts.
            array = np.memmap(self._path, self.dtype, "r", offset, self.shape)
            yield np.array(array[index[start : start + rows]])

    def _unpacked(self, index: NDArray[np.int64], rows: int) -> Iterator[NDArray[Any]]:
        row_bytes = self.dtype.itemsize * int(np.prod(self.shape[1:], dtype=np.int64))
        with self._open() as stream:
            _skip(stream, self._header)
            at = 0
            for start in range(0, len(index), rows):
                wanted = index[start : start + rows]
                taken = np.empty((len(wanted), *self.shape[1:]), self.dtype)
                flat = taken.reshape(len(wanted), -1)
                for place, row in enumerate(wanted.tolist()):
                    _skip(stream, (row - at) * row_bytes)
                    content = stream.read(row_bytes)
                    if len(content) < row_bytes:
                        raise EOFError
                    flat[place] = np.frombuffer(content, self.dtype)
                    at = row + 1
                yield taken


def _skip(stream: IO[bytes], count: int) -> None:
    while count > 0:
        got = len(stream.read(min(count, 2**20)))
        if not got:
            raise EOFError
        count -= got


def arrays_of(path: Path, needed: Collection[str], optional: Collection[str] = ()) -> dict[str, Stored]:
    """Arrays of an .npz file by name; others may be anything. Raises InputError naming the file, or what it lacks."""
    check_file(path)
    try:
        with zipfile.ZipFile(path) as archive:
            found = archive.infolist()
    except OSError as error:
        raise InputError(str(path), f"cannot be read ({error.strerror})") from error
    except _DAMAGE as error:
        raise InputError(str(path), "not an .npz archive; make one with numpy.savez") from error
    members = {member.filename.removesuffix(".npy"): member for member in found if member.filename.endswith(".npy")}
    for name in needed:
        if name not in members:
            raise InputError(name, f"not in the archive, which has {', '.join(sorted(members)) or 'nothing'}")
    return {name: Stored(name, path, members[name]) for name in (*needed, *optional) if name in members}


def array_of(path: Path) -> Stored:
    """An .npy file. Raises InputError naming it."""
    check_file(path)
    return Stored(path.name, path, None)


def check_file(path: Path) -> None:
    """Raises InputError naming the path when there is no plain file that may be read."""
    try:
        plain = path.is_file()
        if plain:
            path.open("rb").close()
    except OSError as error:
        raise InputError(str(path), f"cannot be read ({error.strerror})") from error
    if not plain:
        raise InputError(str(path), "not a plain file" if path.exists() else "no such file")
