"""The two gates as ONNX graphs."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto

from edgemux.compression.glance import glance
from edgemux.compression.graph import Graph
from edgemux.compression.nets import CLASS_COUNT
from edgemux.multiplexer.bundle import Tensor
from edgemux.multiplexer.features import FEW_CLASSES, LOG_FLOOR, ranks_read
from edgemux.multiplexer.learned import Net

PICTURE = Tensor("image", "UINT8", (-1, 28, 28))


def pre_gate_graph(net: Net, tensor: Tensor = PICTURE) -> onnx.ModelProto:
    """The input ``tensor`` -> ``scores`` [n, routes], from what ``glance`` sees: of a 28x28 picture, 4x4 tiles."""
    graph = Graph(int8=False)
    hidden = graph.add("Relu", graph.linear(glance(graph, tensor), net.w1, net.b1))
    graph.add("Sigmoid", graph.linear(hidden, net.w2, net.b2), to="scores")
    graph.output("scores", (len(net.b2),))
    return graph.finish()


def post_gate_graph(net: Net, levels: int, classes: int = CLASS_COUNT) -> onnx.ModelProto:
    """``probabilities``, ``level``, ``scores`` -> ``scores_after``: what ``post_scores`` computes, node by node."""
    graph = Graph(int8=False)
    p = graph.input("probabilities", TensorProto.FLOAT, (classes,))
    level = graph.input("level", TensorProto.FLOAT, (levels,))
    scores = graph.input("scores", TensorProto.FLOAT, (levels + 1,))
    features = graph.add("Concat", *_of_answer(graph, p, classes), level, scores, axis=1)
    hidden = graph.add("Relu", graph.linear(features, net.w1, net.b1))
    graph.add("Sigmoid", graph.linear(hidden, net.w2, net.b2), to="scores_after")
    graph.output("scores_after", (levels + 1,))
    return graph.finish()


def _of_answer(graph: Graph, p: str, classes: int) -> list[str]:
    """``device_features``."""
    logs = graph.add("Log", graph.add("Add", p, graph.constant(np.array([LOG_FLOOR], np.float32))))
    ranked = graph.top(logs, ranks_read(classes))
    if classes > FEW_CLASSES:
        products = graph.add("Mul", p, logs)
        return [ranked, graph.add("ReduceSum", products, graph.constant(np.array([1], np.int64)), keepdims=1)]
    count, off_on = graph.constant(np.array(classes, np.int64)), graph.constant(np.array([0, 1], np.float32))
    answered = graph.add("OneHot", graph.add("ArgMax", p, axis=1, keepdims=0), count, off_on, axis=1)
    return [logs, answered, ranked]
