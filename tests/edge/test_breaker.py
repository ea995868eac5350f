"""The breaker as a pure state machine."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edgemux.edge.breaker import Breaker, BreakerSettings, State

SETTINGS = BreakerSettings(failures=3, window=20, rate=0.5, slow_s=1.0, open_s=0.5, max_open_s=2.0)


def opened() -> Breaker:
    breaker = Breaker(SETTINGS)
    for _ in range(3):
        assert breaker.begin(0.0)
        breaker.failed(0.0)
    return breaker


def test_three_failures_in_a_row_open_it() -> None:
    breaker = opened()
    assert breaker.state(0.1) is State.OPEN
    assert not breaker.begin(0.1)


def test_a_success_in_between_keeps_it_closed() -> None:
    breaker = Breaker(SETTINGS)
    for _ in range(4):
        breaker.failed(0.0)
        breaker.failed(0.0)
        breaker.succeeded(0.1, 0.0)
        breaker.succeeded(0.1, 0.0)
        breaker.succeeded(0.1, 0.0)
    assert breaker.state(0.0) is State.CLOSED


def test_half_of_the_last_calls_failing_opens_it_even_when_never_three_in_a_row() -> None:
    breaker = Breaker(SETTINGS)
    for _ in range(10):
        breaker.failed(0.0)
        breaker.succeeded(0.1, 0.0)
    breaker.failed(0.0)
    assert breaker.state(0.0) is State.OPEN


def test_slow_calls_count_as_failures() -> None:
    breaker = Breaker(SETTINGS)
    for _ in range(3):
        breaker.succeeded(1.5, 0.0)
    assert breaker.state(0.0) is State.OPEN


def test_half_open_lets_exactly_one_of_a_hundred_through() -> None:
    breaker = opened()
    assert sum(breaker.begin(0.6) for _ in range(100)) == 1


def test_the_pause_doubles_up_to_its_limit_and_a_success_resets_it() -> None:
    breaker, now, pauses = opened(), 0.0, []
    for _ in range(4):
        began = now
        while not breaker.begin(now):
            now += 0.01
        pauses.append(round(now - began, 1))
        breaker.failed(now)
    assert pauses == [0.5, 1.0, 2.0, 2.0]
    now += 2.1
    assert breaker.begin(now)
    breaker.succeeded(0.1, now)
    assert breaker.state(now) is State.CLOSED


def test_a_late_success_of_an_old_call_does_not_close_it() -> None:
    breaker = opened()
    breaker.succeeded(0.1, 0.1)
    assert breaker.state(0.1) is State.OPEN


def test_a_cancelled_probe_leaves_room_for_the_next() -> None:
    breaker = opened()
    assert breaker.begin(0.6)
    breaker.cancelled()
    assert breaker.begin(0.6)


def test_hearing_of_the_cloud_allows_a_probe_at_once_but_only_one() -> None:
    breaker = opened()
    breaker.heard(0.1)
    assert breaker.state(0.1) is State.HALF_OPEN
    assert sum(breaker.begin(0.1) for _ in range(10)) == 1
    breaker.failed(0.2)
    assert breaker.state(0.3) is State.OPEN


def test_hearing_of_the_cloud_changes_nothing_while_closed() -> None:
    breaker = Breaker(SETTINGS)
    breaker.heard(0.0)
    assert breaker.state(0.0) is State.CLOSED


EVENTS = st.lists(st.tuples(st.floats(0, 1), st.sampled_from(["ok", "slow", "fail", "cancel"])), max_size=300)


@given(EVENTS)
def test_it_never_stays_shut_longer_than_its_longest_pause(events: list[tuple[float, str]]) -> None:
    breaker, now = Breaker(SETTINGS), 0.0
    for step, outcome in events:
        now += step
        allowed = breaker.allows(now)
        assert breaker.begin(now) == allowed
        if allowed:
            match outcome:
                case "ok":
                    breaker.succeeded(0.1, now)
                case "slow":
                    breaker.succeeded(5.0, now)
                case "fail":
                    breaker.failed(now)
                case "cancel":
                    breaker.cancelled()
        assert breaker.allows(now + SETTINGS.max_open_s)
