"""Writes ONNX graphs node by node.

An exporter's output carries names, scopes and doc strings that weigh more than a 4,000-parameter model; here each
tensor gets a short name and weights are stored as asked.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgemux.compression.quantize.weights import to_int8

# Opset 17 with IR 8 is read by every ONNX Runtime since 1.12.
OPSET = 17
IR_VERSION = 8
Shape = tuple[int | str, ...]


class Graph:
    """A graph under construction. ``int8``: store the weights of convolutions and matrix products as int8."""

    def __init__(self, int8: bool) -> None:
        self.int8 = int8
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self._count = 0
        self._included = onnx.ModelProto()

    def input(self, name: str, kind: int, shape: Shape) -> str:
        """Declare an input; the batch dimension is "n". Declaring it again changes nothing."""
        if all(known.name != name for known in self._inputs):
            self._inputs.append(helper.make_tensor_value_info(name, kind, ["n", *shape]))
        return name

    def output(self, name: str, shape: Shape | None, kind: int = TensorProto.FLOAT) -> None:
        """Declare an output; the batch dimension is "n". shape: None where nothing is known about it."""
        sizes = None if shape is None else ["n", *shape]
        self._outputs.append(helper.make_tensor_value_info(name, kind, sizes))

    def add(self, op: str, *inputs: str, to: str | None = None, **attributes: Any) -> str:
        """Append a node with one output; returns the output's name."""
        name = to if to is not None else self._fresh()
        if "to_type" in attributes:  # Cast's attribute is called "to" as well
            attributes["to"] = attributes.pop("to_type")
        self._nodes.append(helper.make_node(op, list(inputs), [name], **attributes))
        return name

    def constant(self, value: NDArray[Any]) -> str:
        """A constant as it is; returns its name."""
        name = self._fresh()
        self._constants.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def weight(self, value: NDArray[Any]) -> str:
        """A weight, first axis = output channels, stored as this graph stores weights; returns its float tensor.

        int8 is spelt Cast and Mul, which ONNX Runtime folds at load under any option. DequantizeLinear would be
        one node less, but is kept and run for every input unless session.disable_quant_qdq is set (measured: the
        level-4 chain takes 1.6 times as long), and that option would undo a statically quantised model.
        """
        if not self.int8:
            return self.constant(value.astype(np.float32))
        steps, scale = to_int8(value)
        as_float = self.add("Cast", self.constant(steps), to_type=TensorProto.FLOAT)
        return self.add("Mul", as_float, self.constant(scale))

    def conv(self, x: str, weight: NDArray[Any], bias: NDArray[Any], stride: int = 1, to: str | None = None) -> str:
        """Convolution with "same" padding, weight [c_out, c_in, k, k], then ReLU."""
        pad = weight.shape[-1] // 2
        parts = (x, self.weight(weight), self.constant(bias.astype(np.float32)))
        y = self.add("Conv", *parts, pads=[pad] * 4, strides=[stride] * 2)
        return self.add("Relu", y, to=to)

    def linear(self, x: str, weight: NDArray[Any], bias: NDArray[Any], to: str | None = None) -> str:
        """``x @ weight.T + bias``, weight [out, in]."""
        return self.add("Gemm", x, self.weight(weight), self.constant(bias.astype(np.float32)), to=to, transB=1)

    def top(self, x: str, count: int) -> str:
        """The ``count`` largest values of each row, falling."""
        values, positions = self._fresh(), self._fresh()
        number = self.constant(np.array([count], np.int64))
        self._nodes.append(helper.make_node("TopK", [x, number], [values, positions], axis=1))
        return values

    def pooled(self, x: str) -> str:
        """Mean over both image axes: [n, c, h, w] -> [n, c]."""
        return self.add("Flatten", self.add("GlobalAveragePool", x))

    def image(self, height: int = 28, width: int = 28, channels: int = 1) -> str:
        """The raw pixels, input ``image`` uint8 [n, h, w] or, of more channels, [n, c, h, w], as float32 [n, c, h, w].

        They stay in 0..255. The scale 1/255 belongs into the first weights: without a mean to subtract, zero padding
        stays exact.
        """
        shape = (height, width) if channels == 1 else (channels, height, width)
        as_float = self.add("Cast", self.input("image", TensorProto.UINT8, shape), to_type=TensorProto.FLOAT)
        if channels > 1:
            return as_float
        return self.add("Unsqueeze", as_float, self.constant(np.array([1], np.int64)))

    def include(self, model: onnx.ModelProto) -> None:
        """Append another graph's nodes and weights, once; its tensors are known by their names, which must not be ours.

        Its inputs must be made by nodes before it, its outputs are not declared. Its opsets, of 13 or later, hold for
        all that is added here: of these operators only what reads the same in all of them may be.
        """
        self._included = model
        self._nodes.extend(model.graph.node)
        self._constants.extend(model.graph.initializer)

    def finish(self) -> onnx.ModelProto:
        """The checked model, without doc strings and producer names."""
        graph = helper.make_graph(self._nodes, "g", self._inputs, self._outputs, self._constants)
        if self._included.graph.node:
            return self._finished_with(graph)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
        model.producer_name = ""
        onnx.checker.check_model(model, full_check=True)
        return model

    def _finished_with(self, graph: onnx.GraphProto) -> onnx.ModelProto:
        """With what was included, which may hold operators that only the runtime knows: it is the one to check it."""
        included = self._included
        graph.sparse_initializer.extend(included.graph.sparse_initializer)
        opsets = list(included.opset_import)
        if all(opset.domain not in ("", "ai.onnx") for opset in opsets):
            opsets.append(helper.make_opsetid("", OPSET))
        made = helper.make_model(graph, opset_imports=opsets, functions=included.functions)
        made.ir_version = max(IR_VERSION, included.ir_version)
        made.producer_name = ""
        return made

    def _fresh(self) -> str:
        self._count += 1
        name = _short(self._count)
        return name if all(known.name != name for known in self._inputs) else self._fresh()


def _short(number: int) -> str:
    """1 -> "A", 26 -> "Z", 27 -> "AA": the bytes of names count. Capitals stay clear of the public names."""
    text = ""
    while number > 0:
        number, letter = divmod(number - 1, 26)
        text = chr(ord("A") + letter) + text
    return text
