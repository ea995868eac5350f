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
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgemux.multiplexer.errors import ArtifactError

FORMAT = 1
MANIFEST = "manifest.json"
# A manifest is a few KB, a model at most some hundred MB: larger ones are refused before they are read.
MAX_MANIFEST_BYTES = 4 * 2**20
MAX_FILE_BYTES = 2 * 2**30


class File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file of the bundle: relative POSIX path, size in bytes, sha256 in hex."""

    path: str
    bytes: int
    sha256: str


class Tensor(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A tensor as clients see it: Open Inference Protocol datatype, shape with -1 for the batch."""

    name: str
    datatype: str
    shape: tuple[int, ...]


class Preprocessing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How an encoded image becomes the input tensor: Pillow mode, size in pixels, resampling filter.

    ``invert`` is for sets that are drawn light on dark, when pictures come dark on light.
    """

    mode: str
    height: int
    width: int
    resample: str = "bilinear"
    invert: bool = False


class Model(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A model and what it was measured to be; ``files`` is all that it needs, in the order in which it is run.

    params: stored weights. macs: multiply-accumulates per input. accuracy: share of the test set, with its 95 %
    interval. median_ms: one input on one thread of the machine that ``Provenance.hardware`` names.
    """

    name: str
    files: tuple[str, ...]
    params: int
    macs: int
    accuracy: float
    accuracy_interval: tuple[float, float]
    median_ms: float
    storage: str = "fp32"


class Level(Model, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One level of the nested family, 1 = smallest; its files are those of the lower levels and its own delta."""

    level: int


class MultiplexerFiles(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The two gates and the prices they were certified with.

    routes: the order of the score columns: every level's name by rising level, then the cloud model's.
    offload_first: gain (pre-gate) from which the device model is skipped.
    defer: per level, by rising level, the gain (post-gate) from which a device answer is not kept.
    """

    pre_gate: str
    post_gate: str
    routes: tuple[str, ...]
    offload_first: float
    defer: tuple[float, ...]
    median_ms: float


class Certified(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What was certified for one level: the price, and at that price the shares seen on the certificate split."""

    level: int
    price: float
    kept: float
    disagreement: float
    upper_bound: float


class Certificate(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """P(kept on the device and differs from the cloud) <= alpha, with confidence 1 - delta over the draw of n."""

    alpha: tuple[float, ...]
    delta: float
    n: int
    method: str
    date: str
    data_sha256: str
    levels: tuple[Certified, ...]


class Provenance(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where the bundle comes from; ``verdicts`` are the measured reasons for and against each compression pass."""

    recipe: str
    recipe_sha256: str
    seed: int
    created: str
    duration_s: float
    hardware: str
    data: str
    versions: dict[str, str] = {}
    verdicts: dict[str, str] = {}
    measured: dict[str, float] = {}


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=False):
    """The whole manifest; ``digest`` is the sha256 of the others, see ``seal``."""

    format: int
    name: str
    version: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    levels: tuple[Level, ...]
    cloud: Model
    multiplexer: MultiplexerFiles
    certificate: Certificate | None
    golden: str
    samples: str | None
    files: tuple[File, ...]
    provenance: Provenance
    digest: str = ""


def digest_of(manifest: Manifest) -> str:
    """sha256 in hex over the manifest's canonical JSON without its own digest."""
    plain = msgspec.structs.replace(manifest, digest="")
    return hashlib.sha256(msgspec.json.encode(plain, order="sorted")).hexdigest()


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
        self._files = {file.path: file for file in manifest.files}

    @classmethod
    def open(cls, folder: Path) -> Bundle:
        """Read and check the manifest. Raises ArtifactError naming the file."""
        if not folder.is_dir():
            raise ArtifactError(f"{folder}: no such bundle directory")
        content = _read(folder / MANIFEST, MANIFEST, MAX_MANIFEST_BYTES)
        try:
            manifest = msgspec.json.decode(content, type=Manifest)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ArtifactError(f"{MANIFEST}: not a bundle manifest ({error})") from error
        if manifest.format != FORMAT:
            raise ArtifactError(f"{MANIFEST}: format {manifest.format}, this version reads format {FORMAT}")
        if digest_of(manifest) != manifest.digest:
            raise ArtifactError(f"{MANIFEST}: its content does not match its digest")
        _check_consistency(manifest)
        return cls(folder, manifest)

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
        """The verified arrays of a listed ``.npz``; nothing in it is ever unpickled."""
        content = self.read(path)
        try:
            with np.load(io.BytesIO(content), allow_pickle=False) as archive:
                return {name: archive[name] for name in archive.files}
        except (ValueError, OSError, KeyError) as error:
            raise ArtifactError(f"{path}: not an archive of plain arrays") from error

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


def _check_consistency(manifest: Manifest) -> None:
    """A sealed manifest can still be nonsense; refuse it before a part trips over it."""
    listed = {file.path for file in manifest.files}
    for path in listed:
        pure = PurePosixPath(path)
        if pure.is_absolute() or ".." in pure.parts or path == MANIFEST:
            raise ArtifactError(f"{MANIFEST}: {path!r} is not a path inside the bundle")
    used = {
        manifest.golden,
        manifest.multiplexer.pre_gate,
        manifest.multiplexer.post_gate,
        *manifest.cloud.files,
    }
    used.update(path for level in manifest.levels for path in level.files)
    if manifest.samples is not None:
        used.add(manifest.samples)
    missing = sorted(used - listed)
    if missing:
        raise ArtifactError(f"{MANIFEST}: {missing[0]} is used but not listed")
    if [level.level for level in manifest.levels] != list(range(1, len(manifest.levels) + 1)):
        raise ArtifactError(f"{MANIFEST}: levels are not numbered 1, 2, 3, ...")
    routes = (*(level.name for level in manifest.levels), manifest.cloud.name)
    if manifest.multiplexer.routes != routes:
        raise ArtifactError(f"{MANIFEST}: the multiplexer scores other routes than the bundle has")
    if len(manifest.multiplexer.defer) != len(manifest.levels):
        raise ArtifactError(f"{MANIFEST}: one defer price per level is needed")


def _read(path: Path, name: str, limit: int) -> bytes:
    """Read a regular file, not a link to something else, of at most ``limit`` bytes."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise ArtifactError(f"{name}: missing") from error
    except OSError as error:
        raise ArtifactError(f"{name}: cannot be opened ({error.strerror})") from error
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ArtifactError(f"{name}: not a regular file")
        if status.st_size > limit:
            raise ArtifactError(f"{name}: larger than {limit} bytes")
        return file.read(limit + 1)
