"""Deferral curves, areas and calibration, against what is known of them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgemux.multiplexer.training.curves import areas, interval, paired_error, rank
from edgemux.multiplexer.training.reliability import auroc, brier, reliability


def rows(seed: int, n: int = 60, distinct: int = 1000) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    gain = generator.integers(0, distinct, n) / distinct
    return gain, generator.random(n) < 0.6, generator.random(n) < 0.8


def test_the_curve_starts_at_the_device_and_ends_at_the_cloud() -> None:
    gain, device, cloud = rows(0)
    curve = rank(gain, device, cloud).curve()
    assert curve.share[0] == 0.0
    assert curve.accuracy[0] == pytest.approx(device.mean())
    assert curve.share[-1] == 1.0
    assert curve.accuracy[-1] == pytest.approx(cloud.mean())


@settings(deadline=None)  # machines that are shared
@given(st.integers(0, 10_000))
def test_rows_of_equal_gain_count_with_the_mean_over_all_their_orders(seed: int) -> None:
    gain, device, cloud = rows(seed, n=40, distinct=4)
    generator = np.random.default_rng(seed)
    tried = [rank(gain + 1e-9 * generator.permutation(40), device, cloud).curve().area for _ in range(300)]
    error = np.std(tried) / 300**0.5
    assert rank(gain, device, cloud).curve().area == pytest.approx(np.mean(tried), abs=6 * error + 1e-9)


@settings(deadline=None)  # machines that are shared
@given(st.integers(0, 10_000))
def test_no_order_has_a_larger_area_than_the_gain_itself(seed: int) -> None:
    gain, device, cloud = rows(seed)
    oracle = rank(cloud * 1.0 - device, device, cloud).curve().area
    assert rank(gain, device, cloud).curve().area <= oracle + 1e-12


@settings(deadline=None)  # machines that are shared
@given(st.integers(0, 10_000), st.floats(0.1, 10.0), st.floats(-3.0, 3.0))
def test_only_the_order_of_the_gains_counts(seed: int, slope: float, offset: float) -> None:
    gain, device, cloud = rows(seed, distinct=10)
    same = rank(slope * gain + offset, device, cloud).curve().area
    assert rank(gain, device, cloud).curve().area == pytest.approx(same)


def test_accuracy_between_two_shares_is_on_the_line_between_them() -> None:
    curve = rank(np.array([1.0, 0.0]), np.array([0, 1]), np.array([1, 1])).curve()
    assert curve.at(0.25) == pytest.approx(0.75)
    assert curve.share_for(0.75) == pytest.approx(0.25)
    assert np.isnan(curve.share_for(1.1))


def test_the_paired_error_is_that_of_the_bootstrap() -> None:
    generator = np.random.default_rng(3)
    n = 3000
    hard = generator.random(n)
    device, cloud = generator.random(n) > 0.3 * hard, generator.random(n) > 0.1 * hard
    good, bad = hard + 0.1 * generator.normal(size=n), hard + generator.normal(size=n)
    drawn = areas({"good": rank(good, device, cloud), "bad": rank(bad, device, cloud)}, 400, 0)
    spread = float((drawn["good"] - drawn["bad"]).std())
    assert paired_error(good, bad, device, cloud) == pytest.approx(spread, rel=0.15)


def test_a_router_resampled_beside_itself_differs_by_nothing() -> None:
    gain, device, cloud = rows(1)
    drawn = areas({"one": rank(gain, device, cloud), "other": rank(gain, device, cloud)}, 20, 0)
    assert interval(drawn["one"] - drawn["other"]) == (0.0, 0.0)


def test_calibrated_probabilities_have_a_small_error_and_shifted_ones_that_of_the_shift() -> None:
    generator = np.random.default_rng(4)
    said = 0.1 + 0.6 * generator.random(50_000)
    true = generator.random(50_000) < said
    assert reliability(said, true).error < 0.01
    assert reliability(said + 0.2, true).error == pytest.approx(0.2, abs=0.01)
    assert brier(said, true) < brier(said + 0.2, true)


def test_ranking_counts_ties_half() -> None:
    true = np.array([1, 0, 1, 0])
    assert auroc(np.array([2.0, 1.0, 2.0, 1.0]), true) == 1.0
    assert auroc(np.zeros(4), true) == 0.5
    assert np.isnan(auroc(np.zeros(4), np.ones(4)))
