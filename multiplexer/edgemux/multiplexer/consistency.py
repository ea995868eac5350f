"""Whether a manifest makes sense: one that is sealed can still be nonsense."""

from __future__ import annotations

from pathlib import PurePosixPath

import msgspec

from edgemux.multiplexer.errors import ArtifactError
from edgemux.multiplexer.manifest import (
    BITS,
    DATATYPES,
    MANIFEST,
    Certificate,
    Manifest,
    Payload,
    Split,
    splits_of,
)


def check_consistency(manifest: Manifest) -> None:
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
    if manifest.splits is not msgspec.UNSET:
        _check_splits(manifest, manifest.splits)


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
    for split in splits_of(manifest):
        used.update((split.head, split.tail, *(() if split.golden is msgspec.UNSET else (split.golden,))))
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


def _check_splits(manifest: Manifest, splits: tuple[Split, ...]) -> None:
    """Routes of their own, on levels that there are, that send packed rows of one size."""
    names = [model.name for model in (*manifest.levels, manifest.cloud)] + [split.name for split in splits]
    _require(bool(splits), "splits is there and has none")
    _require(all(names) and len(set(names)) == len(names), "splits need names, each its own, also among the models")
    for split in splits:
        _require(0 <= split.level <= len(manifest.levels), f"split {split.name} goes on from a level that is not there")
        _require(split.bits in BITS, f"split {split.name}: bits must be 8, 4 or 2")
        shape = split.sent.shape
        packed = split.sent.datatype == "UINT8" and shape[:1] == (-1,) and all(size >= 1 for size in shape[1:])
        _require(
            packed and bool(split.sent.name), f"split {split.name} must send UINT8, -1 for the batch, then fixed sizes"
        )
        shares = 0 <= split.accuracy <= 1 and 0 <= split.changed <= 1
        _require(shares and split.n >= 1, f"split {split.name}: shares must be in [0, 1], of at least one input")
        least = min(split.head_ms, split.tail_ms, split.tail_macs)
        _require(split.bytes > 0 and least >= 0, f"split {split.name} cannot take less than none")
