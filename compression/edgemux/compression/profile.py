"""What a graph costs: stored weights, multiply-accumulates, median time."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence

import onnx
from onnx import shape_inference

WARM_UP = 20


def parameters(model: onnx.ModelProto) -> int:
    """Stored weights and biases; the scales of int8 weights and shape constants are not counted."""
    scales = {
        node.input[1] for node in model.graph.node if node.op_type in ("Mul", "DequantizeLinear", "QuantizeLinear")
    }
    return sum(
        math.prod(tensor.dims)
        for tensor in model.graph.initializer
        if tensor.name not in scales and len(tensor.dims) > 0 and tensor.data_type != onnx.TensorProto.INT64
    )


def macs(model: onnx.ModelProto) -> int:
    """Multiply-accumulates of convolutions and matrix products for one input."""
    shapes = _shapes(model)
    total = 0
    for node in model.graph.node:
        if node.op_type == "Conv":
            out, weight = shapes[node.output[0]], shapes[node.input[1]]
            total += math.prod(out[2:]) * math.prod(weight)
        elif node.op_type == "Gemm":
            total += math.prod(shapes[node.input[1]])
    return total


def head_macs(model: onnx.ModelProto) -> int:
    """The part of ``macs`` that a higher level does not run: the matrix products."""
    shapes = _shapes(model)
    return sum(math.prod(shapes[node.input[1]]) for node in model.graph.node if node.op_type == "Gemm")


def _shapes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """Shapes of all tensors, with 0 for the batch."""
    graph = shape_inference.infer_shapes(model).graph
    known = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for value in (*graph.input, *graph.output, *graph.value_info):
        known[value.name] = tuple(axis.dim_value for axis in value.type.tensor_type.shape.dim)
    return known


def median_ms(run: Callable[[], object], repeats: int) -> float:
    """Median wall time of one call, in ms."""
    return medians_ms([run], repeats)[0]


def medians_ms(runs: Sequence[Callable[[], object]], repeats: int) -> list[float]:
    """Median wall times in ms, measured in turns so that a busy moment of the machine hits all alike."""
    for run in runs:
        for _ in range(WARM_UP):
            run()
    taken: list[list[float]] = [[] for _ in runs]
    for _ in range(repeats):
        for times, run in zip(taken, runs, strict=True):
            # Twice, so that the caches hold this model's weights and not the others'.
            run()
            start = time.perf_counter()
            run()
            times.append(time.perf_counter() - start)
    return [1e3 * statistics.median(times) for times in taken]
