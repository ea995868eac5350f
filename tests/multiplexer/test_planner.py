"""The planner finds what an exhaustive search finds, and stays with it while nothing is clearly better."""

from __future__ import annotations

import pytest
from benchmarks.split_bench.traces import hindsight, walk
from hypothesis import given
from hypothesis import strategies as st

from edgemux.multiplexer.domain import Placement
from edgemux.multiplexer.planner import BETTER, Conditions, Planner, Price, Table, Way, undominated

amounts = st.floats(0.0, 2.0)
sizes = st.integers(0, 10**6).map(float)
ways = st.builds(
    Way, st.text(max_size=3), st.sampled_from(Placement), amounts, amounts, sizes, st.integers(0, 1000).map(float)
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


@given(st.lists(ways, min_size=1, max_size=30), conditions, prices)
def test_the_first_plan_is_the_best_of_all_ways(given: list[Way], now: Conditions, price: Price) -> None:
    chosen = Planner(Table(given, price)).plan(now)
    assert taken(chosen, now, price) == pytest.approx(min(taken(way, now, price) for way in given))


@given(st.lists(ways, min_size=1, max_size=30), st.lists(conditions, min_size=1, max_size=20), prices)
def test_a_plan_is_never_worse_than_the_best_by_more_than_what_it_takes_to_change(
    given: list[Way], trace: list[Conditions], price: Price
) -> None:
    planner = Planner(Table(given, price))
    for now in trace:
        best = min(taken(way, now, price) for way in given)
        assert BETTER * taken(planner.plan(now), now, price) <= best + 1e-9


@given(st.lists(ways, min_size=1, max_size=30), conditions)
def test_what_is_expected_is_sorted_and_says_what_each_way_takes(given: list[Way], now: Conditions) -> None:
    expected = Table(given).expected(now)
    assert [each.price_s for each in expected] == sorted(each.price_s for each in expected)
    for each in expected:
        assert each.latency_s == pytest.approx(taken(each.way, now, Price()))


@given(st.lists(ways, max_size=30))
def test_only_ways_that_another_one_beats_in_everything_are_left_out(given: list[Way]) -> None:
    kept = undominated(given)
    assert undominated(kept) == kept
    assert all(way in given for way in kept)
    assert bool(kept) == bool(given)


@given(st.lists(ways, min_size=1, max_size=10), conditions, st.floats(1.0, 1.05))
def test_a_small_change_of_the_link_changes_nothing(given: list[Way], now: Conditions, factor: float) -> None:
    planner = Planner(Table(given))
    chosen = planner.plan(now)
    assert (
        planner.plan(Conditions(now.rtt_s, now.bytes_per_s * factor, now.queue_s, now.slowdown, now.lost_share))
        is chosen
    )


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


# A net that shrinks what it has to send: 40 ms on the device in ten layers, a fifth of that in the cloud.
LAYERS = [Way(f"cut {i}", Placement.SPLIT, 0.004 * i, 0.0008 * (10 - i), 60_000 / 1.9**i, 40.0) for i in range(1, 10)]
WAYS = [
    Way("device", Placement.EDGE, 0.04),
    *LAYERS,
    Way("raw", Placement.CLOUD, 0.0, 0.008, 150_000.0, 40.0),
    Way("jpeg", Placement.CLOUD, 0.003, 0.009, 9_000.0, 40.0),
]


def test_over_traces_plans_made_from_what_was_seen_of_the_link_are_within_two_percent_of_hindsight() -> None:
    ratios = [hindsight(WAYS, walk(seed, 1500), 9_000.0) for seed in range(6)]
    assert sum(ratios) / len(ratios) <= 1.02
