"""The ONNX Runtime backend, and what it is checked against before it serves."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from edgemux.cloud.backends import OnnxBackend, check, measure
from edgemux.multiplexer.bundle import Bundle, seal
from edgemux.multiplexer.errors import ArtifactError, ExecutionError


@pytest.fixture
def own_bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A copy that may be damaged."""
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


def reseal(folder: Path) -> Bundle:
    """Vouch for what is there now, as an author who makes a mistake would."""
    seal(folder, Bundle.open(folder).manifest)
    return Bundle.open(folder)


def test_the_cloud_model_is_right_about_every_sample(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    samples = bundle.arrays("samples.npz")
    probabilities = OnnxBackend(bundle).run(samples["images"])
    assert probabilities.dtype == np.float32
    assert (probabilities.argmax(axis=1) == samples["labels"]).all()
    np.testing.assert_allclose(probabilities.sum(axis=1), 1.0, rtol=1e-5)


def test_a_sound_bundle_gives_its_golden_answers(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    check(OnnxBackend(bundle), bundle)


def test_another_model_under_the_same_name_is_refused_naming_the_file(own_bundle: Path) -> None:
    level = Bundle.open(own_bundle).manifest.levels[0].files[0]
    shutil.copyfile(own_bundle / level, own_bundle / "cloud.onnx")
    bundle = reseal(own_bundle)
    with pytest.raises(ArtifactError, match=r"^cloud\.onnx: does not give the bundle's golden answers"):
        check(OnnxBackend(bundle), bundle)


@pytest.mark.parametrize(
    "damage", [lambda content: content[:-100], lambda content: content[:-9] + bytes([content[-9] ^ 1]) + content[-8:]]
)
def test_a_truncated_or_flipped_model_is_refused_naming_the_file(
    own_bundle: Path, damage: Callable[[bytes], bytes]
) -> None:
    path = own_bundle / "cloud.onnx"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ArtifactError, match=r"^cloud\.onnx: "):
        OnnxBackend(Bundle.open(own_bundle))


def test_a_file_that_is_no_model_is_refused_naming_the_file(own_bundle: Path) -> None:
    (own_bundle / "cloud.onnx").write_bytes(b"not a model")
    with pytest.raises(ArtifactError, match=r"^cloud\.onnx: "):
        OnnxBackend(reseal(own_bundle))


def test_a_model_with_other_tensors_is_refused_naming_the_file(own_bundle: Path) -> None:
    shutil.copyfile(own_bundle / "pre_gate.onnx", own_bundle / "cloud.onnx")
    with pytest.raises(ArtifactError, match=r"^cloud\.onnx: must turn image into probabilities"):
        OnnxBackend(reseal(own_bundle))


@pytest.mark.parametrize("missing", ["image", "cloud"])
def test_golden_answers_that_are_missing_are_refused_naming_the_file(own_bundle: Path, missing: str) -> None:
    with np.load(own_bundle / "golden.npz") as archive:
        kept: dict[str, Any] = {name: archive[name] for name in archive.files if name != missing}
    np.savez(own_bundle / "golden.npz", **kept)
    bundle = reseal(own_bundle)
    with pytest.raises(ArtifactError, match=rf"^golden\.npz: has no golden {missing}"):
        check(OnnxBackend(bundle), bundle)


def test_a_manifest_with_two_cloud_files_is_refused(own_bundle: Path) -> None:
    manifest = Bundle.open(own_bundle).manifest
    cloud = msgspec.structs.replace(manifest.cloud, files=("cloud.onnx", "level-1.onnx"))
    seal(own_bundle, msgspec.structs.replace(manifest, cloud=cloud))
    with pytest.raises(ArtifactError, match="the cloud model must be one file"):
        Bundle.open(own_bundle)


def test_a_graph_that_fails_on_a_batch_says_so_with_an_error_of_ours(tiny_bundle: Path) -> None:
    with pytest.raises(ExecutionError, match="fails on a batch of 3"):
        OnnxBackend(Bundle.open(tiny_bundle)).run(np.zeros((3, 27, 28), np.uint8))


def test_measuring_takes_the_median_of_one_row_and_of_a_full_batch() -> None:
    class Clocked:
        now_s = 0.0

        def run(self, image: Any) -> Any:
            self.now_s += 0.001 + 0.002 * len(image)
            return image

    backend = Clocked()
    timing = measure(backend, np.zeros((1, 28, 28), np.uint8), 8, lambda: backend.now_s)
    assert timing.expected_s(1) == pytest.approx(0.003)
    assert timing.expected_s(8) == pytest.approx(0.017)
