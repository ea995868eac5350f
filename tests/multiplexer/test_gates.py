"""A gate that cannot do its work is refused at the start, and its file is named."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgemux.multiplexer.bundle import Bundle, seal
from edgemux.multiplexer.chain import Golden
from edgemux.multiplexer.errors import ArtifactError
from edgemux.multiplexer.gates import Gates

FLOAT = TensorProto.FLOAT


@pytest.fixture
def copy(tiny_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


def resealed(folder: Path) -> Bundle:
    seal(folder, Bundle.open(folder).manifest)
    return Bundle.open(folder)


def change(folder: Path, name: str, output: str, *nodes: Any, **weights: Any) -> Bundle:
    """What a gate gives as ``output`` goes through ``nodes``, from ``old`` to ``output``."""
    model = onnx.load(str(folder / name))
    graph = model.graph
    for node in graph.node:
        node.output[:] = ["old" if tensor == output else tensor for tensor in node.output]
    graph.node.extend(nodes)
    graph.initializer.extend(numpy_helper.from_array(np.array(value), key) for key, value in weights.items())
    kept = graph.output[0].name
    graph.output[0].CopyFrom(helper.make_tensor_value_info(kept, FLOAT, None))
    onnx.save(model, str(folder / name))
    return resealed(folder)


def record(folder: Path, **arrays: Any) -> Bundle:
    """Other golden arrays; None removes one."""
    with np.load(folder / "golden.npz") as archive:
        kept: dict[str, Any] = {name: archive[name] for name in archive.files} | arrays
    np.savez(folder / "golden.npz", **{name: array for name, array in kept.items() if array is not None})
    return resealed(folder)


def test_sound_gates_pass(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    Gates(bundle).check(Golden(bundle), bundle.manifest)


def test_the_delivered_gates_pass() -> None:
    folder = Path(__file__).parents[2] / "deploy" / "bundles" / "fashion-mnist"
    if not (folder / "manifest.json").exists():
        pytest.skip("not built yet")
    bundle = Bundle.open(folder)
    Gates(bundle).check(Golden(bundle), bundle.manifest)


def spoilt(by: str, value: float) -> Callable[[str], tuple[Any, dict[str, Any]]]:
    return lambda output: (helper.make_node(by, ["old", "constant"], [output]), {"constant": np.float32(value)})


def fails(output: str) -> tuple[Any, dict[str, Any]]:
    """Loads, because the shape is only known when it runs."""
    shape = np.array([2, 3], np.int64)
    return helper.make_node("Reshape", ["old", "shape"], [output]), {"shape": shape}


def narrower(output: str) -> tuple[Any, dict[str, Any]]:
    columns = np.array([0, 1, 2, 3], np.int64)
    return helper.make_node("Gather", ["old", "columns"], [output], axis=1), {"columns": columns}


WRONG = {
    "not a number": (spoilt("Mul", np.nan), "not probabilities"),
    "infinite": (spoilt("Add", np.inf), "not probabilities"),
    "above 1": (spoilt("Add", 1.0), "not probabilities"),
    "below 0": (spoilt("Sub", 1.0), "not probabilities"),
    "a column missing": (narrower, "does not answer"),
    "failing": (fails, "fails on"),
}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize(("name", "output"), [("pre_gate.onnx", "scores"), ("post_gate.onnx", "scores_after")])
def test_a_gate_whose_scores_are_wrong_is_refused_naming_its_file(
    copy: Path, name: str, output: str, wrong: str
) -> None:
    spoil, reason = WRONG[wrong]
    node, weights = spoil(output)
    bundle = change(copy, name, output, node, **weights)
    with pytest.raises(ArtifactError, match=rf"^{name}: .*{reason}"):
        Gates(bundle).check(Golden(bundle), bundle.manifest)


def test_a_pre_gate_that_scores_otherwise_than_recorded_is_refused(copy: Path) -> None:
    node, weights = spoilt("Mul", 0.9)("scores")
    bundle = change(copy, "pre_gate.onnx", "scores", node, **weights)
    with pytest.raises(ArtifactError, match=r"^pre_gate\.onnx: does not give the bundle's golden answers"):
        Gates(bundle).check(Golden(bundle), bundle.manifest)


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ({"scores": None}, "has no golden scores"),
        ({"scores": np.float32(0.5)}, "has no golden scores"),
        ({"scores": np.zeros((8, 4), np.float32)}, "its scores is not FP32"),
        ({"scores": np.zeros((8, 5), np.float64)}, "its scores is not FP32"),
        ({"scores": np.zeros((7, 5), np.float32)}, "its scores is not FP32"),
        ({"level-2": None}, "has no golden level-2"),
        ({"level-2": np.zeros((8, 9), np.float32)}, "its level-2 is not FP32"),
        ({"image": None}, "has no golden image"),
        ({"image": np.zeros((0, 28, 28), np.uint8)}, "has no golden image"),
        ({"image": np.zeros((8, 28), np.uint8)}, "its image is not what the manifest's is"),
        ({"image": np.zeros((8, 28, 27), np.uint8)}, "its image is not what the manifest's is"),
        ({"image": np.zeros((8, 28, 28), np.float32)}, "its image is not what the manifest's is"),
    ],
)
def test_golden_answers_that_cannot_be_compared_are_refused_naming_their_file(
    copy: Path, arrays: dict[str, Any], reason: str
) -> None:
    bundle = record(copy, **arrays)
    with pytest.raises(ArtifactError, match=rf"^golden\.npz: {reason}"):
        Gates(bundle).check(Golden(bundle), bundle.manifest)


def test_a_model_that_answers_a_batch_but_not_a_single_input_is_refused(tiny_bundle: Path) -> None:
    golden = Golden(Bundle.open(tiny_bundle))
    recorded = golden.recorded("cloud", 10)
    with pytest.raises(ArtifactError, match=r"^m\.onnx: does not answer"):
        golden.check("cloud", "m.onnx", 10, lambda inputs: recorded)
