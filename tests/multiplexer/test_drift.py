"""Bets against a reference: how rarely they are wrong, and how soon they are right."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from edgemux.multiplexer.certify import binomial_cdf
from edgemux.multiplexer.drift import (
    Detector,
    Reference,
    Stream,
    against_risk,
    chance_limit,
    light_of,
    numbers_of,
    reference_of,
)

LEARN = 800


def time_to(evidence: float, stream: Stream, values: np.ndarray, step: int = 1) -> int:
    """How many values it took, give or take ``step``; one more than there are when it never happened."""
    for number in range(0, len(values), step):
        if stream.observe(values[number : number + step]) >= evidence:
            return number + 1
    return len(values) + 1


def learned(rng: np.random.Generator) -> Stream:
    stream = Stream(LEARN)
    stream.observe(rng.normal(size=LEARN))
    return stream


def test_with_nothing_changed_evidence_of_a_thousand_takes_a_thousand_values_on_average() -> None:
    """Runs are cut at 3,000 values and a time is that of the chunk's start, which only makes the mean smaller."""
    rng = np.random.default_rng(3)
    times = [time_to(1000.0, learned(rng), rng.normal(size=3000), 50) for _ in range(60)]
    assert np.mean(times) >= 1000


def test_bets_on_a_known_chance_are_wrong_no_more_often_than_stated() -> None:
    """Here the limit is the chance itself, so that nothing is left over but what the theorem gives."""
    rng = np.random.default_rng(5)
    times = []
    for _ in range(200):
        detector = against_risk(0.1)
        seen = 0
        while detector.observe((rng.random(1) < 0.1).astype(np.int64)) < 100.0:
            seen += 1
        times.append(seen + 1)
    assert np.mean(times) >= 100


@pytest.mark.parametrize(
    ("shift", "scale", "most"), [(2.0, 1.0, 60), (1.0, 1.0, 250), (0.0, 2.0, 500), (0.0, 0.2, 200)]
)
def test_a_shift_is_found_within_a_bounded_number_of_values(shift: float, scale: float, most: int) -> None:
    rng = np.random.default_rng(7)
    times = [time_to(7e5, learned(rng), rng.normal(shift, scale, size=most)) for _ in range(10)]
    assert max(times) <= most


def test_a_risk_that_rises_sixfold_is_found() -> None:
    rng = np.random.default_rng(9)
    detector = against_risk(0.015)
    assert detector.observe((rng.random(5000) < 0.01).astype(np.int64)) < 1e4
    assert detector.observe((rng.random(300) < 0.09).astype(np.int64)) > 1e4


def test_no_evidence_before_the_reference_is_whole() -> None:
    stream = Stream(LEARN)
    assert stream.observe(np.arange(LEARN - 1.0)) == 0.0
    assert stream.reference is None


@given(st.lists(st.floats(-3, 3), min_size=60, max_size=200), st.lists(st.integers(0, 60), max_size=12))
def test_the_evidence_does_not_depend_on_how_the_values_are_cut_up(values: list[float], cuts: list[int]) -> None:
    whole, parts = Stream(50), Stream(50)
    whole.observe(np.array(values))
    for part in np.split(np.array(values), sorted(cuts)):
        parts.observe(part)
    assert parts.seen == whole.seen == len(values)
    assert parts.reference == whole.reference
    assert parts.evidence == pytest.approx(whole.evidence, rel=1e-9)


@given(st.lists(st.floats(allow_nan=True, allow_infinity=True), min_size=100, max_size=300))
@example([-sys.float_info.max] * 20 + [0.0] * 80)
def test_evidence_stays_finite_whatever_comes(values: list[float]) -> None:
    stream = Stream(40)
    assert 0.0 <= stream.observe(np.array(values)) < float("inf")


def test_evidence_stays_finite_on_a_long_shift() -> None:
    stream = Stream(LEARN)
    stream.observe(np.random.default_rng(1).normal(size=LEARN))
    assert np.isfinite(stream.observe(np.full(100_000, 9.0)))


def test_a_value_that_never_changed_is_noticed_when_it_does() -> None:
    for change in (-1.0, 1.0):
        stream = Stream(LEARN)
        stream.observe(np.zeros(LEARN))
        assert stream.observe(np.full(50, change)) > 7e5


@given(st.integers(1, 400), st.integers(0, 400), st.floats(1e-6, 0.2))
def test_limits_of_chances_are_never_below_the_exact_ones(n: int, k: int, tail: float) -> None:
    k = min(k, n)
    limit = float(chance_limit(np.array([k]), n, tail)[0])
    assert limit >= k / n
    assert k == n or binomial_cdf(k, n, limit) <= tail * (1 + 1e-6)


def test_a_reference_holds_what_was_counted_and_puts_atoms_in_bins_of_their_own() -> None:
    rng = np.random.default_rng(2)
    placing = np.where(rng.random(400) < 0.5, 1.0, rng.random(400))
    reference = reference_of(placing, placing[:300])
    assert sum(reference.counts) == 300
    bin_of_one = int(np.searchsorted(np.array(reference.edges), 1.0, side="left"))
    assert reference.counts[bin_of_one] == int((placing[:300] == 1.0).sum())


@pytest.mark.parametrize(("edges", "counts"), [((), (3,)), ((1.0,), (3,)), ((2.0, 1.0), (1, 1, 1)), ((1.0,), (0, 0))])
def test_a_reference_that_is_none_is_refused(edges: tuple[float, ...], counts: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="reference"):
        Reference(edges, counts)


@pytest.mark.parametrize("kind", ["bool", "uint8", "int64", "float16", "float32", "float64"])
def test_brightness_and_contrast_are_those_of_the_numbers_looked_at(kind: str) -> None:
    tensor = np.random.default_rng(5).integers(0, 2, (3, 10, 7)).astype(kind)
    for (mean, spread), row in zip(light_of(numbers_of(tensor)), tensor.astype(np.float64), strict=True):
        assert mean == pytest.approx(row.mean())
        assert spread == pytest.approx(row.std())


@pytest.mark.parametrize("size", [3e38, float("inf"), float("-inf"), float("nan")])
def test_inputs_that_are_no_numbers_raise_nothing(size: float) -> None:
    odd = np.array([[size, -size, 1.0, 1e308]])
    assert light_of(numbers_of(odd)).shape == light_of(numbers_of(odd[:, :3].astype(np.float32))).shape == (1, 2)


def test_only_so_many_numbers_of_a_large_input_are_looked_at() -> None:
    picture = np.random.default_rng(5).integers(0, 256, (1, 300, 400, 3)).astype(np.uint8)
    numbers = numbers_of(picture)
    assert numbers.shape[1] < 1024
    ((mean, spread),) = light_of(numbers)
    assert abs(mean - picture.mean()) < 15
    assert abs(spread - picture.std()) < 15


def test_a_detector_keeps_one_number_a_bet() -> None:
    detector = Detector(np.array([[0.5, 0.9], [1.5, 1.1]]))
    detector.observe(np.random.default_rng(4).integers(0, 2, 10_000))
    assert detector._sums.shape == (2,)
