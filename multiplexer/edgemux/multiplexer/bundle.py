"""A bundle: a directory with models, multiplexer and a manifest that vouches for every byte of them.

``manifest.json`` is written once by the toolchain and read by everybody else. Its ``digest`` covers the rest of
the manifest, which covers each file by size and sha256: a changed bit anywhere is refused before anything is
loaded, because ONNX Runtime itself would load most damaged weights and answer wrongly.
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
import zipfile
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgemux.multiplexer.consistency import check_consistency
from edgemux.multiplexer.errors import ArtifactError
from edgemux.multiplexer.manifest import (
    BITS,
    DATATYPES,
    FORMAT,
    MANIFEST,
    Certificate,
    Certified,
    File,
    Level,
    Manifest,
    Model,
    MultiplexerFiles,
    Payload,
    Preprocessing,
    Provenance,
    Split,
    Tensor,
    digest_of,
    splits_of,
    tail_model,
)

# A bundle and what it says of itself are one thing to everybody else.
__all__ = [
    "BITS",
    "DATATYPES",
    "FORMAT",
    "MANIFEST",
    "MAX_ARRAY_BYTES",
    "MAX_FILE_BYTES",
    "MAX_MANIFEST_BYTES",
    "Bundle",
    "Certificate",
    "Certified",
    "File",
    "Level",
    "Manifest",
    "Model",
    "MultiplexerFiles",
    "Payload",
    "Preprocessing",
    "Provenance",
    "Split",
    "Tensor",
    "digest_of",
    "seal",
    "splits_of",
    "tail_model",
]

# A manifest is a few KB, a model at most some hundred MB: larger ones are refused before they are read.
MAX_MANIFEST_BYTES = 4 * 2**20
MAX_FILE_BYTES = 2 * 2**30
# Arrays are golden answers and samples: far smaller than a model, also unpacked.
MAX_ARRAY_BYTES = 2**30


def seal(folder: Path, manifest: Manifest) -> Manifest:
    """Digest every listed file of ``folder``, complete the manifest, write it, and return it."""
    files = tuple(_describe(folder, file.path) for file in manifest.files)
    complete = msgspec.structs.replace(manifest, files=files)
    sealed = msgspec.structs.replace(complete, digest=digest_of(complete))
    text = msgspec.json.format(msgspec.json.encode(sealed), indent=1)
    (folder / MANIFEST).write_bytes(text + b"\n")
    return sealed


def _describe(folder: Path, path: str) -> File:
    content = (folder / path).read_bytes()
    return File(path=path, bytes=len(content), sha256=hashlib.sha256(content).hexdigest())


class Bundle:
    """A verified bundle, held in memory: what was digested is what gets loaded.

    Only the files that a part asks for are read, so an agent never reads the cloud model.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self.manifest = manifest
        self.own_name = manifest.name
        self._files = {file.path: file for file in manifest.files}

    @classmethod
    def open(cls, folder: Path | str) -> Bundle:
        """Read and check the manifest. Raises ArtifactError naming the file."""
        folder = Path(folder)
        if not folder.is_dir():
            raise ArtifactError(f"{folder}: no such bundle directory")
        content = _read(folder / MANIFEST, f"{folder}/{MANIFEST}", MAX_MANIFEST_BYTES)
        try:
            manifest = msgspec.json.decode(content, type=Manifest)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ArtifactError(f"{MANIFEST}: not a bundle manifest ({error})") from error
        if manifest.format != FORMAT:
            raise ArtifactError(f"{MANIFEST}: format {manifest.format}, this version reads format {FORMAT}")
        if digest_of(manifest) != manifest.digest:
            raise ArtifactError(f"{MANIFEST}: its content does not match its digest")
        check_consistency(manifest)
        return cls(folder, manifest)

    def named(self, name: str) -> Bundle:
        """The same bundle under another name; the digest stays that of what is on the disk."""
        other = Bundle(self.folder, msgspec.structs.replace(self.manifest, name=name))
        other.own_name = self.own_name
        return other

    def read(self, path: str) -> bytes:
        """The verified content of a listed file. Raises ArtifactError naming the file."""
        file = self._files.get(path)
        if file is None:
            raise ArtifactError(f"{path}: not listed in {MANIFEST}")
        content = _read(self.folder / path, path, MAX_FILE_BYTES)
        if len(content) != file.bytes:
            raise ArtifactError(f"{path}: {len(content)} bytes, {MANIFEST} says {file.bytes}")
        if hashlib.sha256(content).hexdigest() != file.sha256:
            raise ArtifactError(f"{path}: its sha256 is not the one in {MANIFEST}")
        return content

    def arrays(self, path: str) -> dict[str, NDArray[Any]]:
        """The verified arrays of a listed ``.npz``; nothing in it is ever unpickled. Raises ArtifactError."""
        content = self.read(path)
        arrays = {}
        try:
            # np.load would also take a bare array here, and hand out members that are no arrays as bytes.
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                if sum(member.file_size for member in archive.infolist()) > MAX_ARRAY_BYTES:
                    raise ValueError("too large")
                for member in archive.infolist():
                    with archive.open(member) as stored:
                        array: NDArray[Any] = np.lib.format.read_array(stored, allow_pickle=False)
                    arrays[member.filename.removesuffix(".npy")] = array
        except Exception as error:  # zip, zlib and numpy raise a dozen types for damaged data
            raise ArtifactError(f"{path}: not an archive of plain arrays") from error
        return arrays

    def verify(self) -> None:
        """Check every listed file. Raises ArtifactError naming the first that is wrong."""
        for file in self.manifest.files:
            self.read(file.path)

    def file(self, path: str) -> File:
        """The manifest's entry for a listed file."""
        return self._files[path]

    def size(self, paths: tuple[str, ...]) -> int:
        """Bytes of the given files together."""
        return sum(self._files[path].bytes for path in paths)

    def sha256(self, path: str) -> str:
        """The digest of a listed file, in hex."""
        return self._files[path].sha256


def _read(path: Path, name: str, limit: int) -> bytes:
    """Read a regular file, not a link to something else, of at most ``limit`` bytes."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise ArtifactError(f"{name}: missing") from error
    except OSError as error:
        raise ArtifactError(f"{name}: cannot be opened ({error.strerror})") from error
    except ValueError as error:  # a name that the system cannot spell
        raise ArtifactError(f"{name!r}: not a path") from error
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ArtifactError(f"{name}: not a regular file")
        if status.st_size > limit:
            raise ArtifactError(f"{name}: larger than {limit} bytes")
        return file.read(limit + 1)
