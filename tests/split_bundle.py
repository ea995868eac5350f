"""A bundle with splits: the tiny bundle's cloud model cut after it has picked its pixels, and one that goes on from
two levels. What is sent are whole numbers, so what each loses is known.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

# The cut sends 250 of a picture's 784 pixels, as they are or in steps of 17.
EXACT, COARSE, DEEP = "exact", "coarse", "deep"


def build_split_bundle(source: Path, folder: Path) -> Path:
    """The bundle of ``source`` with the splits EXACT, COARSE and DEEP in ``folder``, which is returned.

    EXACT answers as the cloud model does. DEEP goes on from level 2, and answers nearly as that level does.
    """
    from edgemux.compression.split.pack import add_split
    from edgemux.multiplexer.bundle import Split, Tensor

    head, tail = _cut(source / "cloud.onnx", "picked")
    pixels = Tensor("sent", "UINT8", (-1, 10, 25))
    for name, bits, step in ((EXACT, 8, 1.0), (COARSE, 4, 17.0)):
        halves = quantised(head, "picked", 0.0, step, bits), dequantised(tail, "picked", 0.0, step)
        files = f"{name}-head.onnx", 0, f"{name}-tail.onnx"
        split = Split(name, *files, pixels, bits, 90.0 * bits / 4, 0.02, 0.02, 250, 500, 0.9, 0.0)
        add_split(folder if name == COARSE else source, folder, split, *halves)
    head, tail = _on_levels()
    halves = quantised(head, "logits", -16.0, 0.125, 8), dequantised(tail, "logits", -16.0, 0.125)
    sums = Tensor("sent", "UINT8", (-1, 10))
    deep = Split(DEEP, "deep-head.onnx", 2, "deep-tail.onnx", sums, 8, 12.0, 0.01, 0.01, 10, 500, 0.8, 0.2)
    add_split(folder, folder, deep, *halves)
    return folder


def _cut(path: Path, tensor: str) -> tuple[Any, Any]:
    from edgemux.compression.split.costs import Whole

    whole = Whole.read(path)
    halves = whole.halves(next(cut for cut in whole.cuts if cut.tensors == (tensor,)))
    return halves.head, halves.tail


def _on_levels() -> tuple[Any, Any]:
    """The sum of what levels 1 and 2 leave, and its softmax."""
    from onnx import TensorProto, helper

    def value(name: str) -> Any:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 10])

    nodes = (
        helper.make_node("Sum", ["state_1", "state_2"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
    )
    opset = [helper.make_opsetid("", 17)]
    head = helper.make_graph([nodes[0]], "head", [value("state_1"), value("state_2")], [value("logits")])
    tail = helper.make_graph([nodes[1]], "tail", [value("logits")], [value("probabilities")])
    made = [helper.make_model(graph, opset_imports=opset, ir_version=8) for graph in (head, tail)]
    return made[0], made[1]


def quantised(head: Any, tensor: str, low: float, step: float, bits: int) -> bytes:
    """A head that answers ``tensor`` FP32, changed to answer "sent" UINT8: in steps from ``low``, so many bits each."""
    from onnx import ModelProto, TensorProto, helper

    model = ModelProto()
    model.CopyFrom(head)
    graph, (output,) = model.graph, head.graph.output
    _add_numbers(graph, low=low, step=step, none=0.0, top=2.0**bits - 1)
    graph.node.extend(
        [
            helper.make_node("Sub", [tensor, "low"], ["above"]),
            helper.make_node("Div", ["above", "step"], ["steps"]),
            helper.make_node("Round", ["steps"], ["whole"]),
            helper.make_node("Clip", ["whole", "none", "top"], ["clipped"]),
            helper.make_node("Cast", ["clipped"], ["sent"], to=TensorProto.UINT8),
        ]
    )
    del graph.output[:]
    graph.output.append(_sent_like(output))
    return bytes(model.SerializeToString())


def dequantised(tail: Any, tensor: str, low: float, step: float) -> bytes:
    """A tail that takes ``tensor`` FP32, changed to take what such a head sends."""
    from onnx import ModelProto, TensorProto, helper

    model = ModelProto()
    model.CopyFrom(tail)
    graph, (taken,) = model.graph, tail.graph.input
    before = [
        helper.make_node("Cast", ["sent"], ["steps"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["steps", "step"], ["above"]),
        helper.make_node("Add", ["above", "low"], [tensor]),
    ]
    after = list(graph.node)
    del graph.node[:], graph.input[:]
    graph.node.extend([*before, *after])
    graph.input.append(_sent_like(taken))
    _add_numbers(graph, low=low, step=step)
    return bytes(model.SerializeToString())


def _sent_like(value: Any) -> Any:
    from onnx import TensorProto

    sent = type(value)()
    sent.CopyFrom(value)
    sent.name, sent.type.tensor_type.elem_type = "sent", TensorProto.UINT8
    return sent


def _add_numbers(graph: Any, **numbers: float) -> None:
    from onnx import numpy_helper

    graph.initializer.extend(numpy_helper.from_array(np.array(n, np.float32), name) for name, n in numbers.items())
