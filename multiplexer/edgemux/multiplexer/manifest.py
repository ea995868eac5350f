"""What a bundle says of itself: the manifest, and the digest that seals it."""

from __future__ import annotations

import hashlib

import msgspec

from edgemux.multiplexer.drift import References

FORMAT = 1
MANIFEST = "manifest.json"
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
# What a value that a split sends may have.
BITS = (8, 4, 2)


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


class Split(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A model cut in two: a head for the device, a tail for the cloud, and what they were measured to be.

    name: of the route; with the bundle's name before it that of the tail's model, see ``tail_model``.
    head: ONNX; takes inputs of the bundle (level 0), or what the levels up to ``level`` leave. tail: ONNX, what is sent
    -> probabilities [n, classes]. sent: UINT8 [-1, ...] of a fixed size, its values below 2**bits.
    bytes: mean of an input as it is sent. head_ms, tail_ms: one input on one thread, the head without the level below
    it. accuracy: to be read beside the cloud model's here, of which ``n`` inputs lose the difference. changed: the
    share of these that gets another label than from the cloud model. golden: the file with what head and tail must
    make of the golden inputs, see codes.py.
    """

    name: str
    head: str
    level: int
    tail: str
    sent: Tensor
    bits: int
    bytes: float
    head_ms: float
    tail_ms: float
    tail_macs: int
    n: int
    accuracy: float
    changed: float
    golden: str | msgspec.UnsetType = msgspec.UNSET


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
    references: what inputs and scores usually are. payloads: the forms in which inputs may be sent, "raw" first.
    splits: the ways to answer with a head on the device and a tail in the cloud. A manifest without them has no such
    key, not even in what is digested: those sealed before there were any still open.
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
    splits: tuple[Split, ...] | msgspec.UnsetType = msgspec.UNSET
    digest: str = ""


def splits_of(manifest: Manifest) -> tuple[Split, ...]:
    """None for a bundle that has no such key."""
    return () if manifest.splits is msgspec.UNSET else manifest.splits


def tail_model(bundle: str, split: str) -> str:
    """What the model of a split's tail is called in the cloud."""
    return f"{bundle}.{split}"


def digest_of(manifest: Manifest) -> str:
    """sha256 in hex over the manifest's canonical JSON without its own digest."""
    plain = msgspec.structs.replace(manifest, digest="")
    return hashlib.sha256(msgspec.json.encode(plain, order="sorted")).hexdigest()
