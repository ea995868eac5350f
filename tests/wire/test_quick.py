"""Answers written as bytes are what they would be if they were built field by field."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgemux.wire.codec import DTYPES, make_response
from edgemux.wire.quick import Answers

ARRAYS = st.builds(
    lambda dtype, shape, seed: np.random.default_rng(seed).integers(0, 2, shape).astype(dtype),
    st.sampled_from(sorted(DTYPES.values(), key=str)),
    st.lists(st.integers(0, 40), max_size=3),
    st.integers(0, 9),
)


@given(
    name=st.text(max_size=200),
    version=st.text(max_size=3),
    digest=st.sampled_from(["", "f" * 64]),
    request_id=st.text(max_size=150),
    outputs=st.dictionaries(st.text(max_size=140), ARRAYS, max_size=3),
    took=st.tuples(st.floats(0, 1e9), st.floats(0, 1e9)),
    rows=st.integers(0, 2**40),
)
def test_an_answer_is_the_one_that_is_built_field_by_field(
    name: str,
    version: str,
    digest: str,
    request_id: str,
    outputs: dict[str, Any],
    took: tuple[float, float],
    rows: int,
) -> None:
    answers = Answers(name, version, digest)
    parameters = {"edgemux_queue_ms": took[0], "edgemux_compute_ms": took[1], "edgemux_batch_size": rows}
    if digest:
        parameters["edgemux_model_digest"] = digest  # type: ignore[assignment]
    expected = make_response(name, version, request_id, outputs, parameters)
    for _ in range(2):  # as it is written first, and as it is remembered
        assert answers.make(request_id, outputs, *took, rows) == expected


def test_what_is_remembered_of_shapes_has_a_bound() -> None:
    answers = Answers("m", "1", "")
    for rows in range(1, 1000):
        answers.make("", {"y": np.zeros((rows, 1), np.float32)}, 0.0, 0.0, rows)
    assert len(answers._described) <= 256


@pytest.mark.parametrize("array", [np.zeros((4, 3), np.float32).T, np.zeros((4, 4), np.float32)[::2, ::2]])
def test_arrays_that_are_not_in_order_are_sent_in_order(array: Any) -> None:
    (content,) = Answers("m", "1", "").make("", {"y": array}, 0.0, 0.0, 1).raw_output_contents
    assert content == np.ascontiguousarray(array).tobytes()
