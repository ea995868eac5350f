"""`edgemux bundle split`: a cut of a bundle's cloud model becomes a split of it, with figures and a verdict."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

pytest.importorskip("onnx")

from edgemux.cli.main import run
from edgemux.cli.split_verdict import LINKS, verdict_of
from edgemux.compression.split.costs import Whole
from edgemux.compression.split.pack import check_split
from edgemux.compression.split.rounding import steps_for
from edgemux.compression.split.trial import Tried, beside
from edgemux.edge.packing import most_lost
from edgemux.edge.split_planning import SplitSettings, usable_splits
from edgemux.multiplexer.bundle import Bundle, Split, splits_of
from edgemux.multiplexer.errors import ConfigError
from edgemux.multiplexer.onnx_model import OnnxModel
from edgemux.wire.bits import packed

Pictures = Callable[[int, int], tuple[NDArray[np.uint8], NDArray[np.int64]]]
# Of the tiny bundle's cloud model: the pixels that it picks, less their mean.
PICKED = 3


@pytest.fixture
def data(tmp_path: Path, pictures: Pictures) -> Path:
    images, labels = pictures(1500, 40)
    np.savez(tmp_path / "data.npz", x=images, y=labels)
    return tmp_path / "data.npz"


def split(folder: Path, data: Path, out: Path, *more: str, at: int = PICKED) -> int:
    where = ("--at", str(at), "--inputs", str(data), "--out", str(out))
    return run(["bundle", "split", str(folder), *where, *more])


def test_a_cut_becomes_a_split_that_answers_as_the_whole_and_says_what_it_sends(
    tiny_bundle: Path, data: Path, tmp_path: Path, pictures: Pictures, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert split(tiny_bundle, data, out, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    bundle = Bundle.open(out)
    bundle.verify()
    (made,) = splits_of(bundle.manifest)
    assert told["split"] == json.loads(msgspec.json.encode(made)) and told["digest"] == bundle.manifest.digest
    assert (made.name, made.level, made.bits, made.n) == ("cut-3-8", 0, 8, 1200)
    assert told["measured"]["cloud_accuracy"] - 0.01 < told["measured"]["accuracy"] <= 1
    images, _ = pictures(200, 41)
    head, tail = (OnnxModel(bundle.read(file), file) for file in (made.head, made.tail))
    sent = head.run({"image": images})[0]
    found = tail.run({made.sent.name: sent}, ["probabilities"])[0]
    wanted = OnnxModel(bundle.read("cloud.onnx"), "cloud").run({"image": images}, ["probabilities"])[0]
    assert np.abs(found - wanted).max() < 0.2 and (found.argmax(1) == wanted.argmax(1)).mean() > 0.97
    assert made.bytes == pytest.approx(4 + np.mean([len(row) for row in packed(sent, 8)]), rel=0.05)
    assert told["agent"]["used"] == bool(usable_splits(bundle.manifest, SplitSettings()))


def test_two_splits_of_fewer_bits_go_into_the_same_bundle_and_send_less(
    tiny_bundle: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    for bits in ("8", "4", "2"):
        assert split(folder, data, folder, "--bits", bits) == 0
    bundle = Bundle.open(folder)
    made = splits_of(bundle.manifest)
    assert [each.bits for each in made] == [8, 4, 2]
    assert made[0].bytes > 1.5 * made[1].bytes > 2 * made[2].bytes
    assert made[0].changed <= made[1].changed <= made[2].changed
    for each in made:
        check_split(bundle, each)
    shown = capsys.readouterr().out
    assert "cut-3-2: sends 10x25 values of 2 bits" in shown and "the agent " in shown


def test_without_labels_and_from_pictures_the_answers_of_the_whole_are_what_counts(
    tiny_bundle: Path, tmp_path: Path, pictures: Pictures, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    images, labels = pictures(60, 42)
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        for folder in (tmp_path / "loose", tmp_path / "sorted" / f"block {label}"):
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / f"{number}.png")
    np.save(tmp_path / "x.npy", images)
    told = []
    for name in ("loose", "x.npy", "sorted"):
        assert split(tiny_bundle, tmp_path / name, tmp_path / "out", "--json") == 0
        told.append(json.loads(capsys.readouterr().out))
    assert [each["measured"]["accuracy"] is None for each in told] == [True, True, False]
    cloud = Bundle.open(tiny_bundle).manifest.cloud.accuracy
    for each in told[:2]:
        assert each["split"]["accuracy"] == pytest.approx(cloud - each["split"]["changed"])


WRONG: tuple[tuple[tuple[str, ...], str], ...] = (
    (("--at", "99"), "--at: cloud.onnx has the cuts 1 to "),
    (("--bits", "3"), "--bits: 3 is not 8, 4 or 2"),
    (("--name", "cloud"), "--name: fashion-mnist has a route 'cloud' already"),
    (("--name", "A b"), "--name: 'A b' is not lower-case letters"),
    (("--level", "1"), "--level needs --learn"),
    (("--channels", "2"), "--channels needs --learn"),
    (("--inputs", "nowhere.npy"), "nowhere.npy"),
    (("--inputs", "empty.npy"), "inputs: empty.npy: holds no rows"),
    (("--inputs", "few.npy"), "--inputs: 5 are too few"),
    (("--inputs", "small.npy"), "--inputs: rows of [9, 9], the bundle takes [28, 28]"),
    (("--inputs", "nothing"), "holds no .png"),
    (("--inputs", "strange"), "--inputs: folder 'dog' is none of the bundle's classes"),
    (("--labels", "labels.npy"), "labels: 77 in row 0"),
    (("--out", "other"), "other: is there and is not a bundle"),
)


@pytest.mark.parametrize(("words", "said"), WRONG)
def test_what_is_wrong_is_one_line_that_names_it_and_leaves_everything_as_it_was(
    words: tuple[str, ...],
    said: str,
    tiny_bundle: Path,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    np.save("empty.npy", np.zeros((0, 28, 28), np.uint8))
    np.save("few.npy", np.zeros((5, 28, 28), np.uint8))
    np.save("small.npy", np.zeros((50, 9, 9), np.uint8))
    np.save("labels.npy", np.full(1500, 77))
    for folder in ("nothing", "other", "strange/dog"):
        Path(folder).mkdir(parents=True)
    Path("other/file").touch()
    for number in range(30):
        Image.new("L", (28, 28)).save(f"strange/dog/{number}.png")
    assert split(tiny_bundle, data, tmp_path / "out", *words) == 2
    told = capsys.readouterr().err
    assert said in told and told.count("\n") == 1
    assert not Path("out").exists() and [path.name for path in Path("other").iterdir()] == ["file"]


def test_a_name_that_is_taken_and_a_bundle_that_is_damaged_are_refused(
    split_bundle: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(split_bundle, tmp_path / "bundle"))
    assert split(folder, data, folder, "--name", "coarse") == 2
    assert "has a route 'coarse' already" in capsys.readouterr().err
    (folder / "cloud.onnx").write_bytes(b"damaged")
    assert split(folder, data, tmp_path / "out") == 2
    assert "cloud.onnx" in capsys.readouterr().err
    assert split(tmp_path / "nowhere", data, tmp_path / "out") == 2
    assert "no such bundle" in capsys.readouterr().err


# --- cuts that do not send one tensor of real numbers


def with_cloud(source: Path, folder: Path, graph: Any) -> Path:
    """A copy of a bundle whose cloud model is another one, with golden answers of its own."""
    import onnx
    from onnx import helper

    from edgemux.multiplexer.bundle import seal

    shutil.copytree(source, folder)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, str(folder / "cloud.onnx"))
    seal(folder, Bundle.open(folder).manifest)
    return folder


def test_cuts_of_several_tensors_and_of_whole_numbers_are_refused_with_those_that_would_do(
    tiny_bundle: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from onnx import TensorProto, helper, numpy_helper

    shape = numpy_helper.from_array(np.array([-1, 784], np.int64), "shape")
    weight = numpy_helper.from_array(np.random.default_rng(0).normal(size=(784, 10)).astype(np.float32) / 784, "w")
    nodes = [
        helper.make_node("Reshape", ["image", "shape"], ["flat"]),
        helper.make_node("Cast", ["flat"], ["whole"], to=TensorProto.INT32),
        helper.make_node("Cast", ["whole"], ["real"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["real", "w"], ["left"]),
        helper.make_node("Sigmoid", ["left"], ["right"]),
        helper.make_node("Add", ["left", "right"], ["sum"]),
        helper.make_node("Softmax", ["sum"], ["probabilities"], axis=1),
    ]
    takes = [helper.make_tensor_value_info("image", TensorProto.UINT8, ["n", 28, 28])]
    gives = [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["n", 10])]
    folder = with_cloud(tiny_bundle, tmp_path / "bundle", helper.make_graph(nodes, "g", takes, gives, [shape, weight]))
    for at, said in (
        (1, "the head of cut 1 only hands the input on; send the whole input instead; cuts that will do: 4, 6"),
        (2, "whole at cut 2 is INT32, real numbers, or whole ones of 8 bits, are needed; cuts that will do: 4, 6"),
        (5, "2 tensors cross cut 5 (left, right), a split sends one; cuts that will do: 4, 6"),
        (3, "the head of cut 3 only hands the input on; send the whole input instead; cuts that will do: 4, 6"),
    ):
        assert split(folder, data, tmp_path / "out", at=at) == 2
        assert f"--at: {said}" in capsys.readouterr().err
    assert split(folder, data, tmp_path / "out", at=4) == 0


@pytest.mark.parametrize(("bits", "near"), [("8", 1e-6), ("4", 0.05)])
def test_whole_numbers_of_a_graph_that_computes_in_integers_cross_as_they_are(
    bits: str, near: float, tiny_bundle: Path, data: Path, tmp_path: Path, pictures: Pictures
) -> None:
    from onnx import TensorProto, helper, numpy_helper

    draw = np.random.default_rng(0)
    weights = {
        "shape": np.array([-1, 784], np.int64),
        "w1": draw.normal(size=(784, 16)).astype(np.float32) / 784,
        "w2": draw.normal(size=(16, 10)).astype(np.float32),
        "scale": np.array(0.1, np.float32),
        "zero": np.array(0, np.int8),
    }
    nodes = [
        helper.make_node("Reshape", ["image", "shape"], ["flat"]),
        helper.make_node("Cast", ["flat"], ["real"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["real", "w1"], ["inside"]),
        helper.make_node("QuantizeLinear", ["inside", "scale", "zero"], ["octets"]),
        helper.make_node("DequantizeLinear", ["octets", "scale", "zero"], ["again"]),
        helper.make_node("MatMul", ["again", "w2"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]
    takes = [helper.make_tensor_value_info("image", TensorProto.UINT8, ["n", 28, 28])]
    gives = [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["n", 10])]
    stored = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    folder = with_cloud(tiny_bundle, tmp_path / "bundle", helper.make_graph(nodes, "g", takes, gives, stored))
    assert run(["split", str(folder / "cloud.onnx"), "--no-time"]) == 0
    at = next(cut.index for cut in Whole.read(folder / "cloud.onnx").cuts if cut.tensors == ("octets",))
    assert split(folder, data, folder, "--bits", bits, at=at) == 0
    bundle = Bundle.open(folder)
    (made,) = splits_of(bundle.manifest)
    images, _ = pictures(100, 43)
    head, tail, whole = (OnnxModel(bundle.read(file), file) for file in (made.head, made.tail, "cloud.onnx"))
    sent = head.run({"image": images})[0]
    found = tail.run({"sent": sent}, ["probabilities"])[0]
    assert np.abs(found - whole.run({"image": images}, ["probabilities"])[0]).mean() < near


# --- pure parts


@settings(deadline=None)
@given(
    st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=60),
    st.sampled_from((8, 4, 2)),
)
def test_steps_fit_the_bits_and_miss_no_more_than_a_step_over_the_whole_range(values: list[float], bits: int) -> None:
    x = np.array(values, np.float32)
    steps = steps_for(x, bits)
    whole = np.rint((x - np.float32(steps.low)) / np.float32(steps.step)).clip(0, steps.top)
    assert whole.max() < 2**bits and steps.step > 0
    plain = (x.max() - min(x.min(), 0)) / steps.top / 2
    missed = float(np.sqrt(np.square(steps.sent(x) - x, dtype=np.float64).mean()))
    # Of numbers smaller than the least step nothing is left.
    assert missed <= plain * 1.01 + 1e-3 * np.abs(x).max() + 1e-28


def test_values_that_are_not_numbers_have_no_steps() -> None:
    with pytest.raises(ConfigError, match="--at: NaN or infinity"):
        steps_for(np.array([1.0, np.nan]), 8)


def measured(accuracy: float | None, cloud: float | None, changed: float) -> Tried:
    return Tried(100, 10.0, accuracy, cloud, changed, 1.0, 1.0, 2.0, 1, 1, 1, 1)


def test_the_accuracy_in_the_manifest_is_the_cloud_s_there_less_what_is_lost_here() -> None:
    assert beside(0.9, True, measured(0.95, 0.97, 0.05)) == pytest.approx(0.88)
    assert beside(0.9, True, measured(0.98, 0.97, 0.05)) == pytest.approx(0.91)
    assert beside(0.9, True, measured(None, None, 0.05)) == pytest.approx(0.85)
    # A bundle that knows no labels says how often models agree with the cloud's.
    assert beside(1.0, False, measured(0.95, 0.97, 0.05)) == pytest.approx(0.95)
    assert beside(0.01, True, measured(None, None, 0.05)) == 0.0


@settings(deadline=None)
@given(
    changed=st.floats(0, 0.5), right=st.floats(0, 1), n=st.integers(1, 5000), size=st.floats(1, 1e5), ms=st.floats(0, 9)
)
def test_the_verdict_is_the_agent_s_own_and_what_it_asks_for_would_change_it(
    tiny_bundle: Path, split_bundle: Path, changed: float, right: float, n: int, size: float, ms: float
) -> None:
    manifest = Bundle.open(split_bundle).manifest
    cloud = manifest.cloud.accuracy
    accuracy = max(0.0, cloud - changed * right)
    base = splits_of(manifest)[0]
    made: Split = msgspec.structs.replace(base, changed=changed, accuracy=accuracy, n=n, bytes=size, head_ms=ms)
    only = msgspec.structs.replace(manifest, splits=(made,))
    verdict = verdict_of(only, made, 784)
    assert verdict.used == bool(usable_splits(only, SplitSettings()))
    if verdict.max_loss_needed is not None and verdict.max_loss_needed <= 1:
        assert usable_splits(only, SplitSettings(max_loss=verdict.max_loss_needed))
    if verdict.inputs_needed is not None:
        enough, fewer = (msgspec.structs.replace(made, n=verdict.inputs_needed - less) for less in (0, 2))
        assert most_lost(cloud, enough) <= verdict.max_loss + 1e-9
        assert fewer.n < 1 or most_lost(cloud, fewer) > verdict.max_loss - 1e-9
    assert verdict.slow_below_mbit <= verdict.below_mbit
    assert verdict.below_mbit == 0 or 1e6 * verdict.below_mbit >= LINKS[0] * 0.99
