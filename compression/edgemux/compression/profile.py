"""What a graph costs: stored weights, multiply-accumulates, median time."""

from __future__ import annotations

import contextlib
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import onnx
from onnx import shape_inference

from edgemux.compression.quantize.packed import packed_weights

WARM_UP = 20


def parameters(model: onnx.ModelProto) -> int:
    """Stored weights and biases; the scales of int8 weights and shape constants are not counted.

    Weights in bit planes (``quantize.packed``) count as what they are and not by their bytes.
    """
    scales = {
        node.input[1] for node in model.graph.node if node.op_type in ("Mul", "DequantizeLinear", "QuantizeLinear")
    } | {name for node in model.graph.node if node.op_type == "BitShift" for name in node.input}
    return packed_weights(model) + sum(
        math.prod(tensor.dims)
        for tensor in model.graph.initializer
        if tensor.name not in scales and len(tensor.dims) > 0 and tensor.data_type != onnx.TensorProto.INT64
    )


def macs(model: onnx.ModelProto) -> int:
    """Multiply-accumulates of convolutions, matrix products and recurrent layers for one input.

    What has a shape that cannot be told without running it counts nothing.
    """
    shapes, total = _shapes(model), 0
    for node in model.graph.node:
        with contextlib.suppress(KeyError, IndexError):
            total += _node_macs(node, shapes)
    return total


def _node_macs(node: onnx.NodeProto, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Weights of recurrent layers are used once a time step, those of convolutions once an output pixel."""
    weights = node.input[3 if node.op_type.startswith("Q") else 1] if len(node.input) > 1 else ""
    if node.op_type in ("Conv", "ConvInteger", "QLinearConv"):
        return math.prod(shapes[node.output[0]][2:]) * math.prod(shapes[weights])
    if node.op_type == "ConvTranspose":
        return math.prod(shapes[node.input[0]][2:]) * math.prod(shapes[weights])
    if node.op_type in ("Gemm", "QGemm"):
        return math.prod(shapes[weights])
    if node.op_type in ("MatMul", "MatMulInteger", "QLinearMatMul"):
        rows = shapes.get(node.output[0], (0, 0))[1:-1]
        return math.prod(rows) * math.prod(shapes.get(weights, (0,))[-2:])
    if node.op_type in ("GRU", "LSTM", "RNN", "DynamicQuantizeLSTM"):
        return shapes[node.input[0]][0] * (math.prod(shapes[node.input[1]]) + math.prod(shapes[node.input[2]]))
    return 0


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


def medians_ms(
    runs: Sequence[Callable[[], object]], repeats: int, clock: Callable[[], float] = time.perf_counter
) -> list[float]:
    """Median times in ms, measured in turns so that a busy moment of the machine hits all alike.

    clock: wall time by default; ``time.thread_time`` for work that stays on the calling thread, which other load on
    the machine moves less.
    """
    for run in runs:
        for _ in range(WARM_UP):
            run()
    taken: list[list[float]] = [[] for _ in runs]
    for _ in range(repeats):
        for times, run in zip(taken, runs, strict=True):
            # Twice, so that the caches hold this model's weights and not the others'.
            run()
            start = clock()
            run()
            times.append(clock() - start)
    return [1e3 * statistics.median(times) for times in taken]
