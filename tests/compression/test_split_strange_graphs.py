"""Whatever ONNX allows: it is cut and both halves answer as the whole does, or one line says what is in the way."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx")

import onnx
from onnx import TensorProto, helper

from edgemux.compression.split.costs import Whole
from edgemux.compression.split.cuts import MOST_TENSORS, cuts_of
from edgemux.multiplexer.errors import ArtifactError, ConfigError, EdgemuxError, PassError
from tests.split_graphs import check_every_cut, graph_of, model_of, value

node = helper.make_node
FLOAT, CHAIN = TensorProto.FLOAT, [node("Tanh", ["x"], ["a"]), node("Neg", ["a"], ["y"])]
EYE = np.eye(3, dtype=np.float32)


def chain(length: int, every: int = 0) -> bytes:
    """So many nodes in a row; each ``every``-th also reads what was seven before."""
    nodes = [node("Tanh", ["x"], ["t0"])]
    for i in range(length):
        reads = [f"t{i}", f"t{max(0, i - 7)}"] if every and i % every == 0 else [f"t{i}"]
        nodes.append(node("Add" if len(reads) == 2 else "Tanh", reads, [f"t{i + 1}"]))
    return model_of([*nodes, node("Neg", [f"t{length}"], ["y"])], ["y"])


def loop() -> bytes:
    """A loop whose body takes a tensor from outside."""
    body = helper.make_graph(
        [node("Add", ["acc", "outer"], ["acc2"]), node("Identity", ["c"], ["c2"]), node("Mul", ["acc2", "e"], ["s"])],
        "body",
        [value("i", TensorProto.INT64, ()), value("c", TensorProto.BOOL, ()), value("acc")],
        [value("c2", TensorProto.BOOL, ()), value("acc2"), value("s")],
    )
    nodes = [
        node("Tanh", ["x"], ["e"]),
        node("Neg", ["e"], ["outer"]),
        node("Loop", ["trips", "cond", "outer"], ["last", "all"], body=body),
        node("ReduceSum", ["all", "axes"], ["z"], keepdims=0),
        node("Neg", ["last"], ["y"]),
    ]
    weights = {"trips": np.int64(3), "cond": np.bool_(True), "axes": np.array([0])}
    return graph_of(nodes, [value("x")], [value("y"), value("z")], weights)


def scan() -> bytes:
    """A scan over rows, with a state."""
    body = helper.make_graph(
        [node("Add", ["s", "r"], ["s2"]), node("Mul", ["s2", "e"], ["o"])],
        "body",
        [value("s", shape=(3,)), value("r", shape=(3,))],
        [value("s2", shape=(3,)), value("o", shape=(3,))],
    )
    nodes = [
        node("ReduceMean", ["x"], ["e"], axes=[0], keepdims=0),
        node("Tanh", ["x"], ["t"]),
        node("Scan", ["e", "t"], ["f", "all"], body=body, num_scan_inputs=1),
        node("Add", ["all", "f"], ["y"]),
    ]
    return model_of(nodes, ["y"])


def shadowed() -> bytes:
    """A graph in a node whose own names are those of tensors outside."""
    here = helper.make_graph([node("Neg", ["e"], ["x2"]), node("Add", ["x2", "b"], ["o"])], "t", [], [value("o")])
    there = helper.make_graph([node("Identity", ["b"], ["o2"])], "e", [], [value("o2")])
    nodes = [
        node("Tanh", ["x"], ["e"]),
        node("Neg", ["e"], ["b"]),
        node("ReduceMax", ["b"], ["m"], keepdims=0),
        node("Greater", ["m", "zero"], ["c"]),
        node("If", ["c"], ["i"], then_branch=here, else_branch=there),
        node("Neg", ["i"], ["y"]),
    ]
    return model_of(nodes, ["y"], {"zero": np.float32(0)})


def function() -> bytes:
    """A function of the model's own, called twice."""
    opsets = [helper.make_opsetid("", 17)]
    inside = [node("Add", ["a", "a"], ["t"]), node("Tanh", ["t"], ["b"])]
    twice = helper.make_function("own", "twice", ["a"], ["b"], inside, opsets)
    nodes = [
        node("twice", ["x"], ["a"], domain="own"),
        node("Neg", ["a"], ["b"]),
        node("twice", ["b"], ["y"], domain="own"),
    ]
    own = {"opset_imports": [helper.make_opsetid("own", 1)], "functions": [twice]}
    return graph_of(nodes, [value("x")], [value("y")], **own)


def through(kind: int, opset: int = 17, ir: int = 8) -> bytes:
    """Numbers of another type on the way."""
    nodes = [
        node("Cast", ["x"], ["c"], to=kind),
        node("Identity", ["c"], ["d"]),
        node("Cast", ["d"], ["e"], to=FLOAT),
        node("Neg", ["e"], ["y"]),
    ]
    return graph_of(nodes, [value("x")], [value("y")], opset=opset, ir_version=ir)


def listed() -> bytes:
    """A sequence on the way."""
    nodes = [
        node("Tanh", ["x"], ["a"]),
        node("SplitToSequence", ["a"], ["s"], axis=1),
        node("ConcatFromSequence", ["s"], ["b"], axis=1),
        node("Neg", ["b"], ["y"]),
    ]
    return model_of(nodes, ["y"])


def clipped(opset: int) -> bytes:
    how = {"min": -0.5, "max": 0.5} if opset < 11 else {}
    reads = ["a"] if opset < 11 else ["a", "", "top"]
    nodes = [node("Tanh", ["x"], ["a"]), node("Clip", reads, ["b"], **how), node("Neg", ["b"], ["y"])]
    weights = {} if opset < 11 else {"top": np.float32(0.5)}
    return graph_of(nodes, [value("x")], [value("y")], weights, opset, ir_version=4 if opset < 11 else 8)


def not_numbers() -> bytes:
    """Answers with NaN and infinity among them."""
    nodes = [
        node("Sub", ["x", "x"], ["zero"]),
        node("Div", ["zero", "zero"], ["nan"]),
        node("Log", ["zero"], ["inf"]),
        node("Concat", ["nan", "inf", "x"], ["y"], axis=1),
    ]
    return graph_of(nodes, [value("x")], [value("y", shape=("n", 9))])


CUT = {
    "loop": (loop(), {("e",), ("e", "outer"), ("all", "last")}),
    "scan": (scan(), {("e", "t")}),
    "shadowed": (shadowed(), {("e", "b"), ("e", "b", "c"), ("i",)}),
    "function": (function(), {("a",), ("b",)}),
    "opset 9": (clipped(9), {("a",), ("b",)}),
    "an input left out": (clipped(17), {("a",), ("b",)}),
    "opset 23": (graph_of(CHAIN, [value("x")], [value("y")], opset=23, ir_version=11), {("a",)}),
    "a weight that is an input": (
        graph_of(
            [node("MatMul", ["x", "w"], ["a"]), node("Tanh", ["a"], ["b"]), node("MatMul", ["b", "w"], ["y"])],
            [value("x"), value("w", shape=(3, 3))],
            [value("y")],
            {"w": EYE},
        ),
        {("a",), ("b",)},
    ),
    "an input that is an output": (graph_of(CHAIN, [value("x")], [value("y"), value("x")]), {("x", "a")}),
    "a weight that is an output": (
        graph_of(
            [node("Tanh", ["x"], ["a"]), node("MatMul", ["a", "w"], ["y"])],
            [value("x")],
            [value("y"), value("w", shape=(3, 3))],
            {"w": EYE},
        ),
        {("a",)},
    ),
    "an output on the way": (graph_of(CHAIN, [value("x")], [value("a"), value("y")]), {("a",)}),
    "an input that nobody reads": (graph_of(CHAIN, [value("x"), value("z")], [value("y")]), {("a",)}),
    "nodes that lead nowhere": (
        model_of([node("Tanh", ["x"], ["a"]), node("Neg", ["x"], ["dead"]), node("Neg", ["a"], ["y"])], ["y"]),
        {("a",)},
    ),
    "names that are taken": (
        model_of(
            [node("Tanh", ["x"], ["y.sent"]), node("Neg", ["y.sent"], ["y"]), node("Add", ["y", "x"], ["z"])],
            ["y", "z"],
        ),
        {("x", "y.sent"), ("x", "y")},
    ),
    "FP16": (through(TensorProto.FLOAT16), {("c",), ("e",)}),
    "INT64": (through(TensorProto.INT64), {("c",), ("e",)}),
    "BF16, which no array has": (through(TensorProto.BFLOAT16), {("e",)}),
    "FP8, which no array has": (through(TensorProto.FLOAT8E4M3FN, 19, 9), {("e",)}),
    "text": (through(TensorProto.STRING), {("e",)}),
    "a sequence": (listed(), {("a",), ("b",)}),
    "answers that are no numbers": (not_numbers(), {("x", "zero")}),
    "a batch of eight": (graph_of(CHAIN, [value("x", shape=(8, 3))], [value("y", shape=(8, 3))]), {("a",)}),
    "a single number": (graph_of(CHAIN, [value("x", shape=())], [value("y", shape=())]), {("a",)}),
    "FP16 alone": (
        graph_of(CHAIN, [value("x", TensorProto.FLOAT16)], [value("y", TensorProto.FLOAT16)]),
        {("a",)},
    ),
}


@pytest.mark.parametrize("name", CUT)
def test_it_is_cut_and_both_halves_answer_as_the_whole_does(name: str) -> None:
    content, expected = CUT[name]
    whole = check_every_cut(content)
    found = {cut.tensors for cut in whole.cuts}
    order = {frozenset(tensors) for tensors in found}
    assert {frozenset(tensors) for tensors in expected} <= order, found
    assert len(order) == len(found)


def drawn() -> bytes:
    nodes = [
        node("Tanh", ["x"], ["a"]),
        node("RandomNormalLike", ["a"], ["r"]),
        node("Add", ["a", "r"], ["b"]),
        node("Neg", ["b"], ["y"]),
    ]
    return model_of(nodes, ["y"])


def external() -> bytes:
    model = onnx.load_model_from_string(model_of([node("MatMul", ["x", "w"], ["y"])], ["y"], {"w": EYE}))
    (tensor,) = model.graph.initializer
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "weights.bin"
    return model.SerializeToString()


LISTS = helper.make_tensor_sequence_value_info("s", FLOAT, ["n", 1])
REFUSED: dict[str, tuple[bytes, type[EdgemuxError], str]] = {
    "nothing": (b"", ArtifactError, "cannot load it"),
    "a web page": (b"<html>not found</html>", ArtifactError, "not an ONNX graph"),
    "cut short": (chain(40)[:-9], ArtifactError, "not an ONNX graph"),
    "no nodes": (graph_of([], [value("x")], [value("x")]), PassError, "cannot be cut"),
    "one node": (model_of([node("Tanh", ["x"], ["y"])], ["y"]), PassError, "cannot be cut"),
    "no outputs": (graph_of(CHAIN, [value("x")], []), PassError, "cannot be cut"),
    "names twice": (model_of([*CHAIN, node("Tanh", ["x"], ["a"])], ["y"]), ArtifactError, "cannot load it"),
    "in no order": (model_of(CHAIN[::-1], ["y"]), PassError, "a: is read before it is made"),
    "weights elsewhere": (external(), ArtifactError, "another file"),
    "another's operator": (
        graph_of([node("Nix", ["x"], ["y"], domain="foo")], [value("x")], [value("y")]),
        ArtifactError,
        "cannot load it",
    ),
    "an opset to come": (graph_of(CHAIN, [value("x")], [value("y")], opset=99), ArtifactError, "cannot load it"),
    "text": (
        graph_of([node("Identity", ["x"], ["y"])], [value("x", TensorProto.STRING)], [value("y", TensorProto.STRING)]),
        PassError,
        "cannot be cut",
    ),
    "text that is an input": (
        graph_of(
            [node("Cast", ["x"], ["a"], to=FLOAT), node("Neg", ["a"], ["y"])],
            [value("x", TensorProto.STRING)],
            [value("y")],
        ),
        ConfigError,
        "'x'",
    ),
    "a sequence that is an input": (
        graph_of([node("ConcatFromSequence", ["s"], ["b"], axis=1), node("Neg", ["b"], ["y"])], [LISTS], [value("y")]),
        ConfigError,
        "'s'",
    ),
    "terabytes": (
        graph_of(CHAIN, [value("x", shape=(2**20, 2**20))], [value("y", shape=(2**20, 2**20))]),
        ConfigError,
        "too many",
    ),
    "no rank": (graph_of(CHAIN, [value("x", shape=None)], [value("y", shape=None)]), ConfigError, "give x=1"),
    "draws at random": (drawn(), PassError, "otherwise each time"),
    "only a sequence": (
        graph_of(
            [node("SplitToSequence", ["x"], ["s"], axis=1), node("ConcatFromSequence", ["s"], ["y"], axis=1)],
            [value("x")],
            [value("y")],
        ),
        PassError,
        "nothing between",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_with_one_line_that_says_what_is_in_the_way(name: str) -> None:
    content, error, says = REFUSED[name]
    with pytest.raises(error, match=says) as raised:
        Whole(content, "strange.onnx")
    assert "\n" not in str(raised.value)


def test_sizes_are_taken_as_they_are_given_the_first_too() -> None:
    open_sizes = graph_of(CHAIN, [value("x", shape=("t", "n", 3))], [value("y", shape=("t", "n", 3))])
    assert Whole(open_sizes, "m", {"x": (10, 1, 3)}).input_bytes == 120
    assert Whole(open_sizes, "m", {"x": (1, 2, 3)}).input_bytes == 24
    no_rank = graph_of(CHAIN, [value("x", shape=None)], [value("y", shape=None)])
    assert Whole(no_rank, "m", {"x": (1, 5)}).input_bytes == 20
    with pytest.raises(ConfigError, match="has the sizes 8,3"):
        Whole(CUT["a batch of eight"][0], "m", {"x": (4, 3)})


def test_a_graph_of_ten_thousand_nodes_is_looked_through_in_seconds_and_a_few_of_its_cuts_are_measured() -> None:
    graph = onnx.load_model_from_string(chain(10_000, every=3)).graph
    began = time.process_time()
    cuts = cuts_of(graph)
    assert time.process_time() - began < 5.0
    assert len(cuts) == 10_001
    whole = Whole(chain(300, every=3), "m.onnx")
    few = whole.few(7)
    assert len(few) == 7
    assert [cut.index for cut in few] == sorted(cut.index for cut in few)
    assert max(len(cut.tensors) for cut in few) < max(len(cut.tensors) for cut in whole.cuts)
    assert whole.few(1000) == whole.cuts
    assert len(whole.few()) == 100


def test_where_very_many_tensors_would_have_to_be_sent_there_is_no_cut() -> None:
    wide = MOST_TENSORS + 20
    nodes = [node("Tanh", ["x"], [f"t{i}"]) for i in range(wide)]
    nodes += [node("Sum", [f"t{i}" for i in range(wide)], ["s"]), node("Neg", ["s"], ["y"])]
    cuts = cuts_of(onnx.load_model_from_string(model_of(nodes, ["y"])).graph)
    assert max(len(cut.tensors) for cut in cuts) == MOST_TENSORS
    assert cuts[-1].tensors == ("s",)


def split(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edgemux.cli.main", "split", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, check=False, cwd=cwd)


def test_names_do_nothing_to_the_terminal(tmp_path: Path) -> None:
    path = tmp_path / "[red]m.onnx"
    names = ["[/bold]", "a\nb\x1b[31m", "[blue]"]
    reads = ["x", *names]
    nodes = [node("Tanh", [given], [made]) for given, made in zip(reads, [*names, "y"], strict=True)]
    path.write_bytes(model_of(nodes, ["y"]))
    found = split(str(path), "--no-time")
    assert (found.returncode, found.stderr) == (0, "")
    assert "[/bold] FP32" in found.stdout and "a?b?[31m FP32" in found.stdout and "[red]m.onnx" in found.stdout
    assert "\x1b" not in found.stdout


def test_the_place_of_the_halves_may_be_a_link_or_the_folder_where_one_is_and_nothing_is_left_beside_it(
    tmp_path: Path,
) -> None:
    (tmp_path / "m.onnx").write_bytes(model_of(CHAIN, ["y"]))
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    for _ in range(2):
        found = split("m.onnx", "--at", "1", "--out", "link", cwd=tmp_path)
        assert (found.returncode, found.stderr) == (0, "")
    found = split("../m.onnx", "--at", "1", "--out", ".", cwd=tmp_path / "real")
    assert (found.returncode, found.stderr) == (0, "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "m.onnx", "real"]
    assert sorted(path.name for path in (tmp_path / "real").iterdir()) == ["head.onnx", "split.json", "tail.onnx"]


def test_what_cannot_be_written_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Whole(model_of(CHAIN, ["y"]), "m.onnx")
    written = Path.write_bytes

    def full(path: Path, content: bytes) -> int:
        if path.name == "tail.onnx":
            raise OSError(28, "No space left on device")
        return written(path, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(ConfigError, match="cannot be written"):
        whole.save(whole.cuts[0], tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", ["/dev/zero", "."])
def test_what_is_no_file_is_not_read(path: str) -> None:
    with pytest.raises(ConfigError, match="is no file"):
        Whole.read(Path(path))


def test_a_cut_whose_halves_answer_otherwise_is_left_out_of_the_list_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from edgemux.cli.main import run

    path = tmp_path / "m.onnx"
    path.write_bytes(chain(3))
    price, wrong = Whole.price, {2}

    def bent(whole: Whole, cut: Any, timed: bool = True) -> Any:
        if cut.index in wrong:
            raise PassError(f"m.onnx: cut {cut.index}: differs")
        return price(whole, cut, timed)

    monkeypatch.setattr(Whole, "price", bent)
    assert run(["split", str(path), "--no-time"]) == 0
    said = capsys.readouterr().out
    assert "3 of 4 cuts" in said and said.rstrip().endswith("answer otherwise: 2")
    assert run(["split", str(path), "--no-time", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["unfit"] == {"2": "m.onnx: cut 2: differs"}
    wrong |= {1, 3, 4}
    assert run(["split", str(path), "--no-time"]) == 1
    assert capsys.readouterr().err == "edgemux: m.onnx: cut 1: differs\n"
