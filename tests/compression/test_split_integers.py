"""Graphs that compute in integers are cut where the integers are: fewer bytes, and what is fused stays together."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx")

import onnx
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from edgemux.compression.split.costs import INTEGER_TOLERANCE, Whole
from edgemux.compression.split.cuts import computes_in_integers, cuts_of
from edgemux.compression.split.halves import halves_of
from edgemux.compression.split.shapes import example, measure
from edgemux.multiplexer.errors import PassError
from tests.split_graphs import check_every_cut, graph_of, value

BUNDLE = Path(__file__).parents[2] / "deploy" / "bundles" / "fashion-mnist"
node = helper.make_node
PIXELS = ("n", 3, 8, 8)


def float_graph() -> bytes:
    """Convolutions with a residual connection, and a softmax."""
    draw = np.random.default_rng(3)
    weights = {
        f"w{i}": draw.standard_normal((made, given, 3, 3)).astype(np.float32) * 0.3
        for i, (made, given) in enumerate(((8, 3), (8, 8), (8, 8)))
    }
    weights |= {"w": draw.standard_normal((8, 5)).astype(np.float32), "axes": np.array([2, 3])}
    nodes = [
        node("Conv", ["x", "w0"], ["c0"], pads=[1, 1, 1, 1]),
        node("Relu", ["c0"], ["r0"]),
        node("Conv", ["r0", "w1"], ["c1"], pads=[1, 1, 1, 1]),
        node("Relu", ["c1"], ["r1"]),
        node("Conv", ["r1", "w2"], ["c2"], pads=[1, 1, 1, 1]),
        node("Add", ["r0", "c2"], ["sum"]),
        node("Relu", ["sum"], ["r2"]),
        node("ReduceMean", ["r2", "axes"], ["mean"], keepdims=0),
        node("MatMul", ["mean", "w"], ["logits"]),
        node("Softmax", ["logits"], ["y"]),
    ]
    outputs = [value("y", TensorProto.FLOAT, ("n", 5))]
    return graph_of(nodes, [value("x", TensorProto.FLOAT, PIXELS)], outputs, weights, opset=18)


class Some:
    """What the quantiser calls a data reader."""

    def __init__(self) -> None:
        self._left: Iterator[int] = iter(range(8))

    def get_next(self) -> dict[str, Any] | None:
        seed = next(self._left, None)
        draw = np.random.default_rng(seed)
        return None if seed is None else {"x": draw.standard_normal((1, 3, 8, 8)).astype(np.float32)}


@pytest.fixture(params=["QDQ-QInt8", "QDQ-QUInt8", "QOperator-QInt8", "QOperator-QUInt8", "dynamic"])
def quantised(request: pytest.FixtureRequest, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> bytes:
    """The graph as the runtime's own quantiser makes it."""
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_dynamic, quantize_static

    caplog.set_level(logging.CRITICAL)
    plain, made = tmp_path / "plain.onnx", tmp_path / "made.onnx"
    plain.write_bytes(float_graph())
    if request.param == "dynamic":
        quantize_dynamic(plain, made)
    else:
        form, kind = request.param.split("-")
        how = {"quant_format": QuantFormat[form], "activation_type": QuantType[kind], "weight_type": QuantType.QInt8}
        quantize_static(plain, made, Some(), per_channel=True, **how)
    return made.read_bytes()


def test_every_cut_of_a_quantised_graph_answers_as_the_whole_does_but_for_a_few_steps(quantised: bytes) -> None:
    whole = check_every_cut(quantised, tolerance=INTEGER_TOLERANCE)
    assert whole.integers
    assert len(whole.cuts) >= 7


@pytest.mark.parametrize("quantised", ["QDQ-QInt8", "QDQ-QUInt8"], indirect=True)
def test_integers_are_sent_and_never_the_real_numbers_that_are_made_of_them(quantised: bytes) -> None:
    whole = Whole(quantised, "m.onnx")
    kinds = {whole.measured[name].datatype for cut in whole.cuts for name in cut.tensors}
    assert len(kinds) == 1 and kinds < {"INT8", "UINT8"}
    graph = onnx.load_model_from_string(quantised).graph
    steps = sum(one.op_type == "QuantizeLinear" for one in graph.node)
    # The last one has made the answer, and each is a place of its own.
    assert len(whole.cuts) in (steps - 1, steps)
    both = next(cut for cut in whole.cuts if len(cut.tensors) == 2)
    assert whole.price(both, timed=False).bytes == 2 * 8 * 8 * 8, "the residual connection, of a byte each"


def test_the_tail_makes_real_numbers_again_for_all_who_read_them_and_the_head_does_not() -> None:
    nodes = [
        node("Tanh", ["x"], ["a"]),
        node("QuantizeLinear", ["a", "s", "z"], ["q"]),
        node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        node("Neg", ["d"], ["b"]),
        node("Add", ["b", "d"], ["c"]),
        node("Mul", ["c", "c"], ["y"]),
    ]
    weights = {"s": np.float32(0.01), "z": np.int8(3)}
    content = graph_of(nodes, [value("x")], [value("y"), value("d")], weights)
    whole = check_every_cut(content)
    assert [cut.tensors for cut in whole.cuts] == [("q",), ("q", "b"), ("q", "c")]
    first = whole.halves(whole.cuts[0])
    assert [one.op_type for one in first.head.graph.node] == ["Tanh", "QuantizeLinear"]
    assert next(one.op_type for one in first.tail.graph.node) == "DequantizeLinear"
    assert whole.price(whole.cuts[0], timed=False).bytes == 3


def test_numbers_whose_steps_are_computed_are_sent_as_they_are() -> None:
    nodes = [
        node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        node("Neg", ["d"], ["e"]),
        node("Tanh", ["e"], ["y"]),
    ]
    content = graph_of(nodes, [value("x", shape=(1, 3))], [value("y", shape=(1, 3))])
    assert [cut.tensors for cut in check_every_cut(content).cuts] == [("q", "s", "z"), ("d",), ("e",)]


def test_an_input_that_is_an_integer_is_not_sent_as_what_is_made_of_it() -> None:
    nodes = [node("DequantizeLinear", ["x", "s"], ["d"]), node("Neg", ["d"], ["e"]), node("Tanh", ["e"], ["y"])]
    content = graph_of(nodes, [value("x", TensorProto.UINT8)], [value("y")], {"s": np.float32(0.1)})
    assert [cut.tensors for cut in check_every_cut(content).cuts] == [("e",)]


def test_only_what_is_not_a_weight_counts_as_computing_in_integers() -> None:
    weights = {"w": np.ones((3, 3), np.int8), "s": np.float32(0.1)}
    nodes = [node("DequantizeLinear", ["w", "s"], ["v"]), node("MatMul", ["x", "v"], ["a"]), node("Tanh", ["a"], ["y"])]
    graph = onnx.load_model_from_string(graph_of(nodes, [value("x")], [value("y")], weights)).graph
    assert not computes_in_integers(graph)
    assert [cut.tensors for cut in cuts_of(graph)] == [("a",)]


@pytest.mark.parametrize("name", ["level1", "level2", "level3", "level4", "pre_gate", "post_gate"])
def test_the_starter_bundles_levels_and_gates_are_cut(name: str) -> None:
    whole = check_every_cut((BUNDLE / f"{name}.onnx").read_bytes(), tolerance=INTEGER_TOLERANCE)
    assert whole.cuts


@st.composite
def graphs(draw: st.DrawFn) -> onnx.ModelProto:
    """Branches that meet again anywhere, with integers in between, and several outputs."""
    reals, nodes = ["x"], []
    for number in range(draw(st.integers(2, 10))):
        name, one, other = f"t{number}", draw(st.sampled_from(reals)), draw(st.sampled_from(reals))
        match draw(st.integers(0, 4)):
            case 0:
                nodes.append(node("Add", [one, other], [name]))
            case 1:
                nodes.append(node(draw(st.sampled_from(("Tanh", "Relu", "Neg"))), [one], [name]))
            case 2:  # integers, of which real numbers are made twice
                nodes.append(node("QuantizeLinear", [one, "s", "z"], [f"q{number}"]))
                nodes.append(node("DequantizeLinear", [f"q{number}", "s", "z"], [f"o{number}"]))
                nodes.append(node("DequantizeLinear", [f"q{number}", "s", "z"], [name]))
                reals.append(f"o{number}")
            case 3:  # one activation more before them
                nodes.append(node("Relu", [one], [f"r{number}"]))
                nodes.append(node("QuantizeLinear", [f"r{number}", "s", "z"], [f"q{number}"]))
                nodes.append(node("DequantizeLinear", [f"q{number}", "s", "z"], [name]))
            case _:
                nodes.append(node("MatMul", [one, "w"], [name]))
        reals.append(name)
    outputs = draw(st.lists(st.sampled_from(reals[1:]), min_size=1, max_size=3, unique=True))
    weights = {"w": np.eye(3, dtype=np.float32) * 0.5, "s": np.float32(0.05), "z": np.int8(2)}
    content = graph_of(nodes, [value("x")], [value(name) for name in outputs], weights, opset=21, ir_version=10)
    return onnx.load_model_from_string(content)


@settings(max_examples=40, deadline=None)
@given(graphs())
def test_by_the_standard_head_and_tail_are_the_whole_to_the_last_bit_wherever_integers_are_cut(
    model: onnx.ModelProto,
) -> None:
    """By the reference, which fuses nothing: what the runtime rounds otherwise is not looked at here."""
    try:
        cuts = cuts_of(model.graph)
    except PassError:
        return
    measured, feeds = measure(model, (name for cut in cuts for name in cut.tensors)), example(model)
    wanted = ReferenceEvaluator(model).run(None, feeds)
    for cut in cuts:
        halves = halves_of(model, cut, measured, "")
        head, tail = ReferenceEvaluator(halves.head), ReferenceEvaluator(halves.tail)
        sent = dict(zip(head.output_names, head.run(None, feeds), strict=True))
        assert set(tail.input_names) == set(sent)
        for found, array in zip(tail.run(None, sent), wanted, strict=True):
            assert np.array_equal(found, array)
        makers = {name: one.op_type for one in model.graph.node for name in one.output}
        assert "DequantizeLinear" not in {makers.get(name) for name in cut.tensors}
