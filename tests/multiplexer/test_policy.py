"""The policy as a pure function: properties over arbitrary cases."""

from __future__ import annotations

import math

import msgspec
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from edgemux.multiplexer import baselines, policy
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
    Shed,
)

CLOUD = Route("cloud", Placement.CLOUD)
SCORES = st.floats(0, 1)
SECONDS = st.floats(0, 0.5)


def level(number: int) -> Route:
    return Route(f"level-{number}", Placement.EDGE, number)


def predicted(route: Route, confidence: float) -> Prediction:
    return Prediction(route, 0, np.array([1.0], dtype=np.float32), confidence)


def edge(number: int, score: float, seconds: float = 0.001) -> Candidate:
    return Candidate(level(number), score, Cost(latency_s=seconds, compute_s=seconds, memory_bytes=1000 * number))


def cloud(score: float, seconds: float = 0.05, price: float = 0.1, blocked: Reason | None = None) -> Candidate:
    return Candidate(CLOUD, score, Cost(latency_s=seconds, sent_bytes=900, offloads=1), price, blocked)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    levels = draw(st.integers(0, 4))
    candidates = [edge(n + 1, draw(SCORES), draw(SECONDS)) for n in range(levels)]
    if draw(st.booleans()):
        blocked = draw(st.sampled_from([None, Reason.BREAKER, Reason.NO_CLOUD, Reason.CLOUD_OVERLOADED]))
        candidates.append(cloud(draw(SCORES), draw(SECONDS), draw(st.floats(0, 0.5)), blocked))
    budget = Budget(
        latency_s=draw(st.floats(-0.1, 1)),
        compute_s=draw(st.floats(0, 1)),
        memory_bytes=draw(st.sampled_from([0.0, 1500.0, 1e9])),
        sent_bytes=draw(st.sampled_from([0.0, 1e9])),
        offloads=draw(st.sampled_from([0.0, 1.0, 1e9])),
        reserve_s=draw(st.floats(0, 0.1)),
    )
    return Case(budget, tuple(draw(st.permutations(candidates))))


@given(cases(), st.lists(st.tuples(st.booleans(), SCORES), min_size=8, max_size=8))
def test_a_request_ends_within_one_attempt_a_route(case: Case, outcomes: list[tuple[bool, float]]) -> None:
    tried: list[Route] = []
    while isinstance(decision := policy.decide(case), Run):
        assert decision.route not in tried
        works, confidence = outcomes[len(tried)]
        tried.append(decision.route)
        rest = tuple(c for c in case.candidates if c.route != decision.route)
        if works:
            case = case.answered(predicted(decision.route, confidence), decision.reason, rest)
        else:
            case = case.failed(decision.route, Reason.CLOUD_TIMEOUT)
    assert len(tried) <= 5
    assert isinstance(decision, Accept | Shed)


@given(cases())
def test_the_cloud_is_run_only_when_every_budget_holds_it(case: Case) -> None:
    decision = policy.decide(case)
    if isinstance(decision, Run) and decision.route == CLOUD:
        chosen = next(c for c in case.candidates if c.route == CLOUD)
        only_choice = not any(c.route.placement is Placement.EDGE for c in case.candidates)
        assert chosen.blocked is None
        assert only_choice or policy.obstacle(chosen, case.budget, None) is None
        assert decision.timeout_s <= case.budget.latency_s - case.budget.reserve_s


@given(cases())
def test_whatever_the_budget_a_device_level_answers_while_there_is_time(case: Case) -> None:
    levels = [c for c in case.candidates if c.route.placement is Placement.EDGE]
    if levels and case.budget.latency_s > 0:
        assert isinstance(policy.decide(case), Run)


@given(cases(), st.sampled_from(["compute_s", "memory_bytes", "sent_bytes", "offloads"]), st.floats(0, 1e6))
def test_a_larger_budget_never_lowers_the_worth_of_the_choice(case: Case, axis: str, more: float) -> None:
    def best(budget: Budget) -> float:
        affordable = [c for c in case.candidates if policy.obstacle(c, budget, None) is None]
        return max((policy.worth(c) for c in affordable), default=-1.0)

    larger = msgspec.structs.replace(case.budget, **{axis: getattr(case.budget, axis) + more})
    assert best(larger) >= best(case.budget)
    first, second = policy.decide(case), policy.decide(msgspec.structs.replace(case, budget=larger))
    if isinstance(first, Run) and isinstance(second, Run):
        by_route = {c.route: c for c in case.candidates}
        if policy.obstacle(by_route[first.route], case.budget, None) is None:
            assert policy.worth(by_route[second.route]) >= policy.worth(by_route[first.route])


@given(SCORES, SCORES, st.floats(0, 1))
def test_an_answer_is_deferred_exactly_when_the_gain_exceeds_the_price(held: float, score: float, price: float) -> None:
    case = Case(Budget(), (cloud(score, price=price),), predicted(level(4), held), Reason.CONFIDENT)
    decision = policy.decide(case)
    assert isinstance(decision, Run) == (score - price > held)


def test_a_cloud_answer_is_final() -> None:
    case = Case(Budget(), (edge(4, 1.0),), predicted(CLOUD, 0.2), Reason.DEFERRED)
    assert policy.decide(case) == Accept(case.held, Reason.DEFERRED)  # type: ignore[arg-type]


def test_while_no_answer_is_held_the_device_keeps_its_reserve() -> None:
    budget = Budget(latency_s=0.2, reserve_s=0.03, margin_s=0.02)
    decision = policy.decide(Case(budget, (cloud(0.99), edge(1, 0.1))))
    assert isinstance(decision, Run)
    assert (decision.route, decision.reason) == (CLOUD, Reason.OFFLOADED)
    assert math.isclose(decision.timeout_s, 0.15)


def test_however_wide_the_margin_the_device_answers_while_there_is_time() -> None:
    decision = policy.decide(Case(Budget(latency_s=0.005, margin_s=1.0), (cloud(0.99), edge(1, 0.1))))
    assert isinstance(decision, Run)
    assert decision.route == level(1)


def test_the_reason_says_why_a_wanted_cloud_was_not_asked() -> None:
    held = predicted(level(4), 0.4)
    expected = {
        Reason.LINK: (cloud(0.99, seconds=9.0), Budget(latency_s=0.2)),
        Reason.BUDGET: (cloud(0.99), Budget(latency_s=0.2, offloads=0.5)),
        Reason.BREAKER: (cloud(0.99, blocked=Reason.BREAKER), Budget(latency_s=0.2)),
        Reason.NO_CLOUD: (cloud(0.99, blocked=Reason.NO_CLOUD), Budget(latency_s=0.2)),
    }
    for reason, (candidate, budget) in expected.items():
        assert policy.decide(Case(budget, (candidate,), held)) == Accept(held, reason, degraded=True)


def test_an_input_whose_levels_are_all_too_dear_goes_to_the_cloud_because_the_device_is_busy() -> None:
    budget = Budget(latency_s=0.2, compute_s=0.0)
    decision = policy.decide(Case(budget, (edge(1, 0.9), cloud(0.8))))
    assert isinstance(decision, Run)
    assert (decision.route, decision.reason) == (CLOUD, Reason.DEVICE_BUSY)


def test_a_spent_deadline_is_shed() -> None:
    assert policy.decide(Case(Budget(latency_s=0.0), (edge(1, 0.9), cloud(0.9)))) == Shed(Reason.EXPIRED)


def test_after_every_route_failed_the_request_is_shed_with_the_last_cause() -> None:
    case = Case(Budget(latency_s=0.2), (edge(1, 0.9),)).failed(level(1), Reason.DEVICE_FAILED)
    assert policy.decide(case) == Shed(Reason.DEVICE_FAILED)


@given(cases())
def test_the_device_only_baseline_never_runs_the_cloud(case: Case) -> None:
    decision = baselines.device_only(case)
    assert not (isinstance(decision, Run) and decision.route == CLOUD)


def test_the_cloud_only_baseline_asks_the_cloud_first_and_the_device_after_a_failure() -> None:
    case = Case(Budget(latency_s=0.2), (edge(1, 0.99), cloud(0.1)))
    first = baselines.cloud_only(case)
    assert isinstance(first, Run)
    assert first.route == CLOUD
    second = baselines.cloud_only(case.failed(CLOUD, Reason.CLOUD_UNREACHABLE))
    assert isinstance(second, Run)
    assert second.route == level(1)
