"""A graph whose weights are elsewhere is refused before ONNX Runtime goes looking for them."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from edgemux.multiplexer.errors import ArtifactError
from edgemux.multiplexer.onnx_model import OnnxModel
from edgemux.multiplexer.onnx_scan import CONTAINERS, DATA_LOCATION, EXTERNAL_DATA, refuse_external_data


def elsewhere() -> Any:
    """A tensor whose data is in a file."""
    tensor = numpy_helper.from_array(np.zeros(4, np.float32), "weight")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="weights.bin")
    return tensor


def model() -> Any:
    """``y = x + weight``, without the weight."""
    node = helper.make_node("Add", ["x", "weight"], ["y"])
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in "xy"]
    graph = helper.make_graph([node], "adds", values[:1], values[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def initializer(graph: Any) -> None:
    graph.initializer.append(elsewhere())


def sparse(graph: Any) -> None:
    graph.sparse_initializer.add().values.CopyFrom(elsewhere())


def constant(graph: Any) -> None:
    graph.node.append(helper.make_node("Constant", [], ["weight"], value=elsewhere()))


def tensors(graph: Any) -> None:
    graph.node[0].attribute.append(helper.make_attribute("all", [elsewhere()]))


def branch(graph: Any) -> None:
    inner = helper.make_graph([], "inner", [], [], [elsewhere()])
    graph.node[0].attribute.append(helper.make_attribute("then_branch", inner))


def branch_of_a_branch(graph: Any) -> None:
    inner = helper.make_graph([helper.make_node("If", ["x"], ["z"])], "inner", [], [])
    branch(inner)
    graph.node[0].attribute.append(helper.make_attribute("branches", [inner]))


@pytest.mark.parametrize("put", [initializer, sparse, constant, tensors, branch, branch_of_a_branch])
def test_weights_in_another_file_are_refused_wherever_a_graph_can_hold_them(put: Callable[[Any], None]) -> None:
    outside = model()
    put(outside.graph)
    with pytest.raises(ArtifactError, match=r"^m\.onnx: keeps weights in another file"):
        refuse_external_data(outside.SerializeToString(), "m.onnx")


def test_weights_in_another_file_are_refused_in_functions() -> None:
    outside = model()
    nodes = [helper.make_node("Constant", [], ["y"], value=elsewhere())]
    outside.functions.append(helper.make_function("d", "f", [], ["y"], nodes, []))
    with pytest.raises(ArtifactError, match="keeps weights in another file"):
        refuse_external_data(outside.SerializeToString(), "m.onnx")


def test_every_way_that_onnx_has_to_hold_a_tensor_is_walked() -> None:
    """By the onnx package's own description: a version that adds one fails here."""
    holders: dict[str, dict[int, str]] = {"TensorProto": {}}
    seen: dict[str, Any] = {}

    def look(message: Any) -> None:
        if message.name not in seen:
            seen[message.name] = message
            for field in message.fields:
                if field.message_type is not None:
                    look(field.message_type)

    look(onnx.ModelProto.DESCRIPTOR)
    for _ in seen:  # each round finds holders of what the rounds before have found
        for name, message in seen.items():
            inside = {f.number: f.message_type.name for f in message.fields if f.message_type is not None}
            leading = {number: kind for number, kind in inside.items() if kind in holders}
            if leading and name != "TensorProto":
                holders[name] = leading
    assert holders == CONTAINERS
    numbers = {field.name: field.number for field in seen["TensorProto"].fields}
    assert (numbers["external_data"], numbers["data_location"]) == (EXTERNAL_DATA, DATA_LOCATION)


def test_external_data_beside_the_process_is_not_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What made the check necessary: ONNX Runtime takes the file from the current directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights.bin").write_bytes(np.ones(4, np.float32).tobytes())
    outside = model()
    initializer(outside.graph)
    with pytest.raises(ArtifactError, match=r"^m\.onnx: "):
        OnnxModel(outside.SerializeToString(), "m.onnx")


def test_a_graph_with_its_weights_inside_passes_and_large_ones_take_no_time() -> None:
    inside = model()
    inside.graph.initializer.append(numpy_helper.from_array(np.zeros(4, np.float32), "weight"))
    inside.graph.initializer.append(numpy_helper.from_array(np.zeros(2**22, np.float32), "large"))
    content = inside.SerializeToString()
    began = time.process_time()
    refuse_external_data(content, "m.onnx")
    assert time.process_time() - began < 0.5


@pytest.mark.parametrize(
    "content",
    [
        b"\x3a",  # no length
        b"\x3a\x05\x00",  # longer than the file
        b"\x3a\x02\x0a\x05\x00\x00\x00\x00\x00",  # a node longer than its graph
        b"\x00\x00",  # field 0
        b"\x3b\x3c",  # a group
        b"\xf0\xff\xff\xff\x1f\x00",  # a tag of more than 32 bits
        b"\x08" + b"\xff" * 11,  # a number without an end
        b"\x0a\x06\x00\x00ORTM",  # ONNX Runtime's own format, made to look like protobuf
    ],
)
def test_what_is_not_protobuf_is_refused_naming_the_file(content: bytes) -> None:
    with pytest.raises(ArtifactError, match=r"^m\.onnx: not (an ONNX graph|in the ONNX format)"):
        refuse_external_data(content, "m.onnx")


def test_a_graph_of_nothing_but_fields_ends_in_time() -> None:
    with pytest.raises(ArtifactError, match=r"^m\.onnx: "):
        refuse_external_data(b"\x08\x00" * (2**21 + 1), "m.onnx")


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_any_damage_passes_or_is_refused_with_the_files_name(data: st.DataObject) -> None:
    inside = model()
    inside.graph.initializer.append(numpy_helper.from_array(np.zeros(4, np.float32), "weight"))
    content = bytearray(inside.SerializeToString())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        refuse_external_data(bytes(content), "m.onnx")
    except ArtifactError as error:
        assert str(error).startswith("m.onnx: ")
