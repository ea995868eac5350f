"""A model that takes as long as its input says, so that what a server has learned of its cost can be made wrong.

FP32 [N, 1] in, the same out; 20 products of 256 x 256 matrices, and as many more as the batch's largest value says.
With the 20, our cloud runs it in a thread from the start, not on its event loop.
"""

from __future__ import annotations

from pathlib import Path

WIDTH = 256


def make(path: Path) -> Path:
    """The file, made once. Needs onnx."""
    if path.is_file():
        return path
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper, save

    def value(name: str, kind: int, shape: list[int | str]) -> object:
        return helper.make_tensor_value_info(name, kind, shape)

    square: list[int | str] = [WIDTH, WIDTH]
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["before", "weights"], ["after"]),
            helper.make_node("Identity", ["go"], ["go_on"]),
        ],
        "once",
        [
            value("turn", TensorProto.INT64, []),
            value("go", TensorProto.BOOL, []),
            value("before", TensorProto.FLOAT, square),
        ],
        [value("go_on", TensorProto.BOOL, []), value("after", TensorProto.FLOAT, square)],
    )
    nodes = [
        helper.make_node("ReduceMax", ["image"], ["most"], keepdims=0),
        helper.make_node(
            "Add",
            ["most", "least"],
            ["all"],
        ),
        helper.make_node("Cast", ["all"], ["turns"], to=TensorProto.INT64),
        helper.make_node("Loop", ["turns", "yes", "weights"], ["done"], body=body),
        helper.make_node("ReduceMean", ["done"], ["mean"], keepdims=0),
        helper.make_node("Mul", ["mean", "zero"], ["nothing"]),
        helper.make_node("Add", ["image", "nothing"], ["scores"]),
    ]
    constants = {
        "weights": np.eye(WIDTH, dtype=np.float32),
        "least": np.array(20, np.float32),
        "yes": np.array(True),
        "zero": np.array(0, np.float32),
    }
    graph = helper.make_graph(
        nodes,
        "slow",
        [value("image", TensorProto.FLOAT, ["n", 1])],
        [value("scores", TensorProto.FLOAT, ["n", 1])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    save(model, str(path))
    return path
