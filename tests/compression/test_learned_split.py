"""`edgemux bundle split --learn`: pictures, float images, series and vectors; what cannot be learned says so."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("onnx")
pytest.importorskip("torch")

from edgemux.cli.main import run
from edgemux.compression.split import layouts, learned
from edgemux.multiplexer.bundle import Bundle, splits_of
from edgemux.multiplexer.onnx_model import OnnxModel
from tests.bare_bundle import bare_bundle

pytestmark = pytest.mark.usefixtures("torch")
CLASSES = 3


def net(kind: str, shape: tuple[int, ...], nodes: list[Any], **weights: Any) -> Any:
    """``x`` -> ``probabilities``, the softmax of the last node's output ``logits``."""
    from onnx import TensorProto, helper, numpy_helper

    graph = helper.make_graph(
        [*nodes, helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1)],
        "g",
        [helper.make_tensor_value_info("x", getattr(TensorProto, kind), ["n", *shape])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["n", CLASSES])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def node(op: str, *names: str, **attributes: Any) -> Any:
    from onnx import helper

    return helper.make_node(op, list(names[:-1]), [names[-1]], **attributes)


def draw() -> Any:
    return np.random.default_rng(3)


def floats(*shape: int, scale: float = 1.0) -> Any:
    return (scale * draw().normal(size=shape)).astype(np.float32)


def convolved(first: list[Any], kind: str, shape: tuple[int, ...], channels: int) -> Any:
    """Two convolutions that halve the picture, with negative values between them, and a linear layer.

    Cuts: ``early`` [6, h/2, w/2], ``late`` [8, h/4, w/4], ``pooled`` [8].
    """
    nodes = [
        *first,
        node("Conv", "image", "w1", "early", strides=[2, 2], pads=[1] * 4),
        node("Tanh", "early", "bent"),
        node("Conv", "bent", "w2", "late", strides=[2, 2], pads=[1] * 4),
        node("Relu", "late", "kept"),
        node("GlobalAveragePool", "kept", "mean"),
        node("Flatten", "mean", "pooled"),
        node("Gemm", "pooled", "w3", "logits"),
    ]
    weights = {"w1": floats(6, channels, 3, 3), "w2": floats(8, 6, 3, 3), "w3": floats(8, CLASSES, scale=4.0)}
    return net(kind, shape, nodes, **weights)


def pictures() -> tuple[Any, Any]:
    nodes = [
        node("Cast", "x", "real", to=1),
        node("Transpose", "real", "turned", perm=[0, 3, 1, 2]),
        node("Identity", "turned", "image"),
    ]
    rows = draw().integers(0, 256, (240, 16, 16, 3)).astype(np.uint8)
    return convolved(nodes, "UINT8", (16, 16, 3), 3), rows


def images() -> tuple[Any, Any]:
    return convolved([node("Identity", "x", "image")], "FLOAT", (2, 12, 20), 2), 30 + 5 * floats(240, 2, 12, 20)


def series() -> tuple[Any, Any]:
    """[n, time, sensors], as most have them; convolved over time."""
    nodes = [
        node("Transpose", "x", "turned", perm=[0, 2, 1]),
        node("Conv", "turned", "w1", "early", strides=[2], pads=[1, 1]),
        node("Relu", "early", "kept"),
        node("ReduceMean", "kept", "pooled", axes=[2], keepdims=0),
        node("Gemm", "pooled", "w2", "logits"),
    ]
    return net("FLOAT", (32, 4), nodes, w1=floats(6, 4, 3), w2=floats(6, CLASSES, scale=3.0)), floats(240, 32, 4)


def vectors() -> tuple[Any, Any]:
    nodes = [
        node("Gemm", "x", "w1", "early"),
        node("Tanh", "early", "bent"),
        node("Gemm", "bent", "w2", "logits"),
    ]
    return net("FLOAT", (20,), nodes, w1=floats(20, 16), w2=floats(16, CLASSES)), floats(240, 20)


def tokens() -> tuple[Any, Any]:
    nodes = [
        node("Gather", "table", "x", "embedded", axis=0),
        node("ReduceMean", "embedded", "pooled", axes=[1], keepdims=0),
        node("Gemm", "pooled", "w", "logits"),
    ]
    rows = draw().integers(0, 30, (240, 7))
    return net("INT64", (7,), nodes, table=floats(30, 8), w=floats(8, CLASSES)), rows


def bundle_of(made: tuple[Any, Any], folder: Path) -> tuple[Path, Path]:
    """A bundle of the model, and a file of its inputs."""
    model, rows = made
    np.save(folder / "x.npy", rows)
    return bare_bundle(folder / "bundle", model, rows, CLASSES), folder / "x.npy"


def cut(folder: Path, tensor: str) -> int:
    from edgemux.compression.split.costs import Whole

    return next(each.index for each in Whole.read(folder / "cloud.onnx").cuts if each.tensors == (tensor,))


def learn(folder: Path, data: Path, tensor: str, *more: str) -> int:
    words = ("--at", str(cut(folder, tensor)), "--inputs", str(data), "--out", str(folder), "--learn")
    return run(["bundle", "split", str(folder), *words, "--work", str(folder.parent / "work"), *more])


@pytest.mark.parametrize(
    ("made", "tensor", "sent"),
    [
        (pictures, "early", (2, 8, 8)),
        (images, "late", (2, 3, 5)),
        (images, "pooled", (2, 1, 1)),
        (series, "early", (2, 16, 1)),
        (vectors, "early", (2, 1, 1)),
    ],
)
def test_a_pair_is_learned_for_any_input_of_numbers_and_its_files_fit_the_bundle(
    made: Any, tensor: str, sent: tuple[int, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, data = bundle_of(made(), tmp_path)
    assert learn(folder, data, tensor, "--channels", "2", "--epochs", "2", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    bundle = Bundle.open(folder)
    (split,) = splits_of(bundle.manifest)
    assert (split.sent.shape[1:], split.bits, split.level) == (sent, 4, 0)
    rows = np.load(data)
    head, tail = (OnnxModel(bundle.read(file), file) for file in (split.head, split.tail))
    answers = tail.run({"sent": head.run({"x": rows[:9]})[0]}, ["probabilities"])[0]
    assert np.allclose(answers.sum(axis=1), 1, atol=1e-3)
    assert told["measured"]["n"] == 72 and 0 <= told["measured"]["changed"] <= 1


def test_what_is_learned_is_nearer_to_the_whole_than_what_is_not_and_is_learned_once_for_all_bits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, data = bundle_of(vectors(), tmp_path)
    told = {}
    for epochs in ("2", "120"):
        assert (
            learn(folder, data, "early", "--channels", "6", "--epochs", epochs, "--name", f"e{epochs}", "--json") == 0
        )
        told[epochs] = json.loads(capsys.readouterr().out)["measured"]["changed"]
    assert told["120"] < told["2"] - 0.1

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("it was trained before")

    monkeypatch.setattr(learned, "fit_drawn", never)
    assert learn(folder, data, "early", "--channels", "6", "--epochs", "120", "--bits", "8", "--json") == 0
    eight = json.loads(capsys.readouterr().out)
    assert eight["split"]["name"] == f"learned-{cut(folder, 'early')}-8" and eight["split"]["bits"] == 8


def test_a_training_that_is_interrupted_goes_on_and_ends_as_if_it_had_not_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, data = bundle_of(vectors(), tmp_path)
    other = Path(shutil.copytree(tmp_path, tmp_path.parent / f"{tmp_path.name}-other")) / "bundle"
    whole, calls = learned.fit_drawn, []

    def stops(*given: Any, **more: Any) -> None:
        calls.append(given)
        if len(calls) == 2:
            raise KeyboardInterrupt
        whole(*given, **more)

    monkeypatch.setattr(learned, "fit_drawn", stops)
    assert learn(folder, data, "early", "--epochs", "4") == 130
    assert splits_of(Bundle.open(folder).manifest) == ()
    assert learn(folder, data, "early", "--epochs", "4") == 0
    monkeypatch.setattr(learned, "fit_drawn", whole)
    assert learn(other, other.parent / "x.npy", "early", "--epochs", "4") == 0
    (first,), (second,) = (splits_of(Bundle.open(each).manifest) for each in (folder, other))
    assert (folder / first.head).read_bytes() == (other / second.head).read_bytes()


def test_a_learned_head_goes_on_from_what_a_device_level_leaves(
    tiny_bundle: Path, tmp_path: Path, pictures: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    np.save(tmp_path / "x.npy", pictures(300, 44)[0])
    assert learn(folder, tmp_path / "x.npy", "sums", "--level", "2", "--epochs", "2") == 0
    bundle = Bundle.open(folder)
    (split,) = splits_of(bundle.manifest)
    assert split.level == 2
    assert OnnxModel(bundle.read(split.head), split.head).inputs == ("state_2",)
    assert "learned-" in capsys.readouterr().out
    assert learn(folder, tmp_path / "x.npy", "sums", "--level", "9", "--name", "other") == 2
    assert "--level: fashion-mnist has the levels 1 to 4, not 9" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("made", "tensor", "more", "said"),
    [
        (tokens, "pooled", (), "--learn: x is INT64; an encoder reads pictures, series and vectors"),
        (vectors, "early", ("--level", "1"), "--level: level 1 leaves nothing that an encoder could read"),
        (vectors, "early", ("--epochs", "1"), "--epochs"),
    ],
)
def test_what_cannot_be_learned_is_one_line_that_says_what_can(
    made: Any, tensor: str, more: tuple[str, ...], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, data = bundle_of(made(), tmp_path)
    assert learn(folder, data, tensor, *more) == 2
    told = capsys.readouterr().err
    assert said in told and told.count("\n") == 1
    assert splits_of(Bundle.open(folder).manifest) == ()


def test_tokens_can_be_cut_plainly(tmp_path: Path) -> None:
    folder, data = bundle_of(tokens(), tmp_path)
    words = ("--at", str(cut(folder, "pooled")), "--inputs", str(data), "--out", str(folder))
    assert run(["bundle", "split", str(folder), *words]) == 0


def test_a_cut_whose_sizes_no_halving_gives_names_those_that_can_be_learned(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, rows = images()
    (strides,) = (each for each in model.graph.node[1].attribute if each.name == "strides")
    strides.ints[:] = [1, 3]
    folder, data = bundle_of((model, rows), tmp_path)
    assert learn(folder, data, "early") == 2
    told = capsys.readouterr().err
    assert "--at: halving x [2, 12, 20] never gives early [6, 12, 7]; cuts that can be learned: " in told


def test_a_tail_with_an_operator_that_torch_has_not_here_says_which(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, rows = vectors()
    model.graph.node[1].op_type = "Asinh"
    folder, data = bundle_of((model, rows), tmp_path)
    assert learn(folder, data, "early") == 1
    assert "the tail: operator Asinh cannot be trained here; a plain cut needs no training" in capsys.readouterr().err


def test_without_torch_one_line_says_what_to_install_and_a_plain_cut_works(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import subprocess

    folder, data = bundle_of(vectors(), tmp_path)
    words = [
        "bundle",
        "split",
        str(folder),
        "--at",
        str(cut(folder, "early")),
        "--inputs",
        str(data),
        "--out",
        str(tmp_path / "out"),
    ]
    code = "import sys; sys.modules['torch'] = None; from edgemux.cli.main import run; sys.exit(run(sys.argv[1:]))"
    done = [
        subprocess.run([sys.executable, "-c", code, *words, *more], capture_output=True, text=True, check=False)
        for more in ((), ("--learn",))
    ]
    assert done[0].returncode == 0, done[0].stderr
    assert done[1].returncode == 2
    assert done[1].stderr == "edgemux: torch is not installed: pip install '.[train]' in a checkout, or make setup\n"


# --- layouts


@settings(deadline=None)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=3), st.data())
def test_what_is_laid_out_and_scaled_in_a_graph_comes_back_as_it_was(sizes: list[int], data: Any) -> None:
    import onnx
    from onnx import TensorProto, helper

    rows = np.random.default_rng(1).normal(3.0, 2.0, (4, *sizes)).astype(np.float32)
    layout = data.draw(st.sampled_from(layouts.layouts(sizes)))
    how = layouts.Scaled.of(layout, rows, data.draw(st.booleans()))

    def passing(taken: str, given: str, shape: Any) -> onnx.ModelProto:
        values = [helper.make_tensor_value_info(each, TensorProto.FLOAT, ["n", *shape]) for each in (taken, given)]
        graph = helper.make_graph([helper.make_node("Identity", [taken], [given])], "g", values[:1], values[1:])
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)

    head, tail = passing("inner", "out", layout.shape), passing("plain", "back", sizes)
    layouts.entered(head, "inner", "x", TensorProto.FLOAT, how)
    layouts.left(tail, "plain", "crossing", how)
    laid = OnnxModel(head.SerializeToString(), "head").run({"x": rows})[0]
    assert laid.shape == (4, *layout.shape)
    assert np.allclose(laid, how.scaled(rows), atol=1e-5)
    back = OnnxModel(tail.SerializeToString(), "tail").run({"crossing": laid})[0]
    assert np.allclose(back, rows, atol=1e-4)


@pytest.mark.parametrize(
    ("sizes", "crossing", "shapes"),
    [
        ((28, 28), (6, 7, 7), ((1, 28, 28), (6, 7, 7))),
        ((32, 32, 3), (8, 8, 8), ((3, 32, 32), (8, 8, 8))),
        ((3, 32, 32), (8, 8, 8), ((3, 32, 32), (8, 8, 8))),
        ((128, 6), (16, 64), ((6, 128, 1), (16, 64, 1))),
        ((6, 128), (64, 16), ((6, 128, 1), (64, 16, 1))),
        ((40,), (8,), ((40, 1, 1), (8, 1, 1))),
        ((3, 30, 30), (8, 1, 1), ((3, 30, 30), (8, 1, 1))),
    ],
)
def test_layouts_are_found_in_which_halving_gives_what_crosses(sizes: Any, crossing: Any, shapes: Any) -> None:
    found = layouts.chosen({"x": sizes}, crossing)
    assert found is not None
    assert (found[0]["x"].shape, found[1].shape) == shapes


def test_sizes_that_no_halving_gives_have_no_layout() -> None:
    assert layouts.chosen({"x": (3, 30, 30)}, (8, 9, 9)) is None
    assert layouts.chosen({"x": (2, 3, 4, 5)}, (8,)) is None
