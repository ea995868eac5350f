"""A user's graph between a bundle's input and a bundle's output: `probabilities`, for any batch.

Tensor names of the user's graph get a prefix, so that they cannot meet those of a bundle. The user's weights are not
touched.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, compose

from edgemux.compression.graph import Graph
from edgemux.compression.own.batch import free_forms
from edgemux.compression.own.entry import Entry, enter
from edgemux.compression.own.given import Given
from edgemux.compression.to_onnx import first_line
from edgemux.multiplexer.chain import PROBABILITIES
from edgemux.multiplexer.errors import ArtifactError, ConfigError
from edgemux.multiplexer.onnx_model import OnnxModel

# Names of inputs that are kept are identifiers, so none begins like these.
INNER = "m/"
RAW = "/raw"
# Batched and alone may differ by another order of sums, also in half precision, no more.
RELATIVE, ABSOLUTE = 1e-2, 1e-3
PROBE_ROWS = 3
# Sums of a softmax in half precision miss 1 by this much.
SUM_TOLERANCE = 5e-3
# What log() sees of a probability of 0: e^-27.
LOG_FLOOR = 1e-12


@dataclass(frozen=True)
class Wrapped:
    """A user's model, its way in, and which of its outputs is the answer. free: its graph with any batch size."""

    given: Given
    entry: Entry
    output: str
    free: onnx.ModelProto

    def raw(self) -> onnx.ModelProto:
        """The bundle's input -> the answer as it is: FP32 [n, m]."""
        return _joined(self.free, self.given, self.entry, self.output, _raw_end)

    def finished(self, kind: str, temperature: float) -> onnx.ModelProto:
        """The bundle's input -> ``probabilities``. kind: what the answer is, see ``kind_of``."""

        def end(graph: Graph, answer: str) -> None:
            logits = _logits(graph, answer, kind)
            cooled = graph.add("Mul", logits, graph.constant(np.array([1.0 / temperature], np.float32)))
            graph.add("Softmax", cooled, to=PROBABILITIES, axis=1)
            graph.output(PROBABILITIES, ("c",))

        return _joined(self.free, self.given, self.entry, self.output, end)


def wrap(given: Given, entry: Entry, rows: NDArray[Any]) -> Wrapped:
    """Find the answer among the outputs, and a form of the graph that takes any batch.

    rows: some inputs, [n, ...]. Raises ConfigError naming the file when the model does not answer each row on its own.
    """
    rows = rows[:PROBE_ROWS]
    alone, output = _alone(given, entry, rows)
    for free in free_forms(given.model, given.batch):
        try:
            model = _loaded(_joined(free, given, entry, output, _raw_end), given.file)
            together = model.run({entry.tensor.name: rows})[0]
        except Exception:  # whatever the runtime raises for a graph that does not take this batch
            continue
        if together.shape == alone.shape and np.allclose(together, alone, RELATIVE, ABSOLUTE, equal_nan=True):
            return Wrapped(given, entry, output, free)
    if given.batch is not None:
        raise ConfigError(f"{given.file}: takes batches of {given.batch} only; export it with a free batch axis")
    raise ConfigError(f"{given.file}: answers a row differently beside other rows, or does not take batches")


def kind_of(raw: NDArray[np.float32]) -> str:
    """What rows [n, m] of answers are: "probabilities", "logits", or of two classes "probability" or "logit"."""
    inside = bool((raw >= -SUM_TOLERANCE).all() and (raw <= 1 + SUM_TOLERANCE).all())
    if raw.shape[1] == 1:
        return "probability" if inside else "logit"
    sums = bool((np.abs(raw.sum(axis=1) - 1) <= SUM_TOLERANCE).all())
    return "probabilities" if inside and sums else "logits"


def logits_of(raw: NDArray[np.float32], kind: str) -> NDArray[np.float64]:
    """The logits [n, classes] that ``Wrapped.finished`` makes of such answers."""
    x = raw.astype(np.float64)
    if kind == "probabilities":
        return np.asarray(np.log(np.maximum(x, LOG_FLOOR)))
    if kind == "probability":
        x = np.log(np.maximum(x, LOG_FLOOR)) - np.log(np.maximum(1 - x, LOG_FLOOR))
    return x if kind == "logits" else np.concatenate([np.zeros_like(x), x], axis=1)


def _logits(graph: Graph, answer: str, kind: str) -> str:
    def log(x: str) -> str:
        return graph.add("Log", graph.add("Max", x, graph.constant(np.array(LOG_FLOOR, np.float32))))

    if kind == "probabilities":
        return log(answer)
    if kind == "probability":
        rest = graph.add("Sub", graph.constant(np.array(1, np.float32)), answer)
        answer = graph.add("Sub", log(answer), log(rest))
    if kind == "logits":
        return answer
    return graph.add("Concat", graph.add("Sub", answer, answer), answer, axis=1)


def _raw_end(graph: Graph, answer: str) -> None:
    graph.add("Identity", answer, to=RAW)
    graph.output(RAW, ("m",))


def _joined(
    model: onnx.ModelProto, given: Given, entry: Entry, output: str, end: Callable[[Graph, str], None]
) -> onnx.ModelProto:
    """Way in, the user's graph, its answer as FP32 [n, m], and what ``end`` appends."""
    graph = Graph(int8=False)
    enter(graph, entry, given, to=f"{INNER}{given.input}")
    graph.include(compose.add_prefix(model, INNER))
    answer = graph.add("Cast", f"{INNER}{output}", to_type=TensorProto.FLOAT)
    end(graph, graph.add("Flatten", answer, axis=1))
    return graph.finish()


def _alone(given: Given, entry: Entry, rows: NDArray[Any]) -> tuple[NDArray[Any], str]:
    """What the model answers to each row alone, FP32 [n, m], and under which name. Raises ConfigError.

    A graph for a fixed batch gets each row that often.
    """
    graph = Graph(int8=False)
    enter(graph, entry, given, to=f"{INNER}{given.input}")
    inner = compose.add_prefix(given.model, INNER)
    graph.include(inner)
    for value in inner.graph.output:
        if value.type.HasField("tensor_type"):
            graph.output(value.name, None, value.type.tensor_type.elem_type)
    session = _loaded(graph.finish(), given.file)
    batch = given.batch or 1
    try:
        answers = [session.run({entry.tensor.name: np.repeat(row[None], batch, axis=0)}) for row in rows]
    except Exception as error:  # with any of the library's types
        raise ConfigError(f"{given.file}: fails on the inputs given ({first_line(error)})") from error
    for name, parts in zip(session.outputs, zip(*answers, strict=True), strict=True):
        if all(_is_answer(part, batch) for part in parts):
            first = [part[:1].reshape(1, -1).astype(np.float32) for part in parts]
            return np.concatenate(first), name.removeprefix(INNER)
    raise ConfigError(f"{given.file}: none of its outputs is a row of numbers for each input, [batch, classes]")


def _is_answer(value: Any, batch: int) -> bool:
    """[batch, classes], with axes of 1 around the classes or not."""
    if not isinstance(value, np.ndarray) or value.dtype.kind != "f" or value.ndim < 2 or len(value) != batch:
        return False
    return max(value.shape[1:]) == value[0].size


def _loaded(model: onnx.ModelProto, file: str) -> OnnxModel:
    try:
        return OnnxModel(model.SerializeToString(), file, quiet=True)  # it may not take every batch that is tried
    except ArtifactError as error:
        raise ConfigError(str(error)) from error
