"""Long-run budgets are spent fully, on the inputs that gain most, and never exceeded."""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Callable, Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgemux.multiplexer.limits import TokenBucket
from edgemux.multiplexer.toll import MOST, Toll, TolledBudget

Stream = Iterable[tuple[float, float]]  # (seconds since the last input, gain of the cloud)


class Spent:
    """What a stream brought: ``gained`` and ``offloads`` with the toll, and with the bucket alone."""

    def __init__(self, stream: Stream, rate: float, burst: float, tolled: bool = True) -> None:
        budget = TolledBudget(TokenBucket(rate, burst))
        budget.available(0.0)
        now, self.offloads, self.gained, self.excess = 0.0, 0, 0.0, -math.inf
        for pause, gain in stream:
            now += pause
            worth = gain > (budget.price(now) if tolled else 0.0)
            took = worth and budget.take(1.0, now)
            if took:
                self.offloads += 1
                self.gained += gain
                self.excess = max(self.excess, self.offloads - rate * now - burst)
            budget.settle(worth and not took, now)
        self.allowed = rate * now + burst
        self.price = budget.price(now)


def steady(count: int, per_s: float, seed: int, gain: Callable[[random.Random], float]) -> list[tuple[float, float]]:
    r = random.Random(seed)
    return [(r.expovariate(per_s), gain(r)) for _ in range(count)]


def skewed(r: random.Random) -> float:
    return r.betavariate(0.4, 4) - 0.03


def even(r: random.Random) -> float:
    return r.random() - 0.3


def offline(stream: Stream, allowed: float) -> float:
    """The most that any choice of as many inputs gains."""
    return sum(heapq.nlargest(int(allowed), (gain for _, gain in stream if gain > 0)))


@pytest.mark.parametrize("gain", [skewed, even])
@pytest.mark.parametrize(("rate", "burst", "per_s"), [(5, 50, 100), (20, 200, 50), (1, 10, 30)])
def test_a_steady_stream_spends_its_budget_nearly_as_well_as_hindsight(
    gain: Callable[[random.Random], float], rate: float, burst: float, per_s: float
) -> None:
    stream = steady(30_000, per_s, 3, gain)
    tolled, first_come = Spent(stream, rate, burst), Spent(stream, rate, burst, tolled=False)
    best = offline(stream, tolled.allowed)
    assert tolled.offloads >= 0.95 * tolled.allowed
    assert tolled.gained >= 0.93 * best
    assert tolled.gained > first_come.gained


def test_a_burst_of_a_few_tokens_is_still_spent() -> None:
    stream = steady(30_000, 100, 4, skewed)
    tolled = Spent(stream, 5, 5)
    assert tolled.offloads >= 0.95 * tolled.allowed
    assert tolled.gained > 2 * Spent(stream, 5, 5, tolled=False).gained


def test_while_the_rate_suffices_hardly_anything_is_kept_for_others() -> None:
    """Three offloads a second are wanted, five allowed: a toll would only take answers out of the certificate."""
    stream = steady(20_000, 3, 6, lambda r: 0.02 + 0.3 * r.random())
    assert Spent(stream, 5, 50).offloads > 0.995 * len(stream)


def test_a_larger_rate_gains_more() -> None:
    stream = steady(20_000, 100, 5, skewed)
    gained = [Spent(stream, rate, 10 * rate).gained for rate in (1, 2, 5, 10, 20)]
    assert gained == sorted(gained)


def test_a_million_inputs_in_bursts_and_rests_never_exceed_the_budget() -> None:
    def stream() -> Stream:
        r = random.Random(7)
        for i in range(1_000_000):
            yield (r.random() * (8.0 if i % 500 == 0 else 0.01)), r.random() - 0.5

    spent = Spent(stream(), rate=3.0, burst=30.0)
    assert spent.excess <= 1e-6
    assert spent.offloads > 0.9 * spent.allowed


@given(
    st.lists(st.tuples(st.floats(0, 100), st.floats(-1, 1)), max_size=300),
    st.floats(0, 50),
    st.floats(0, 100),
    st.booleans(),
)
def test_no_stream_exceeds_a_budget(stream: list[tuple[float, float]], rate: float, burst: float, tolled: bool) -> None:
    spent = Spent(stream, rate, burst, tolled)
    assert spent.excess <= 1e-6
    assert 0 <= spent.price <= MOST


@given(st.lists(st.tuples(st.floats(0, 1e6), st.floats(0, 1e6), st.floats(0, 1e6)), max_size=50), st.floats(0, 1e9))
def test_a_toll_stays_between_nothing_and_its_most(steps: list[tuple[float, float, float]], burst: float) -> None:
    toll = Toll(burst)
    assert toll.price == 0
    for wanted, allowed, spilled in steps:
        before = toll.price
        toll.settle(wanted, allowed, spilled)
        assert 0 <= toll.price <= MOST
        assert toll.price >= before if wanted > allowed and spilled == 0 else True


def test_a_budget_without_a_limit_has_no_toll() -> None:
    budget = TolledBudget(TokenBucket(math.inf, math.inf))
    for now in range(100):
        assert budget.take(1.0, float(now))
        budget.settle(False, float(now))
    assert budget.price(100.0) == 0


def test_a_rest_makes_a_budget_cheap_again() -> None:
    budget = TolledBudget(TokenBucket(1.0, 10.0))
    for i in range(100):
        budget.settle(not budget.take(1.0, i / 100), i / 100)
    dear = budget.price(1.0)
    for i in range(20):
        budget.settle(False, 100.0 + i * 10)
    assert dear > 0.3
    assert budget.price(290.0) == 0


def test_what_an_audit_takes_raises_the_toll_too() -> None:
    budget = TolledBudget(TokenBucket(0.01, 50.0))
    budget.settle(False, 0.0)
    for i in range(10):
        budget.take(1.0, i / 100)
    budget.settle(False, 0.1)
    assert budget.price(0.1) == pytest.approx(0.1 * 3 * 11 / 50, rel=0.01)


def test_bytes_are_counted_in_offloads() -> None:
    budget = TolledBudget(TokenBucket(9_000.0, 90_000.0), unit=900.0)
    budget.settle(False, 0.0)
    budget.take(900.0, 0.0)
    budget.settle(False, 0.0)
    assert budget.price(0.0) == pytest.approx(0.5 / 100 * 3 * 2 / 100)
