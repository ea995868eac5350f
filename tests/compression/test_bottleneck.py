"""A bottleneck: what is sent is small whole numbers, files answer as the pair does, training pays."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("onnx")
pytest.importorskip("torch")

import torch

from edgemux.compression.graph import Graph
from edgemux.compression.recipe import Augment, Schedule
from edgemux.compression.split import curve
from edgemux.compression.split.bottleneck import BITS, Decoder, Encoder, Pair, Source, rounded
from edgemux.compression.split.costs import Whole
from edgemux.compression.split.graph_net import GraphNet
from edgemux.compression.split.pair_files import SENT, check_files, pair_files
from edgemux.compression.split.teach import Teacher, Weights, teach
from edgemux.multiplexer.errors import ConfigError, PassError
from edgemux.multiplexer.onnx_model import OnnxModel
from edgemux.wire.bits import packed, unpacked

SCHEDULE = Schedule(epochs=2, batch=32, peak_rate=0.05, bf16=False)
PLAIN = Augment(flip=False, shift_px=0)


@pytest.fixture(scope="module")
def whole() -> Whole:
    """uint8 [n, 28, 28] -> probabilities of 4 classes, through [n, 6, 7, 7]."""
    draw = np.random.default_rng(0)
    graph = Graph(int8=False)
    x = graph.conv(graph.image(), draw.normal(0, 0.01, (6, 1, 5, 5)), draw.normal(size=6), stride=2)
    x = graph.add("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    x = graph.conv(x, draw.normal(0, 0.2, (8, 6, 3, 3)), draw.normal(size=8))
    logits = graph.linear(graph.pooled(x), draw.normal(size=(4, 8)), draw.normal(size=4))
    graph.add("Softmax", logits, to="probabilities", axis=1)
    graph.output("probabilities", (4,))
    return Whole(graph.finish().SerializeToString(), "whole.onnx")


def pair_of(whole: Whole, source: Source | None = None) -> Pair:
    cut = next(cut for cut in whole.cuts if whole.measured[cut.tensors[0]].shape == (1, 6, 7, 7))
    torch.manual_seed(1)
    given = source or Source("image", (1, 28, 28), pixels=True)
    return Pair(Encoder([given], 3, (7, 7), width=8), Decoder(3, 6), GraphNet(whole.halves(cut).tail))


def teacher_of(whole: Whole) -> Teacher:
    cut = next(cut for cut in whole.cuts if whole.measured[cut.tensors[0]].shape == (1, 6, 7, 7))
    halves = whole.halves(cut)
    return Teacher(*(OnnxModel(half.SerializeToString(), "half") for half in (halves.head, halves.tail)))


def images(count: int = 96) -> np.ndarray[Any, Any]:
    return np.random.default_rng(4).integers(0, 256, (count, 28, 28)).astype(np.uint8)


def image(pixels: np.ndarray[Any, Any]) -> dict[str, Any]:
    return {"image": pixels}


def taught(pair: Pair, whole: Whole, weights: Weights, schedule: Schedule = SCHEDULE, kept: Path | None = None) -> Pair:
    labels = torch.arange(96) % 4
    pixels = torch.from_numpy(images())
    teach(pair, pixels, labels, teacher_of(whole), image, weights, schedule, PLAIN, 7, kept)
    return pair.eval()


@given(st.lists(st.floats(0.0, 1.0, width=32), min_size=1, max_size=20), st.sampled_from(BITS))
def test_rounding_gives_only_values_that_can_be_sent_and_lets_the_gradient_through(
    values: list[float], bits: int
) -> None:
    x = torch.tensor(values, requires_grad=True)
    y = rounded(x, bits)
    steps = y.detach() * (2**bits - 1)
    assert torch.allclose(steps, steps.round(), atol=1e-3)
    assert float((y - x).detach().abs().max()) <= 0.5001 / (2**bits - 1)
    y.sum().backward()
    assert x.grad is not None and torch.equal(x.grad, torch.ones_like(x))


def test_other_bits_are_refused() -> None:
    with pytest.raises(ConfigError, match="bits"):
        rounded(torch.zeros(1), 3)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("source", [Source("image", (1, 28, 28), True), Source("b1", (5, 14, 14))])
def test_files_answer_as_the_pair_and_what_is_sent_can_be_packed(whole: Whole, bits: int, source: Source) -> None:
    pair = pair_of(whole, source)
    draw = np.random.default_rng(2)
    given: Any = images(16) if source.pixels else draw.normal(size=(16, *source.shape)).astype(np.float32)
    files = pair_files(pair, bits, whole.digest, int8=False)
    check_files(files, pair, {source.name: given})
    sent = OnnxModel(files.head.SerializeToString(), "head").run({source.name: given})[0]
    assert sent.dtype == np.uint8 and sent.shape == (16, 3, 7, 7) and int(sent.max()) < 2**bits
    assert np.array_equal(unpacked(SENT, packed(sent, bits), (3, 7, 7), bits), sent)


def test_stored_as_int8_the_files_are_smaller_and_answer_alike(whole: Whole) -> None:
    pair = pair_of(whole)
    plain, small = (pair_files(pair, 4, whole.digest, int8=int8) for int8 in (False, True))
    answers = []
    for files in (plain, small):
        head, tail = (OnnxModel(part.SerializeToString(), "part") for part in (files.head, files.tail))
        answers.append(tail.run({SENT: head.run({"image": images(16)})[0]}, ["probabilities"])[0])
    assert small.head.ByteSize() < plain.head.ByteSize() and small.tail.ByteSize() < plain.tail.ByteSize()
    assert np.abs(answers[0] - answers[1]).max() < 0.1


def test_files_of_another_pair_are_refused(whole: Whole) -> None:
    files = pair_files(pair_of(whole), 8, whole.digest, int8=False)
    other = pair_of(whole)
    with torch.no_grad():
        other.encoder.norm.bias.add_(0.2)
    with pytest.raises(PassError, match="rounds"):
        check_files(files, other, {"image": images(4)})


def test_training_brings_the_answers_nearer_to_the_whole(whole: Whole) -> None:
    def distance(pair: Pair) -> float:
        with torch.inference_mode():
            logs = pair.eval()({"image": torch.from_numpy(images())}, 4).log()
        wanted = torch.from_numpy(whole.model.run({"image": images()})[0])
        return float((wanted * (wanted.log() - logs)).sum(dim=1).mean())

    pair = pair_of(whole)
    before = distance(pair)
    schedule = Schedule(epochs=8, batch=32, peak_rate=0.05, bf16=False)
    assert distance(taught(pair, whole, Weights(1.0, 1.0, 0.0), schedule)) < 0.8 * before


def test_an_interrupted_training_ends_with_the_same_weights(whole: Whole, tmp_path: Path) -> None:
    weights = Weights(target=1.0, answers=1.0, labels=0.1)
    at_once = taught(pair_of(whole), whole, weights, kept=tmp_path / "whole.pt")

    class Cut(Exception):
        pass

    def tick(done: float) -> None:
        if done > 0.6:
            raise Cut

    pixels, labels, kept = torch.from_numpy(images()), torch.arange(96) % 4, tmp_path / "cut.pt"
    with pytest.raises(Cut):
        teach(pair_of(whole), pixels, labels, teacher_of(whole), image, weights, SCHEDULE, PLAIN, 7, kept, tick)
    resumed = taught(pair_of(whole), whole, weights, kept=kept)
    assert all(
        torch.equal(a, b) for a, b in zip(at_once.state_dict().values(), resumed.state_dict().values(), strict=True)
    )


def test_a_pair_whose_cloud_part_is_fixed_trains_its_encoder_alone(whole: Whole) -> None:
    pair = pair_of(whole)
    pair.fix_cloud()
    before = {name: value.clone() for name, value in pair.state_dict().items()}
    taught(pair, whole, Weights(target=1.0))
    changed = {name.split(".")[0] for name, value in pair.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"encoder"}


def test_a_source_that_cannot_be_halved_to_the_size_is_refused() -> None:
    with pytest.raises(PassError, match="20x20"):
        Encoder([Source("b1", (5, 20, 20))], 3, (7, 7))


def test_a_jpeg_without_its_headers_is_smaller_and_a_png_is_counted_whole() -> None:
    jpeg, _ = curve.pictured(images(1), "jpeg-70")
    png, read = curve.pictured(images(1), "png")
    assert 0 < curve.bare_bytes(jpeg[0]) < len(jpeg[0]) - 300
    assert curve.bare_bytes(png[0]) == len(png[0])
    assert np.array_equal(read, images(1))


def points() -> list[curve.Point]:
    truth = np.arange(100) % 4
    wrong = truth.copy()
    wrong[:10] += 1
    worse = truth.copy()
    worse[:30] += 1
    return [
        curve.point("jpeg", "jpeg-50", [300] * 100, worse, truth, truth),
        curve.point("jpeg", "jpeg-70", [400] * 100, wrong, truth, truth),
        curve.point("jpeg", "jpeg-95", [800] * 100, truth, truth, truth),
        curve.point("bottleneck", "4 bits", [150] * 100, wrong, truth, truth),
        curve.point("bottleneck", "8 bits", [250] * 100, truth, truth, truth),
    ]


def test_a_split_is_compared_with_the_smallest_picture_that_is_as_accurate() -> None:
    found = {each.name: beside.name if beside else None for each, beside in curve.shares(points())}
    assert found == {"4 bits": "jpeg-70", "8 bits": "jpeg-95"}
    assert curve.as_right(points(), "webp", 0.5) is None


def test_the_table_has_a_row_for_each_point_and_the_plot_a_mark() -> None:
    assert len(curve.table(points()).splitlines()) == 2 + len(points())
    root = ElementTree.fromstring(curve.svg(points(), "bytes & accuracy"))
    assert sum(each.tag.endswith("circle") for each in root.iter()) == len(points())
