"""Admission: who is let into the queue, and the estimate it goes by."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgemux.cloud.admission import Admission, AdmissionSettings, BatchTime, Refusal, Refused


def admission(max_queue: int = 8, max_batch: int = 4) -> Admission:
    """Batches take 1 ms a row and 1 ms."""
    return Admission(AdmissionSettings(max_queue=max_queue), BatchTime(0.002, 0.005, 4), max_batch)


def test_an_idle_server_takes_a_request_however_short_its_deadline() -> None:
    assert admission().check(1, left_s=1e-6, queued_rows=0, running_left_s=None) is None


def test_a_full_queue_refuses_and_says_when_to_come_back() -> None:
    refusal = admission().check(1, left_s=60.0, queued_rows=8, running_left_s=0.003)
    assert refusal is not None
    assert refusal.reason is Refused.FULL
    assert refusal.retry_after_s == pytest.approx(0.003 + 2 * 0.005)


def test_a_request_that_would_wait_past_its_deadline_is_refused_at_once() -> None:
    behind = {"queued_rows": 4, "running_left_s": 0.005}
    # 5 ms for the batch that runs, 5 for the one that is queued, 2 for its own, and a quarter on top.
    assert admission().check(1, left_s=0.0155, **behind) is None
    refusal = admission().check(1, left_s=0.0145, **behind)
    assert refusal is not None
    assert refusal.reason is Refused.WAIT
    assert refusal.retry_after_s == pytest.approx(0.0005)


@given(
    rows=st.integers(1, 4),
    queued=st.integers(0, 8),
    left_s=st.floats(1e-6, 1.0),
    running=st.one_of(st.none(), st.floats(0, 1)),
)
def test_the_queue_never_grows_past_its_bound_and_more_time_never_hurts(
    rows: int, queued: int, left_s: float, running: float | None
) -> None:
    gate = admission()
    decision = gate.check(rows, left_s, queued, running)
    if decision is None:
        assert queued + rows <= 8
        assert gate.check(rows, left_s * 2, queued, running) is None
    else:
        assert isinstance(decision, Refusal)
        assert decision.retry_after_s > 0


def test_a_deadline_is_the_shortest_given_or_the_default_and_never_absurd() -> None:
    gate = Admission(AdmissionSettings(default_timeout_s=2.0, max_timeout_s=10.0), BatchTime(0.1, 0.1, 1), 1)
    assert gate.deadline_s(100.0, None, None) == 102.0
    assert gate.deadline_s(100.0, 5.0, None) == 105.0
    assert gate.deadline_s(100.0, 5.0, 3.0) == 103.0
    assert gate.deadline_s(100.0, 1e300, None) == 110.0
    assert gate.deadline_s(100.0, -1.0, None) == 99.0


def test_batch_time_starts_as_measured() -> None:
    timing = BatchTime(0.003, 0.010, 8)
    assert timing.expected_s(1) == pytest.approx(0.003)
    assert timing.expected_s(8) == pytest.approx(0.010)


def test_batch_time_follows_a_machine_that_became_slower() -> None:
    timing = BatchTime(0.002, 0.009, 8)
    for number in range(400):
        rows = 1 + number % 8
        timing.observe(rows, 3 * (0.001 + 0.001 * rows))
    assert timing.expected_s(1) == pytest.approx(0.006, rel=0.15)
    assert timing.expected_s(8) == pytest.approx(0.027, rel=0.15)


def test_traffic_of_one_batch_size_keeps_the_slope_as_measured() -> None:
    timing = BatchTime(0.002, 0.009, 8)
    for _ in range(1000):
        timing.observe(1, 0.002)
    assert timing.expected_s(8) == pytest.approx(0.009, rel=0.05)


def test_one_stall_is_soon_forgotten() -> None:
    timing = BatchTime(0.002, 0.009, 8)
    for _ in range(50):
        timing.observe(4, 0.005)
    timing.observe(4, 30.0)
    for _ in range(100):
        timing.observe(4, 0.005)
    assert timing.expected_s(4) == pytest.approx(0.005, rel=0.1)


@given(st.lists(st.tuples(st.integers(1, 8), st.floats(1e-6, 100.0)), max_size=40))
def test_batch_time_is_positive_and_never_falls_with_the_rows(samples: list[tuple[int, float]]) -> None:
    timing = BatchTime(0.002, 0.001, 8)
    for rows, duration_s in samples:
        timing.observe(rows, duration_s)
        assert 0 < timing.expected_s(1) <= timing.expected_s(2) <= timing.expected_s(8)


@pytest.mark.parametrize(
    "wrong", [{"max_queue": 0}, {"default_timeout_s": 0.0}, {"default_timeout_s": 9.0, "max_timeout_s": 1.0}]
)
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be"):
        AdmissionSettings(**wrong)  # type: ignore[arg-type]


def test_batches_do_not_grow_where_rows_become_dearer_and_the_larger_ones_are_tried_again_now_and_then() -> None:
    timing = BatchTime(0.010, 0.128, 32, {1: 0.010, 2: 0.012, 4: 0.016, 8: 0.032, 16: 0.064, 32: 0.192})
    assert timing.best_rows == 16
    seen = set()
    for _ in range(2 * BatchTime.RETRIED):
        timing.observe(16, 0.064)
        seen.add(timing.best_rows)
    assert seen == {16, 32}
    for _ in range(50):
        timing.observe(32, 0.064)
    for _ in range(BatchTime.CHOSEN):
        timing.observe(16, 0.064)
    assert timing.best_rows == 32


def test_what_goes_after_a_request_does_not_count_as_its_wait() -> None:
    admission = Admission(AdmissionSettings(max_queue=64), BatchTime(0.1, 0.4, 4), 4)
    assert admission.check(1, 0.5, 20, 0.0) is not None
    assert admission.check(1, 0.5, 20, 0.0, before_rows=0) is None
