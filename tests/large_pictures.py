"""A bundle of somebody's own for pictures of 96 x 96 in colour, large enough that their form on the link matters.

What tells the three classes apart is a faint stripe pattern under smooth colours and noise: JPEG keeps it only at a
good quality, which is what a build has to find out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

SIDE, CLASSES = 96, 3
ROWS = 1800


def pictures(count: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """UINT8 [count, 96, 96, 3] and the direction of the stripes."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, count)
    made = np.empty((count, SIDE, SIDE, 3), np.uint8)
    for at, label in enumerate(labels):
        coarse = rng.normal(128, 50, (4, 4, 3))
        smooth = np.stack([_enlarged(coarse[..., channel]) for channel in range(3)], axis=-1)
        stripes = rng.uniform(0.1, 1.5) * np.sin(_phase(int(label)) + rng.uniform(0, 6.28))
        noise = rng.normal(0, 4, (SIDE, SIDE, 3))
        made[at] = np.clip(smooth + stripes[..., None] + noise, 0, 255).astype(np.uint8)
    return made, labels


def _enlarged(coarse: NDArray[Any]) -> NDArray[Any]:
    at = np.linspace(0, len(coarse) - 1, SIDE)
    rows = np.stack([np.interp(at, range(len(coarse)), column) for column in coarse.T], axis=1)
    return np.stack([np.interp(at, range(len(coarse)), row) for row in rows])


def _phase(label: int) -> NDArray[Any]:
    """Of stripes 3 pixels wide."""
    y, x = np.mgrid[:SIDE, :SIDE]
    angle = np.pi * label / CLASSES
    return np.asarray((x * np.cos(angle) + y * np.sin(angle)) * 2 * np.pi / 6)


def _save(path: Path, side: int) -> None:
    """How strong each stripe pattern is in the first ``side`` rows of a picture, as logits."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    seen = np.zeros((SIDE, SIDE))
    seen[:side] = 1
    waves = [wave * seen for k in range(CLASSES) for wave in (np.sin(_phase(k)), np.cos(_phase(k)))]
    basis = np.stack([(wave - wave.sum() / seen.sum() * seen).ravel() for wave in waves], axis=1)
    pairs = np.repeat(np.eye(CLASSES), 2, axis=0)
    arrays = {
        "basis": (basis / np.abs(basis).sum(axis=0)).astype(np.float32),
        "pairs": (1e5 * pairs).astype(np.float32),
        "flat": np.array([-1, SIDE * SIDE], np.int64),
    }
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["grey"], axes=[1], keepdims=0),
        helper.make_node("Reshape", ["grey", "flat"], ["line"]),
        helper.make_node("MatMul", ["line", "basis"], ["wave"]),
        helper.make_node("Mul", ["wave", "wave"], ["power"]),
        helper.make_node("MatMul", ["power", "pairs"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "stripes",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", CLASSES])],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))


def build(folder: Path) -> Path:
    """The bundle, by the command line; needs torch."""
    from edgemux.cli.main import run

    made, labels = pictures(ROWS, seed=1)
    np.savez(folder / "data.npz", pictures=made, labels=labels)
    _save(folder / "big.onnx", SIDE)
    _save(folder / "small.onnx", SIDE // 4)
    (folder / "own.toml").write_text(
        'models = { device = "small.onnx", cloud = "big.onnx" }\n'
        'inputs.path = "data.npz"\npreprocessing = { mean = [0.5, 0.5, 0.5], std = [0.25, 0.25, 0.25] }\n'
    )
    words = ["--out", str(folder / "bundle"), "--work", str(folder / "work"), "--quick"]
    if run(["build", str(folder / "own.toml"), *words]) != 0:
        raise RuntimeError("the bundle could not be built")
    return folder / "bundle"
