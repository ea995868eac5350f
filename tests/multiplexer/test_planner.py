"""The planner finds what an exhaustive search finds, and stays with it while nothing is clearly better."""

from __future__ import annotations

import math
import random
import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from edgemux.multiplexer.domain import Placement
from edgemux.multiplexer.planner import BETTER, Conditions, Planner, Price, Table, Way, counted, undominated

amounts = st.floats(0.0, 2.0)
sizes = st.integers(0, 10**6).map(float)
ways = st.builds(
    Way,
    st.text(max_size=3),
    st.sampled_from(Placement),
    amounts,
    amounts,
    sizes,
    st.integers(0, 1000).map(float),
    st.sampled_from([0.0, 0.01, 0.3]),
)
conditions = st.builds(Conditions, amounts, st.floats(1e3, 1e9), amounts, st.floats(0.5, 20.0), st.floats(0.0, 0.9))
prices = st.builds(Price, st.floats(0.0, 10.0), st.floats(0.0, 5.0), st.floats(0.0, 1e-5))


def taken(way: Way, now: Conditions, price: Price) -> float:
    """What a way takes, written out for one way at a time."""
    size = way.sent_bytes + way.answer_bytes
    seconds = way.device_s * now.slowdown
    beyond = way.cloud_s + size / now.bytes_per_s
    if way.placement is not Placement.EDGE:
        beyond += now.rtt_s + now.queue_s
    seconds += beyond / (1 - now.lost_share)
    return seconds + price.seconds_per_joule * (price.watts * way.device_s + price.joules_per_byte * size)


def priced(way: Way, now: Conditions, price: Price) -> float:
    """The same, and longer for a way that changes answers."""
    return taken(way, now, price) * counted(way.changed)


@settings(deadline=None)
@given(st.lists(ways, min_size=1, max_size=30), conditions, prices)
def test_the_first_plan_is_the_best_of_all_ways(given: list[Way], now: Conditions, price: Price) -> None:
    chosen = Planner(Table(given, price)).plan(now)
    assert priced(chosen, now, price) == pytest.approx(min(priced(way, now, price) for way in given))


@settings(deadline=None)
@given(st.lists(ways, min_size=1, max_size=30), st.lists(conditions, min_size=1, max_size=20), prices)
def test_a_plan_is_never_worse_than_the_best_by_more_than_what_it_takes_to_change(
    given: list[Way], trace: list[Conditions], price: Price
) -> None:
    planner = Planner(Table(given, price))
    for now in trace:
        best = min(priced(way, now, price) for way in given)
        assert BETTER * priced(planner.plan(now), now, price) <= best + 1e-9


@settings(deadline=None)
@given(st.lists(ways, min_size=1, max_size=30), conditions)
def test_what_is_expected_is_sorted_and_says_what_each_way_takes(given: list[Way], now: Conditions) -> None:
    expected = Table(given).expected(now)
    assert [each.price_s for each in expected] == sorted(each.price_s for each in expected)
    for each in expected:
        assert each.latency_s == pytest.approx(taken(each.way, now, Price()))


@settings(deadline=None)
@given(st.lists(ways, max_size=30))
def test_only_ways_that_another_one_beats_in_everything_are_left_out(given: list[Way]) -> None:
    kept = undominated(given)
    assert undominated(kept) == kept
    assert all(way in given for way in kept)
    assert bool(kept) == bool(given)


@settings(deadline=None)
@given(st.lists(ways, min_size=1, max_size=10), conditions, st.floats(1.0, 1.05))
def test_a_small_change_of_the_link_changes_nothing(given: list[Way], now: Conditions, factor: float) -> None:
    planner = Planner(Table(given))
    chosen = planner.plan(now)
    assert (
        planner.plan(Conditions(now.rtt_s, now.bytes_per_s * factor, now.queue_s, now.slowdown, now.lost_share))
        is chosen
    )


def test_a_way_that_changes_answers_is_taken_where_it_is_clearly_quicker_and_given_up_where_times_are_alike() -> None:
    raw = Way("raw", Placement.CLOUD, 0.0, 0.002, 1000.0)
    few, many = (Way(f"{changed}", Placement.SPLIT, 0.0, 0.001, 500.0, changed=changed) for changed in (0.04, 0.05))
    planner = Planner(Table([raw, many, few]))
    assert planner.plan(Conditions(0.04, 1e6)) is raw, "quicker by the time of a tail, and that is not worth it"
    assert planner.plan(Conditions(0.04, 1e4)) is few, "of two that are alike the one that changes less"
    assert planner.plan(Conditions(0.04, 1e6)) is raw
    assert counted(0.0) == 1.0 < counted(0.001) < counted(0.04) < counted(0.05)


def test_without_knowing_the_link_the_device_answers_and_later_what_was_chosen_stays() -> None:
    device, cloud = Way("device", Placement.EDGE, 1.0), Way("raw", Placement.CLOUD, 0.0, 0.01, 1000.0)
    planner = Planner(Table([cloud, device]))
    assert planner.plan(None) is device
    assert planner.plan(Conditions(0.02, 1e6)) is cloud
    assert planner.plan(None) is cloud
    assert Planner(Table([cloud])).plan(None) is cloud


def test_a_table_needs_a_way() -> None:
    with pytest.raises(ValueError, match="must be a way"):
        Table([])


bad = st.sampled_from((math.nan, math.inf, -math.inf, -1.0, 0.0, 1e308, 1e-308, -0.0))
readings = st.builds(Conditions, *(st.one_of(bad, st.floats()) for _ in range(5)))


@settings(deadline=None)
@given(st.lists(ways, min_size=1, max_size=10), st.lists(readings, min_size=1, max_size=10), conditions)
def test_readings_that_are_none_change_nothing_and_the_next_true_ones_are_followed(
    given: list[Way], odd: list[Conditions], now: Conditions
) -> None:
    planner = Planner(Table(given))
    chosen = planner.plan(now)
    for each in odd:
        before, chosen = chosen, planner.plan(each)
        assert chosen in given
        assert each.known or chosen is before
        if each.known:
            assert not any(math.isnan(price) or math.isinf(price) for price in planner.table.prices_s(each))
    best = min(priced(way, now, Price()) for way in given)
    assert BETTER * priced(planner.plan(now), now, Price()) <= best + 1e-9


@pytest.mark.parametrize(
    "dead", [Conditions(0.02, 0.0), Conditions(math.inf, 1e6), Conditions(0.02, 1e6, queue_s=math.inf)]
)
def test_where_nothing_gets_through_the_device_answers_if_it_may_and_else_what_waits_least(dead: Conditions) -> None:
    device, cut = Way("device", Placement.EDGE, 5.0), Way("cut", Placement.SPLIT, 0.5, 0.1, 10.0)
    raw = Way("raw", Placement.CLOUD, 0.0, 0.1, 1000.0)
    assert Planner(Table([raw, cut, device])).plan(dead) is device
    small = Way("small", Placement.CLOUD, 0.0, 0.1, 5.0)
    assert Planner(Table([raw, small])).plan(dead) is small
    planner = Planner(Table([raw, cut]))
    assert len({planner.plan(dead).name for _ in range(5)}) == 1


# What two ways take is the same, and yet one sends what the other is answered.
SENDS = Way("", Placement.EDGE, 0.0, sent_bytes=1.0)
ANSWERED = Way("", Placement.EDGE, 0.0, answer_bytes=1.0)


@settings(deadline=None)
@given(st.lists(ways, min_size=1, max_size=10), conditions)
@example([ANSWERED, SENDS], Conditions(0.0, 1000.0))
def test_equal_ways_are_one_and_the_order_in_which_ways_are_given_does_not_matter(
    given: list[Way], now: Conditions
) -> None:
    doubled = [*given, *reversed(given)]
    assert Table(doubled).ways == Table(given).ways
    assert Planner(Table(given[::-1])).plan(now) == Planner(Table(given)).plan(now)


noise = st.floats(1 / 1.05, 1.05)


@given(
    st.lists(ways, min_size=1, max_size=10), conditions, st.lists(st.tuples(noise, noise, noise, noise), max_size=40)
)
def test_on_noise_of_five_percent_no_way_is_taken_again_that_was_left(
    given: list[Way], now: Conditions, shaken: list[tuple[float, float, float, float]]
) -> None:
    planner, seen = Planner(Table(given)), []
    for rtt, rate, queue, slow in shaken:
        there = Conditions(
            now.rtt_s * rtt, now.bytes_per_s * rate, now.queue_s * queue, now.slowdown * slow, now.lost_share
        )
        way = planner.plan(there)
        if not seen or seen[-1] is not way:
            assert way not in seen
            seen.append(way)


@pytest.mark.parametrize("axis", ["device_s", "cloud_s", "sent_bytes", "answer_bytes"])
@pytest.mark.parametrize("amount", [math.nan, math.inf, -1.0])
def test_a_way_that_takes_no_number_is_refused(axis: str, amount: float) -> None:
    with pytest.raises(ValueError, match="no number"):
        Table([Way("odd", Placement.CLOUD, **{"device_s": 0.0, axis: amount})])


def test_two_hundred_ways_are_planned_for_in_less_than_a_millisecond() -> None:
    """In CPU time, as medians: whatever else this machine does is not counted."""
    draw = random.Random(1)
    many = [Way(f"cut {i}", Placement.SPLIT, i / 1e3, (200 - i) / 1e3, draw.uniform(1, 1e5)) for i in range(200)]
    table = Table(many)
    assert len(table.ways) == 200
    planner, times = Planner(table), []
    for i in range(200):
        began = time.thread_time()
        planner.plan(Conditions(0.01, 1e3 * (i + 1)))
        times.append(time.thread_time() - began)
    assert sorted(times)[100] < 1e-3
