"""Data: what is not the published content is refused; splits are disjoint and stratified."""

from __future__ import annotations

import gzip
import hashlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgemux.compression import data
from edgemux.multiplexer.errors import ArtifactError, ConfigError


def test_a_corrupted_download_is_refused_by_name() -> None:
    content = b"pixels" * 100
    sha256 = hashlib.sha256(content).hexdigest()
    packed = gzip.compress(content)
    assert data.checked(packed, "train", sha256) == content
    with pytest.raises(ArtifactError, match=r"train\.gz.*digest"):
        data.checked(gzip.compress(content + b"!"), "train", sha256)
    with pytest.raises(ArtifactError, match=r"train\.gz.*complete"):
        data.checked(packed[:-20], "train", sha256)
    with pytest.raises(ArtifactError, match=r"train\.gz"):
        data.checked(b"<html>not found</html>", "train", sha256)


def test_a_corrupted_cache_is_refused_and_not_trained_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "DEBIAN", tmp_path / "absent")
    (tmp_path / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(b"\x00\x00\x08\x01\x00\x00\x00\x01\x05"))
    with pytest.raises(ArtifactError, match="digest"):
        data.fetch("test-labels", cache=tmp_path)


def test_a_download_that_fails_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "DEBIAN", tmp_path / "absent")
    monkeypatch.setattr(data, "OFFICIAL", (tmp_path / "nowhere").as_uri() + "/")
    with pytest.raises(ArtifactError, match="dataset-fashion-mnist"):
        data.fetch("test-labels", cache=tmp_path / "cache")


def test_a_download_is_checked_and_then_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = b"\x00\x00\x08\x01\x00\x00\x00\x02\x05\x06"
    site = tmp_path / "site"
    site.mkdir()
    (site / "labels.gz").write_bytes(gzip.compress(content))
    monkeypatch.setattr(data, "DEBIAN", tmp_path / "absent")
    monkeypatch.setattr(data, "OFFICIAL", site.as_uri() + "/")
    monkeypatch.setattr(data, "FILES", {"labels": ("labels", hashlib.sha256(content).hexdigest())})
    assert data.fetch("labels", cache=tmp_path / "cache") == content
    (site / "labels.gz").unlink()
    assert data.fetch("labels", cache=tmp_path / "cache") == content


def test_idx_arrays_have_the_shape_their_header_says() -> None:
    content = b"\x00\x00\x08\x02" + (2).to_bytes(4, "big") + (3).to_bytes(4, "big") + bytes(range(6))
    assert data.parse_idx(content).tolist() == [[0, 1, 2], [3, 4, 5]]
    for wrong in (content[:-1], content + b"\x00", b"\x00\x00\x0d\x01", b""):
        with pytest.raises(ArtifactError):
            data.parse_idx(wrong)


@given(st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_a_stratified_split_is_a_partition_in_proportion(count: int, seed: int) -> None:
    labels = np.repeat(np.arange(5), 20)
    first, rest = data.stratified(labels, count, np.random.default_rng(seed))
    assert len(first) == count
    assert sorted([*first, *rest]) == list(range(100))
    per_class = np.bincount(labels[first], minlength=5)
    assert per_class.max() - per_class.min() <= 1


def test_an_unknown_data_set_is_refused() -> None:
    with pytest.raises(ConfigError, match="imagenet"):
        data.load("imagenet", 10, 0)
