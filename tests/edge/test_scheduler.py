"""Plans are the best there are, hold what there is to hold, and do not flap."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgemux.edge.scheduler import (
    Allotment,
    Application,
    Device,
    Level,
    Plan,
    Planner,
    SchedulerSettings,
    Scheme,
    cost,
    fits,
    memory_of,
    plan_for,
)

ALPHA = 0.1
TICK_S = 0.1


@st.composite
def applications_of(draw: st.DrawFn, most_levels: int = 3) -> Application:
    """Levels that grow in every respect, as those of a family do."""
    count = draw(st.integers(1, most_levels))
    grow = st.lists(st.floats(0.01, 1.0), min_size=count, max_size=count)
    accuracy = np.minimum(0.99, 0.5 + np.cumsum(draw(grow)) / 5)
    compute = np.cumsum(draw(grow)) / 50
    sizes = np.cumsum(draw(grow)) * 1e5
    levels = tuple(Level(float(a), float(c), float(b), 0.004) for a, c, b in zip(accuracy, compute, sizes, strict=True))
    return Application(
        levels,
        draw(st.sampled_from([0.0, 1.0, 5.0, 20.0, 100.0])),
        draw(st.sampled_from([0.7, 0.9, 1.0])),
        draw(st.sampled_from([0.005, 0.02, 0.1])),
        draw(st.sampled_from([0.5, 1.0, 3.0])),
    )


DEVICES = st.builds(
    Device, cpu=st.sampled_from([0.05, 0.2, 0.5, 1.0]), memory_bytes=st.just(math.inf) | st.floats(0, 6e5)
)
FEW = st.lists(applications_of(), min_size=1, max_size=3)
MANY = st.lists(applications_of(most_levels=5), min_size=1, max_size=8)
SCHEMES = st.sampled_from(["total", "max"])


def every_plan(applications: Sequence[Application], device: Device, steps: int) -> Iterator[tuple[Plan, list[float]]]:
    """All plans on the grid that fit, and what each application costs under them."""
    count = len(applications)
    for levels in itertools.product(*(range(1, len(application.levels) + 1) for application in applications)):
        for shares in itertools.product(range(1, steps + 1), repeat=count):
            plan = Plan(tuple(Allotment(lv, s / steps) for lv, s in zip(levels, shares, strict=True)), 0.0)
            if sum(shares) > steps or not fits(applications, device, plan):
                continue
            yield (
                plan,
                [
                    float(cost(application, allotment.level, allotment.share * device.cpu, ALPHA))
                    for application, allotment in zip(applications, plan.allotments, strict=True)
                ],
            )


@settings(deadline=None, max_examples=60)
@given(FEW, DEVICES, SCHEMES)
def test_no_plan_on_the_grid_costs_less(applications: list[Application], device: Device, scheme: Scheme) -> None:
    steps = 2 * len(applications)
    found = plan_for(applications, device, scheme, ALPHA, steps=steps)
    join = sum if scheme == "total" else max
    assert found.cost == pytest.approx(min(join(costs) for _, costs in every_plan(applications, device, steps)))


@settings(deadline=None, max_examples=40)
@given(FEW, DEVICES)
def test_of_the_plans_whose_worst_is_least_bad_it_is_the_cheapest(
    applications: list[Application], device: Device
) -> None:
    steps = 2 * len(applications)
    found = plan_for(applications, device, "max", ALPHA, steps=steps)
    ranges = [(level, level) for level in found.levels]
    total = plan_for(applications, device, "total", ALPHA, ranges, steps=steps).cost
    fair = [costs for _, costs in every_plan(applications, device, steps) if max(costs) <= found.cost + 1e-9]
    assert total <= min(sum(costs) for costs in fair) + 1e-6


@settings(deadline=None, max_examples=100)
@given(MANY, DEVICES, SCHEMES)
def test_a_plan_holds_the_memory_and_the_cpu_and_hands_out_all_of_it(
    applications: list[Application], device: Device, scheme: Scheme
) -> None:
    found = plan_for(applications, device, scheme, ALPHA)
    assert fits(applications, device, found)
    assert set(found.levels) == {1} or memory_of(applications, found.levels) <= device.memory_bytes
    assert sum(allotment.share for allotment in found.allotments) == pytest.approx(1)
    assert all(allotment.share > 0 for allotment in found.allotments)
    assert math.isfinite(found.cost)


@settings(deadline=None, max_examples=60)
@given(MANY, st.floats(0, 6e5), st.floats(0, 6e5))
def test_more_memory_never_costs_more(applications: list[Application], less: float, more: float) -> None:
    # Beyond as many sums of memory as are told apart, they are rounded.
    applications = applications[:2]
    less, more = sorted((less, more))
    poor, rich = (plan_for(applications, Device(0.5, memory), "total", ALPHA) for memory in (less, more))
    smallest = sum(application.levels[0].bytes for application in applications)
    if less >= smallest:
        assert rich.cost <= poor.cost + 1e-9


def test_a_level_that_the_share_cannot_feed_is_not_planned_however_right_it_is() -> None:
    slow = Application((Level(0.6, 0.001, 1.0), Level(0.99, 0.1, 2.0)), rate_per_s=10.0, latency_s=10.0)
    assert plan_for([slow], Device(0.9), "total", ALPHA).levels == (1,)
    assert plan_for([slow], Device(1.0), "total", ALPHA).levels == (2,)


def test_what_is_wanted_and_no_more_is_planned() -> None:
    levels = (Level(0.8, 0.001, 1.0), Level(0.9, 0.002, 2.0), Level(0.95, 0.003, 3.0))
    assert plan_for([Application(levels, 1.0, accuracy=0.85)], Device(1.0), "total", ALPHA).levels == (2,)


def test_who_counts_more_gets_more() -> None:
    levels = (Level(0.6, 0.01, 1.0), Level(0.9, 0.04, 2.0))
    light, heavy = Application(levels, 10.0, latency_s=1.0), Application(levels, 10.0, latency_s=1.0, weight=5.0)
    assert plan_for([light, heavy], Device(0.55), "total", ALPHA).levels == (1, 2)
    assert plan_for([heavy, light], Device(0.55), "total", ALPHA).levels == (2, 1)


def busy(rate_per_s: float = 10.0, load_s: float = 0.004) -> Application:
    levels = (Level(0.6, 0.005, 1e5), Level(0.8, 0.02, 2e5, load_s), Level(0.9, 0.05, 4e5, load_s))
    return Application(levels, rate_per_s, latency_s=1.0)


def course(planner: Planner, seen: Sequence[tuple[list[Application], Device]]) -> list[tuple[int, ...]]:
    """The levels planned, a tick after the other."""
    return [planner.consider(*each, now_s=at * TICK_S).levels for at, each in enumerate(seen)]


def test_the_first_plan_is_the_best_one_and_lowering_is_immediate() -> None:
    planner = Planner(SchedulerSettings())
    rich, poor = ([busy()], Device(1.0)), ([busy()], Device(0.1))
    assert course(planner, [rich, poor, poor]) == [(3,), (1,), (1,)]


def test_a_raise_is_made_once_it_has_gained_for_long_enough() -> None:
    planner = Planner(SchedulerSettings(settle_s=1.0))
    rich, poor = ([busy()], Device(1.0)), ([busy()], Device(0.1))
    levels = course(planner, [poor] + [rich] * 20)
    assert 10 <= levels.index((3,)) <= 12
    assert levels[-1] == (3,)


def test_a_raise_that_costs_more_takes_longer() -> None:
    rich, poor = ([busy(load_s=0.5)], Device(1.0)), ([busy(load_s=0.5)], Device(0.1))
    levels = course(Planner(SchedulerSettings(settle_s=0.0)), [poor] + [rich] * 60)
    # 1 s of loading for 0.3 of accuracy: worth it after 3.3 s.
    assert 33 <= levels.index((3,)) <= 35


def test_a_gain_that_is_interrupted_counts_for_nothing() -> None:
    planner = Planner(SchedulerSettings(settle_s=1.0))
    rich, poor = ([busy()], Device(1.0)), ([busy()], Device(0.1))
    assert set(course(planner, [poor] + ([rich] * 9 + [poor]) * 10)) == {(1,)}


def test_what_no_longer_fits_the_memory_is_lowered_at_once() -> None:
    planner = Planner(SchedulerSettings())
    assert course(planner, [([busy()], Device(1.0)), ([busy()], Device(1.0, 2.5e5))]) == [(3,), (2,)]


@settings(deadline=None, max_examples=40)
@given(FEW, st.lists(DEVICES, min_size=2, max_size=5), SCHEMES)
def test_readings_that_go_back_and_forth_do_not_make_levels_go_back_and_forth(
    applications: list[Application], devices: list[Device], scheme: Scheme
) -> None:
    rounds = 30
    seen = [(applications, device) for _ in range(rounds) for device in devices]
    levels = course(Planner(SchedulerSettings(scheme=scheme, settle_s=len(devices) * TICK_S * 1.5)), seen)
    late = levels[len(levels) // 2 :]
    assert len(set(late)) == 1


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.lists(applications_of(), min_size=2, max_size=2), DEVICES), min_size=2, max_size=30))
def test_whatever_is_seen_each_plan_fits_or_is_the_smallest_levels(
    seen: list[tuple[list[Application], Device]],
) -> None:
    count = min(len(application.levels) for each, _ in seen for application in each)
    planner = Planner(SchedulerSettings(settle_s=0.3))
    for at, (each, device) in enumerate(seen):
        cut = [Application(app.levels[:count], app.rate_per_s) for app in each]
        plan = planner.consider(cut, device, at * TICK_S)
        assert fits(cut, device, plan)


@pytest.mark.parametrize(
    ("name", "value"), [("alpha", -1.0), ("alpha", math.nan), ("settle_s", -1.0), ("settle_s", math.nan)]
)
def test_wrong_settings_are_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=name):
        SchedulerSettings(**{name: value})  # type: ignore[arg-type]
