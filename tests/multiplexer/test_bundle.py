"""A damaged bundle is refused, and the file is named."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgemux.multiplexer.bundle import MANIFEST, Bundle, Manifest, seal
from edgemux.multiplexer.errors import ArtifactError


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
