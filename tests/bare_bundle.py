"""A sealed bundle around any cloud model: its only level is that model too, and nothing in it was ever fitted."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgemux.multiplexer import bundle as b

KINDS = {"float32": "FP32", "uint8": "UINT8", "int64": "INT64"}


def bare_bundle(folder: Path, model: Any, rows: np.ndarray[Any, Any], classes: int) -> Path:
    """model: ONNX, ``x`` [n, ...] -> ``probabilities``. rows: inputs, of which the first are golden."""
    folder.mkdir(parents=True)
    name = model.graph.input[0].name
    for file in ("level-1.onnx", "cloud.onnx"):
        (folder / file).write_bytes(model.SerializeToString())
    (folder / "gate.onnx").write_bytes(b"never loaded")
    np.savez(folder / "golden.npz", **{name: rows[:4]})
    measured: Mapping[str, Any] = {
        "params": 1,
        "macs": 1,
        "accuracy": 1.0,
        "accuracy_interval": (0.9, 1.0),
        "median_ms": 0.5,
    }
    level = b.Level(name="level1", level=1, files=("level-1.onnx",), **measured)
    files = ("level-1.onnx", "cloud.onnx", "gate.onnx", "golden.npz")
    gates = b.MultiplexerFiles(
        "gate.onnx", "gate.onnx", ("level1", "cloud"), offload_first=0.5, defer=(0.2,), median_ms=0.1
    )
    about = b.Provenance(
        "tests", "0" * 64, 0, "2026-11-27T00:00:00Z", 0.0, "any", "synthetic", measured={"labelled": 0.0}
    )
    b.seal(
        folder,
        b.Manifest(
            format=b.FORMAT,
            name="bare",
            version="1",
            inputs=(b.Tensor(name, KINDS[rows.dtype.name], (-1, *rows.shape[1:])),),
            outputs=(b.Tensor("probabilities", "FP32", (-1, classes)), b.Tensor("label", "INT64", (-1,))),
            classes=tuple(f"class {number}" for number in range(classes)),
            preprocessing=None,
            levels=(level,),
            cloud=b.Model(name="cloud", files=("cloud.onnx",), **measured),
            multiplexer=gates,
            certificate=None,
            golden="golden.npz",
            samples=None,
            files=tuple(b.File(path, 0, "") for path in files),
            provenance=about,
        ),
    )
    return folder
