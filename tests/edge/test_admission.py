"""Admission at the agent as pure values: nobody waits past a deadline, and nobody holds everything."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgemux.edge.admission import AROUND_S, HEADROOM, MOST_CLIENTS, AdmissionSettings, Backlog, Shares


def test_an_idle_device_takes_everything_however_long_it_seems_to_take() -> None:
    assert Backlog().fits("a", 10.0, 0.001, 0.0)


def test_what_would_wait_past_its_deadline_is_refused_with_headroom() -> None:
    backlog = Backlog()
    backlog.enter("a", 0.1)
    assert backlog.fits("a", 0.1, 0.2 * HEADROOM, 0.0)
    assert not backlog.fits("a", 0.1, 0.2 * HEADROOM - 0.01, 0.0)
    backlog.leave("a", 0.1)
    assert backlog.wait_s == 0.0


def fill(shares: Shares, client: str, limit: float, now_s: float) -> float:
    """How much ``client`` gets, a unit at a time, when it takes whatever it can."""
    taken = 0.0
    while taken <= limit and shares.fits(client, 1.0, limit, now_s):
        shares.take(client, 1.0)
        taken += 1.0
    return taken


def test_alone_a_client_may_hold_everything() -> None:
    assert fill(Shares(), "greedy", 100.0, 0.0) == 100.0


def test_while_others_are_around_half_is_left_for_them() -> None:
    shares = Shares()
    assert shares.fits("polite", 1.0, 100.0, 0.0)
    shares.take("polite", 1.0)
    assert 45 <= fill(shares, "greedy", 100.0, 0.0) <= 50
    assert shares.fits("polite", 1.0, 100.0, 0.1)


def test_a_client_that_went_away_needs_no_room() -> None:
    shares = Shares()
    shares.fits("polite", 1.0, 100.0, 0.0)
    assert fill(shares, "greedy", 100.0, 1.01 * AROUND_S) == 100.0


def test_a_polite_client_is_served_beside_a_greedy_one_at_a_tenth_of_the_rate() -> None:
    """A device that does one unit at a time; greedy asks ten times for each time that polite does."""
    shares, refused, queue = Shares(), {"greedy": 0, "polite": 0}, list[str]()
    for step in range(2000):
        now_s = step * 0.01
        for client in ["greedy"] * 10 + (["polite"] if step % 3 == 0 else []):
            if shares.fits(client, 1.0, 20.0, now_s):
                shares.take(client, 1.0)
                queue.append(client)
            else:
                refused[client] += 1
        if queue:
            shares.give(queue.pop(0), 1.0)
    assert refused["polite"] == 0
    assert refused["greedy"] > 15_000


CLIENTS = st.sampled_from("abcde")


@given(st.lists(st.tuples(CLIENTS, st.floats(0.001, 5.0), st.floats(0, 1.0), st.booleans()), max_size=200))
def test_what_fits_never_exceeds_the_limit_and_what_is_given_back_leaves_nothing(
    steps: list[tuple[str, float, float, bool]],
) -> None:
    shares, held, now = Shares(), list[tuple[str, float]](), 0.0
    for client, amount, pause, gives in steps:
        now += pause
        if gives and held:
            shares.give(*held.pop(0))
        elif shares.fits(client, amount, 10.0, now):
            assert not held or shares.total + amount <= 10.0
            shares.take(client, amount)
            held.append((client, amount))
    assert shares.total == pytest.approx(sum(amount for _, amount in held))
    for entry in held:
        shares.give(*entry)
    assert shares.total == 0.0


def test_however_many_clients_come_only_so_many_are_remembered() -> None:
    shares = Shares()
    for number in range(3 * MOST_CLIENTS):
        shares.fits(str(number), 1.0, 10.0, 0.0)
    assert len(shares._seen_s) == MOST_CLIENTS


def test_a_bound_that_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match="max_inflight"):
        AdmissionSettings(max_inflight=0)
