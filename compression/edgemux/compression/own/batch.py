"""Graphs that were exported for one batch size, freed of it where that is a matter of constants."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

# Where recurrent layers take their first states; without any they begin with zeros.
STATES = {"RNN": (5,), "GRU": (5,), "LSTM": (5, 6)}


def free_forms(model: onnx.ModelProto, batch: int | None) -> list[onnx.ModelProto]:
    """Forms of a graph that may take any batch; whether one does, running it must tell.

    batch: what the input declares, None when it is free. First the graph as it is, since a declaration binds nothing;
    then with the shapes that name the batch and the states that are made for it freed.
    """
    if batch is None:
        return [model]
    freed = onnx.ModelProto()
    freed.CopyFrom(model)
    known = _constants(freed.graph)
    _free_shapes(freed.graph, known, batch)
    _free_states(freed.graph, known)
    return [model, freed]


def _constants(graph: onnx.GraphProto) -> dict[str, onnx.TensorProto]:
    known = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            known[node.output[0]] = node.attribute[0].t
    return known


def _free_shapes(graph: onnx.GraphProto, known: dict[str, onnx.TensorProto], batch: int) -> None:
    """The first size of a Reshape that equals the batch becomes "the rest", or "as it was" where the rest is taken."""
    for name in dict.fromkeys(node.input[1] for node in graph.node if node.op_type == "Reshape"):
        if name not in known:
            continue
        sizes = numpy_helper.to_array(known[name]).copy()
        at = np.flatnonzero(sizes == batch)
        if sizes.ndim == 1 and len(at):
            sizes[at[0]] = 0 if -1 in sizes else -1
            known[name].CopyFrom(numpy_helper.from_array(sizes, known[name].name))
    for node in graph.node:
        if node.op_type == "Reshape":  # under allowzero a 0 would be a size
            kept = [attribute for attribute in node.attribute if attribute.name != "allowzero"]
            del node.attribute[:]
            node.attribute.extend(kept)


def _free_states(graph: onnx.GraphProto, known: dict[str, onnx.TensorProto]) -> None:
    """Constant zeros as first states are left out."""
    for node in graph.node:
        for at in STATES.get(node.op_type, ()):
            state = known.get(node.input[at]) if at < len(node.input) else None
            if state is not None and not numpy_helper.to_array(state).any():
                node.input[at] = ""
