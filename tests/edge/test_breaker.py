"""The breaker as a pure state machine."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgemux.edge.breaker import Breaker, BreakerSettings, Call, State

SETTINGS = BreakerSettings(failures=3, window=20, rate=0.5, slow_s=1.0, open_s=0.5, max_open_s=2.0, jitter=0.0)


def begun(breaker: Breaker, now_s: float) -> Call:
    call = breaker.begin(now_s)
    assert call is not None
    return call


def fail(breaker: Breaker, now_s: float = 0.0) -> None:
    breaker.failed(begun(breaker, now_s), now_s)


def succeed(breaker: Breaker, now_s: float = 0.0, elapsed_s: float = 0.1) -> None:
    breaker.succeeded(begun(breaker, now_s), elapsed_s, now_s)


def opened() -> Breaker:
    breaker = Breaker(SETTINGS)
    for _ in range(3):
        fail(breaker)
    return breaker


def test_three_failures_in_a_row_open_it() -> None:
    breaker = opened()
    assert breaker.state(0.1) is State.OPEN
    assert breaker.begin(0.1) is None


def test_a_success_in_between_keeps_it_closed() -> None:
    breaker = Breaker(SETTINGS)
    for _ in range(4):
        fail(breaker)
        fail(breaker)
        for _ in range(3):
            succeed(breaker)
    assert breaker.state(0.0) is State.CLOSED


def test_half_of_the_last_calls_failing_opens_it_even_when_never_three_in_a_row() -> None:
    breaker = Breaker(SETTINGS)
    for _ in range(9):
        succeed(breaker)
        fail(breaker)
    succeed(breaker)
    assert breaker.state(0.0) is State.CLOSED
    fail(breaker)
    assert breaker.state(0.0) is State.OPEN


def test_slow_calls_count_as_failures() -> None:
    breaker = Breaker(SETTINGS)
    for _ in range(3):
        succeed(breaker, elapsed_s=1.5)
    assert breaker.state(0.0) is State.OPEN


def test_half_open_lets_exactly_one_of_a_hundred_through() -> None:
    breaker = opened()
    assert sum(breaker.begin(0.6) is not None for _ in range(100)) == 1


def test_the_pause_doubles_up_to_its_limit_and_a_success_resets_it() -> None:
    breaker, now, pauses = opened(), 0.0, []
    for _ in range(4):
        began = now
        while not breaker.allows(now):
            now += 0.01
        pauses.append(round(now - began, 1))
        fail(breaker, now)
    assert pauses == [0.5, 1.0, 2.0, 2.0]
    now += 2.1
    succeed(breaker, now)
    assert breaker.state(now) is State.CLOSED


def test_calls_from_before_it_opened_say_nothing_about_now() -> None:
    breaker = Breaker(SETTINGS)
    stragglers = [begun(breaker, 0.0) for _ in range(5)]
    for _ in range(3):
        fail(breaker)
    breaker.succeeded(stragglers[0], 0.1, 0.1)
    assert breaker.state(0.1) is State.OPEN
    probe = begun(breaker, 0.6)
    assert probe.probe
    breaker.failed(stragglers[1], 0.7)
    breaker.cancelled(stragglers[2])
    breaker.succeeded(stragglers[3], 0.1, 0.7)
    assert breaker.begin(0.7) is None, "the probe is still out"
    breaker.succeeded(probe, 0.1, 0.8)
    assert breaker.state(0.8) is State.CLOSED
    for _ in range(3):
        breaker.failed(stragglers[4], 0.9)
    assert breaker.state(0.9) is State.CLOSED


def recovered() -> Breaker:
    """One that has closed at 1.0 after an outage."""
    breaker = opened()
    succeed(breaker, 1.0)
    return breaker


def test_after_an_outage_inputs_come_back_a_tenth_at_first_and_all_when_the_ramp_is_over() -> None:
    breaker = recovered()
    shares = [breaker.share(1.0 + second) for second in range(7)]
    assert shares == pytest.approx([0.1, 0.28, 0.46, 0.64, 0.82, 1.0, 1.0])
    assert opened().share(0.1) == 0.0
    assert Breaker(SETTINGS).share(0.0) == 1.0


def test_the_first_input_after_an_outage_is_sent_whatever_lot_it_drew_and_the_others_by_lot() -> None:
    breaker = recovered()
    assert breaker.admits(1.0, 0.99)
    call = begun(breaker, 1.0)
    assert not breaker.admits(1.0, 0.99)
    assert breaker.admits(1.0, 0.05)
    breaker.succeeded(call, 0.1, 1.1)
    assert not breaker.admits(1.1, 0.99)
    assert breaker.admits(6.0, 0.99)


def test_one_failure_while_it_recovers_opens_it_again_for_twice_as_long() -> None:
    breaker = recovered()
    fail(breaker, 2.0)
    assert breaker.state(2.9) is State.OPEN
    assert breaker.state(3.0) is State.HALF_OPEN
    succeed(breaker, 3.0)
    fail(breaker, 4.0)
    assert breaker.state(5.9) is State.OPEN


def test_once_it_has_recovered_it_takes_three_failures_again_and_the_first_short_pause() -> None:
    breaker = recovered()
    fail(breaker, 2.0)
    succeed(breaker, 3.0)
    for _ in range(2):
        fail(breaker, 9.0)
    assert breaker.state(9.0) is State.CLOSED
    fail(breaker, 9.0)
    assert breaker.state(9.4) is State.OPEN
    assert breaker.state(9.5) is State.HALF_OPEN


@given(st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=20))
def test_jitter_makes_pauses_shorter_by_its_share_at_most(draws: list[float]) -> None:
    lots = iter(draws * 10)
    breaker = Breaker(BreakerSettings(failures=1, open_s=1.0, max_open_s=1.0, jitter=0.2), lambda: next(lots))
    now = 0.0
    for _ in draws:
        fail(breaker, now)
        assert breaker.state(now + 0.79) is State.OPEN
        assert breaker.state(now + 1.0) is State.HALF_OPEN
        now += 1.0


def test_a_cancelled_probe_leaves_room_for_the_next() -> None:
    breaker = opened()
    breaker.cancelled(begun(breaker, 0.6))
    assert begun(breaker, 0.6).probe


def test_hearing_of_the_cloud_cuts_a_long_pause_to_the_first_one() -> None:
    breaker = opened()
    for now in (0.6, 1.7):
        fail(breaker, now)
    assert breaker.state(2.3) is State.OPEN, "the pause is two seconds by now"
    breaker.heard(1.8)
    assert breaker.state(2.1) is State.OPEN
    assert breaker.state(2.2) is State.HALF_OPEN
    assert sum(breaker.begin(2.3) is not None for _ in range(10)) == 1


def test_only_the_first_outcome_of_a_call_counts() -> None:
    breaker = Breaker(SETTINGS)
    call = begun(breaker, 0.0)
    for _ in range(3):
        breaker.failed(call, 1.0)
    assert breaker.state(1.0) is State.CLOSED


def test_hearing_of_the_cloud_changes_nothing_while_closed() -> None:
    breaker = Breaker(SETTINGS)
    breaker.heard(0.0)
    assert breaker.state(0.0) is State.CLOSED


@pytest.mark.parametrize(
    "wrong",
    [
        {"failures": 0},
        {"window": 0},
        {"rate": 0},
        {"slow_s": float("nan")},
        {"open_s": -1},
        {"max_open_s": float("inf")},
        {"ramp_s": float("nan")},
        {"jitter": 1.0},
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        BreakerSettings(**wrong)


EVENTS = st.lists(
    st.tuples(st.floats(0, 1), st.sampled_from(["begin", "ok", "slow", "fail", "cancel"]), st.integers(0, 9)),
    max_size=300,
)


@given(EVENTS)
def test_at_most_one_probe_is_out_and_it_never_stays_shut_longer_than_its_longest_pause(
    events: list[tuple[float, str, int]],
) -> None:
    breaker, now, out = Breaker(SETTINGS), 0.0, list[Call]()
    for step, event, which in events:
        now += step
        if event == "begin":
            allowed = breaker.allows(now)
            call = breaker.begin(now)
            assert (call is not None) == allowed
            if call is not None:
                out.append(call)
        elif out:
            call = out.pop(which % len(out))
            match event:
                case "ok":
                    breaker.succeeded(call, 0.1, now)
                case "slow":
                    breaker.succeeded(call, 5.0, now)
                case "fail":
                    breaker.failed(call, now)
                case "cancel":
                    breaker.cancelled(call)
        current = [call for call in out if call.probe and call.period == breaker._period]
        assert len(current) <= 1
        assert current or breaker.allows(now + SETTINGS.max_open_s)
