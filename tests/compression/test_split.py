"""Any graph is cut where it says it can be, and head then tail answer as the whole does."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("onnx")

import onnx
from onnx import TensorProto, helper

from edgemux.compression.split.costs import Whole
from edgemux.compression.split.cuts import cuts_of
from edgemux.compression.split.halves import CUT_KEY, PART_KEY, WHOLE_KEY, joined
from edgemux.multiplexer.errors import ArtifactError, ConfigError, PassError
from edgemux.multiplexer.onnx_model import OnnxModel
from tests.split_graphs import FEATURES, check_every_cut, model_of

CLOUD = Path(__file__).parents[2] / "deploy" / "bundles" / "fashion-mnist" / "cloud.onnx"


@st.composite
def graphs(draw: st.DrawFn) -> bytes:
    """Layers with branches that meet again anywhere, weights computed from weights, several inputs and outputs."""
    inputs = ("x", "y")[: draw(st.integers(1, 2))]
    tensors, nodes = list(inputs), []
    weights = {"w": np.eye(FEATURES, dtype=np.float32) * 0.5, "s": np.float32(2.0)}
    for number in range(draw(st.integers(2, 9))):
        name = f"t{number}"
        one, other = draw(st.sampled_from(tensors)), draw(st.sampled_from(tensors))
        match draw(st.integers(0, 4)):
            case 0:
                nodes.append(helper.make_node("Add", [one, other], [name]))
            case 1:
                nodes.append(helper.make_node("Tanh", [one], [name]))
            case 2:  # a weight that is computed
                nodes.append(helper.make_node("Mul", ["w", "s"], [f"w{number}"]))
                nodes.append(helper.make_node("MatMul", [one, f"w{number}"], [name]))
            case 3:  # the shape of a tensor, which has no rows
                nodes.append(helper.make_node("Shape", [one], [f"n{number}"]))
                nodes.append(helper.make_node("Expand", [other, f"n{number}"], [name]))
            case _:
                nodes.append(helper.make_node("Max", [one, other, "s"], [name]))
        tensors.append(name)
    made = tensors[len(inputs) :]
    return model_of(nodes, draw(st.lists(st.sampled_from(made), min_size=1, max_size=3, unique=True)), weights, inputs)


@settings(max_examples=30, deadline=None)
@given(graphs())
def test_head_then_tail_equals_the_whole_at_every_cut_of_any_graph(content: bytes) -> None:
    try:
        whole = check_every_cut(content)
    except PassError as error:
        assert "cut" in str(error)
        return
    assert len({cut.tensors for cut in whole.cuts}) == len(whole.cuts)


@settings(max_examples=30, deadline=None)
@given(graphs())
def test_the_tail_reads_nothing_of_the_inputs_but_what_is_sent(content: bytes) -> None:
    graph = onnx.load_model_from_string(content).graph
    try:
        cuts = cuts_of(graph)
    except PassError:
        return
    for cut in cuts:
        reached = set(cut.tensors)
        known = {*reached, *(tensor.name for tensor in graph.initializer)}
        for node in graph.node:
            if all(name in known for name in node.input):
                known.update(node.output)
        assert {value.name for value in graph.output} <= known


@pytest.mark.parametrize("name", ["mobilenet", "shufflenet", "vargnet"])
def test_the_architectures_of_the_toolkit_can_be_cut_everywhere(torch: Any, name: str) -> None:
    from edgemux.compression.to_onnx import exported

    net = import_module(f"edgemux.compression.cells.{name}").student((3, 16, 16), 5, 0.25, 1.0)
    whole = check_every_cut(exported(net, torch.rand(1, 3, 16, 16)).SerializeToString())
    assert len(whole.cuts) > 10


def test_a_recurrent_net_can_be_cut(torch: Any) -> None:
    from edgemux.compression.to_onnx import exported

    class Net(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.gru, self.out = torch.nn.GRU(4, 6, num_layers=2, batch_first=True), torch.nn.Linear(6, 3)

        def forward(self, x: Any) -> Any:
            return self.out(self.gru(x)[0][:, -1])

    whole = check_every_cut(exported(Net(), torch.rand(1, 7, 4)).SerializeToString())
    assert whole.cuts


def test_the_starter_bundles_cloud_model_can_be_cut_in_its_residual_blocks() -> None:
    whole = check_every_cut(CLOUD.read_bytes())
    assert any(len(cut.tensors) == 2 for cut in whole.cuts)
    assert any(len(cut.tensors) == 1 for cut in whole.cuts)


def test_the_work_of_head_and_tail_is_that_of_the_whole_wherever_it_is_cut() -> None:
    from edgemux.compression.profile import macs

    whole = Whole(CLOUD.read_bytes(), "cloud.onnx")
    total = macs(onnx.load(CLOUD))
    prices = [whole.price(cut, timed=False) for cut in whole.cuts]
    assert {price.head_macs + price.tail_macs for price in prices} == {total}
    assert [price.head_macs for price in prices] == sorted(price.head_macs for price in prices)
    assert all(price.bytes == sum(4 * int(np.prod(shape)) for shape in price.shapes) for price in prices)


def test_a_graph_inside_a_node_takes_what_it_reads_from_the_other_half() -> None:
    inner = helper.make_graph(
        [helper.make_node("Add", ["early", "b"], ["then"])],
        "then",
        [],
        [helper.make_tensor_value_info("then", TensorProto.FLOAT, ["n", FEATURES])],
    )
    otherwise = helper.make_graph(
        [helper.make_node("Identity", ["late"], ["else"])],
        "else",
        [],
        [helper.make_tensor_value_info("else", TensorProto.FLOAT, ["n", FEATURES])],
    )
    nodes = [
        helper.make_node("Tanh", ["x"], ["early"]),
        helper.make_node("Neg", ["early"], ["late"]),
        helper.make_node("ReduceMax", ["late"], ["most"], keepdims=0),
        helper.make_node("Greater", ["most", "zero"], ["positive"]),
        helper.make_node("If", ["positive"], ["y"], then_branch=inner, else_branch=otherwise),
    ]
    weights = {"zero": np.float32(0), "b": np.float32(1)}
    whole = check_every_cut(model_of(nodes, ["y"], weights))
    assert ("early", "late", "most") in {cut.tensors for cut in whole.cuts}


def test_a_cut_whose_tensors_do_not_count_inputs_says_so_and_one_with_the_input_itself_too() -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["sizes"]),
        helper.make_node("Tanh", ["x"], ["t"]),
        helper.make_node("Expand", ["t", "sizes"], ["u"]),
        helper.make_node("Neg", ["u"], ["y"]),
    ]
    whole = Whole(model_of(nodes, ["y"]), "m.onnx")
    prices = {price.tensors: price for price in (whole.price(cut, timed=False) for cut in whole.cuts)}
    assert prices["x", "sizes"].raw
    assert not prices["x", "sizes"].rows
    assert not prices["sizes", "t"].raw
    assert prices[("u",)].rows


@pytest.mark.parametrize(
    ("content", "error", "says"),
    [
        (b"no model", ArtifactError, "not an ONNX graph"),
        (model_of([helper.make_node("Tanh", ["x"], ["y"])], ["y"]), PassError, "cannot be cut"),
    ],
)
def test_what_cannot_be_cut_is_refused_with_its_name(content: bytes, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says) as raised:
        Whole(content, "small.onnx")
    assert "small.onnx" in str(raised.value)


def test_sizes_that_a_model_leaves_open_are_asked_for_and_checked() -> None:
    model = onnx.load_model_from_string(
        model_of([helper.make_node("Tanh", ["x"], ["t"]), helper.make_node("Neg", ["t"], ["y"])], ["y"])
    )
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "width"
    content = model.SerializeToString()
    with pytest.raises(ConfigError, match=r"x=1,\?"):
        Whole(content, "m.onnx")
    with pytest.raises(ConfigError, match="no input 'z'"):
        Whole(content, "m.onnx", {"z": (1, 4)})
    whole = Whole(content, "m.onnx", {"x": (1, 4)})
    assert whole.price(whole.cuts[0], timed=False).bytes == 16


def split(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edgemux.cli.main", "split", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)


def test_the_command_lists_cuts_and_writes_two_files_that_say_what_they_are_parts_of(tmp_path: Path) -> None:
    listed = split(str(CLOUD), "--json", "--no-time")
    assert listed.returncode == 0, listed.stderr
    cuts = json.loads(listed.stdout)["cuts"]
    cut = next(cut for cut in cuts if len(cut["tensors"]) == 2)
    out = tmp_path / "halves"
    for _ in range(2):  # a second time replaces the first
        made = split(str(CLOUD), "--at", str(cut["index"]), "--out", str(out))
        assert made.returncode == 0, made.stderr
    about = json.loads((out / "split.json").read_text())
    assert about["whole"]["sha256"] == hashlib.sha256(CLOUD.read_bytes()).hexdigest()
    assert about["tensors"] == cut["tensors"]
    for name, digest in about["files"].items():
        assert hashlib.sha256((out / name).read_bytes()).hexdigest() == digest
        said = {entry.key: entry.value for entry in onnx.load(out / name).metadata_props}
        assert said[WHOLE_KEY] == about["whole"]["sha256"]
        assert said[CUT_KEY].split(",") == about["sent"]
        assert name == f"{said[PART_KEY]}.onnx"
    head, tail = OnnxModel.read(out / "head.onnx"), OnnxModel.read(out / "tail.onnx")
    image = np.random.default_rng(0).integers(0, 255, (3, 28, 28)).astype(np.uint8)
    (found,) = joined(head, tail, {"image": image}).values()
    np.testing.assert_allclose(found, OnnxModel.read(CLOUD).run({"image": image})[0], atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([str(CLOUD), "--at", "3"], "--at and --out go together"),
        ([str(CLOUD), "--at", "300", "--out", "OUT"], "has the cuts 1 to 20, not 300"),
        (["missing.onnx"], "missing.onnx: cannot be read"),
        ([str(CLOUD), "--shape", "image"], "is not like NAME=1,3,224,224"),
        ([str(CLOUD), "--link", "40ms", "--no-time"], "--link prices a list of cuts that are timed"),
    ],
)
def test_wrong_use_is_one_line_and_exit_2(arguments: list[str], says: str, tmp_path: Path) -> None:
    found = split(*(str(tmp_path / "out") if text == "OUT" else text for text in arguments))
    assert found.returncode == 2
    assert says in found.stderr
    assert found.stderr.count("\n") == 1


def test_over_a_link_every_way_that_may_be_best_is_priced_and_the_best_comes_first() -> None:
    found = split(str(CLOUD), "--json", "--link", "10ms,1mbit", "--slower", "2", "--whole-bytes", "450")
    assert found.returncode == 0, found.stderr
    ways = json.loads(found.stdout)["ways"]
    assert [way["latency_s"] for way in ways] == sorted(way["latency_s"] for way in ways)
    names = {way["way"]["name"] for way in ways}
    assert {"device", "whole input"} <= names
