"""Codes are the same but for rounding: one step, of few values."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgemux.multiplexer.chain import GOLDEN_TOLERANCE
from edgemux.multiplexer.codes import FLIPPED_SHARE, GoldenCodes, same_codes
from edgemux.multiplexer.errors import ArtifactError


@given(st.integers(1, 3000), st.integers(0, 60), st.integers(0, 2**31))
def test_a_few_values_may_differ_by_one_step(size: int, flips: int, seed: int) -> None:
    chance = np.random.default_rng(seed)
    codes = chance.integers(1, 255, (size,), dtype=np.uint8)
    flips = min(flips, size)
    moved = codes.copy()
    moved[chance.permutation(size)[:flips]] += chance.choice(np.array([1, 255], np.uint8), flips)
    assert same_codes(moved, codes) == same_codes(codes, moved) == (flips <= max(1, FLIPPED_SHARE * size))


@given(st.integers(0, 255), st.integers(0, 255))
def test_no_value_may_differ_by_two_steps_and_0_is_not_beside_255(one: int, other: int) -> None:
    first, second = np.full((1, 500), 7, np.uint8), np.full((1, 500), 7, np.uint8)
    first[0, 3], second[0, 3] = one, other
    assert same_codes(first, second) == (abs(one - other) <= 1)


def test_codes_of_another_shape_are_others() -> None:
    assert not same_codes(np.zeros((2, 10), np.uint8), np.zeros((1, 10), np.uint8))


def test_a_tail_is_held_to_its_answers() -> None:
    answers = np.full((2, 4), 0.25, np.float32)
    golden = GoldenCodes(np.zeros((2, 3), np.uint8), answers)
    golden.check_tail("tail.onnx", lambda sent: answers + np.float32(GOLDEN_TOLERANCE / 2))
    for wrong in (answers + np.float32(2 * GOLDEN_TOLERANCE), answers[:1], answers * np.float32(np.nan)):
        with pytest.raises(ArtifactError, match=r"^tail\.onnx: "):
            golden.check_tail("tail.onnx", lambda sent, wrong=wrong: wrong)  # type: ignore[misc]
