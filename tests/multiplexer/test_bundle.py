"""A damaged bundle is refused, and the file is named."""

from __future__ import annotations

import io
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgemux.multiplexer.bundle import (
    DATATYPES,
    MANIFEST,
    Bundle,
    File,
    Manifest,
    Payload,
    Split,
    Tensor,
    digest_of,
    seal,
    splits_of,
    tail_model,
)
from edgemux.multiplexer.errors import ArtifactError
from edgemux.multiplexer.usual import add_references
from edgemux.wire.codec import DTYPES

Pictures = Callable[[int, int], tuple[NDArray[np.uint8], NDArray[np.int64]]]

FASHION_MNIST = Path(__file__).parents[2] / "deploy" / "bundles" / "fashion-mnist"


@pytest.fixture
def copy(tiny_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


def manifest_of(folder: Path) -> Manifest:
    return Bundle.open(folder).manifest


def test_a_sealed_bundle_opens_and_verifies(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    bundle.verify()
    assert bundle.manifest.levels[3].level == 4


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="nowhere"):
        Bundle.open(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["level-2.onnx", "cloud.onnx", "pre_gate.onnx", "golden.npz"])
def test_a_missing_truncated_grown_or_flipped_file_is_named(copy: Path, name: str) -> None:
    original = (copy / name).read_bytes()
    flipped = bytearray(original)
    flipped[len(flipped) // 2] ^= 0x10
    for damaged in (None, b"", original[:-1], original + b"\0", bytes(flipped)):
        (copy / name).unlink()
        if damaged is not None:
            (copy / name).write_bytes(damaged)
        with pytest.raises(ArtifactError, match=name):
            Bundle.open(copy).verify()
        (copy / name).write_bytes(original)


def test_two_files_that_changed_places_are_noticed(copy: Path) -> None:
    (copy / "level-2.onnx").rename(copy / "x")
    (copy / "level-3.onnx").rename(copy / "level-2.onnx")
    (copy / "x").rename(copy / "level-3.onnx")
    with pytest.raises(ArtifactError, match="level-"):
        Bundle.open(copy).verify()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150, deadline=None)
@given(data=st.data())
def test_a_flipped_bit_in_the_manifest_never_passes_unless_it_means_the_same(
    tiny_bundle: Path, tmp_path: Path, data: st.DataObject
) -> None:
    text = bytearray((tiny_bundle / MANIFEST).read_bytes())
    at = data.draw(st.integers(0, len(text) * 8 - 1))
    text[at // 8] ^= 1 << at % 8
    (tmp_path / MANIFEST).write_bytes(bytes(text))
    try:
        manifest = Bundle.open(tmp_path).manifest
    except ArtifactError as error:
        assert MANIFEST in str(error)
    else:
        assert manifest == manifest_of(tiny_bundle)


def test_a_link_is_not_followed(copy: Path) -> None:
    (copy / "cloud.onnx").rename(copy / "elsewhere")
    os.symlink(copy / "elsewhere", copy / "cloud.onnx")
    with pytest.raises(ArtifactError, match=r"cloud\.onnx"):
        Bundle.open(copy).read("cloud.onnx")


def test_a_pipe_is_refused_without_waiting(copy: Path) -> None:
    (copy / "cloud.onnx").unlink()
    os.mkfifo(copy / "cloud.onnx")
    with pytest.raises(ArtifactError, match=r"cloud\.onnx"):
        Bundle.open(copy).read("cloud.onnx")


def test_a_sealed_path_outside_the_bundle_is_refused(copy: Path) -> None:
    manifest = manifest_of(copy)
    (copy.parent / "outside").write_bytes(b"x")
    file = msgspec.structs.replace(manifest.files[0], path="../outside")
    seal(copy, msgspec.structs.replace(manifest, files=(*manifest.files, file)))
    with pytest.raises(ArtifactError, match="inside the bundle"):
        Bundle.open(copy)


def test_a_newer_format_is_refused_with_both_numbers(copy: Path) -> None:
    seal(copy, msgspec.structs.replace(manifest_of(copy), format=99))
    with pytest.raises(ArtifactError, match=r"format 99.*format 1"):
        Bundle.open(copy)


def test_a_file_that_is_not_listed_cannot_be_read(copy: Path) -> None:
    (copy / "extra.onnx").write_bytes(b"x")
    with pytest.raises(ArtifactError, match=r"extra\.onnx"):
        Bundle.open(copy).read("extra.onnx")


def test_the_bundle_that_is_delivered_opens_and_verifies() -> None:
    if not (FASHION_MNIST / MANIFEST).exists():
        pytest.skip("not built yet")
    Bundle.open(FASHION_MNIST).verify()


def test_the_datatypes_are_those_of_the_wire() -> None:
    assert {name: np.dtype(kind) for name, kind in DATATYPES.items()} == DTYPES


Change = Callable[[Manifest], dict[str, Any]]
replace = msgspec.structs.replace


def image(m: Manifest, **changes: Any) -> dict[str, Any]:
    return {"inputs": (replace(m.inputs[0], **changes),)}


def output(m: Manifest, **changes: Any) -> dict[str, Any]:
    return {"outputs": (replace(m.outputs[0], **changes), m.outputs[1])}


def pictures(m: Manifest, **changes: Any) -> dict[str, Any]:
    return {"preprocessing": replace(m.preprocessing, **changes)}


def first_level(m: Manifest, **changes: Any) -> dict[str, Any]:
    return {"levels": (replace(m.levels[0], **changes), *m.levels[1:])}


def gates(m: Manifest, **changes: Any) -> dict[str, Any]:
    return {"multiplexer": replace(m.multiplexer, **changes)}


def certificate(m: Manifest, **changes: Any) -> dict[str, Any]:
    assert m.certificate is not None
    return {"certificate": replace(m.certificate, **changes)}


def first_file(m: Manifest, path: str) -> dict[str, Any]:
    return {"files": (replace(m.files[0], path=path), *m.files[1:])}


def certified(m: Manifest, **changes: Any) -> dict[str, Any]:
    assert m.certificate is not None
    return certificate(m, levels=(replace(m.certificate.levels[0], **changes), *m.certificate.levels[1:]))


NONSENSE: list[tuple[Change, str]] = [
    (lambda m: {"name": ""}, "a name"),
    (lambda m: {"version": ""}, "a version"),
    (lambda m: {"levels": ()}, "no levels"),
    (lambda m: {"levels": m.levels[::-1]}, "numbered"),
    (lambda m: first_level(m, files=()), "the files of level-1"),
    (lambda m: first_level(m, files=("level-1.onnx", "level-2.onnx")), "the files of level-1"),
    (lambda m: first_level(m, name=""), "names"),
    (lambda m: first_level(m, name="level-2"), "names"),
    (lambda m: first_level(m, name="cloud"), "names"),
    (lambda m: first_level(m, median_ms=-1.0), "less than no time"),
    (lambda m: {"cloud": replace(m.cloud, files=())}, "one file"),
    (lambda m: {"cloud": replace(m.cloud, files=("cloud.onnx", "level-1.onnx"))}, "one file"),
    (lambda m: {"cloud": replace(m.cloud, files=("other.onnx",))}, "not listed"),
    (lambda m: gates(m, routes=m.multiplexer.routes[1:]), "other routes"),
    (lambda m: gates(m, defer=()), "one defer price"),
    (lambda m: gates(m, pre_gate="other.onnx"), "not listed"),
    (lambda m: {"samples": "other.npz"}, "not listed"),
    (lambda m: {"inputs": ()}, "names"),
    (lambda m: {"inputs": m.inputs * 2}, "names"),
    (lambda m: image(m, name=""), "names"),
    (lambda m: image(m, datatype="UINT9"), "image has a datatype"),
    (lambda m: image(m, datatype="BYTES"), "image has a datatype"),
    (lambda m: image(m, shape=()), "image: its shape"),
    (lambda m: image(m, shape=(1, 28, 28)), "image: its shape"),
    (lambda m: image(m, shape=(-1, 0, 28)), "image: its shape"),
    (lambda m: image(m, shape=(-1, -2, 28)), "image: its shape"),
    (lambda m: image(m, shape=(-1, 28, 29)), "preprocessing makes"),
    (lambda m: image(m, shape=(-1, 784)), "preprocessing makes"),
    (lambda m: {"classes": ()}, "no classes"),
    (lambda m: {"classes": m.classes[1:]}, r"outputs must be probabilities FP32 \[-1, 9\]"),
    (lambda m: {"outputs": ()}, "outputs must be"),
    (lambda m: {"outputs": m.outputs[:1]}, "outputs must be"),
    (lambda m: {"outputs": (*m.outputs, m.outputs[0])}, "outputs must be"),
    (lambda m: {"outputs": (*m.outputs, Tensor("more", "FP32", (-1,)))}, "outputs must be"),
    (lambda m: output(m, name="scores"), "outputs must be"),
    (lambda m: output(m, datatype="FP64"), "outputs must be"),
    (lambda m: output(m, shape=(-1, -1)), "outputs must be"),
    (lambda m: pictures(m, mode="CMYK"), "mode"),
    (lambda m: pictures(m, mode="RGB"), "preprocessing makes"),
    (lambda m: pictures(m, resample="lanczos"), "resample"),
    (lambda m: pictures(m, height=0), "height"),
    (lambda m: pictures(m, width=-28), "width"),
    (lambda m: certificate(m, levels=()), "one entry per level"),
    (lambda m: certified(m, level=2), "one entry per level"),
    (lambda m: certified(m, price=0.5), "other prices"),
    (lambda m: certified(m, upper_bound=1.5), "shares"),
    (lambda m: certificate(m, alpha=()), "alpha and delta"),
    (lambda m: certificate(m, alpha=(0.1, 1.0)), "alpha and delta"),
    (lambda m: certificate(m, delta=0.0), "alpha and delta"),
    (lambda m: {"files": (*m.files, m.files[0])}, "listed twice"),
    (lambda m: first_file(m, "/etc/passwd"), "inside the bundle"),
    (lambda m: first_file(m, ""), "inside the bundle"),
    (lambda m: first_file(m, "a\0b"), "inside the bundle"),
    (lambda m: first_file(m, MANIFEST), "inside the bundle"),
]


@pytest.mark.parametrize(("change", "reason"), NONSENSE)
def test_a_manifest_that_cannot_be_served_is_refused_although_it_is_sealed(
    tiny_bundle: Path, tmp_path: Path, change: Change, reason: str
) -> None:
    manifest = manifest_of(tiny_bundle)
    write_sealed(tmp_path, replace(manifest, **change(manifest)))
    with pytest.raises(ArtifactError, match=rf"^{MANIFEST}: .*{reason}"):
        Bundle.open(tmp_path)


def write_sealed(folder: Path, manifest: Manifest) -> None:
    """A manifest whose digest is right, without its files."""
    (folder / MANIFEST).write_bytes(msgspec.json.encode(replace(manifest, digest=digest_of(manifest))))


ANOTHER: list[Change] = [
    lambda m: {"certificate": None},
    lambda m: {"samples": None},
    lambda m: {"outputs": m.outputs[::-1]},
    lambda m: image(m, shape=(-1, 28, 28, 3)) | pictures(m, mode="RGB", resample="nearest"),
    lambda m: image(m, datatype="FP32", shape=(-1, -1, 64)),
    lambda m: image(m, datatype="FP32", shape=(-1, 20)) | {"preprocessing": None},
    lambda m: image(m, datatype="UINT8", shape=(-1, 7, 3)) | {"preprocessing": None},
    lambda m: {"inputs": (*m.inputs, Tensor("more", "INT64", (-1,)))},
]


@pytest.mark.parametrize("change", ANOTHER)
def test_a_manifest_of_another_model_opens(tiny_bundle: Path, tmp_path: Path, change: Change) -> None:
    manifest = manifest_of(tiny_bundle)
    write_sealed(tmp_path, replace(manifest, **change(manifest)))
    Bundle.open(tmp_path)


def bare_array() -> bytes:
    content = io.BytesIO()
    np.save(content, np.zeros(3))
    return content.getvalue()


def archive(name: str, content: bytes) -> bytes:
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as zipped:
        zipped.writestr(name, content)
    return written.getvalue()


def objects() -> bytes:
    content = io.BytesIO()
    np.savez(content, image=np.array([{}], dtype=object))
    return content.getvalue()


def claims_to_be_large() -> bytes:
    """The archive's directory says that its member unpacks to 4 GiB."""
    content = bytearray(archive("image.npy", bare_array()))
    at = content.rindex(b"PK\x01\x02") + 24
    content[at : at + 4] = b"\xfe\xff\xff\xff"
    return bytes(content)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"garbage",
        b"PK\x03\x04 and garbage",
        bare_array(),
        archive("image.npy", b"garbage"),
        archive("image.npy", bare_array()[:-1]),
        archive("image.txt", b"not an array"),
        objects(),
        claims_to_be_large(),
    ],
)
def test_arrays_that_are_none_are_refused_naming_the_file(copy: Path, content: bytes) -> None:
    (copy / "golden.npz").write_bytes(content)
    seal(copy, manifest_of(copy))
    with pytest.raises(ArtifactError, match=r"^golden\.npz: not an archive of plain arrays"):
        Bundle.open(copy).arrays("golden.npz")


def test_references_come_back_as_they_were_sealed_and_a_bundle_without_them_has_no_such_key(
    copy: Path, pictures: Pictures
) -> None:
    assert b"references" not in (copy / MANIFEST).read_bytes()
    sealed = add_references(copy, {"image": pictures(150, 31)[0]}, {"image": pictures(300, 32)[0]})
    opened = manifest_of(copy)
    assert opened == sealed
    assert opened.references is not msgspec.UNSET
    assert sum(opened.references.brightness.counts) == sum(opened.references.pre_gate_gain.counts) == 300
    assert len(opened.references.levels) == len(opened.levels)
    assert all(0 < sum(level.counts) <= 300 for level in opened.references.levels)


def test_references_for_other_levels_than_there_are_are_refused(copy: Path, pictures: Pictures) -> None:
    sealed = add_references(copy, {"image": pictures(100, 31)[0]}, {"image": pictures(100, 32)[0]})
    assert sealed.references is not msgspec.UNSET
    fewer = msgspec.structs.replace(sealed.references, levels=sealed.references.levels[:2])
    seal(copy, msgspec.structs.replace(sealed, references=fewer))
    with pytest.raises(ArtifactError, match="one reference per level"):
        Bundle.open(copy)


def test_payloads_come_back_as_they_were_sealed_and_those_that_cannot_be_are_refused(copy: Path) -> None:
    plain = manifest_of(copy)
    assert b"payloads" not in (copy / MANIFEST).read_bytes()
    assert plain.payloads is msgspec.UNSET
    raw = Payload("raw", 784.0, 0.9, (0.8, 0.95), 0.0, 0.0, 0.0, 500)
    small = msgspec.structs.replace(raw, encoding="jpeg-85", bytes=400.0, changed=0.01)
    sealed = seal(copy, msgspec.structs.replace(plain, payloads=(raw, small)))
    assert manifest_of(copy) == sealed
    for wrong, told in (
        ((small,), "payloads are raw, and others"),
        ((raw, small, small), "each once"),
        ((raw, msgspec.structs.replace(small, changed=1.5)), "shares"),
        ((raw, msgspec.structs.replace(small, bytes=0.0)), "less than none"),
    ):
        seal(copy, msgspec.structs.replace(plain, payloads=wrong))
        with pytest.raises(ArtifactError, match=told):
            Bundle.open(copy)


SENT = Tensor("cut.sent", "UINT8", (-1, 4, 7, 7))
SPLIT = Split("split-1", "h.onnx", 1, "t.onnx", SENT, 4, 90.0, 0.1, 0.4, 10**6, 500, 0.9, 0.01)


def with_splits(folder: Path, *splits: Split) -> Manifest:
    """``folder`` sealed again with files for a head and a tail, and these splits."""
    plain = manifest_of(folder)
    for name in ("h.onnx", "t.onnx"):
        (folder / name).write_bytes(name.encode())
    files = (*plain.files, File("h.onnx", 0, ""), File("t.onnx", 0, ""))
    return seal(folder, msgspec.structs.replace(plain, files=files, splits=splits))


def test_a_bundle_without_splits_has_no_such_key(copy: Path) -> None:
    assert b"splits" not in (copy / MANIFEST).read_bytes()
    assert manifest_of(copy).splits is msgspec.UNSET
    assert splits_of(manifest_of(copy)) == ()


def test_splits_come_back_as_they_were_sealed_and_their_files_are_vouched_for(copy: Path) -> None:
    whole = msgspec.structs.replace(SPLIT, name="split-0", level=0, bits=8)
    sealed = with_splits(copy, whole, SPLIT)
    assert manifest_of(copy) == sealed
    assert splits_of(sealed) == (whole, SPLIT)
    assert tail_model(sealed.name, SPLIT.name) == f"{sealed.name}.split-1"
    (copy / "t.onnx").write_bytes(b"T.onnx")
    with pytest.raises(ArtifactError, match=r"t\.onnx"):
        Bundle.open(copy).verify()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"head": "nowhere.onnx"}, "nowhere.onnx is used but not listed"),
        ({"tail": "nowhere.onnx"}, "nowhere.onnx is used but not listed"),
        ({"level": -1}, "a level that is not there"),
        ({"level": 5}, "a level that is not there"),
        ({"bits": 3}, "bits"),
        ({"bits": 16}, "bits"),
        ({"sent": Tensor("s", "FP32", (-1, 4))}, "must send UINT8"),
        ({"sent": Tensor("s", "UINT8", (1, 4))}, "must send UINT8"),
        ({"sent": Tensor("s", "UINT8", ())}, "must send UINT8"),
        ({"sent": Tensor("s", "UINT8", (-1, -1))}, "must send UINT8"),
        ({"sent": Tensor("s", "UINT8", (-1, 0))}, "must send UINT8"),
        ({"sent": Tensor("", "UINT8", (-1, 4))}, "must send UINT8"),
        ({"name": ""}, "names"),
        ({"name": "cloud"}, "names"),
        ({"name": "level-1"}, "names"),
        ({"bytes": 0.0}, "less than none"),
        ({"head_ms": -1.0}, "less than none"),
        ({"tail_ms": -1.0}, "less than none"),
        ({"tail_macs": -1}, "less than none"),
        ({"accuracy": 1.5}, "shares"),
        ({"changed": -0.1}, "shares"),
        ({"n": 0}, "shares"),
    ],
)
def test_a_split_that_cannot_be_is_refused(copy: Path, changes: dict[str, Any], told: str) -> None:
    assert {"cloud", "level-1"} <= {model.name for model in (*manifest_of(copy).levels, manifest_of(copy).cloud)}
    with_splits(copy, msgspec.structs.replace(SPLIT, **changes))
    with pytest.raises(ArtifactError, match=told):
        Bundle.open(copy)


def test_splits_of_one_name_and_a_list_of_none_are_refused(copy: Path) -> None:
    shutil.copytree(copy, copy.parent / "other")
    with_splits(copy, SPLIT, SPLIT)
    with_splits(copy.parent / "other")
    for folder in (copy, copy.parent / "other"):
        with pytest.raises(ArtifactError, match="splits"):
            Bundle.open(folder)


def test_a_split_with_a_field_that_is_not_known_or_missing_is_refused(copy: Path) -> None:
    with_splits(copy, SPLIT)
    text = (copy / MANIFEST).read_text()
    for damaged in (text.replace('"tail_macs"', '"tail_mac"'), text.replace('"bits": 4', '"bits": "4"')):
        assert damaged != text
        (copy / MANIFEST).write_text(damaged)
        with pytest.raises(ArtifactError, match="not a bundle manifest"):
            Bundle.open(copy)
