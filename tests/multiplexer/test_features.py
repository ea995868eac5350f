"""Features of the device's answer, which the agent's learned routers and the lab share."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgemux.multiplexer.features import device_features, entropy, feature_count, place_of_largest


@given(st.integers(2, 300), st.integers(0, 5), st.integers(0, 2**32 - 1))
def test_there_are_as_many_features_as_announced(classes: int, rows: int, seed: int) -> None:
    p = np.random.default_rng(seed).dirichlet(np.ones(classes), rows)
    found = device_features(p.astype(np.float32))
    assert found.shape == (rows, feature_count(classes))
    assert found.dtype == np.float32
    assert np.isfinite(found).all()


def test_the_features_stand_in_the_order_of_the_docstring() -> None:
    found = device_features(np.array([[0.2, 0.7, 0.1]]))[0]
    logs = np.log([0.2, 0.7, 0.1])
    assert np.allclose(found, [*logs, 0, 1, 0, *np.log([0.7, 0.2, 0.1])], atol=1e-4)
    many = np.full(100, 0.01)
    assert np.allclose(device_features(many[None])[0], [*[np.log(0.01)] * 10, -np.log(100)], atol=1e-3)


@pytest.mark.parametrize("classes", [2, 10, 64, 65, 300])
def test_the_largest_probability_is_where_it_is_said_to_be(classes: int) -> None:
    p = np.random.default_rng(classes).dirichlet(np.ones(classes), 4)
    assert np.allclose(device_features(p)[:, place_of_largest(classes)], np.log(p.max(axis=1)), atol=1e-4)


@given(st.integers(0, 2**32 - 1), st.permutations(range(100)))
def test_of_many_classes_their_order_does_not_matter(seed: int, order: list[int]) -> None:
    p = np.random.default_rng(seed).dirichlet(np.ones(100), 1)
    assert np.allclose(device_features(p), device_features(p[:, order]), atol=1e-5)


def test_a_probability_of_zero_has_finite_features() -> None:
    assert np.isfinite(device_features(np.array([[1.0, 0.0]]))).all()


@given(st.integers(2, 400))
def test_the_entropy_is_a_share_of_its_most(classes: int) -> None:
    assert entropy(np.full((1, classes), 1 / classes))[0] == pytest.approx(1)
    assert entropy(np.eye(classes)[:1])[0] == 0


@pytest.mark.parametrize("wrong", [np.ones(3), np.ones((2, 1)), np.array([[np.nan, 1.0]])])
def test_what_is_not_a_table_of_distributions_is_refused(wrong: np.ndarray) -> None:
    with pytest.raises(ValueError, match="probabilities"):
        device_features(wrong)
