"""Long-run budgets as pure values: spent smoothly, never exceeded, whatever comes."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgemux.edge.purse import PERIOD_S, BudgetSettings, PriceSettings, Purse, Tariff, fill

HOUR_S = PERIOD_S["hour"]


def purse_with(*budgets: BudgetSettings, kept: dict[str, float] | None = None, tariff: Tariff | None = None) -> Purse:
    purse = Purse(tariff or Tariff(), 1000.0)
    fill(purse, budgets, kept)
    return purse


def test_without_budgets_nothing_is_limited() -> None:
    purse = purse_with()
    assert set(purse.left(0.0).values()) == {math.inf}
    assert purse.pay(purse.tariff.offload(1e9), 0.0)


STEPS = st.lists(st.tuples(st.floats(0, 2 * HOUR_S), st.integers(1, 40)), min_size=1, max_size=80)


@given(st.floats(0, 200), STEPS)
def test_no_period_anywhere_sees_more_than_its_amount_however_inputs_come(
    amount: float, steps: list[tuple[float, int]]
) -> None:
    purse, now, times = purse_with(BudgetSettings("offloads", amount, "hour")), 0.0, list[float]()
    for pause, wanted in steps:
        now += pause
        times += [now for _ in range(wanted) if purse.pay(purse.tariff.offload(100.0), now)]
    for first in times:
        assert sum(first <= at < first + HOUR_S for at in times) <= amount + 1e-6


def test_a_steady_demand_spends_nine_tenths_of_the_amount_evenly_and_the_first_tenth_at_once() -> None:
    purse = purse_with(BudgetSettings("offloads", 100, "hour"))
    times = [float(second) for second in range(int(2 * HOUR_S)) if purse.pay(purse.tariff.offload(1.0), float(second))]
    assert sum(at < 60 for at in times) in (10, 11, 12)
    later = [at for at in times if at >= HOUR_S]
    assert len(later) in (89, 90, 91)
    gaps = [after - before for before, after in pairwise(later)]
    assert max(gaps) <= 1.1 * HOUR_S / 90 + 1


def test_an_offload_is_paid_from_every_budget_or_from_none() -> None:
    tariff = Tariff(money_per_offload=0.5, money_per_byte=0.001)
    purse = purse_with(
        BudgetSettings("offloads", 1000, "day"), BudgetSettings("money", 20, "month"), kept=None, tariff=tariff
    )
    assert tariff.offload(500.0)["money"] == pytest.approx(1.0)
    assert purse.pay(tariff.offload(500.0), 0.0)
    before = purse.left(0.0)
    assert not purse.pay(tariff.offload(5000.0), 0.0)
    assert purse.left(0.0) == before


def test_a_budget_of_the_same_kind_for_two_periods_holds_for_both() -> None:
    purse = purse_with(BudgetSettings("offloads", 10, "hour"), BudgetSettings("offloads", 30, "day"))
    sent = sum(purse.pay(purse.tariff.offload(1.0), float(second)) for second in range(24 * 3600))
    assert sent <= 30


def test_the_device_s_own_energy_makes_a_debt_that_time_pays_back() -> None:
    purse = purse_with(BudgetSettings("joules", 3600, "hour"), tariff=Tariff(joules_per_byte=0.01))
    purse.used(400.0, 0.0)
    assert purse.left(0.0)["joules"] == pytest.approx(-40.0)
    assert not purse.pay(purse.tariff.offload(1.0), 0.0)
    assert purse.left(100.0)["joules"] == pytest.approx(-40.0 + 0.9 * 100)
    assert purse.pay(purse.tariff.offload(1.0), 100.0)


def test_a_debt_of_joules_stops_no_offload_that_takes_none() -> None:
    purse = purse_with(BudgetSettings("joules", 10, "hour"))
    purse.used(400.0, 0.0)
    assert purse.pay(purse.tariff.offload(1.0), 0.0)


def test_what_was_kept_is_what_there_is_and_what_was_not_kept_is_empty() -> None:
    budgets = (BudgetSettings("offloads", 100, "hour"), BudgetSettings("bytes", 1e6, "hour"))
    purse = purse_with(*budgets, kept={"offloads/hour": 3.0, "bytes/day": 5.0})
    assert purse.left(0.0)["offloads"] == 3.0
    assert purse.left(0.0)["bytes"] == 0.0
    assert purse.tokens(0.0) == {"offloads/hour": 3.0, "bytes/hour": 0.0}
    assert purse_with(*budgets, kept={"offloads/hour": 1e9}).left(0.0)["offloads"] == 10.0


@pytest.mark.parametrize("amount", [-1.0, math.inf, math.nan])
def test_amounts_that_make_no_sense_are_refused(amount: float) -> None:
    with pytest.raises(ValueError, match="amount"):
        BudgetSettings("bytes", amount, "day")


@pytest.mark.parametrize("wrong", [{"money_per_offload": -1.0}, {"money_per_byte": math.nan}])
def test_prices_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        PriceSettings(**wrong)
