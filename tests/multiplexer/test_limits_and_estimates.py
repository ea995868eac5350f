"""Token buckets and running estimates."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgemux.multiplexer.estimate import DurationEstimate, LinkEstimate, RateEstimate, RecentMean
from edgemux.multiplexer.limits import TokenBucket

STEPS = st.lists(st.tuples(st.floats(-1, 10), st.floats(0, 50)), max_size=200)


@given(st.floats(0, 100), st.floats(0, 100), STEPS)
def test_a_bucket_never_gives_more_than_its_burst_and_rate(
    rate: float, burst: float, steps: list[tuple[float, float]]
) -> None:
    bucket = TokenBucket(rate, burst)
    now = latest = 100.0
    bucket.available(now)
    taken = 0.0
    for step, count in steps:
        now += step
        latest = max(latest, now)
        if bucket.take(count, now):
            taken += count
        assert taken <= burst + rate * (latest - 100.0) + 1e-6


def test_a_bucket_without_a_limit_always_gives() -> None:
    bucket = TokenBucket(math.inf, math.inf)
    assert all(bucket.take(1e9, now) for now in range(100))


def test_a_refused_take_takes_nothing() -> None:
    bucket = TokenBucket(1.0, 5.0)
    assert not bucket.take(6.0, 0.0)
    assert bucket.available(0.0) == 5.0


def test_a_negative_rate_is_refused() -> None:
    with pytest.raises(ValueError, match="negative"):
        TokenBucket(-1, 1)


@given(st.lists(st.floats(1e-6, 10), min_size=1, max_size=600))
def test_a_duration_estimate_stays_within_what_was_observed(durations: list[float]) -> None:
    estimate = DurationEstimate(prior_s=1.0)
    for duration in durations:
        estimate.observe(duration)
    assert min(durations) * (1 - 1e-9) <= estimate.mean_s <= max(durations) * (1 + 1e-9)
    assert estimate.mean_s <= estimate.upper_s * (1 + 1e-9) or estimate.upper_s in durations


def test_an_upper_estimate_forgets_an_outlier_that_left_the_window() -> None:
    estimate = DurationEstimate(prior_s=0.1, window=64)
    estimate.observe(5.0)
    for _ in range(128):
        estimate.observe(0.1)
    assert estimate.upper_s == 0.1


def test_a_rate_follows_a_steady_stream_and_fades_afterwards() -> None:
    rate = RateEstimate(time_constant_s=2.0)
    for i in range(2000):
        rate.observe(i / 100)
    assert rate.per_s(20.0) == pytest.approx(100, rel=0.02)
    assert rate.per_s(40.0) < 0.01


def test_one_stall_does_not_make_a_route_look_slow_for_good() -> None:
    estimate = DurationEstimate(prior_s=0.001)
    for _ in range(64):
        estimate.observe(0.001)
    estimate.observe(3.0)
    assert estimate.upper_s <= 0.01
    assert estimate.mean_s <= 0.002


def test_a_lasting_slowdown_is_still_learnt() -> None:
    estimate = DurationEstimate(prior_s=0.001)
    for _ in range(200):
        estimate.observe(0.1)
    assert estimate.mean_s > 0.09


@given(st.lists(st.tuples(st.floats(0, 3), st.floats(1e-4, 10)), min_size=1, max_size=100))
def test_a_recent_mean_lies_within_what_was_observed_and_goes_stale(samples: list[tuple[float, float]]) -> None:
    mean, now = RecentMean(stale_s=2.0), 0.0
    for step, value in samples:
        now += step
        mean.observe(value, now)
    values = [value for _, value in samples]
    known = mean.mean(now)
    assert known is not None
    assert min(values) * (1 - 1e-9) <= known <= max(values) * (1 + 1e-9)
    assert (mean.upper(now) or 0) >= known
    assert mean.mean(now + 2.1) is None


def test_a_quantity_that_changes_by_more_than_two_is_followed_at_once() -> None:
    mean = RecentMean()
    for i in range(100):
        mean.observe(0.9, i / 100)
    mean.observe(0.04, 1.0)
    assert mean.mean(1.0) == 0.04


def test_a_link_that_was_never_seen_or_not_lately_is_unknown() -> None:
    link = LinkEstimate()
    assert link.predict_s(0.0) is None
    assert link.age_s(0.0) == math.inf
    link.observe(120, 0.05, now_s=1.0)
    assert link.rtt_s(2.0) == pytest.approx(0.05)
    assert link.rtt_s(6.5) is None


def test_offloads_alone_leave_the_bandwidth_unknown() -> None:
    link = LinkEstimate()
    for i in range(50):
        link.observe(900, 0.041, now_s=i / 10)
    assert link.bytes_per_s(5.0) is None
    assert link.predict_s(5.0) == pytest.approx(0.041, rel=0.01)


@given(st.floats(0.001, 0.5), st.floats(1e4, 1e7))
def test_small_calls_and_offloads_tell_round_trip_and_bandwidth_apart(rtt: float, bandwidth: float) -> None:
    link = LinkEstimate()
    for i in range(40):
        size = 128 if i % 2 else 30_000
        link.observe(size, rtt + (size - 128) / bandwidth, now_s=i / 20)
    assert link.rtt_s(2.0) == pytest.approx(rtt, rel=0.01)
    assert link.bytes_per_s(2.0) == pytest.approx(bandwidth, rel=0.01)


def test_a_link_that_slows_down_is_known_to_be_slow_after_one_offload() -> None:
    link = LinkEstimate()
    for i in range(100):
        link.observe(900, 0.04, now_s=i / 50)
    link.observe(900, 0.4, now_s=2.0)
    assert link.predict_s(2.0) == pytest.approx(0.4)


def test_a_link_that_is_quick_again_is_known_to_be_after_one_offload() -> None:
    link = LinkEstimate()
    for i in range(20):
        link.observe(1000, 0.9, now_s=i / 10)
    link.observe(1000, 0.05, now_s=2.0)
    assert link.predict_s(2.0) == pytest.approx(0.05)


def test_small_calls_alone_do_not_make_slow_offloads_look_quick() -> None:
    """The link may be well and the cloud slow: whoever asked would wait."""
    link = LinkEstimate()
    link.observe(1000, 0.9, now_s=0.0)
    for i in range(10):
        link.observe(120, 0.04, now_s=i)
    assert link.predict_s(10.0) == pytest.approx(0.9)
    assert link.rtt_s(10.0) == pytest.approx(0.04)


def test_a_lost_connection_leaves_the_link_unknown() -> None:
    link = LinkEstimate()
    link.observe(900, 0.9, now_s=0.0)
    link.forget()
    assert link.predict_s(0.0) is None


def test_offloads_of_another_size_have_their_own_time_and_share_the_round_trip_and_what_is_forgotten() -> None:
    link = LinkEstimate()
    beside = link.beside()
    link.observe(100, 0.01, 0.0)
    link.observe(100_000, 1.0, 0.0)
    beside.observe(1000, 0.02, 0.0)
    assert link.offload(0.0) == (100_000, 1.0) and beside.offload(0.0) == (1000, 0.02)
    assert link.rtt_s(0.0) == beside.rtt_s(0.0) == link.small_s(0.0) == 0.01
    assert beside.small_age_s(2.0) == 2.0
    beside.forget()
    assert link.offload(0.0) is link.small_s(0.0) is beside.offload(0.0) is None


def test_one_stall_in_a_warm_up_makes_nothing_dear() -> None:
    estimate = DurationEstimate(1.0)
    estimate.warmed_up([0.001, 0.006, 0.001, 0.001, 0.001])
    assert estimate.mean_s == pytest.approx(0.001)
    for _ in range(16):
        estimate.observe(0.002)
    assert estimate.mean_s > 0.0015  # and what comes later counts
