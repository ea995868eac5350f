"""Measures a form of a model on this device: accuracy, bytes, memory, work, time."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from edgemux.compression import profile
from edgemux.compression.samples import BATCH, Samples
from edgemux.compression.verdict import Figures
from edgemux.multiplexer.certify import interval
from edgemux.multiplexer.onnx_model import OnnxModel

REPEATS = 60
# Runs in an interpreter of its own: what loading and one run add to the private pages of a process that has the
# runtime and a trivial model already.
PROBE = """
import sys
import numpy as np
from edgemux.multiplexer.onnx_model import OnnxModel

def private():
    with open("/proc/self/smaps_rollup") as lines:
        return sum(int(line.split()[1]) for line in lines if line.startswith(("Private_Dirty", "Private_Clean")))

trivial, path, shape = sys.argv[1], sys.argv[2], [int(axis) for axis in sys.argv[3].split(",")]
with open(trivial, "rb") as file:
    warm = OnnxModel(file.read(), "trivial")
warm.run({"input": np.zeros(shape, np.float32)})
before = private()
with open(path, "rb") as file:
    model = OnnxModel(file.read(), "model")
model.run({model.inputs[0]: np.zeros(shape, np.float32)})
print(1024 * max(0, private() - before))
"""


def loaded(graph: onnx.ModelProto) -> OnnxModel:
    """The graph in ONNX Runtime, on one thread."""
    return OnnxModel(graph.SerializeToString(), "model")


def answers(model: OnnxModel, x: NDArray[np.float32]) -> NDArray[np.float32]:
    """First output for all inputs, float32 [n, ...], in batches."""
    parts = np.array_split(x, max(1, len(x) // BATCH))
    return np.concatenate([model.run({model.inputs[0]: part})[0] for part in parts])


def times_ms(models: list[OnnxModel], one: NDArray[np.float32], repeats: int = REPEATS) -> list[float]:
    """Median CPU time in ms of one input on one thread, all models measured in turns."""
    runs = [lambda m=model: m.run({m.inputs[0]: one}) for model in models]
    return profile.medians_ms(runs, repeats, time.thread_time)


def figures_of(
    graph: onnx.ModelProto, model: OnnxModel, stored_bytes: int | None, ms: float, samples: Samples, memory: bool
) -> Figures:
    """All figures of a form; model: the graph, loaded; ``ms`` comes from ``times_ms``, measured beside others."""
    content = graph.SerializeToString()
    right = answers(model, samples.test_x.numpy()).argmax(1) == samples.test_y.numpy()
    return Figures(
        accuracy=float(right.mean()),
        interval=interval(int(right.sum()), len(right)),
        params=profile.parameters(graph),
        macs=profile.macs(graph),
        bytes=len(content),
        stored_bytes=len(content) if stored_bytes is None else min(stored_bytes, len(content)),
        memory_bytes=memory_bytes(content, samples.shape) if memory else None,
        ms=ms,
    )


def memory_bytes(content: bytes, shape: tuple[int, ...]) -> int | None:
    """Private memory that a model takes once it has run, in bytes; None where the system does not tell."""
    if not Path("/proc/self/smaps_rollup").exists():
        return None
    with tempfile.TemporaryDirectory() as name:
        trivial, path = Path(name) / "trivial.onnx", Path(name) / "model.onnx"
        trivial.write_bytes(_trivial(len(shape)))
        path.write_bytes(content)
        axes = ",".join(map(str, (1, *shape)))
        done = subprocess.run(
            [sys.executable, "-c", PROBE, str(trivial), str(path), axes], capture_output=True, text=True, check=False
        )
    return int(done.stdout) if done.returncode == 0 else None


def _trivial(rank: int) -> bytes:
    kind, shape = onnx.TensorProto.FLOAT, [None] * (rank + 1)
    x, y = (onnx.helper.make_tensor_value_info(name, kind, shape) for name in ("input", "output"))
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["input"], ["output"])], "g", [x], [y])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    content: bytes = model.SerializeToString()
    return content
