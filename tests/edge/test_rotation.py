"""Whose turn it is among several clouds: fair among those that are ready, and never more than two attempts."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edgemux.edge.rotation import MOST_ATTEMPTS, Attempts, Standing, Turns
from edgemux.multiplexer.errors import BadAnswer, DeadlineExceeded, Incompatible, Overloaded, Unreachable

sizes = st.integers(1, 8)
standings_of = st.builds(Standing, st.booleans(), st.floats(0, 2))
errors = st.sampled_from([Unreachable("x"), Overloaded("x"), Incompatible("x"), BadAnswer("x"), DeadlineExceeded("x")])


@given(st.lists(st.lists(st.booleans(), min_size=4, max_size=4), max_size=60))
def test_only_who_is_ready_has_a_turn_and_nobody_only_where_nobody_is(rounds: list[list[bool]]) -> None:
    turns = Turns()
    for ready in rounds:
        chosen = turns.next([Standing(each, 0.0) for each in ready], 1.0)
        assert (chosen is None) == (not any(ready))
        assert chosen is None or ready[chosen]


@given(st.lists(st.booleans(), min_size=1, max_size=8), st.integers(1, 60))
def test_turns_are_shared_evenly_among_those_that_stay_ready(ready: list[bool], rounds: int) -> None:
    turns, counts = Turns(), [0] * len(ready)
    for _ in range(rounds if any(ready) else 0):
        chosen = turns.next([Standing(each, 0.0) for each in ready], 1.0)
        assert chosen is not None
        counts[chosen] += 1
    used = [count for count, each in zip(counts, ready, strict=True) if each]
    assert not used or max(used) - min(used) <= 1


@given(st.lists(st.lists(st.booleans(), min_size=5, max_size=5), min_size=5, max_size=60), st.integers(0, 4))
def test_whoever_is_always_ready_waits_for_at_most_one_turn_of_each_other(
    rounds: list[list[bool]], steady: int
) -> None:
    turns, waited = Turns(), 0
    for ready in rounds:
        chosen = turns.next([Standing(each or i == steady, 0.0) for i, each in enumerate(ready)], 1.0)
        waited = 0 if chosen == steady else waited + 1
        assert waited < len(ready)


@given(st.lists(standings_of, min_size=1, max_size=6), st.floats(0, 2))
def test_who_would_be_late_has_a_turn_only_where_everybody_would_be(standings: list[Standing], left_s: float) -> None:
    chosen = Turns().next(standings, left_s)
    if chosen is not None and standings[chosen].expected_s > left_s:
        ready = [each.expected_s for each in standings if each.ready]
        assert min(ready) == standings[chosen].expected_s


@given(
    st.lists(st.lists(standings_of, min_size=3, max_size=3), min_size=4, max_size=4),
    st.lists(errors, min_size=4, max_size=4),
    st.lists(st.floats(0, 1), min_size=4, max_size=4),
    st.floats(0.001, 2),
)
def test_an_input_goes_to_at_most_two_and_to_the_second_only_in_time_and_after_no_answer(
    rounds: list[list[Standing]], failures: list[Exception], pauses: list[float], allowed_s: float
) -> None:
    attempts, tried, now_s, failure = Attempts(Turns(), 10.0 + allowed_s), list[int](), 10.0, None
    for standings, error, pause_s in zip(rounds, failures, pauses, strict=True):
        chosen = attempts.next(standings, now_s)
        if chosen is not None:
            assert standings[chosen].ready
            assert chosen not in tried
            if tried:
                assert now_s < 10.0 + allowed_s
                assert now_s + standings[chosen].expected_s <= 10.0 + allowed_s
                assert not isinstance(failure, BadAnswer | DeadlineExceeded)
            assert attempts.left_s(now_s) <= max(0.0, 10.0 + allowed_s - now_s)
            tried.append(chosen)
            failure = error
            attempts.failed(error)  # type: ignore[arg-type]
        now_s += pause_s
    assert len(tried) <= MOST_ATTEMPTS
