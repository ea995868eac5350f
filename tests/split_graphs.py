"""Graphs to be cut, and the check that every cut of one is one. Takes the onnx package."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgemux.compression.split.costs import Whole
from edgemux.compression.split.halves import TOLERANCE, check, joined
from edgemux.multiplexer.onnx_model import OnnxModel

FEATURES = 3


def value(name: str, kind: int = TensorProto.FLOAT, shape: Any = ("n", FEATURES)) -> onnx.ValueInfoProto:
    """An input or output of a graph; float [n, FEATURES] by default."""
    return helper.make_tensor_value_info(name, kind, shape)


def graph_of(
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
    weights: dict[str, Any] | None = None,
    opset: int = 17,
    **more: Any,
) -> bytes:
    """A model; ``more`` goes to its ModelProto."""
    stored = [numpy_helper.from_array(np.asarray(array), name) for name, array in (weights or {}).items()]
    graph = helper.make_graph(nodes, "g", inputs, outputs, stored)
    more["opset_imports"] = [helper.make_opsetid("", opset), *more.get("opset_imports", ())]
    more.setdefault("ir_version", 8)
    content: bytes = helper.make_model(graph, **more).SerializeToString()
    return content


def model_of(
    nodes: list[onnx.NodeProto],
    outputs: list[str],
    weights: dict[str, Any] | None = None,
    inputs: tuple[str, ...] = ("x",),
) -> bytes:
    """A graph of float inputs [n, FEATURES]; what the outputs are is left to the runtime."""
    return graph_of(nodes, [value(name) for name in inputs], [value(name) for name in outputs], weights)


def check_every_cut(content: bytes, rows: int = 2, tolerance: float = TOLERANCE) -> Whole:
    """Every cut of the model answers as the whole does, for more inputs than one where it can."""
    whole = Whole(content, "model.onnx")
    draw = np.random.default_rng(5)
    stored = {tensor.name for tensor in onnx.load_model_from_string(content).graph.initializer}
    for cut in whole.cuts:
        halves = whole.halves(cut)
        onnx.checker.check_model(halves.head, full_check=True)
        onnx.checker.check_model(halves.tail, full_check=True)
        head, tail = (OnnxModel(part.SerializeToString(), "part") for part in (halves.head, halves.tail))
        assert set(tail.inputs) == set(head.outputs)
        feeds = {
            given.name: _drawn(draw, given, rows)
            for given in onnx.load_model_from_string(content).graph.input
            if given.name not in stored
        }
        assert check(halves, whole.model, feeds, tolerance) <= tolerance
        assert list(joined(head, tail, feeds)) == list(whole.model.outputs)
    return whole


def _drawn(draw: np.random.Generator, given: onnx.ValueInfoProto, rows: int) -> Any:
    sizes = [axis.dim_value for axis in given.type.tensor_type.shape.dim]
    kind = helper.tensor_dtype_to_np_dtype(given.type.tensor_type.elem_type)
    shape = (sizes[0] or rows, *sizes[1:]) if sizes else ()
    if kind.kind == "f":
        return draw.standard_normal(shape).astype(kind)
    return draw.integers(0, 255 if kind == np.uint8 else 2, shape).astype(kind)
