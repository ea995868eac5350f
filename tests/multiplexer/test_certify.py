"""The certificate: what it promises, held against draws from a known world."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgemux.multiplexer.certify import (
    DEFER_ALL,
    KEEP_ALL,
    binomial_cdf,
    certify,
    grid_of,
    interval,
    skip_price,
    upper_bound,
)
from edgemux.multiplexer.errors import ConfigError

ALPHA, DELTA, N = 0.05, 0.1, 500


def draw(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """A world in which the chance to differ is 0.3 gain^2: gains uniform in 0..1."""
    gain = rng.random(n)
    return gain, rng.random(n) < 0.3 * gain**2


def true_risk(price: float) -> float:
    """P(kept and differs) at a price: the integral of 0.3 g^2 up to it."""
    return 0.1 * min(max(price, 0.0), 1.0) ** 3


def test_certified_prices_break_alpha_in_at_most_delta_of_400_redraws() -> None:
    rng = np.random.default_rng(11)
    grid = grid_of(draw(rng, 2000)[0], 200)
    prices = [certify(*draw(rng, N), grid, ALPHA, DELTA).price for _ in range(400)]
    broken = sum(true_risk(price) > ALPHA for price in prices)
    # Three standard deviations of a count whose chance is delta.
    assert broken <= 400 * DELTA + 3 * math.sqrt(400 * DELTA * (1 - DELTA))
    # It is not empty-handed either: the best price is 0.794.
    assert float(np.median(prices)) > 0.6


def test_a_price_tuned_without_the_test_breaks_alpha_far_more_often() -> None:
    rng = np.random.default_rng(12)
    grid = grid_of(draw(rng, 2000)[0], 200)
    broken = 0
    for _ in range(200):
        gain, differs = draw(rng, N)
        tuned = max((p for p in grid if np.mean(differs & (gain <= p)) <= ALPHA), default=DEFER_ALL)
        broken += true_risk(float(tuned)) > ALPHA
    assert broken > 200 * 2 * DELTA


@given(st.integers(0, 2**32 - 1), st.floats(0.01, 0.3), st.floats(0.01, 0.3))
def test_a_larger_alpha_or_delta_never_lowers_the_price(seed: int, alpha: float, more: float) -> None:
    gain, differs = draw(np.random.default_rng(seed), 200)
    grid = grid_of(gain, 50)
    price = certify(gain, differs, grid, alpha, DELTA).price
    assert certify(gain, differs, grid, alpha + more, DELTA).price >= price
    assert certify(gain, differs, grid, alpha, DELTA + more).price >= price


@given(st.integers(0, 2**32 - 1))
def test_what_was_seen_at_the_price_is_reported_and_bounded_by_alpha(seed: int) -> None:
    gain, differs = draw(np.random.default_rng(seed), 300)
    found = certify(gain, differs, grid_of(gain, 50), ALPHA, DELTA)
    assert found.kept == np.mean(gain <= found.price)
    assert found.disagreement == np.mean(differs & (gain <= found.price))
    assert found.disagreement <= found.upper_bound
    if found.price > DEFER_ALL:
        assert found.upper_bound <= ALPHA + 1e-9


def test_a_device_that_always_differs_is_always_deferred() -> None:
    gain = np.linspace(-0.5, 0.5, 200)
    found = certify(gain, np.ones(200, bool), grid_of(gain, 20), 0.01, DELTA)
    assert found.price == DEFER_ALL
    assert found.kept == 0.0


def test_a_device_that_never_differs_keeps_everything() -> None:
    gain = np.linspace(-0.5, 0.5, 200)
    found = certify(gain, np.zeros(200, bool), grid_of(gain, 20), 0.02, DELTA)
    assert found.price == KEEP_ALL
    assert found.kept == 1.0


def test_nonsense_is_refused() -> None:
    gain, differs = draw(np.random.default_rng(0), 10)
    for alpha, delta in ((0.0, 0.1), (1.0, 0.1), (0.1, 0.0), (0.1, 1.0)):
        with pytest.raises(ConfigError):
            certify(gain, differs, grid_of(gain, 5), alpha, delta)
    with pytest.raises(ConfigError):
        certify(gain, differs, np.array([1.0, 0.0]), 0.1, 0.1)


@given(st.integers(1, 60), st.floats(0.001, 0.999), st.data())
def test_the_binomial_tail_is_the_sum_of_its_terms(n: int, p: float, data: st.DataObject) -> None:
    k = data.draw(st.integers(0, n))
    exact = math.fsum(math.comb(n, j) * p**j * (1 - p) ** (n - j) for j in range(k + 1))
    assert binomial_cdf(k, n, p) == pytest.approx(exact, rel=1e-6, abs=1e-12)


def test_bounds_are_those_of_the_books() -> None:
    # The rule of three, exactly: nothing seen in n draws.
    assert upper_bound(0, 100, 0.05) == pytest.approx(1 - 0.05 ** (1 / 100), abs=1e-9)
    assert upper_bound(100, 100, 0.05) == 1.0
    low, high = interval(5, 10)
    assert (low, high) == (pytest.approx(0.1871, abs=1e-4), pytest.approx(0.8129, abs=1e-4))
    assert interval(0, 10)[0] == pytest.approx(0.0, abs=1e-9)


@given(st.integers(0, 2**32 - 1), st.floats(0.5, 0.99))
def test_the_skip_price_keeps_its_agreement_where_it_skips(seed: int, agreement: float) -> None:
    rng = np.random.default_rng(seed)
    before = rng.random(300)
    deferred = rng.random(300) < before
    price = skip_price(before, deferred, agreement)
    skipped = before >= price
    if price < KEEP_ALL:
        assert skipped.sum() >= 20
        assert deferred[skipped].mean() >= agreement - 1e-12
    else:
        assert not skipped.any()
