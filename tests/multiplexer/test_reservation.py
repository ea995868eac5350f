"""The policy is optimal for its model: on small instances it is worth what exhaustive search finds, price by price."""

from __future__ import annotations

from functools import cache

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgemux.multiplexer import policy
from edgemux.multiplexer.domain import (
    Accept,
    Budget,
    Candidate,
    Case,
    Cost,
    Placement,
    Prediction,
    Reason,
    Route,
    Run,
)

NOTHING = np.array([1.0], dtype=np.float32)
CLOUD = Route("cloud", Placement.CLOUD)


def outcomes(candidate: Candidate) -> list[tuple[float, float]]:
    """(probability, confidence afterwards) of running a route: looks right or wrong, or as it comes."""
    if candidate.sure is None:
        return [(1.0, candidate.score)]
    right = candidate.score / candidate.sure
    return [(right, candidate.sure), (1.0 - right, 0.0)]


def best(candidates: tuple[Candidate, ...]) -> float:
    """The highest expected worth of any adaptive order of running routes and stopping, by dynamic programming."""

    @cache
    def value(left: frozenset[int], at_hand: float | None) -> float:
        found = [] if at_hand is None else [at_hand]
        for i in left:
            after = sum(
                p * value(left - {i}, v if at_hand is None else max(v, at_hand)) for p, v in outcomes(candidates[i])
            )
            found.append(after - candidates[i].price)
        return max(found)

    return value(frozenset(range(len(candidates))), None)


def achieved(case: Case) -> float:
    """What the policy is expected to bring."""
    decision = policy.decide(case)
    if isinstance(decision, Accept):
        return decision.prediction.confidence
    assert isinstance(decision, Run)
    chosen = next(c for c in case.candidates if c.route == decision.route)
    rest = tuple(c for c in case.candidates if c is not chosen)
    return -chosen.price + sum(
        p * achieved(case.answered(Prediction(chosen.route, 0, NOTHING, v), decision.reason, rest))
        for p, v in outcomes(chosen)
    )


UNIT = st.floats(0.01, 1)


@st.composite
def instances(draw: st.DrawFn) -> tuple[Candidate, ...]:
    found = []
    for number in range(1, draw(st.integers(1, 4)) + 1):
        sure = draw(UNIT)
        score = sure * draw(UNIT)
        cost = Cost(compute_s=draw(UNIT), memory_bytes=draw(UNIT))
        found.append(Candidate(Route(f"level-{number}", Placement.EDGE, number), score, cost, draw(UNIT), sure=sure))
    if draw(st.booleans()):
        found.append(Candidate(CLOUD, draw(UNIT), Cost(offloads=1), draw(UNIT)))
    return tuple(draw(st.permutations(found)))


@given(instances())
def test_the_policy_is_worth_what_exhaustive_search_finds(candidates: tuple[Candidate, ...]) -> None:
    assert achieved(Case(Budget(), candidates)) == pytest.approx(best(candidates), abs=1e-9)


@given(instances(), st.sampled_from(["compute_s", "memory_bytes", "offloads"]), UNIT, UNIT)
def test_more_budget_never_lowers_the_expected_score(
    candidates: tuple[Candidate, ...], axis: str, budget: float, more: float
) -> None:
    """Unpriced, what is expected is the score itself; a budget that holds no route at all compares nothing."""
    free = tuple(msgspec.structs.replace(c, price=0.0) for c in candidates)
    small = msgspec.structs.replace(Budget(), **{axis: budget})
    large = msgspec.structs.replace(Budget(), **{axis: budget + more})
    if any(policy.obstacle(c, small, None) is None for c in free):
        assert achieved(Case(large, free)) >= achieved(Case(small, free)) - 1e-9


@given(UNIT, UNIT, UNIT)
def test_a_reservation_value_solves_weitzman_s_equation(sure: float, share: float, price: float) -> None:
    candidate = Candidate(CLOUD, sure * share, Cost(), price, sure=sure)
    z = policy.worth(candidate)
    assert sum(p * max(0.0, v - z) for p, v in outcomes(candidate)) == pytest.approx(price)


@given(UNIT, UNIT)
def test_a_route_that_nobody_looks_at_again_is_worth_its_score_less_its_price(score: float, price: float) -> None:
    """What a certificate relies on: it is opened exactly when the gain exceeds the price."""
    assert policy.worth(Candidate(CLOUD, score, Cost(), price)) == score - price


def test_a_dear_level_that_would_be_certain_is_opened_before_a_better_one_that_would_not() -> None:
    certain = Candidate(Route("a", Placement.EDGE, 1), 0.6, Cost(), 0.1, sure=1.0)
    vague = Candidate(Route("b", Placement.EDGE, 2), 0.7, Cost(), 0.1, sure=0.75)
    decision = policy.decide(Case(Budget(), (vague, certain)))
    assert isinstance(decision, Run)
    assert decision.route == certain.route


def test_an_answer_kept_only_for_the_toll_is_degraded_and_one_kept_for_the_price_is_not() -> None:
    held = Prediction(Route("a", Placement.EDGE, 1), 0, NOTHING, 0.5)
    cloud = Candidate(CLOUD, 0.8, Cost(offloads=1), 0.1, toll=0.3)
    assert policy.decide(Case(Budget(), (cloud,), held)) == Accept(held, Reason.BUDGET, degraded=True)
    dear = msgspec.structs.replace(cloud, price=0.4, toll=0.0)
    assert policy.decide(Case(Budget(), (dear,), held)) == Accept(held, Reason.CONFIDENT)


def test_only_what_is_worth_its_toll_lacks_tokens() -> None:
    held = Prediction(Route("a", Placement.EDGE, 1), 0, NOTHING, 0.5)
    spent = Budget(offloads=0.0)
    cloud = Candidate(CLOUD, 0.8, Cost(offloads=1), 0.1, toll=0.1)
    assert policy.lacking(Case(spent, (cloud,), held)) is cloud.cost
    assert not policy.lacking(Case(Budget(), (cloud,), held))
    assert not policy.lacking(Case(spent, (msgspec.structs.replace(cloud, toll=0.3),), held))
    assert not policy.lacking(Case(spent, (cloud,)))
