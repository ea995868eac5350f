"""Splits go into a bundle only if they fit it, and whatever is wrong leaves what was there."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from edgemux.compression.split.pack import add_split, check_split
from edgemux.multiplexer.bundle import Bundle, Split, Tensor, seal, splits_of
from edgemux.multiplexer.chain import Golden
from edgemux.multiplexer.codes import GoldenCodes
from edgemux.multiplexer.errors import ArtifactError, ConfigError
from edgemux.multiplexer.onnx_model import OnnxModel
from tests.split_bundle import COARSE, DEEP, EXACT


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def parts(folder: Path, name: str) -> tuple[Split, bytes, bytes]:
    """A split of the bundle, and its two files."""
    bundle = Bundle.open(folder)
    (split,) = (each for each in splits_of(bundle.manifest) if each.name == name)
    return split, bundle.read(split.head), bundle.read(split.tail)


def test_a_bundle_with_splits_is_sealed_and_is_otherwise_what_it_was(tiny_bundle: Path, split_bundle: Path) -> None:
    bundle, plain = Bundle.open(split_bundle), Bundle.open(tiny_bundle).manifest
    bundle.verify()
    assert [split.name for split in splits_of(bundle.manifest)] == [EXACT, COARSE, DEEP]
    assert bundle.manifest.files[: len(plain.files)] == plain.files
    without = msgspec.structs.replace(bundle.manifest, files=plain.files, splits=msgspec.UNSET, digest=plain.digest)
    assert without == plain


def test_the_exact_split_answers_as_the_cloud_model_and_no_value_has_more_bits_than_it_may(
    split_bundle: Path, pictures: Callable[[int, int], tuple[NDArray[np.uint8], Any]]
) -> None:
    bundle = Bundle.open(split_bundle)
    for split in splits_of(bundle.manifest):
        sent = check_split(bundle, split)
        assert sent.shape == (len(Golden(bundle).inputs["image"]), *split.sent.shape[1:])
        assert 0 < sent.max() < 2**split.bits
    images, _ = pictures(50, 3)
    _, head, tail = parts(split_bundle, EXACT)
    sent = OnnxModel(head, "head").run({"image": images})[0]
    found = OnnxModel(tail, "tail").run({"sent": sent}, ["probabilities"])[0]
    wanted = OnnxModel.read(split_bundle / "cloud.onnx").run({"image": images}, ["probabilities"])[0]
    assert np.allclose(found, wanted, atol=1e-6)


def test_a_split_can_be_added_in_place_and_may_share_a_file_with_another(split_bundle: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(split_bundle, tmp_path / "bundle"))
    split, head, tail = parts(folder, EXACT)
    sealed = add_split(folder, folder, msgspec.structs.replace(split, name="again"), head, tail)
    assert Bundle.open(folder).manifest == sealed
    assert len(splits_of(sealed)) == 4
    assert len({file.path for file in sealed.files}) == len(sealed.files) == len(content(folder)) - 1


@pytest.mark.parametrize(
    ("changes", "error", "told"),
    [
        ({"name": EXACT}, ArtifactError, "names"),
        ({"name": "new", "head": "cloud.onnx"}, ConfigError, "another file"),
        ({"name": "new", "head": "../head.onnx"}, ConfigError, "not a name"),
        ({"name": "new", "tail": "manifest.json"}, ConfigError, "not a name"),
        ({"name": "new", "bits": 4}, ArtifactError, r"exact-head\.onnx: sends values of more than 4 bits"),
        ({"name": "a/b"}, ConfigError, "not a name"),
        ({"name": "new", "level": 9}, ArtifactError, "level that is not there"),
        ({"name": "new", "sent": Tensor("other", "UINT8", (-1, 10, 25))}, ArtifactError, r"exact-tail\.onnx: must"),
        ({"name": "new", "sent": Tensor("sent", "UINT8", (-1, 10, 26))}, ArtifactError, r"exact-head\.onnx: does not"),
    ],
)
def test_a_split_that_does_not_fit_leaves_what_was_there(
    split_bundle: Path, tmp_path: Path, changes: dict[str, Any], error: type[Exception], told: str
) -> None:
    folder = Path(shutil.copytree(split_bundle, tmp_path / "bundle"))
    before = content(folder)
    split, head, tail = parts(folder, EXACT)
    with pytest.raises(error, match=told):
        add_split(folder, folder, msgspec.structs.replace(split, **changes), head, tail)
    assert content(folder) == before


def test_halves_of_other_splits_and_files_that_are_no_models_are_refused(split_bundle: Path, tmp_path: Path) -> None:
    split, head, tail = parts(split_bundle, EXACT)
    _, deep_head, deep_tail = parts(split_bundle, DEEP)
    new = msgspec.structs.replace(split, name="new", head="new-head.onnx", tail="new-tail.onnx")
    for first, second, told in (
        (deep_head, tail, r"new-head\.onnx: must turn what there is at level 0"),
        (head, deep_tail, r"new-tail\.onnx: fails"),
        (tail, head, r"new-tail\.onnx: must turn"),
        (b"no model", tail, r"new-head\.onnx: not an ONNX graph"),
        (head, b"no model", r"new-tail\.onnx: not an ONNX graph"),
    ):
        with pytest.raises(ArtifactError, match=told):
            add_split(split_bundle, tmp_path / "out", new, first, second)
        assert not (tmp_path / "out").exists()


def test_what_both_halves_make_of_the_golden_inputs_is_kept_with_them_and_asked_for(
    split_bundle: Path, tmp_path: Path
) -> None:
    bundle = Bundle.open(split_bundle)
    for split in splits_of(bundle.manifest):
        golden = GoldenCodes.read(bundle, split)
        assert golden is not None and golden.sent.tolist() == check_split(bundle, split).tolist()
        assert golden.answers.shape == (len(golden.sent), len(bundle.manifest.classes))
    folder = Path(shutil.copytree(split_bundle, tmp_path / "bundle"))
    split, _, _ = parts(folder, EXACT)
    golden = GoldenCodes.read(bundle, split)
    assert golden is not None
    for wrong, told in (
        (GoldenCodes(golden.sent ^ 4, golden.answers), r"^exact-head\.onnx: does not make"),
        (GoldenCodes(golden.sent, np.roll(golden.answers, 1, axis=1)), r"^exact-tail\.onnx: does not give"),
    ):
        np.savez(folder / str(split.golden), **wrong.arrays())
        seal(folder, bundle.manifest)
        with pytest.raises(ArtifactError, match=told):
            check_split(Bundle.open(folder), split)


def test_a_damaged_bundle_is_refused_before_anything_is_written(split_bundle: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(split_bundle, tmp_path / "bundle"))
    split, head, tail = parts(folder, EXACT)
    (folder / "cloud.onnx").write_bytes(b"damaged")
    with pytest.raises(ArtifactError, match=r"cloud\.onnx"):
        add_split(folder, tmp_path / "out", msgspec.structs.replace(split, name="new"), head, tail)
    assert not (tmp_path / "out").exists()
