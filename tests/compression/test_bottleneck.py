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

import onnx
import torch

from edgemux.compression.fit import Tick
from edgemux.compression.graph import Graph
from edgemux.compression.recipe import Augment, Schedule
from edgemux.compression.split import curve
from edgemux.compression.split.bottleneck import BITS, Decoder, Encoder, Pair, Source, rounded
from edgemux.compression.split.costs import Whole
from edgemux.compression.split.graph_net import GraphNet, exposed
from edgemux.compression.split.pair_files import SENT, behind, check_files, pair_files
from edgemux.compression.split.teach import Course, Teacher, Weights, mixed_pixels, teach
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


PICTURE = Source("image", (1, 28, 28), pixels=True)


def halves_of(whole: Whole) -> tuple[onnx.ModelProto, onnx.ModelProto, str]:
    """Head, tail with one more output, and what the last layer reads: the name of that output."""
    cut = next(cut for cut in whole.cuts if whole.measured[cut.tensors[0]].shape == (1, 6, 7, 7))
    halves = whole.halves(cut)
    features = next(node.input[0] for node in halves.tail.graph.node if node.op_type == "Gemm")
    return halves.head, exposed(halves.tail, features), features


def pair_of(whole: Whole, *sources: Source, joins: int = 1) -> Pair:
    _, tail, features = halves_of(whole)
    torch.manual_seed(1)
    encoder = Encoder(sources or [PICTURE], 3, (7, 7), width=8, joins=joins)
    return Pair(encoder, Decoder(3, 6), GraphNet(tail), features)


def teacher_of(whole: Whole) -> Teacher:
    return Teacher(*(OnnxModel(half.SerializeToString(), "half") for half in halves_of(whole)[:2]))


def images(count: int = 96) -> np.ndarray[Any, Any]:
    return np.random.default_rng(4).integers(0, 256, (count, 28, 28)).astype(np.uint8)


def image(pixels: np.ndarray[Any, Any]) -> dict[str, Any]:
    return {"image": pixels}


def taught(pair: Pair, whole: Whole, course: Course, kept: Path | None = None, tick: Tick = lambda done: None) -> Pair:
    labels = torch.arange(96) % 4
    pixels = torch.from_numpy(images())
    teach(pair, pixels, labels, teacher_of(whole), image, course, kept, tick)
    return pair.eval()


def distance(pair: Pair, whole: Whole, bits: int) -> float:
    """Of the pair's answers from the whole's: the mean divergence."""
    with torch.inference_mode():
        logs = pair.eval()({"image": torch.from_numpy(images())}, bits).log()
    wanted = torch.from_numpy(whole.model.run({"image": images()})[0])
    return float((wanted * (wanted.log() - logs)).sum(dim=1).mean())


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
@pytest.mark.parametrize("joins", [1, 2])
@pytest.mark.parametrize("sources", [[PICTURE], [Source("b1", (5, 14, 14))], [PICTURE, Source("b1", (5, 14, 14))]])
def test_files_answer_as_the_pair_and_what_is_sent_can_be_packed(
    whole: Whole, bits: int, sources: list[Source], joins: int
) -> None:
    pair = pair_of(whole, *sources, joins=joins)
    draw = np.random.default_rng(2)
    made: Any = {source.name: draw.normal(size=(16, *source.shape)).astype(np.float32) for source in sources}
    given = made | image(images(16)) if PICTURE in sources else made
    files = pair_files(pair, bits, whole.digest, int8=False)
    check_files(files, pair, given)
    assert [value.name for value in files.tail.graph.output] == ["probabilities"]
    sent = OnnxModel(files.head.SerializeToString(), "head").run(given)[0]
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
    pair = pair_of(whole)
    before = distance(pair, whole, 4)
    schedule = Schedule(epochs=8, batch=32, peak_rate=0.05, bf16=False)
    course = Course(Weights(target=1.0, answers=1.0), schedule, PLAIN, 7)
    assert distance(taught(pair, whole, course), whole, 4) < 0.8 * before


def test_training_on_mixtures_with_adam_moves_the_tail_too_and_brings_the_answers_nearer(whole: Whole) -> None:
    pair = pair_of(whole)
    before, tail = distance(pair, whole, 2), [p.clone() for p in pair.tail.parameters()]
    schedule = Schedule(epochs=8, batch=32, peak_rate=0.01, bf16=False)
    weights = Weights(answers=1.0, features=1.0)
    course = Course(weights, schedule, PLAIN, 7, bits=(2,), mixed=0.5, tail_share=0.1)
    assert distance(taught(pair, whole, course), whole, 2) < 0.8 * before
    assert not all(torch.equal(a, b) for a, b in zip(tail, pair.tail.parameters(), strict=True))


def test_the_tail_s_share_of_the_rate_is_kept(whole: Whole) -> None:
    pair = pair_of(whole)
    tail = [p.clone() for p in pair.tail.parameters()]
    taught(pair, whole, Course(Weights(answers=1.0), SCHEDULE, PLAIN, 7, tail_share=0.0))
    assert all(torch.equal(a, b) for a, b in zip(tail, pair.tail.parameters(), strict=True))


def test_the_features_alone_teach_the_pair(whole: Whole) -> None:
    def apart(pair: Pair) -> float:
        taught_of = teacher_of(whole).of(images())
        with torch.inference_mode():
            found = pair.eval().tail(pair.decoded({"image": torch.from_numpy(images())}, 8))[pair.features or ""]
        return float((found - taught_of.features).square().mean())

    pair = pair_of(whole)
    before = apart(pair)
    schedule = Schedule(epochs=8, batch=32, peak_rate=0.05, bf16=False)
    taught(pair, whole, Course(Weights(features=1.0), schedule, PLAIN, 7))
    assert apart(pair) < 0.8 * before


@given(st.integers(1, 40), st.floats(0.0, 1.0), st.integers(0, 9))
def test_a_mixture_lies_between_two_images_of_the_batch(count: int, share: float, seed: int) -> None:
    pixels = torch.linspace(0, 1, count)[:, None, None].expand(count, 2, 2)
    mixed = mixed_pixels(pixels, share, torch.Generator().manual_seed(seed))
    assert mixed.dtype == torch.uint8 and mixed.shape == pixels.shape
    assert torch.equal(mixed[:, 0, 0], mixed[:, 1, 1])
    if share == 0.0:
        assert torch.equal(mixed, (pixels * 255).round().to(torch.uint8))


def test_about_the_share_that_is_asked_for_is_mixed() -> None:
    pixels = (torch.arange(4000) % 2).float()[:, None, None].expand(4000, 2, 2)
    mixed = mixed_pixels(pixels, 0.6, torch.Generator().manual_seed(1))
    # Half of the partners are equal, and then nothing is to be seen.
    changed = float((mixed != (pixels * 255).to(torch.uint8)).any(dim=(1, 2)).float().mean())
    assert changed == pytest.approx(0.3, abs=0.05)


def test_labels_of_mixtures_are_refused(whole: Whole) -> None:
    course = Course(Weights(answers=1.0, labels=0.1), SCHEDULE, PLAIN, 7, mixed=0.5)
    with pytest.raises(ConfigError, match="mixed"):
        taught(pair_of(whole), whole, course)


@pytest.mark.parametrize(
    "course",
    [
        Course(Weights(target=1.0, answers=1.0, labels=0.1), SCHEDULE, PLAIN, 7),
        Course(Weights(answers=1.0, features=0.5), SCHEDULE, PLAIN, 7, mixed=0.5, tail_share=0.3),
    ],
    ids=["sgd", "adam"],
)
def test_an_interrupted_training_ends_with_the_same_weights(whole: Whole, tmp_path: Path, course: Course) -> None:
    at_once = taught(pair_of(whole), whole, course, tmp_path / "whole.pt")

    class Cut(Exception):
        pass

    def tick(done: float) -> None:
        if done > 0.6:
            raise Cut

    kept = tmp_path / "cut.pt"
    with pytest.raises(Cut):
        taught(pair_of(whole), whole, course, kept, tick)
    resumed = taught(pair_of(whole), whole, course, kept)
    assert all(
        torch.equal(a, b) for a, b in zip(at_once.state_dict().values(), resumed.state_dict().values(), strict=True)
    )


def test_a_pair_whose_cloud_part_is_fixed_trains_its_encoder_alone(whole: Whole) -> None:
    pair = pair_of(whole)
    pair.fix_cloud()
    before = {name: value.clone() for name, value in pair.state_dict().items()}
    taught(pair, whole, Course(Weights(target=1.0), SCHEDULE, PLAIN, 7))
    changed = {name.split(".")[0] for name, value in pair.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"encoder"}


def test_behind_the_whole_s_own_first_layers_the_head_reads_what_the_whole_reads(whole: Whole) -> None:
    first, _, _ = halves_of(whole)
    at_cut = Source(first.graph.output[0].name, (6, 7, 7))
    pair = pair_of(whole, at_cut)
    files = pair_files(pair, 4, whole.digest, int8=False)
    joined = behind(first, files)
    pixels = images(5)
    cut = teacher_of(whole).cut(pixels)
    alone, together = (OnnxModel(each.head.SerializeToString(), "head") for each in (files, joined))
    assert together.inputs == ("image",)
    assert np.array_equal(together.run({"image": pixels})[0], alone.run({at_cut.name: cut})[0])
    assert joined.head.metadata_props == files.head.metadata_props


def test_a_head_that_reads_more_than_the_layers_before_it_make_is_refused(whole: Whole) -> None:
    first, _, _ = halves_of(whole)
    pair = pair_of(whole, PICTURE, Source("b1", (5, 14, 14)))
    with pytest.raises(PassError, match="reads image, b1"):
        behind(first, pair_files(pair, 4, whole.digest))


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
