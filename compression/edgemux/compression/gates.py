"""The two gates as ONNX graphs."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto

from edgemux.compression.glance import glance
from edgemux.compression.graph import Graph
from edgemux.compression.nets import CLASS_COUNT
from edgemux.multiplexer.bundle import Tensor
from edgemux.multiplexer.training.fit import LOG_FLOOR, MANY, Layers, top_of

TILE_PX = 4
PICTURE = Tensor("image", "UINT8", (-1, 28, 28))


def pre_gate_graph(layers: Layers, tensor: Tensor = PICTURE) -> onnx.ModelProto:
    """The input ``tensor`` -> ``scores`` [n, routes], from what ``glance`` sees: of a 28x28 picture, 4x4 tiles."""
    graph = Graph(int8=False)
    _scores(graph, glance(graph, tensor), layers, "scores")
    return graph.finish()


def post_gate_graph(layers: Layers, levels: int, classes: int = CLASS_COUNT) -> onnx.ModelProto:
    """``probabilities``, ``level``, ``scores`` -> ``scores_after``; the features are those of ``post_features``."""
    graph = Graph(int8=False)
    p = graph.input("probabilities", TensorProto.FLOAT, (classes,))
    level = graph.input("level", TensorProto.FLOAT, (levels,))
    scores = graph.input("scores", TensorProto.FLOAT, (levels + 1,))
    logs = graph.add("Log", graph.add("Add", p, graph.constant(np.array([LOG_FLOOR], np.float32))))
    top = graph.top(logs, top_of(classes))
    products = graph.add("Mul", p, logs)
    negentropy = graph.add("ReduceSum", products, graph.constant(np.array([1], np.int64)), keepdims=1)
    answer = [_margin(graph, p)] if classes > MANY else [p, logs]
    features = graph.add("Concat", *answer, top, negentropy, level, scores, axis=1)
    _scores(graph, features, layers, "scores_after")
    return graph.finish()


def _margin(graph: Graph, p: str) -> str:
    """The largest probability less the second, [n, 1]."""
    return graph.add("MatMul", graph.top(p, 2), graph.constant(np.array([[1], [-1]], np.float32)))


def _scores(graph: Graph, features: str, layers: Layers, name: str) -> None:
    """Two layers and a sigmoid."""
    hidden = graph.add("Relu", graph.linear(features, layers.w1, layers.b1))
    graph.add("Sigmoid", graph.linear(hidden, layers.w2, layers.b2), to=name)
    graph.output(name, (len(layers.b2),))
