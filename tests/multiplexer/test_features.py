"""Features of the device's answer, which the agent's learned routers and the lab share."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgemux.multiplexer.features import TOP, device_features, entropy, feature_count


@given(st.integers(1, 300), st.integers(0, 5), st.integers(0, 2**32 - 1))
def test_there_are_as_many_features_as_announced(classes: int, rows: int, seed: int) -> None:
    p = np.random.default_rng(seed).dirichlet(np.ones(classes), rows)
    found = device_features(p.astype(np.float32))
    assert found.shape == (rows, feature_count(classes))
    assert found.dtype == np.float32
    assert np.isfinite(found).all()


def test_the_features_stand_in_the_order_of_the_docstring() -> None:
    found = device_features(np.array([[0.2, 0.7, 0.1]]))[0]
    shannon = -(0.2 * np.log(0.2) + 0.7 * np.log(0.7) + 0.1 * np.log(0.1)) / np.log(3)
    assert np.allclose(found, [*np.log([0.7, 0.2, 0.1]), 0.7, 0.2, 0.5, shannon, 0, 1, 0], atol=1e-6)


@given(st.integers(0, 2**32 - 1), st.permutations(range(12)))
def test_but_for_the_answer_itself_the_order_of_the_classes_does_not_matter(seed: int, order: list[int]) -> None:
    p = np.random.default_rng(seed).dirichlet(np.ones(12), 1)
    shape = slice(0, TOP + 4)
    assert np.allclose(device_features(p)[:, shape], device_features(p[:, order])[:, shape])


def test_a_probability_of_zero_and_a_single_class_have_finite_features() -> None:
    assert np.isfinite(device_features(np.array([[1.0, 0.0]]))).all()
    assert device_features(np.array([[1.0]])).tolist() == [[0, 1, 0, 1, 0, 1]]


@given(st.integers(2, 400))
def test_the_entropy_is_a_share_of_its_most(classes: int) -> None:
    assert entropy(np.full((1, classes), 1 / classes))[0] == pytest.approx(1)
    assert entropy(np.eye(classes)[:1])[0] == 0


@pytest.mark.parametrize("wrong", [np.ones(3), np.ones((2, 0)), np.array([[np.nan, 1.0]])])
def test_what_is_not_a_table_of_distributions_is_refused(wrong: np.ndarray) -> None:
    with pytest.raises(ValueError, match="probabilities"):
        device_features(wrong)
