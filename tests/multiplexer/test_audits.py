"""What comparisons with the cloud are taken to say."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgemux.multiplexer.audits import (
    DOUBTS,
    LEAST_SLOPE,
    Calibration,
    Reservoir,
    certify_again,
    log_odds,
    recalibrate,
    risk_interval,
)


def test_the_interval_covers_the_chance_at_every_time_together() -> None:
    """Looked at after each of 400 audits; 300 worlds, confidence 90 %."""
    rng = np.random.default_rng(8)
    missed = 0
    for _ in range(300):
        wrong = np.cumsum(rng.random(400) < 0.05)
        # It can only be left when something goes wrong, or long after: those are the times looked at.
        times = [*(np.flatnonzero(np.diff(wrong)) + 2), 50, 100, 200, 400]
        bounds = [risk_interval(int(wrong[n - 1]), int(n), 0.1) for n in times]
        missed += any(not low <= 0.05 <= high for low, high in bounds)
    assert missed <= 30


@given(st.integers(0, 500), st.integers(0, 500), st.floats(0.001, 0.5))
def test_the_interval_holds_the_share_seen_and_grows_with_confidence(wrong: int, right: int, delta: float) -> None:
    n = wrong + right
    low, high = risk_interval(wrong, n, delta)
    assert 0.0 <= low <= high <= 1.0
    assert n == 0 or low <= wrong / n <= high
    wide_low, wide_high = risk_interval(wrong, n, delta / 2)
    assert wide_low <= low + 1e-12
    assert wide_high >= high - 1e-12


def test_nothing_is_known_before_the_first_audit() -> None:
    assert risk_interval(0, 0, 0.1) == (0.0, 1.0)


def test_a_reservoir_holds_each_row_with_the_same_chance_and_no_more_than_it_may() -> None:
    kept = np.zeros(40)
    for seed in range(600):
        reservoir = Reservoir(10, 1, random.Random(seed))
        for number in range(40):
            reservoir.offer(number)
        assert len(reservoir.rows) == 10
        kept[reservoir.rows[:, 0].astype(int)] += 1
    assert abs(kept / 600 - 0.25).max() < 0.08


def test_a_calibration_is_found_again() -> None:
    rng = np.random.default_rng(6)
    odds = rng.normal(2.0, 2.0, 4000)
    agrees = (rng.random(4000) < 1 / (1 + np.exp(-(0.5 * odds - 0.7)))).astype(float)
    found = recalibrate(odds, agrees, np.ones(4000), Calibration())
    assert found.slope == pytest.approx(0.5, abs=0.06)
    assert found.offset == pytest.approx(-0.7, abs=0.12)


def test_weights_undo_a_sample_that_holds_too_much_of_one_kind() -> None:
    """Rows of one side of the threshold come nine times as often, at a chance that no straight line fits."""
    odds = np.array([-1.0] * 900 + [2.0] * 100)
    agrees = np.array([0.0] * 450 + [1.0] * 450 + [1.0] * 90 + [0.0] * 10)
    found = recalibrate(odds, agrees, np.where(odds < 0, 1 / 9, 1.0), Calibration(1.0, 0.0), ridge=1e-6)
    assert found.confidence(1 / (1 + np.exp(-2.0))) == pytest.approx(0.9, abs=0.01)


def test_without_comparisons_the_calibration_is_the_one_before() -> None:
    prior = Calibration(0.8, -0.3)
    assert recalibrate(np.empty(0), np.empty(0), np.empty(0), prior) == prior


@given(
    st.lists(st.tuples(st.floats(-16, 16), st.booleans(), st.floats(0.01, 100)), min_size=1, max_size=80),
)
def test_a_calibration_always_rises_with_max_softmax(rows: list[tuple[float, bool, float]]) -> None:
    odds, agrees, weight = (np.array(column, dtype=np.float64) for column in zip(*rows, strict=True))
    found = recalibrate(odds, agrees, weight, Calibration())
    assert found.slope >= LEAST_SLOPE
    assert np.isfinite(found.offset)
    chances = [found.confidence(p) for p in (0.1, 0.5, 0.9, 0.99)]
    assert chances == sorted(chances)


@pytest.mark.parametrize("surest", [0.0, 1.0, float("nan"), -1.0, 2.0])
def test_odds_are_finite_for_what_is_no_probability(surest: float) -> None:
    assert np.isfinite(log_odds(surest))
    assert 0.0 <= Calibration(30.0, -50.0).confidence(surest) <= 1.0


def test_certifying_again_breaks_alpha_no_more_often_than_stated() -> None:
    """Doubt is uniform in 0..1, the chance to differ half of it: the risk at a price is a quarter of its square."""
    rng = np.random.default_rng(12)
    broken = 0
    for _ in range(200):
        doubt = rng.random(600)
        price = certify_again(doubt, rng.random(600) < doubt / 2, 0.02, 0.1)
        broken += price is not None and price.price**2 / 4 > 0.02
    assert broken <= 30


def test_too_few_comparisons_certify_nothing() -> None:
    assert certify_again(np.empty(0), np.empty(0, bool), 0.02, 0.1) is None
    assert certify_again(np.full(50, 0.01), np.zeros(50, bool), 0.02, 0.1) is None


def test_doubts_are_tried_from_the_strictest_on() -> None:
    assert (np.diff(DOUBTS) > 0).all()
    assert 0.0 < DOUBTS[0] < DOUBTS[-1] < 1.0
