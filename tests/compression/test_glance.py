"""What the gates see of pictures, arrays, vectors and sequences, and of many or few classes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgemux.multiplexer.bundle import DATATYPES, Tensor
from edgemux.multiplexer.onnx_model import OnnxModel


def seen(tensor: Tensor, x: Any) -> Any:
    from edgemux.compression.glance import glance_graph

    return OnnxModel(glance_graph(tensor).SerializeToString(), "glance").run({tensor.name: x})[0]


@pytest.fixture(autouse=True)
def _needs_torch(torch: Any) -> None:
    """The toolchain's environment only."""


def test_a_picture_of_28_pixels_is_seen_as_49_tiles_as_it_always_was(images: Any) -> None:
    tiles = images.reshape(-1, 7, 4, 7, 4).mean(axis=(2, 4)).reshape(-1, 49)
    assert np.array_equal(seen(Tensor("image", "UINT8", (-1, 28, 28)), images), tiles)


def test_tiles_that_do_not_come_out_even_are_means_of_what_is_there() -> None:
    x = np.ones((2, 10, 15, 3), np.uint8)
    x[..., 1] = 7
    found = seen(Tensor("image", "UINT8", (-1, 10, 15, 3)), x)
    assert found.shape == (2, 3 * 5 * 5)
    assert np.allclose(found[:, :25], 1) and np.allclose(found[:, 25:50], 7)


@pytest.mark.parametrize(
    ("datatype", "shape", "features"),
    [
        ("FP32", (1, 28, 28), 49 + 1),
        ("FP32", (3, 32, 20), 3 * 7 * 7 + 1),
        ("FP32", (33, 40, 3), 3 * 7 * 7 + 1),
        ("FP64", (16, 9, 9), 5 * 5 + 1),
        ("FP16", (2, 3, 14, 14), 49 + 1),
        ("FP32", (100, 6), 7 * 6 + 1),
        ("FP32", (1, 100), 50 + 1),
        ("FP32", (64,), 64 + 1),
        ("FP32", (1,), 1 + 1),
        ("FP32", (1000,), 63 + 1),
        ("INT64", (12,), 12 + 1 + 17),
        ("INT32", (200,), 50 + 1 + 17),
        ("UINT8", (784,), 61 + 1 + 17),
        ("BOOL", (5,), 5 + 1),
        ("INT64", (8, 4), 4 * 4 + 1),
    ],
)
def test_any_input_is_seen_as_a_few_finite_numbers(datatype: str, shape: tuple[int, ...], features: int) -> None:
    x = np.random.default_rng(1).integers(0, 100, (5, *shape)).astype(DATATYPES[datatype])
    found = seen(Tensor("x", datatype, (-1, *shape)), x)
    assert (found.shape, found.dtype) == ((5, features), np.float32)
    assert np.isfinite(found).all()
    assert np.allclose(found[2:3], seen(Tensor("x", datatype, (-1, *shape)), x[2:3]), atol=1e-3)


def test_of_a_row_of_integers_the_zeros_and_the_remainders_are_counted() -> None:
    found = seen(Tensor("words", "INT64", (-1, 4)), np.array([[17, 1, 0, 0]], np.int64))[0]
    assert found[:4].tolist() == [17, 1, 0, 0]
    assert found[5] == 0.5
    assert found[6:].tolist() == [0.5, 0.5] + [0.0] * 14


@pytest.mark.parametrize("classes", [2, 3, 10, 64, 65, 300])
def test_the_post_gate_scores_answers_of_any_number_of_classes_as_it_was_fitted(classes: int) -> None:
    from edgemux.compression.gates import post_gate_graph
    from edgemux.multiplexer.training.fit import post_features, post_scores
    from edgemux.multiplexer.training.labels import one_hot
    from edgemux.multiplexer.training.net import Net

    rng = np.random.default_rng(4)
    p = rng.dirichlet(np.full(classes, 0.2), 9).astype(np.float32)
    level, scores = one_hot(1, 1, 9), rng.random((9, 2), np.float32)
    width = post_features(p, level, scores).shape[1]
    assert width <= 2 * 64 + 5 + 1 + 2
    post = Net(rng.normal(size=(7, width)) / 9, rng.normal(size=7), rng.normal(size=(2, 7)), rng.normal(size=2))
    gate = OnnxModel(post_gate_graph(post, 1, classes).SerializeToString(), "post")
    (after,) = gate.run({"probabilities": p, "level": level, "scores": scores})
    assert np.abs(after - post_scores(post, p, level, scores)).max() < 1e-4


def test_an_input_may_be_called_what_the_graph_would_call_its_own_tensors() -> None:
    x = np.arange(12, dtype=np.int64).reshape(2, 6)
    found = [seen(Tensor(name, "INT64", (-1, 6)), x) for name in ("A", "C", "X", "features", "words")]
    assert all(np.array_equal(one, found[-1]) for one in found)
