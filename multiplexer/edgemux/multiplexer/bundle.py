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
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgemux.multiplexer.drift import References
from edgemux.multiplexer.errors import ArtifactError

FORMAT = 1
MANIFEST = "manifest.json"
# A manifest is a few KB, a model at most some hundred MB: larger ones are refused before they are read.
MAX_MANIFEST_BYTES = 4 * 2**20
MAX_FILE_BYTES = 2 * 2**30
# Arrays are golden answers and samples: far smaller than a model, also unpacked.
MAX_ARRAY_BYTES = 2**30
# The Open Inference Protocol's numeric datatypes, and numpy's names for them.
DATATYPES = {
    "BOOL": "bool",
    "UINT8": "uint8",
    "UINT16": "uint16",
    "UINT32": "uint32",
    "UINT64": "uint64",
    "INT8": "int8",
    "INT16": "int16",
    "INT32": "int32",
    "INT64": "int64",
    "FP16": "float16",
    "FP32": "float32",
    "FP64": "float64",
}


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


class Payload(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A form in which inputs may be sent to the cloud, and what it was measured to be on ``n`` inputs.

    encoding: "raw" for the tensor itself; the names are in wire/payload.py, and one that is not known is not used.
    bytes: mean size. accuracy: of the cloud model through it, with its 95 % interval. changed: the share of inputs that
    it gives another label than through the tensor. encode_ms, decode_ms: medians, one input on one thread.
    """

    encoding: str
    bytes: float
    accuracy: float
    accuracy_interval: tuple[float, float]
    changed: float
    encode_ms: float
    decode_ms: float
    n: int


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
    """The whole manifest; ``digest`` is the sha256 of the others, see ``seal``.

    preprocessing: None where the input is no picture; such a bundle takes tensors only.
    references: what inputs and scores usually are. payloads: the forms in which inputs may be sent, "raw" first. A
    manifest without them has no such key, not even in what is digested: those sealed before there were any still open.
    """

    format: int
    name: str
    version: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    classes: tuple[str, ...]
    preprocessing: Preprocessing | None
    levels: tuple[Level, ...]
    cloud: Model
    multiplexer: MultiplexerFiles
    certificate: Certificate | None
    golden: str
    samples: str | None
    files: tuple[File, ...]
    provenance: Provenance
    references: References | msgspec.UnsetType = msgspec.UNSET
    payloads: tuple[Payload, ...] | msgspec.UnsetType = msgspec.UNSET
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
        _check_consistency(manifest)
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


def _check_consistency(manifest: Manifest) -> None:
    """A sealed manifest can still be nonsense; refuse it before a part trips over it. Raises ArtifactError."""
    _require(bool(manifest.name and manifest.version), "it needs a name and a version")
    _check_files(manifest)
    _check_tensors(manifest)
    _check_preprocessing(manifest)
    _check_routes(manifest)
    if manifest.certificate is not None:
        _check_certificate(manifest, manifest.certificate)
    if manifest.references is not msgspec.UNSET:
        _require(len(manifest.references.levels) == len(manifest.levels), "one reference per level is needed")
    if manifest.payloads is not msgspec.UNSET:
        _check_payloads(manifest.payloads)


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ArtifactError(f"{MANIFEST}: {otherwise}")


def _check_files(manifest: Manifest) -> None:
    """Every path is inside the bundle, every file that is used is listed, once."""
    listed = [file.path for file in manifest.files]
    for path in listed:
        pure = PurePosixPath(path)
        inside = pure.parts and not pure.is_absolute() and ".." not in pure.parts and "\0" not in path
        _require(bool(inside) and path != MANIFEST, f"{path!r} is not a path inside the bundle")
    _require(len(set(listed)) == len(listed), "a file is listed twice")
    gates = manifest.multiplexer
    used = {manifest.golden, gates.pre_gate, gates.post_gate, *manifest.cloud.files}
    used.update(path for level in manifest.levels for path in level.files)
    if manifest.samples is not None:
        used.add(manifest.samples)
    missing = sorted(used.difference(listed))
    if missing:
        raise ArtifactError(f"{MANIFEST}: {missing[0]} is used but not listed")


def _check_tensors(manifest: Manifest) -> None:
    """Inputs are batches of known datatypes; outputs are one probability a class, and the label."""
    names = [tensor.name for tensor in manifest.inputs]
    _require(bool(names) and all(names) and len(set(names)) == len(names), "inputs need names, each its own")
    for tensor in manifest.inputs:
        _require(tensor.datatype in DATATYPES, f"{tensor.name} has a datatype that is not known")
        batched = tensor.shape[:1] == (-1,) and all(size == -1 or size >= 1 for size in tensor.shape)
        _require(batched, f"{tensor.name}: its shape must be -1 for the batch, then sizes of at least 1, or -1 for any")
    classes = len(manifest.classes)
    outputs = {(tensor.name, tensor.datatype, tensor.shape) for tensor in manifest.outputs}
    expected = {("probabilities", "FP32", (-1, classes)), ("label", "INT64", (-1,))}
    _require(classes >= 1, "it has no classes")
    _require(
        outputs == expected and len(manifest.outputs) == len(expected),
        f"outputs must be probabilities FP32 [-1, {classes}] and label INT64 [-1]",
    )


def _check_preprocessing(manifest: Manifest) -> None:
    """Encoded images become what the input takes: UINT8 [N, height, width], with 3 channels last for RGB."""
    how = manifest.preprocessing
    if how is None:
        return
    channels = {"L": (), "RGB": (3,)}.get(how.mode)
    if channels is None:
        raise ArtifactError(f"{MANIFEST}: preprocessing.mode must be L or RGB")
    _require(how.resample in ("nearest", "bilinear"), "preprocessing.resample must be nearest or bilinear")
    _require(how.height >= 1 and how.width >= 1, "preprocessing.height and width must be at least 1")
    if len(manifest.inputs) == 1 and manifest.inputs[0].datatype == "UINT8":
        picture = (-1, how.height, how.width, *channels)
        _require(
            manifest.inputs[0].shape == picture, f"its input is not the picture that preprocessing makes, {picture}"
        )


def _check_routes(manifest: Manifest) -> None:
    """At least one level, each its own delta on the levels below it; one cloud file; the gates score just these."""
    levels, gates = manifest.levels, manifest.multiplexer
    _require(bool(levels), "it has no levels")
    _require(
        [level.level for level in levels] == list(range(1, len(levels) + 1)), "levels are not numbered 1, 2, 3, ..."
    )
    below: tuple[str, ...] = ()
    for level in levels:
        own = level.files[:-1] == below and len(level.files) == len(below) + 1
        _require(own, f"the files of {level.name} are not the lower levels' and one of its own")
        below = level.files
    _require(len(manifest.cloud.files) == 1, "the cloud model must be one file")
    models = (*levels, manifest.cloud)
    _require(all(model.median_ms >= 0 for model in models), "a model cannot take less than no time")
    routes = tuple(model.name for model in models)
    _require(all(routes) and len(set(routes)) == len(routes), "levels and the cloud model need names, each its own")
    _require(gates.routes == routes, "the multiplexer scores other routes than the bundle has")
    _require(len(gates.defer) == len(levels), "one defer price per level is needed")


def _check_certificate(manifest: Manifest, certificate: Certificate) -> None:
    """It certifies each level, at the price that is served."""
    numbers = [level.level for level in certificate.levels]
    _require(numbers == [level.level for level in manifest.levels], "the certificate needs one entry per level")
    prices = tuple(level.price for level in certificate.levels)
    _require(prices == manifest.multiplexer.defer, "the certificate is for other prices than are served")
    shares = (*certificate.alpha, certificate.delta)
    _require(
        bool(certificate.alpha) and all(0 < share < 1 for share in shares),
        "the certificate's alpha and delta must be between 0 and 1",
    )
    seen = [share for level in certificate.levels for share in (level.kept, level.disagreement, level.upper_bound)]
    _require(all(0 <= share <= 1 for share in seen), "the certificate's shares must be in [0, 1]")


def _check_payloads(payloads: tuple[Payload, ...]) -> None:
    """The tensor itself first, each form once, no times and shares that cannot be."""
    names = [each.encoding for each in payloads]
    _require(names[:1] == ["raw"] and len(set(names)) == len(names), "payloads are raw, and others, each once")
    for each in payloads:
        _require(0 <= each.accuracy <= 1 and 0 <= each.changed <= 1, "a payload's shares must be in [0, 1]")
        _require(each.bytes > 0 and each.encode_ms >= 0 and each.decode_ms >= 0, "a payload cannot take less than none")


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
