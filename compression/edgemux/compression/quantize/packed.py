"""Weights that take few values, stored in as many bits as they need; stock ONNX Runtime unfolds them once, at load.

What is looked for is the product of whole numbers, a ``Round`` or a ``Where`` of constants, and a scale: the form that
low-bit and binarised layers have in a graph, whatever trained them last. In its place comes a chain of standard
operators that starts from bit planes (``bits.pack``) and answers the same whole numbers, bit for bit.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from edgemux.compression.quantize.bits import MAX_BITS, PER_BYTE, bits_for, pack

Array = NDArray[Any]
# How the constants of a packed weight are called, after the weight itself.
PLANES, SHAPE = "_planes", "_shape"
# What rounds a constant weight: to steps, or to its sign.
ROUNDING = ("Round", "Where")
# Below that a chain of operators takes more bytes than it saves.
FEWEST = 256


def pack_weights(graph: onnx.ModelProto) -> onnx.ModelProto:
    """The graph with all such weights packed; a store (``passes.Store``). Others stay as they are.

    Other results of constants alone are stored instead of what they are made of, where that is less.
    """
    result = copy.deepcopy(graph)
    packed = {product.output[0] for product in quantised(result) if _pack(result, product)}
    _fold(result, packed)
    _drop_unused(result)
    onnx.checker.check_model(result, full_check=True)
    return result


def quantised(graph: onnx.ModelProto) -> list[NodeProto]:
    """The products of whole numbers and a scale, both constant, in graph order."""
    makers = {name: node for node in graph.graph.node for name in node.output}
    constant = _constants(graph)
    found = []
    for node in graph.graph.node:
        if node.op_type != "Mul" or not set(node.input) <= constant:
            continue
        rounded = [name for name in node.input if name in makers and makers[name].op_type in ROUNDING]
        if len(rounded) == 1:
            found.append(node)
    return found


def packed_bytes(graph: onnx.ModelProto) -> int:
    """Bytes of the bit planes in a packed graph."""
    return sum(len(tensor.raw_data) for tensor in graph.graph.initializer if tensor.name.endswith(PLANES))


def packed_weights(graph: onnx.ModelProto) -> int:
    """How many weights a packed graph holds in bit planes."""
    names = [tensor.name for tensor in graph.graph.initializer if tensor.name.endswith(PLANES)]
    shapes = {f"{name.removesuffix(PLANES)}{SHAPE}" for name in names}
    found = [numpy_helper.to_array(tensor) for tensor in graph.graph.initializer if tensor.name in shapes]
    return sum(int(np.prod(shape)) for shape in found)


def _constants(graph: onnx.ModelProto) -> set[str]:
    """Names of all tensors that no input of the graph reaches."""
    names = {tensor.name for tensor in graph.graph.initializer} | {""}
    for node in graph.graph.node:
        if set(node.input) <= names:
            names.update(node.output)
    return names


def _pack(model: onnx.ModelProto, product: NodeProto) -> bool:
    """Put the chain in the place of one product, in place; False where it would not pay."""
    makers = {name: node for node in model.graph.node for name in node.output}
    which = next(at for at, name in enumerate(product.input) if name in makers and makers[name].op_type in ROUNDING)
    whole, scale = values_of(model, [product.input[which], product.input[1 - which]])
    if whole.size < FEWEST or np.ptp(whole) >= 1 << MAX_BITS:
        return False
    codes, low, spacing = _codes(whole)
    # spacing is a power of two, so taking it out of the whole numbers and into the scale changes no bit.
    nodes = _chain(model, product.output[0], codes, low / spacing, scale * np.float32(spacing))
    at = list(model.graph.node).index(product)
    rest = list(model.graph.node)[at + 1 :]
    del model.graph.node[at:]
    model.graph.node.extend([*nodes, *rest])
    return True


def _codes(whole: Array) -> tuple[NDArray[np.uint8], int, int]:
    """Whole numbers as codes from 0: whole = low + spacing * code, with spacing 1 or, for signs, 2."""
    steps = np.rint(whole).astype(np.int64)
    low, high = int(steps.min()), int(steps.max())
    spacing = 2 if (low, high) == (-1, 1) and not np.any(steps == 0) else 1
    return ((steps - low) // spacing).astype(np.uint8), low, spacing


def _chain(
    model: onnx.ModelProto, result: str, codes: NDArray[np.uint8], offset: float, scale: Array
) -> list[NodeProto]:
    """Nodes that make ``(codes + offset) * scale`` of bit planes, under this name; constants go into the graph."""
    # Names are a good part of a small chain.
    name = f"w{sum(tensor.name.endswith(PLANES) for tensor in model.graph.initializer)}"
    bits = bits_for(int(codes.max()))
    planes = pack(codes, bits)
    constants: dict[str, Array] = {
        PLANES: planes[:, :, None],
        "_places": (2.0 ** np.arange(bits, dtype=np.float32))[:, None],
        SHAPE: np.array(codes.shape, np.int64),
        "_offset": np.array(offset, np.float32),
        "_scale": scale.astype(np.float32),
    }
    shared: dict[str, Array] = {
        "unpack_left": (PER_BYTE - 1 - np.arange(PER_BYTE)).astype(np.uint8),
        "unpack_right": np.array(PER_BYTE - 1, np.uint8),
        "unpack_flat": np.array([0, -1], np.int64),
        "unpack_axis": np.array([1], np.int64),
        "unpack_zero": np.array([0], np.int64),
    }
    count = {"_count": np.array([codes.size], np.int64)} if codes.size % PER_BYTE else {}
    _add(model, {f"{name}{key}": value for key, value in (constants | count).items()})
    _add(model, shared)

    def node(kind: str, inputs: Iterable[str], end: str, **attributes: Any) -> NodeProto:
        return helper.make_node(kind, list(inputs), [f"{name}{end}"], **attributes)

    nodes = [
        node("BitShift", [f"{name}{PLANES}", "unpack_left"], "_1", direction="LEFT"),
        node("BitShift", [f"{name}_1", "unpack_right"], "_2", direction="RIGHT"),
        node("Cast", [f"{name}_2"], "_3", to=TensorProto.FLOAT),
        node("Reshape", [f"{name}_3", "unpack_flat"], "_4"),
        # Not one MatMul: that would count as work of the model.
        node("Mul", [f"{name}_4", f"{name}_places"], "_5"),
        node("ReduceSum", [f"{name}_5", "unpack_zero"], "_6", keepdims=1),
    ]
    last = f"{name}_6"
    if count:
        nodes.append(node("Slice", [last, "unpack_zero", f"{name}_count", "unpack_axis"], "_7"))
        last = f"{name}_7"
    return [
        *nodes,
        node("Reshape", [last, f"{name}{SHAPE}"], "_8"),
        node("Add", [f"{name}_8", f"{name}_offset"], "_9"),
        helper.make_node("Mul", [f"{name}_9", f"{name}_scale"], [result]),
    ]


def _fold(model: onnx.ModelProto, leave: set[str]) -> None:
    """Store results of constants that other nodes take, in place; those named are left."""
    constant = _constants(model)
    made = {name for node in model.graph.node for name in node.output}
    running = [node for node in model.graph.node if not set(node.input) <= constant]
    names = dict.fromkeys(name for node in running for name in node.input if name in constant & made - leave)
    sizes = {tensor.name: tensor.ByteSize() for tensor in model.graph.initializer}
    folded = {}
    for name in names:
        needed = _reached(model, [name])
        (value,) = values_of(model, [name])
        if not needed & leave and value.nbytes <= sum(sizes.get(other, 0) for other in needed):
            folded[name] = value
    kept = [node for node in model.graph.node if not set(node.output) & set(folded)]
    del model.graph.node[:]
    model.graph.node.extend(kept)
    _add(model, folded)


def _add(model: onnx.ModelProto, arrays: Mapping[str, Array]) -> None:
    """Constants that are not there yet."""
    there = {tensor.name for tensor in model.graph.initializer}
    for name, value in arrays.items():
        if name not in there:
            model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))


def values_of(model: onnx.ModelProto, names: list[str]) -> list[Array]:
    """The values of constant tensors of a graph."""
    seen = _reached(model, names)
    nodes = [node for node in model.graph.node if seen & set(node.output)]
    tensors = [tensor for tensor in model.graph.initializer if tensor.name in seen]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names]
    part = helper.make_graph(nodes, "g", [], outputs, tensors)
    opsets = list(model.opset_import)
    return list(ReferenceEvaluator(helper.make_model(part, opset_imports=opsets)).run(None, {}))


def _reached(model: onnx.ModelProto, names: list[str]) -> set[str]:
    """Names of all tensors that these are made of, theirs included."""
    makers = {name: node for node in model.graph.node for name in node.output}
    wanted, seen = list(names), set[str]()
    while wanted:
        name = wanted.pop()
        if name not in seen:
            seen.add(name)
            wanted.extend(makers[name].input if name in makers else ())
    return seen


def _drop_unused(model: onnx.ModelProto) -> None:
    """Take out nodes and constants whose results nobody reads, in place."""
    outputs = {value.name for value in model.graph.output}
    used, kept = set(outputs), []
    for node in reversed(model.graph.node):
        if used & set(node.output):
            used |= set(node.input)
            kept.append(node)
    del model.graph.node[:]
    model.graph.node.extend(reversed(kept))
    tensors = [tensor for tensor in model.graph.initializer if tensor.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(tensors)
