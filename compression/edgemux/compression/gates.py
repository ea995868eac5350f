"""The two gates as ONNX graphs."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto

from edgemux.compression.graph import Graph
from edgemux.compression.nets import CLASS_COUNT
from edgemux.multiplexer.training.fit import LOG_FLOOR, TOP, Layers

TILE_PX = 4


def pre_gate_graph(layers: Layers, tile: int = TILE_PX) -> onnx.ModelProto:
    """``image`` uint8 [n, 28, 28] -> ``scores`` [n, routes], from the means of 4x4 tiles in 0..255."""
    graph = Graph(int8=False)
    x = graph.add("AveragePool", graph.image(), kernel_shape=[tile, tile], strides=[tile, tile])
    _scores(graph, graph.add("Flatten", x), layers, "scores")
    return graph.finish()


def post_gate_graph(layers: Layers, levels: int) -> onnx.ModelProto:
    """``probabilities``, ``level``, ``scores`` -> ``scores_after``; the features are those of ``post_features``."""
    graph = Graph(int8=False)
    p = graph.input("probabilities", TensorProto.FLOAT, (CLASS_COUNT,))
    level = graph.input("level", TensorProto.FLOAT, (levels,))
    scores = graph.input("scores", TensorProto.FLOAT, (levels + 1,))
    logs = graph.add("Log", graph.add("Add", p, graph.constant(np.array([LOG_FLOOR], np.float32))))
    top = graph.top(logs, TOP)
    products = graph.add("Mul", p, logs)
    negentropy = graph.add("ReduceSum", products, graph.constant(np.array([1], np.int64)), keepdims=1)
    features = graph.add("Concat", p, logs, top, negentropy, level, scores, axis=1)
    _scores(graph, features, layers, "scores_after")
    return graph.finish()


def _scores(graph: Graph, features: str, layers: Layers, name: str) -> None:
    """Two layers and a sigmoid."""
    hidden = graph.add("Relu", graph.linear(features, layers.w1, layers.b1))
    graph.add("Sigmoid", graph.linear(hidden, layers.w2, layers.b2), to=name)
    graph.output(name, (len(layers.b2),))
