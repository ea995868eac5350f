"""An ONNX graph as a torch module whose weights can be trained further: any model's head or tail, or the whole.

What the graph computes from weights alone is computed once, so weights that are stored as integers become trainable
floats. Answers are those of ONNX Runtime, but for the order of sums; ``check_graph_net`` says whether they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from edgemux.compression.graph import IR_VERSION
from edgemux.compression.quantize.weights import to_int8
from edgemux.compression.split.cuts import Layout, layout_of
from edgemux.compression.split.operators import OPERATORS
from edgemux.multiplexer.errors import PassError
from edgemux.multiplexer.onnx_model import OnnxModel

# Of the largest value of an output, as for the halves of a cut.
TOLERANCE = 1e-3


class GraphNet(nn.Module):
    """``forward`` takes the graph's inputs by name, or its only one, and answers its outputs by name.

    Weights, real and of more than one value, are parameters; other constants stay as they are.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        """Raises PassError naming an operator that is not known, or an attribute that it has here."""
        super().__init__()
        graph = model.graph
        layout = layout_of(graph)
        self.inputs, self.outputs = layout.inputs, layout.outputs
        self.opsets = list(model.opset_import)
        self.values = [*graph.input, *graph.output]
        self._nodes: list[tuple[str, tuple[str, ...], tuple[str, ...], dict[str, Any]]] = []
        for position in layout.computed:
            node = graph.node[position]
            if node.domain not in ("", "ai.onnx") or node.op_type not in OPERATORS:
                raise PassError(f"operator {node.op_type} cannot be trained here")
            attributes = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
            self._nodes.append((node.op_type, tuple(node.input), tuple(node.output), attributes))
        self._names: dict[str, str] = {}
        for name, value in _constants(model, layout).items():
            self._keep(name, torch.from_numpy(np.array(value)))

    def _keep(self, name: str, value: Tensor) -> None:
        own = f"w{len(self._names)}"
        self._names[name] = own
        if value.is_floating_point() and value.numel() > 1:
            self.register_parameter(own, nn.Parameter(value.float()))
        else:
            self.register_buffer(own, value, persistent=False)

    def forward(self, given: Tensor | Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Outputs by name. Raises PassError when an operator meets what it does not know."""
        values: dict[str, Tensor] = {name: getattr(self, own) for name, own in self._names.items()}
        values.update({self.inputs[0]: given} if isinstance(given, Tensor) else given)
        for kind, inputs, outputs, attributes in self._nodes:
            read = [values[name] if name else None for name in inputs]
            values[outputs[0]] = OPERATORS[kind](read, attributes)
        return {name: values[name] for name in self.outputs}

    def written(self, int8: bool, inside: str = "t.", without: str | None = None) -> onnx.ModelProto:
        """The graph with the weights of now, stored as int8 where asked for. without: an output that is left out.

        Its inputs and all names inside get ``inside`` before them, so that it can stand in another graph.
        """
        kept = {*self.outputs} - {without}
        names = {name: name if name in kept else f"{inside}{name}" for name in self._all_names()}
        nodes: list[onnx.NodeProto] = []
        stored: list[onnx.TensorProto] = []
        for name, own in self._names.items():
            value = getattr(self, own).detach().numpy()
            if int8 and value.dtype == np.float32 and value.ndim > 1:
                steps, scale = to_int8(value)
                parts = [f"{names[name]}.steps", f"{names[name]}.scale", f"{names[name]}.wide"]
                stored += [numpy_helper.from_array(steps, parts[0]), numpy_helper.from_array(scale, parts[1])]
                nodes.append(helper.make_node("Cast", parts[:1], parts[2:], to=TensorProto.FLOAT))
                nodes.append(helper.make_node("Mul", [parts[2], parts[1]], [names[name]]))
            else:
                stored.append(numpy_helper.from_array(np.ascontiguousarray(value), names[name]))
        for kind, inputs, outputs, attributes in self._nodes:
            read, made = ([names[name] if name else "" for name in some] for some in (inputs, outputs))
            nodes.append(helper.make_node(kind, read, made, **attributes))
        taken = [_renamed(value, names) for value in self.values if value.name in self.inputs]
        given = [_renamed(value, names) for value in self.values if value.name in kept]
        graph = helper.make_graph(nodes, "g", taken, given, stored)
        return helper.make_model(graph, opset_imports=self.opsets, ir_version=IR_VERSION)

    def _all_names(self) -> set[str]:
        made = {name for node in self._nodes for name in (*node[1], *node[2]) if name}
        return made | set(self.inputs) | set(self._names)


def _renamed(value: onnx.ValueInfoProto, names: Mapping[str, str]) -> onnx.ValueInfoProto:
    made = onnx.ValueInfoProto()
    made.CopyFrom(value)
    made.name = names[value.name]
    return made


def _constants(model: onnx.ModelProto, layout: Layout) -> dict[str, NDArray[Any]]:
    """What the computed nodes and the outputs read of weights, and of what is computed from weights alone."""
    graph = model.graph
    read = {name for position in layout.computed for name in layout.reads[position]} | set(layout.outputs)
    found = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer if tensor.name in read}
    made = [name for position in layout.constant for name in graph.node[position].output if name in read]
    if made:
        outputs = [helper.make_empty_tensor_value_info(name) for name in made]
        nodes = [graph.node[position] for position in layout.constant]
        alone = helper.make_graph(nodes, "constants", [], outputs, graph.initializer)
        part = helper.make_model(alone, opset_imports=model.opset_import, functions=model.functions)
        part.ir_version = model.ir_version
        folded = OnnxModel(part.SerializeToString(), "constants", quiet=True).run({})
        found.update(zip(made, folded, strict=True))
    return found


def check_graph_net(net: GraphNet, model: onnx.ModelProto, feeds: Mapping[str, NDArray[Any]]) -> float:
    """The largest difference to ONNX Runtime on ``feeds``, as a share of an output's largest value.

    Raises PassError when it is above TOLERANCE or not a number.
    """
    runtime = OnnxModel(model.SerializeToString(), "model", quiet=True)
    with torch.inference_mode():
        found = net({name: torch.from_numpy(np.array(feeds[name])) for name in net.inputs})
    worst = 0.0
    for name, wanted in zip(runtime.outputs, runtime.run(feeds), strict=True):
        difference = _difference(np.asarray(wanted), found[name].numpy())
        if not difference <= TOLERANCE:
            raise PassError(f"output {name!r} differs from ONNX Runtime's by {difference:.2g} of its largest value")
        worst = max(worst, difference)
    return worst


def _difference(wanted: NDArray[Any], found: NDArray[Any]) -> float:
    if wanted.shape != found.shape:
        return float("inf")
    scale = max(float(np.abs(wanted).max(initial=0.0)), 1e-6)
    return float(np.abs(wanted.astype(np.float64) - found).max(initial=0.0)) / scale


def exposed(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """The model with one more output, its last: a tensor inside it. Raises PassError for one that is not there."""
    if all(name not in node.output for node in model.graph.node):
        raise PassError(f"tensor {name!r} is not made by the model")
    made = onnx.ModelProto()
    made.CopyFrom(model)
    made.graph.output.append(helper.make_empty_tensor_value_info(name))
    return made


def trainable(model: onnx.ModelProto, feeds: Mapping[str, NDArray[Any]]) -> GraphNet:
    """The graph as a module that was found to answer ``feeds`` as ONNX Runtime does. Raises PassError."""
    net = GraphNet(model)
    check_graph_net(net, model, feeds)
    return net
