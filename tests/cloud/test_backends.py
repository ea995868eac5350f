"""The ONNX Runtime backend, and what it is checked against before it serves."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from edgemux.cloud.backend import batched, check, measure, sample
from edgemux.cloud.onnx_backend import BundleBackend, OnnxBackend, check_golden
from edgemux.multiplexer.bundle import Bundle, Tensor, seal
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
    probabilities = BundleBackend(bundle).run({"image": samples["images"]}, ["probabilities"])["probabilities"]
    assert probabilities.dtype == np.float32
    assert (probabilities.argmax(axis=1) == samples["labels"]).all()
    np.testing.assert_allclose(probabilities.sum(axis=1), 1.0, rtol=1e-5)


def test_a_sound_bundle_gives_its_golden_answers(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    check_golden(BundleBackend(bundle), bundle)


def test_another_model_under_the_same_name_is_refused_naming_the_file(own_bundle: Path) -> None:
    level = Bundle.open(own_bundle).manifest.levels[0].files[0]
    shutil.copyfile(own_bundle / level, own_bundle / "cloud.onnx")
    bundle = reseal(own_bundle)
    with pytest.raises(ArtifactError, match=r"^cloud\.onnx: does not give the bundle's golden answers"):
        check_golden(BundleBackend(bundle), bundle)


@pytest.mark.parametrize(
    "damage", [lambda content: content[:-100], lambda content: content[:-9] + bytes([content[-9] ^ 1]) + content[-8:]]
)
def test_a_truncated_or_flipped_model_is_refused_naming_the_file(
    own_bundle: Path, damage: Callable[[bytes], bytes]
) -> None:
    path = own_bundle / "cloud.onnx"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ArtifactError, match=r"^cloud\.onnx: "):
        BundleBackend(Bundle.open(own_bundle))


def test_a_file_that_is_no_model_is_refused_naming_the_file(own_bundle: Path) -> None:
    (own_bundle / "cloud.onnx").write_bytes(b"not a model")
    with pytest.raises(ArtifactError, match=r"^cloud\.onnx: "):
        BundleBackend(reseal(own_bundle))


def test_a_model_with_other_tensors_is_refused_naming_the_file(own_bundle: Path) -> None:
    shutil.copyfile(own_bundle / "pre_gate.onnx", own_bundle / "cloud.onnx")
    with pytest.raises(ArtifactError, match=r"^cloud\.onnx: must turn image into probabilities"):
        BundleBackend(reseal(own_bundle))


@pytest.mark.parametrize("missing", ["image", "cloud"])
def test_golden_answers_that_are_missing_are_refused_naming_the_file(own_bundle: Path, missing: str) -> None:
    with np.load(own_bundle / "golden.npz") as archive:
        kept: dict[str, Any] = {name: archive[name] for name in archive.files if name != missing}
    np.savez(own_bundle / "golden.npz", **kept)
    bundle = reseal(own_bundle)
    with pytest.raises(ArtifactError, match=rf"^golden\.npz: has no golden {missing}"):
        check_golden(BundleBackend(bundle), bundle)


def test_a_manifest_with_two_cloud_files_is_refused(own_bundle: Path) -> None:
    manifest = Bundle.open(own_bundle).manifest
    cloud = msgspec.structs.replace(manifest.cloud, files=("cloud.onnx", "level-1.onnx"))
    seal(own_bundle, msgspec.structs.replace(manifest, cloud=cloud))
    with pytest.raises(ArtifactError, match="the cloud model must be one file"):
        Bundle.open(own_bundle)


def test_a_graph_that_fails_on_a_batch_says_so_with_an_error_of_ours(tiny_bundle: Path) -> None:
    with pytest.raises(ExecutionError, match="fails on a batch of 3"):
        BundleBackend(Bundle.open(tiny_bundle)).run({"image": np.zeros((3, 27, 28), np.uint8)}, ["label"])


def test_measuring_takes_the_median_of_one_row_and_of_a_full_batch() -> None:
    class Clocked:
        inputs = (Tensor("image", "UINT8", (-1, 28, 28)),)
        outputs = (Tensor("image", "UINT8", (-1, 28, 28)),)
        now_s = 0.0

        def run(self, inputs: Any, outputs: Any) -> Any:
            self.now_s += 0.001 + 0.002 * len(inputs["image"])
            return dict(inputs)

        def close(self) -> None:
            """Nothing to give back."""

    backend = Clocked()
    timing = measure(backend, {"image": np.zeros((1, 28, 28), np.uint8)}, 8, lambda: backend.now_s)
    assert timing.expected_s(1) == pytest.approx(0.003)
    assert timing.expected_s(8) == pytest.approx(0.017)


def onnx_file(path: Path, inputs: Sequence[Any], outputs: Sequence[Any], nodes: Sequence[Any]) -> OnnxBackend:
    """A backend of a graph of its own; tensors as (name, kind, shape)."""
    from onnx import TensorProto, helper, save

    def described(tensors: Sequence[Any]) -> list[Any]:
        return [helper.make_tensor_value_info(name, getattr(TensorProto, kind), shape) for name, kind, shape in tensors]

    made = [helper.make_node(operator, takes, gives) for operator, takes, gives in nodes]
    graph = helper.make_graph(made, "test", described(inputs), described(outputs))
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
    return OnnxBackend.read(path)


def test_any_onnx_file_says_what_its_tensors_are(tmp_path: Path) -> None:
    backend = onnx_file(
        tmp_path / "sum.onnx",
        [("a", "FLOAT", ["N", 2]), ("b", "FLOAT", ["N", 2])],
        [("sum", "FLOAT", ["N", 2]), ("less", "BOOL", ["N", 2])],
        [("Add", ["a", "b"], ["sum"]), ("Less", ["a", "b"], ["less"])],
    )
    assert backend.inputs == (Tensor("a", "FP32", (-1, 2)), Tensor("b", "FP32", (-1, 2)))
    assert backend.outputs == (Tensor("sum", "FP32", (-1, 2)), Tensor("less", "BOOL", (-1, 2)))
    assert batched(backend.inputs, backend.outputs)
    rows = {"a": np.ones((3, 2), np.float32), "b": np.zeros((3, 2), np.float32)}
    assert backend.run(rows, ["less"])["less"].tolist() == [[False, False]] * 3
    assert sorted(check(backend, sample(backend))) == ["less", "sum"]
    assert len(backend.digest) == 64


def test_a_graph_whose_first_dimension_is_fixed_has_no_batch(tmp_path: Path) -> None:
    backend = onnx_file(
        tmp_path / "one.onnx",
        [("a", "FLOAT", [2, "any"])],
        [("b", "FLOAT", [2, "any"])],
        [("Neg", ["a"], ["b"])],
    )
    assert not batched(backend.inputs, backend.outputs)
    assert sample(backend)["a"].shape == (2, 1)


def test_a_graph_of_strings_is_refused_naming_the_tensor(tmp_path: Path) -> None:
    strings = [("text", "STRING", ["N"])]
    with pytest.raises(ArtifactError, match=r"^s\.onnx: text is tensor\(string\)"):
        onnx_file(tmp_path / "s.onnx", strings, [("same", "STRING", ["N"])], [("Identity", ["text"], ["same"])])


def test_a_file_that_is_not_there_is_refused_naming_it(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"^none\.onnx: cannot be read"):
        OnnxBackend.read(tmp_path / "none.onnx")
