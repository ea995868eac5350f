"""Any classifier in ONNX becomes one of a bundle's: named as bundles name things, for any batch, calibrated."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgemux.multiplexer.errors import ConfigError
from edgemux.multiplexer.onnx_model import OnnxModel

FEATURES, CLASSES = 6, 3
RNG = np.random.default_rng(5)
WEIGHT = RNG.normal(size=(FEATURES, CLASSES)).astype(np.float32)
X = RNG.normal(size=(7, FEATURES)).astype(np.float32)


@pytest.fixture(autouse=True)
def _needs_torch(torch: Any) -> None:
    """The toolchain's environment only."""


def linear(
    path: Path,
    batch: int | str = "n",
    end: Callable[[Any], list[Any]] | None = None,
    opset: int = 17,
    name: str = "probabilities",
    weight: Any = WEIGHT,
    outputs: tuple[tuple[str, int], ...] = (("y", 1),),
) -> Path:
    """x @ WEIGHT; ``end(helper)`` makes ``y`` of ``z``, without it y is z. The input's name is one that bundles use."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    nodes = [helper.make_node("MatMul", [name, "w"], ["z"])]
    nodes += end(helper) if end else [helper.make_node("Identity", ["z"], ["y"])]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, len(weight)])],
        [helper.make_tensor_value_info(out, kind, None) for out, kind in outputs],
        [
            numpy_helper.from_array(weight, "w"),
            numpy_helper.from_array(np.array([1, -1], np.int64), "shape"),
            numpy_helper.from_array(np.array([1, 1, -1], np.int64), "rows"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.save(model, str(path))
    return path


def wrapped(path: Path, x: Any = X) -> Any:
    from edgemux.compression.own.entry import array_entry
    from edgemux.compression.own.given import read
    from edgemux.compression.own.wrap import wrap

    given = read(path)
    return wrap(given, array_entry(given, x.shape[1:]), x)


def answers(path: Path, temperature: float = 1.0, x: Any = X) -> Any:
    from edgemux.compression.own.wrap import kind_of

    made = wrapped(path, x)
    name = made.entry.tensor.name
    raw = OnnxModel(made.raw().SerializeToString(), "raw").run({name: x})[0]
    return OnnxModel(made.finished(kind_of(raw), temperature).SerializeToString(), "m").run({name: x})[0]


def softmax(logits: Any) -> Any:
    e = np.exp(logits - logits.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def test_logits_become_probabilities_at_their_temperature(tmp_path: Path) -> None:
    path = linear(tmp_path / "m.onnx", name="x")
    assert wrapped(path).entry.tensor.name == "x"
    assert np.allclose(answers(path, 2.0), softmax(X @ WEIGHT / 2), atol=1e-6)


def test_a_name_that_bundles_use_themselves_is_not_kept(tmp_path: Path) -> None:
    path = linear(tmp_path / "m.onnx", name="probabilities")
    assert wrapped(path).entry.tensor.name == "input"
    assert np.allclose(answers(path), softmax(X @ WEIGHT), atol=1e-6)


def test_probabilities_stay_what_they_are_at_a_temperature_of_one(tmp_path: Path) -> None:
    path = linear(tmp_path / "m.onnx", end=lambda h: [h.make_node("Softmax", ["z"], ["y"], axis=1)])
    assert np.allclose(answers(path), softmax(X @ WEIGHT), atol=1e-6)
    assert np.allclose(answers(path, 2.0), softmax(X @ WEIGHT / 2), atol=1e-6)


@pytest.mark.parametrize("end", ["Sigmoid", "Identity"])
def test_one_number_stands_for_two_classes(tmp_path: Path, end: str) -> None:
    path = linear(tmp_path / "m.onnx", end=lambda h: [h.make_node(end, ["z"], ["y"])], weight=9 * WEIGHT[:, :1])
    second = 1 / (1 + np.exp(-(X @ WEIGHT[:, :1] * 9)))
    assert np.allclose(answers(path), np.concatenate([1 - second, second], axis=1), atol=1e-5)


@pytest.mark.parametrize(("batch", "shape"), [(1, "shape"), (1, "rows"), (4, None)])
def test_a_graph_for_a_fixed_batch_is_freed_where_that_changes_no_answer(
    tmp_path: Path, batch: int, shape: str | None
) -> None:
    end = None if shape is None else lambda h: [h.make_node("Reshape", ["z", shape], ["y"])]
    path = linear(tmp_path / "m.onnx", batch, end)
    assert np.allclose(answers(path), softmax(X @ WEIGHT), atol=1e-6)


def test_recurrent_layers_that_begin_with_zeros_for_one_row_are_freed(tmp_path: Path, torch: Any) -> None:
    torch.manual_seed(1)

    class Net(torch.nn.Module):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.head = torch.nn.LSTM(2, 5, batch_first=True), torch.nn.Linear(5, 3)

        def forward(self, x: Any) -> Any:
            return self.head(self.layer(x)[0][:, -1])

    from edgemux.compression.to_onnx import exported

    net, x = Net().eval(), torch.randn(7, 4, 2)
    model = exported(net, x[:1])
    import onnx
    from onnx import helper, numpy_helper

    # As exporters write it when they take the batch of 1 for a constant.
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    zeros = numpy_helper.from_array(np.zeros((1, 1, 5), np.float32), "zeros")
    model.graph.initializer.append(zeros)
    (layer,) = (node for node in model.graph.node if node.op_type == "LSTM")
    layer.input[5] = layer.input[6] = "zeros"
    (squeeze,) = (node for node in model.graph.node if layer.output[0] in node.input)
    model.graph.initializer.append(numpy_helper.from_array(np.array([4, 1, 5], np.int64), "sizes"))
    squeeze.CopyFrom(helper.make_node("Reshape", [layer.output[0], "sizes"], list(squeeze.output), allowzero=1))
    onnx.save(model, str(tmp_path / "m.onnx"))
    with torch.no_grad():
        expected = softmax(net(x).numpy())
    assert np.allclose(answers(tmp_path / "m.onnx", x=x.numpy()), expected, atol=1e-5)


def test_a_graph_that_cannot_be_freed_is_refused_by_name(tmp_path: Path) -> None:
    def end(h: Any) -> list[Any]:
        return [h.make_node("Flatten", ["z"], ["flat"], axis=0), h.make_node("Identity", ["flat"], ["y"])]

    with pytest.raises(ConfigError, match=r"^m\.onnx: takes batches of 1 only"):
        wrapped(linear(tmp_path / "m.onnx", 1, end))


def test_a_model_whose_answers_depend_on_other_rows_is_refused(tmp_path: Path) -> None:
    def end(h: Any) -> list[Any]:
        return [h.make_node("ReduceMax", ["z"], ["most"], axes=[0]), h.make_node("Sub", ["z", "most"], ["y"])]

    with pytest.raises(ConfigError, match="differently beside other rows"):
        wrapped(linear(tmp_path / "m.onnx", end=end))


def test_the_first_output_that_is_a_row_of_numbers_is_the_answer(tmp_path: Path) -> None:
    from onnx import TensorProto

    def end(h: Any) -> list[Any]:
        return [h.make_node("ArgMax", ["z"], ["label"], axis=1), h.make_node("Identity", ["z"], ["y"])]

    path = linear(tmp_path / "m.onnx", end=end, outputs=(("label", TensorProto.INT64), ("y", TensorProto.FLOAT)))
    assert wrapped(path).output == "y"


def test_older_opsets_are_brought_up_to_date(tmp_path: Path) -> None:
    path = linear(tmp_path / "m.onnx", end=lambda h: [h.make_node("Softmax", ["z"], ["y"], axis=1)], opset=11)
    assert np.allclose(answers(path), softmax(X @ WEIGHT), atol=1e-6)


def test_newer_opsets_are_taken_as_they_are(tmp_path: Path) -> None:
    path = linear(tmp_path / "m.onnx", end=lambda h: [h.make_node("Softmax", ["z"], ["y"], axis=1)], opset=20)
    assert np.allclose(answers(path), softmax(X @ WEIGHT), atol=1e-6)


def test_weights_beside_the_file_end_up_inside(tmp_path: Path) -> None:
    import onnx

    plain = onnx.load(str(linear(tmp_path / "m.onnx")))
    onnx.save(plain, str(tmp_path / "apart.onnx"), save_as_external_data=True, location="apart.bin", size_threshold=0)
    assert np.allclose(answers(tmp_path / "apart.onnx"), softmax(X @ WEIGHT), atol=1e-6)
    (tmp_path / "apart.bin").unlink()
    with pytest.raises(ConfigError, match=r"^apart\.onnx: the file that holds its weights"):
        wrapped(tmp_path / "apart.onnx")


def test_what_is_no_model_or_not_there_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "noise.onnx").write_bytes(b"\x07noise, not a model" * 9)
    with pytest.raises(ConfigError, match=r"^noise\.onnx: not an ONNX model"):
        wrapped(tmp_path / "noise.onnx")
    with pytest.raises(ConfigError, match=r"^absent\.onnx: not there"):
        wrapped(tmp_path / "absent.onnx")


def test_rows_of_another_length_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"m\.onnx: takes x FP32 \[-1, 6\], a row of the inputs is \[5\]"):
        wrapped(linear(tmp_path / "m.onnx", name="x"), X[:, :5])
