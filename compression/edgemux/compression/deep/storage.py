"""Stores the weights of an ONNX graph in fewer bits, spelt in operators that ONNX Runtime folds when it loads.

The last operator of each weight has the weight's name, so the rest of the graph stays as it is. Nothing here needs a
newer operator set than the exporter's 17. Folding: measured with the options of ``OnnxModel``, same operators left,
same answers bit for bit.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgemux.compression.deep.scaling import Weight, parted
from edgemux.compression.quantize.weights import to_int8

# A graph's tensor that is read by these, at these inputs, is a weight.
READERS = {
    "Conv": (1,),
    "ConvTranspose": (1,),
    "Gemm": (1,),
    "MatMul": (0, 1),
    "LSTM": (1, 2),
    "GRU": (1, 2),
    "RNN": (1, 2),
}
CODE_BITS = (1, 2, 4, 8)
# Smaller weights gain less than the operators take.
MIN_ELEMENTS = 128


class Form:
    """Nodes and constants that make one weight, named after it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, value: NDArray[Any], name: str | None = None) -> str:
        """Store a constant, once under its own name where it has one; returns its name."""
        name = name if name is not None else f"{self.name}.{len(self.nodes)}.{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def add(self, op: str, *inputs: str, **attributes: Any) -> str:
        """Append a node; returns the name of its output."""
        name = f"{self.name}.{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [name], **attributes))
        return name

    def cast(self, value: NDArray[Any], kind: int, name: str | None = None) -> str:
        """Store as the array's own type, use as ``kind``; returns the name of the output."""
        return self.add("Cast", self.constant(value, name), to=kind)

    def finished(self) -> Form:
        """The same with the weight's name for the last node's output."""
        self.nodes[-1].output[0] = self.name
        return self

    @property
    def bytes(self) -> int:
        """What it takes in the file, near enough."""
        return sum(part.ByteSize() for part in (*self.nodes, *self.constants))


Make = Callable[[str, Weight], Form | None]


def weights_of(graph: onnx.ModelProto) -> Iterator[tuple[str, Weight]]:
    """Name and value of each float32 initializer that is a weight of a layer."""
    read = {node.input[at] for node in graph.graph.node for at in READERS.get(node.op_type, ()) if at < len(node.input)}
    public = {value.name for value in (*graph.graph.input, *graph.graph.output)}
    for tensor in graph.graph.initializer:
        if tensor.name in read - public and tensor.data_type == TensorProto.FLOAT and len(tensor.dims) > 1:
            yield tensor.name, numpy_helper.to_array(tensor)


def restored(graph: onnx.ModelProto, make: Make) -> onnx.ModelProto:
    """A copy in which each weight is stored as ``make(name, weight)`` says; None, or a larger form, leaves it."""
    forms = []
    for name, value in weights_of(graph):
        form = make(name, value)
        if form is not None and value.size >= MIN_ELEMENTS and form.bytes < value.nbytes:
            forms.append(form)
    changed, names = copy.deepcopy(graph), {form.name for form in forms}
    kept = [tensor for tensor in changed.graph.initializer if tensor.name not in names]
    constants = {tensor.name: tensor for form in forms for tensor in form.constants}
    nodes = [node for form in forms for node in form.nodes] + list(changed.graph.node)
    nodes = list({node.output[0]: node for node in nodes}.values())
    del changed.graph.initializer[:], changed.graph.node[:]
    changed.graph.initializer.extend([*kept, *constants.values()])
    changed.graph.node.extend(nodes)
    onnx.checker.check_model(changed)
    return changed


def replaced_weights(graph: onnx.ModelProto, values: Mapping[str, Weight]) -> onnx.ModelProto:
    """A copy with other values for these initializers, of the same shapes."""
    changed = copy.deepcopy(graph)
    for tensor in changed.graph.initializer:
        if tensor.name in values:
            tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values[tensor.name]), tensor.name))
    return changed


def shared_weights(weights: Sequence[Weight] = ()) -> Callable[[onnx.ModelProto], onnx.ModelProto]:
    """A hook that stores weights of at most 256 different values as a codebook and codes of 1, 2, 4 or 8 bits.

    Lossless: what is not of that kind is left. weights: see ``scaling.parted``.
    """

    def make(name: str, value: Weight) -> Form | None:
        return codebook_form(name, *parted(value, weights))

    return lambda graph: restored(graph, make)


def codebook_form(name: str, weight: Weight, scale: Weight | None = None) -> Form | None:
    """Codes -> Gather from the codebook -> float32; None when there are more than 256 different values.

    ONNX has 4-bit integers from operator set 21 on only. So codes below a byte are packed, and a table that all
    weights share turns a byte into its codes: Gather(codebook, Gather(table, bytes)), reshaped.
    """
    codebook, codes = np.unique(np.ascontiguousarray(weight).view(np.uint32), return_inverse=True)
    fitting = [bits for bits in CODE_BITS if len(codebook) <= 1 << bits and weight.size % (8 // bits) == 0]
    if not fitting:
        return None
    form, bits = Form(name), fitting[0]
    entries = form.constant(codebook.view(np.float32))
    if bits == 8:
        form.add("Gather", entries, form.cast(codes.reshape(weight.shape).astype(np.uint8), TensorProto.INT32))
    else:
        packed = form.cast(packed_codes(codes.reshape(-1), bits), TensorProto.INT32)
        each = form.add("Gather", _table(form, bits), packed)
        shape = form.constant(np.array(weight.shape, np.int64))
        form.add("Reshape", form.add("Gather", entries, each), shape)
    if scale is not None:
        channels = form.constant(scale.reshape(-1, *(1,) * (weight.ndim - 1)))
        form.add("Mul", form.nodes[-1].output[0], channels)
    return form.finished()


def packed_codes(codes: NDArray[np.integer], bits: int) -> NDArray[np.uint8]:
    """Codes [n] below 2**bits, 8 / bits in a byte, the first in the highest bits."""
    shifts = np.arange(8 - bits, -1, -bits)
    return (codes.reshape(-1, len(shifts)) << shifts).sum(axis=1).astype(np.uint8)


def _table(form: Form, bits: int) -> str:
    """The codes in each byte, int32 [256, 8 / bits]; one node and one constant for the whole graph."""
    shifts = np.arange(8 - bits, -1, -bits)
    table = (np.arange(256)[:, None] >> shifts & ((1 << bits) - 1)).astype(np.uint8)
    name = f"codes{bits}"
    form.nodes.append(helper.make_node("Cast", [form.constant(table, f"{name}.bytes")], [name], to=TensorProto.INT32))
    return name


def int8_form(name: str, value: Weight, kept: Sequence[int]) -> Form:
    """int8 in -127..127 with one float32 scale for each index of the ``kept`` axes: Cast and Mul, see ``Graph``."""
    steps, scale = to_int8(value, kept)
    form = Form(name)
    form.add("Mul", form.cast(steps, TensorProto.FLOAT), form.constant(scale))
    return form.finished()


def fp16_form(name: str, value: Weight) -> Form | None:
    """Half the bytes; None where a value is too large for float16."""
    with np.errstate(over="ignore"):
        half = value.astype(np.float16)
    if not np.isfinite(half).all():
        return None
    form = Form(name)
    form.cast(half, TensorProto.FLOAT)
    return form.finished()


def output_axes(graph: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """By weight: the axes along which its output channels lie."""
    found: dict[str, tuple[int, ...]] = {}
    for node in graph.graph.node:
        transposed = any(part.name == "transB" and part.i for part in node.attribute)
        axes = {"ConvTranspose": (1,), "Gemm": (0,) if transposed else (1,), "MatMul": (-1,)}
        recurrent = (0, 1) if node.op_type in ("LSTM", "GRU", "RNN") else (0,)
        for at in READERS.get(node.op_type, ()):
            if at < len(node.input):
                found.setdefault(node.input[at], axes.get(node.op_type, recurrent))
    return found
