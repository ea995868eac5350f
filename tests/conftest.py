"""Shared fixtures: a tiny bundle whose models are exact, so that tests know what is right.

The task: a picture of noise in which one of ten blocks of 5x5 pixels is brighter; the class is that block. Noise is
Gaussian and equal everywhere, so softmax(sum of a block's pixels * SHIFT / SIGMA**2) is the exact posterior: a model
that looks at fewer pixels of each block is less often right and knows how sure it may be. The cloud model looks at all
25, level 1 at one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.authority import OPENSSL, Authority
from tests.split_bundle import build_split_bundle

SIDE = 28
CLASSES = 10
MEAN, SIGMA, SHIFT = 100.0, 40.0, 60.0
# Pixels of each block that a level adds to those of the levels below it.
LEVEL_PIXELS = (1, 1, 2, 2)
LEVELS = tuple(f"level-{number}" for number in range(1, 5))
CLOUD = "cloud"
SAMPLES = 200
GOLDEN = 8


def _block_pixels() -> NDArray[np.int64]:
    """Flat pixel indices of each block, INT64 [classes, 25], the pixels of each in an order of their own."""
    rng = np.random.default_rng(7)
    blocks = []
    for number in range(CLASSES):
        top, left = 4 + 12 * (number // 5), 1 + 5 * (number % 5)
        rows, columns = np.mgrid[top : top + 5, left : left + 5]
        blocks.append(rng.permutation((rows * SIDE + columns).reshape(-1)))
    return np.stack(blocks)


def _pictures(count: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Pictures UINT8 [count, 28, 28] and their classes INT64 [count]."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, count)
    flat = rng.normal(MEAN, SIGMA, (count, SIDE * SIDE))
    pixels = _block_pixels()
    for row, label in enumerate(labels):
        flat[row, pixels[label]] += SHIFT
    images = np.clip(np.rint(flat), 0, 255).astype(np.uint8).reshape(count, SIDE, SIDE)
    return images, labels.astype(np.int64)


def _write_graph(path: Path, nodes: Sequence[Any], inputs: Sequence[Any], outputs: Sequence[Any], weights: Any) -> None:
    import onnx
    from onnx import helper, numpy_helper

    constants = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(list(nodes), path.stem, list(inputs), list(outputs), constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, str(path))


def _value(name: str, kind: str, *shape: int) -> Any:
    from onnx import TensorProto, helper

    return helper.make_tensor_value_info(name, getattr(TensorProto, kind), ["N", *shape])


def _sum_of_pixels(output: str, pixels: NDArray[np.int64]) -> tuple[list[Any], dict[str, NDArray[Any]]]:
    """Nodes and weights: image UINT8 [N, 28, 28] to log-odds FP32 [N, classes] from ``pixels`` [classes, n]."""
    from onnx import helper

    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=1),
        helper.make_node("Reshape", ["float", "flat_shape"], ["flat"]),
        helper.make_node("Gather", ["flat", "pixels"], ["picked"], axis=1),
        helper.make_node("Sub", ["picked", "mean"], ["centred"]),
        helper.make_node("ReduceSum", ["centred", "last_axis"], ["sums"], keepdims=0),
        helper.make_node("Mul", ["sums", "weight"], [output]),
    ]
    weights: dict[str, NDArray[Any]] = {
        "flat_shape": np.array([-1, SIDE * SIDE], np.int64),
        "pixels": pixels,
        "mean": np.array(MEAN, np.float32),
        "last_axis": np.array([2], np.int64),
        "weight": np.array(SHIFT / SIGMA**2, np.float32),
    }
    return nodes, weights


def _write_level(path: Path, level: int, pixels: NDArray[np.int64]) -> None:
    """A delta: its own log-odds are its state, its answer adds those of the levels below."""
    from onnx import helper

    nodes, weights = _sum_of_pixels(f"state_{level}", pixels)
    states = [f"state_{number}" for number in range(1, level + 1)]
    nodes.append(helper.make_node("Sum", states, ["logits"]))
    nodes.append(helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1))
    lower = [_value(state, "FLOAT", CLASSES) for state in states[:-1]]
    inputs = [_value("image", "UINT8", SIDE, SIDE), *lower]
    outputs = [_value("probabilities", "FLOAT", CLASSES), _value(states[-1], "FLOAT", CLASSES)]
    _write_graph(path, nodes, inputs, outputs, weights)


def _write_cloud(path: Path) -> None:
    from onnx import helper

    nodes, weights = _sum_of_pixels("logits", _block_pixels())
    nodes.append(helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1))
    inputs, outputs = [_value("image", "UINT8", SIDE, SIDE)], [_value("probabilities", "FLOAT", CLASSES)]
    _write_graph(path, nodes, inputs, outputs, weights)


def _write_pre_gate(path: Path, accuracy: Sequence[float]) -> None:
    """Scores from a glance at two pixels a block: each route's accuracy, moved by how clear the glance is."""
    from onnx import helper

    nodes, weights = _sum_of_pixels("logits", _block_pixels()[:, -2:])
    nodes += [
        helper.make_node("Softmax", ["logits"], ["glance"], axis=1),
        helper.make_node("ReduceMax", ["glance"], ["clear"], axes=[1], keepdims=1),
        helper.make_node("Sub", ["clear", "usual"], ["clearer"]),
        helper.make_node("Mul", ["clearer", "slopes"], ["moved"]),
        helper.make_node("Add", ["moved", "offsets"], ["log_odds"]),
        helper.make_node("Sigmoid", ["log_odds"], ["scores"]),
    ]
    share = np.clip(np.array(accuracy, np.float64), 0.01, 0.995)
    weights["usual"] = np.array(0.6, np.float32)
    weights["slopes"] = np.array([[2, 2, 2, 2, 0]], np.float32)
    weights["offsets"] = np.log(share / (1 - share))[None].astype(np.float32)
    outputs = [_value("scores", "FLOAT", len(accuracy))]
    _write_graph(path, nodes, [_value("image", "UINT8", SIDE, SIDE)], outputs, weights)


def _write_post_gate(path: Path, routes: int) -> None:
    """The level that answered scores its own confidence, which is calibrated; the others keep their scores."""
    from onnx import helper

    nodes = [
        helper.make_node("ReduceMax", ["probabilities"], ["confidence"], axes=[1], keepdims=1),
        helper.make_node("MatMul", ["level", "widen"], ["answered"]),
        helper.make_node("Sub", ["one", "answered"], ["others"]),
        helper.make_node("Mul", ["answered", "confidence"], ["own"]),
        helper.make_node("Mul", ["others", "scores"], ["kept"]),
        helper.make_node("Add", ["own", "kept"], ["scores_after"]),
    ]
    weights = {"widen": np.eye(routes - 1, routes, dtype=np.float32), "one": np.array(1, np.float32)}
    inputs = [
        _value("probabilities", "FLOAT", CLASSES),
        _value("level", "FLOAT", routes - 1),
        _value("scores", "FLOAT", routes),
    ]
    _write_graph(path, nodes, inputs, [_value("scores_after", "FLOAT", routes)], weights)


def _answers(folder: Path, images: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
    """Probabilities FP32 [N, classes] of every variant, by its name."""
    from edgemux.multiplexer.onnx_model import OnnxModel

    answers: dict[str, NDArray[Any]] = {}
    pool: dict[str, NDArray[Any]] = {"image": images}
    for name in (*LEVELS, CLOUD):
        model = OnnxModel.read(folder / f"{name}.onnx")
        pool.update(zip(model.outputs, model.run({key: pool[key] for key in model.inputs}), strict=True))
        answers[name] = pool["probabilities"]
    return answers


def build_tiny_bundle(folder: Path) -> Path:
    """Write a complete, sealed bundle into ``folder`` and return it. The same bytes on every call."""
    from edgemux.multiplexer.bundle import seal
    from edgemux.multiplexer.onnx_model import OnnxModel

    folder.mkdir(parents=True, exist_ok=True)
    pixels, used = _block_pixels(), 0
    for number, (name, count) in enumerate(zip(LEVELS, LEVEL_PIXELS, strict=True), start=1):
        _write_level(folder / f"{name}.onnx", number, pixels[:, used : used + count])
        used += count
    _write_cloud(folder / f"{CLOUD}.onnx")
    images, labels = _pictures(SAMPLES, seed=11)
    answers = _answers(folder, images)
    accuracy = [float((answers[name].argmax(axis=1) == labels).mean()) for name in (*LEVELS, CLOUD)]
    _write_pre_gate(folder / "pre_gate.onnx", accuracy)
    _write_post_gate(folder / "post_gate.onnx", len(accuracy))
    golden, _ = _pictures(GOLDEN, seed=13)
    scores = OnnxModel.read(folder / "pre_gate.onnx").run({"image": golden})[0]
    np.savez(folder / "golden.npz", image=golden, scores=scores, **_answers(folder, golden))  # type: ignore[arg-type]
    np.savez(folder / "samples.npz", images=images, labels=labels)
    seal(folder, _manifest(accuracy))
    return folder


def _manifest(accuracy: Sequence[float]) -> Any:
    from edgemux.multiplexer import bundle as b

    def measured(number: int) -> dict[str, Any]:
        """``number`` counts from 0; the cloud is last."""
        looked_at = CLASSES * (sum(LEVEL_PIXELS[: number + 1]) if number < len(LEVELS) else 25)
        share = accuracy[number]
        return {
            "params": looked_at,
            "macs": looked_at,
            "accuracy": share,
            "accuracy_interval": (max(0.0, share - 0.05), min(1.0, share + 0.05)),
            "median_ms": 0.02 + 0.01 * number,
        }

    files = [f"{name}.onnx" for name in (*LEVELS, CLOUD)]
    levels = tuple(
        b.Level(name=name, level=number + 1, files=tuple(files[: number + 1]), **measured(number))
        for number, name in enumerate(LEVELS)
    )
    listed = (*files, "pre_gate.onnx", "post_gate.onnx", "golden.npz", "samples.npz")
    certified = tuple(b.Certified(number, 0.2, 0.5, 0.01, 0.02) for number in range(1, 5))
    return b.Manifest(
        format=b.FORMAT,
        name="fashion-mnist",
        version="1",
        inputs=(b.Tensor("image", "UINT8", (-1, SIDE, SIDE)),),
        outputs=(b.Tensor("probabilities", "FP32", (-1, CLASSES)), b.Tensor("label", "INT64", (-1,))),
        classes=tuple(f"block {number}" for number in range(CLASSES)),
        preprocessing=b.Preprocessing("L", SIDE, SIDE),
        levels=levels,
        cloud=b.Model(name=CLOUD, files=(files[-1],), **measured(len(LEVELS))),
        multiplexer=b.MultiplexerFiles(
            "pre_gate.onnx", "post_gate.onnx", (*LEVELS, CLOUD), offload_first=0.3, defer=(0.2,) * 4, median_ms=0.02
        ),
        certificate=b.Certificate((0.02,), 0.1, SAMPLES, "a fixture", "2026-11-23", "0" * 64, certified),
        golden="golden.npz",
        samples="samples.npz",
        files=tuple(b.File(path, 0, "") for path in listed),
        provenance=b.Provenance("tests", "0" * 64, 7, "2026-11-23T00:00:00Z", 0.0, "any", "synthetic"),
    )


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete sealed bundle of tiny, exact models. Read only: copy it before damaging it.

    Making it takes the onnx package; where that must be absent, EDGEMUX_TINY_BUNDLE names one made elsewhere.
    """
    if made := os.environ.get("EDGEMUX_TINY_BUNDLE"):
        return Path(made)
    return build_tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny")


@pytest.fixture(scope="session")
def split_bundle(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny bundle with three splits, see split_bundle.py. Read only."""
    return build_split_bundle(tiny_bundle, tmp_path_factory.mktemp("bundle") / "split")


@pytest.fixture(scope="session")
def pictures() -> Callable[[int, int], tuple[NDArray[np.uint8], NDArray[np.int64]]]:
    """``pictures(count, seed)``: images UINT8 [count, 28, 28] of the tiny bundle's task, and their classes."""
    return _pictures


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """A certificate authority."""
    if OPENSSL is None:
        pytest.skip("there is no openssl command to make certificates with")
    return Authority(tmp_path_factory.mktemp("authority"))
