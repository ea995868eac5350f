"""A graph as a torch module answers as ONNX Runtime does, and all of its weights can be trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("torch")

import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from edgemux.compression.split.graph_net import GraphNet, check_graph_net, exposed, trainable
from edgemux.compression.split.shapes import example
from edgemux.multiplexer.errors import PassError

BUNDLE = Path(__file__).parents[2] / "deploy" / "bundles" / "fashion-mnist"
DRAW = np.random.default_rng(3)
IMAGE = (2, 3, 7, 7)
ROW = (2, 6)


def weight(*shape: int) -> np.ndarray[Any, Any]:
    return DRAW.standard_normal(shape).astype(np.float32)


def whole(*values: int) -> np.ndarray[Any, Any]:
    return np.array(values, np.int64)


def graph_of(
    nodes: list[onnx.NodeProto], weights: dict[str, Any], shape: tuple[int, ...], made: int = TensorProto.FLOAT
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", *shape[1:]])],
        [helper.make_tensor_value_info("y", made, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def one(op: str, shape: tuple[int, ...], weights: dict[str, Any], **attributes: Any) -> onnx.ModelProto:
    return graph_of(
        [helper.make_node(op, ["x", *weights], ["y"], **attributes)],
        weights,
        shape,
        attributes.get("to", TensorProto.FLOAT),
    )


NODES = {
    "conv": one("Conv", IMAGE, {"w": weight(4, 3, 3, 3), "b": weight(4)}, pads=[1] * 4, strides=[2, 2]),
    "conv with uneven pads": one("Conv", IMAGE, {"w": weight(4, 3, 3, 3)}, pads=[0, 1, 2, 1]),
    "depthwise conv": one("Conv", IMAGE, {"w": weight(3, 1, 3, 3), "b": weight(3)}, group=3, dilations=[2, 2]),
    "conv over time": one("Conv", (2, 3, 9), {"w": weight(4, 3, 3), "b": weight(4)}, pads=[1, 1]),
    "batch norm": one(
        "BatchNormalization", IMAGE, {"s": weight(3), "b": weight(3), "m": weight(3), "v": np.square(weight(3)) + 0.1}
    ),
    "relu": one("Relu", IMAGE, {}),
    "leaky relu": one("LeakyRelu", IMAGE, {}, alpha=0.2),
    "hard swish": one("HardSwish", IMAGE, {}),
    "hard sigmoid": one("HardSigmoid", IMAGE, {}, alpha=0.3),
    "clip": one("Clip", IMAGE, {"low": np.float32(0), "high": np.float32(0.6)}),
    "sigmoid": one("Sigmoid", IMAGE, {}),
    "tanh": one("Tanh", IMAGE, {}),
    "add": one("Add", IMAGE, {"b": weight(3, 1, 1)}),
    "sub": one("Sub", IMAGE, {"b": weight(3, 1, 1)}),
    "mul": one("Mul", IMAGE, {"b": weight(3, 1, 1)}),
    "div": one("Div", IMAGE, {"b": np.full(1, 2.0, np.float32)}),
    "max pool": one("MaxPool", IMAGE, {}, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
    "average pool": one("AveragePool", IMAGE, {}, kernel_shape=[3, 3], strides=[2, 2]),
    "global average": one("GlobalAveragePool", IMAGE, {}),
    "mean": one("ReduceMean", IMAGE, {}, axes=[2, 3], keepdims=0),
    "flatten": one("Flatten", IMAGE, {}, axis=2),
    "reshape": one("Reshape", IMAGE, {"s": whole(0, -1)}),
    "squeeze": one("Squeeze", (2, 3, 1, 1), {"a": whole(2, 3)}),
    "unsqueeze": one("Unsqueeze", ROW, {"a": whole(1, -1)}),
    "transpose": one("Transpose", IMAGE, {}, perm=[0, 2, 3, 1]),
    "pad": one("Pad", IMAGE, {"p": whole(0, 0, 1, 2, 0, 0, 2, 1)}),
    "pad by reflection": one("Pad", IMAGE, {"p": whole(0, 0, 1, 2, 0, 0, 2, 1)}, mode="reflect"),
    "gemm": one("Gemm", ROW, {"w": weight(4, 6), "b": weight(4)}, transB=1, alpha=0.5),
    "matmul": one("MatMul", ROW, {"w": weight(6, 4)}),
    "softmax": one("Softmax", ROW, {}, axis=1),
    "log softmax": one("LogSoftmax", ROW, {}),
    "concat": one("Concat", IMAGE, {"w": weight(2, 3, 7, 7)}, axis=1),
    "cast": one("Cast", IMAGE, {}, to=TensorProto.INT32),
    "dropout": one("Dropout", IMAGE, {}),
    "identity": one("Identity", IMAGE, {}),
}
SHAPES = {"conv over time": (2, 3, 9), "squeeze": (2, 3, 1, 1)} | dict.fromkeys(
    ("unsqueeze", "gemm", "matmul", "softmax", "log softmax"), ROW
)


@pytest.mark.parametrize("name", NODES)
def test_an_operator_answers_as_the_runtime_does(name: str) -> None:
    x = 3.0 * weight(*SHAPES.get(name, IMAGE))
    assert check_graph_net(GraphNet(NODES[name]), NODES[name], {"x": x}) < 1e-5


def stored_as_int8() -> onnx.ModelProto:
    nodes = [
        helper.make_node("Cast", ["steps"], ["wide"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["wide", "scale"], ["w"]),
        helper.make_node("Gemm", ["x", "w", "b"], ["z"], transB=1),
        helper.make_node("Softmax", ["z"], ["y"], axis=1),
    ]
    steps = DRAW.integers(-127, 128, (4, 6)).astype(np.int8)
    return graph_of(nodes, {"steps": steps, "scale": np.full((4, 1), 0.01, np.float32), "b": weight(4)}, ROW)


def test_weights_that_are_stored_as_integers_can_be_trained() -> None:
    model = stored_as_int8()
    net = GraphNet(model)
    assert sorted(tuple(each.shape) for each in net.parameters()) == [(4,), (4, 6)]
    net(torch.from_numpy(weight(*ROW)))["y"].square().sum().backward()
    assert all(each.grad is not None and each.grad.abs().sum() > 0 for each in net.parameters())


@pytest.mark.parametrize("int8", [False, True])
def test_what_is_written_answers_as_the_module_does(int8: bool) -> None:
    net = GraphNet(stored_as_int8())
    with torch.no_grad():
        for each in net.parameters():
            each.mul_(1.5)
    written = net.written(int8)
    again = GraphNet(written)
    check_graph_net(again, written, {"t.x": weight(*ROW)})
    x = torch.from_numpy(weight(*ROW))
    assert again.inputs == ("t.x",) and again.outputs == ("y",)
    assert torch.allclose(again(x)["y"], net(x)["y"], atol=1e-2 if int8 else 1e-6)
    kinds = {tensor.data_type for tensor in written.graph.initializer}
    assert (TensorProto.INT8 in kinds) is int8


def test_a_tensor_inside_becomes_the_last_output_and_can_be_left_out_of_what_is_written() -> None:
    net = GraphNet(exposed(stored_as_int8(), "z"))
    x = torch.from_numpy(weight(*ROW))
    found = net(x)
    assert net.outputs == ("y", "z") and torch.allclose(found["z"].softmax(dim=1), found["y"])
    again = GraphNet(net.written(int8=False, without="z"))
    assert again.outputs == ("y",) and torch.equal(again(x)["y"], found["y"])


def test_a_tensor_that_is_not_there_cannot_be_an_output() -> None:
    with pytest.raises(PassError, match="'nowhere'"):
        exposed(stored_as_int8(), "nowhere")


def test_an_operator_that_is_not_known_is_named() -> None:
    with pytest.raises(PassError, match="operator Erf "):
        GraphNet(one("Erf", ROW, {}))


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (one("AveragePool", IMAGE, {}, kernel_shape=[3, 3], pads=[1] * 4), IMAGE),
        (one("MaxPool", IMAGE, {}, kernel_shape=[3, 3], ceil_mode=1), IMAGE),
        (one("Conv", IMAGE, {"w": weight(4, 3, 3, 3)}, auto_pad="SAME_UPPER"), IMAGE),
        (one("Cast", IMAGE, {}, to=TensorProto.DOUBLE), IMAGE),
    ],
)
def test_an_attribute_that_is_not_known_is_refused(model: onnx.ModelProto, shape: tuple[int, ...]) -> None:
    with pytest.raises(PassError, match="cannot be trained here"):
        GraphNet(model)(torch.from_numpy(weight(*shape)))


def test_a_module_that_answers_otherwise_is_refused() -> None:
    model = stored_as_int8()
    net = GraphNet(model)
    with torch.no_grad():
        next(net.parameters()).mul_(2.0)
    with pytest.raises(PassError, match="differs from ONNX Runtime"):
        check_graph_net(net, model, {"x": weight(*ROW)})


@pytest.mark.parametrize("file", ["cloud", "level1", "level4", "pre_gate"])
def test_the_starter_bundle_s_models_answer_as_in_the_runtime(file: str) -> None:
    model = onnx.load(BUNDLE / f"{file}.onnx")
    assert trainable(model, example(model, rows=3)).outputs
