"""Versions on the disk: which there are, and which are served."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgemux.cloud.config import ModelSettings
from edgemux.cloud.versions import Source, chosen, sources
from edgemux.multiplexer.errors import ArtifactError


def versions(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).mkdir(parents=True)
        (folder / name / "model.onnx").write_bytes(b"")
    return folder


def test_a_file_is_its_only_version(tmp_path: Path) -> None:
    file = tmp_path / "m.onnx"
    assert sources(ModelSettings(onnx=file)) == (Source(None, file),)
    assert sources(ModelSettings(onnx=file, version="7")) == (Source("7", file),)


def test_a_bundle_is_its_only_version_and_a_folder_of_bundles_has_several(tiny_bundle: Path, tmp_path: Path) -> None:
    assert sources(ModelSettings(bundle=tiny_bundle)) == (Source(None, tiny_bundle),)
    (tmp_path / "2").symlink_to(tiny_bundle)
    assert sources(ModelSettings(bundle=tmp_path)) == (Source("2", tmp_path / "2"),)


def test_only_folders_that_are_numbers_and_hold_a_model_are_versions(tmp_path: Path) -> None:
    folder = versions(tmp_path / "m", "1", "10", "9", "02", "new")
    (folder / "11").mkdir()
    assert [each.version for each in sources(ModelSettings(onnx=folder, versions="all"))] == ["1", "9", "10"]
    assert sources(ModelSettings(onnx=folder)) == (Source("10", folder / "10" / "model.onnx"),)


def test_a_folder_without_the_versions_that_are_wanted_is_refused_naming_it(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"^m: holds none"):
        sources(ModelSettings(onnx=versions(tmp_path / "m", "1"), versions=(2,)))


@pytest.mark.parametrize(("policy", "serves"), [("latest", [5]), ("all", [1, 3, 5]), ((3, 9, 1), [1, 3]), ((), [])])
def test_a_policy_serves_rising_versions(policy: str | tuple[int, ...], serves: list[int]) -> None:
    assert chosen([5, 1, 3], policy) == serves
