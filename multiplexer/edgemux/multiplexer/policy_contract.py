"""What every policy must do, as tests that a policy from another package can inherit.

    class TestMine(PolicyContract):
        def make(self) -> Policy:
            return Mine(threshold=0.9)

The cases are made by a seeded generator: levels, a cloud, tight and wide budgets, spent deadlines, failures.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np

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
from edgemux.multiplexer.policy import Policy, obstacle, time_for

CLASSES = 5
CLOUD = Route("cloud", Placement.CLOUD)
FAILURES = (Reason.CLOUD_TIMEOUT, Reason.CLOUD_UNREACHABLE, Reason.CLOUD_OVERLOADED, Reason.CLOUD_BAD_ANSWER)


class PolicyContract:
    """Inherit, and say how the policy is made."""

    cases = 400
    # A policy that never uses some placements on purpose says which ones it does use.
    uses = frozenset(Placement)

    def make(self) -> Policy:
        """The policy under test."""
        raise NotImplementedError

    def test_it_ends_within_one_attempt_a_route(self) -> None:
        """Whatever answers and whatever fails; it runs only what it was offered."""
        for case, policy in self._played():
            decision = policy(case)
            if isinstance(decision, Run):
                assert decision.route in {candidate.route for candidate in case.candidates}

    def test_it_runs_nothing_that_is_blocked_or_beyond_a_budget(self) -> None:
        """But the last resort: with no answer at hand and nothing affordable, a route that is not blocked."""
        for case, policy in self._played():
            decision = policy(case)
            if not isinstance(decision, Run):
                continue
            chosen = next(candidate for candidate in case.candidates if candidate.route == decision.route)
            assert chosen.blocked is None
            assert decision.timeout_s <= time_for(chosen, case.budget, case.held)
            if obstacle(chosen, case.budget, case.held) is not None:
                assert case.held is None
                assert all(obstacle(other, case.budget, None) is not None for other in self._usable(case))
                levels = [c for c in case.candidates if c.route.placement is Placement.EDGE and c.blocked is None]
                assert chosen in levels or not levels

    def test_it_sheds_only_what_nothing_could_answer(self) -> None:
        """No answer at hand, and no time or no route that is not blocked."""
        for case, policy in self._played():
            if isinstance(policy(case), Shed):
                assert case.held is None
                assert case.budget.latency_s <= 0 or all(c.blocked is not None for c in self._usable(case))

    def test_it_replies_with_the_answer_at_hand_and_no_other(self) -> None:
        """As it is: route, label, probabilities and confidence. A cloud's answer is final."""
        for case, policy in self._played():
            decision = policy(case)
            if isinstance(decision, Accept):
                assert decision.prediction is case.held
            if case.held is not None and case.held.route.placement is not Placement.EDGE:
                assert isinstance(decision, Accept)

    def test_after_a_failure_the_device_s_answer_is_degraded(self) -> None:
        """It is outside of any certificate, and says so."""
        for case, policy in self._played():
            decision = policy(case)
            if isinstance(decision, Accept) and case.failure is not None:
                assert decision.degraded or decision.prediction.route.placement is not Placement.EDGE

    def test_it_does_the_same_for_the_same_history(self) -> None:
        """What looks like chance is seeded."""
        first, second = self.make(), self.make()
        for case, _ in self._played():
            assert first(case) == second(case)

    def _usable(self, case: Case) -> list[Candidate]:
        return [candidate for candidate in case.candidates if candidate.route.placement in self.uses]

    def _played(self) -> Iterator[tuple[Case, Policy]]:
        """Every case that comes up while a policy is followed to the end, and a policy to ask.

        The policy that comes with a case has its own history: asking it changes nothing for the one that is followed.
        """
        rng = random.Random(0)
        followed, asked = self.make(), self.make()
        for _ in range(self.cases):
            case, runs = _case(rng), 0
            routes = len(case.candidates)
            while True:
                yield case, asked
                decision = followed(case)
                if not isinstance(decision, Run):
                    break
                runs += 1
                assert runs <= routes, "more attempts than routes"
                case = _after(case, decision, rng)


def _case(rng: random.Random) -> Case:
    levels = [
        Candidate(
            Route(f"level-{number}", Placement.EDGE, number),
            rng.random(),
            Cost(rng.random() * 0.1, rng.random() * 0.1, 1000.0 * number),
            blocked=Reason.DEVICE_BUSY if rng.random() < 0.1 else None,
        )
        for number in range(1, rng.randint(0, 4) + 1)
    ]
    blocked = rng.choice([None, None, Reason.BREAKER, Reason.NO_CLOUD])
    cost = Cost(rng.random() * 0.3, sent_bytes=900.0, offloads=1.0)
    cloud = Candidate(CLOUD, rng.random(), cost, rng.random() * 0.2, blocked, toll=rng.random() * 0.2)
    budget = Budget(
        latency_s=rng.choice([-0.1, 0.0, 0.05, 0.2, 1.0]),
        compute_s=rng.choice([0.0, 0.05, 1.0]),
        memory_bytes=rng.choice([0.0, 2500.0, 1e9]),
        sent_bytes=rng.choice([0.0, 1e9]),
        offloads=rng.choice([0.0, 1.0, 1e9]),
        reserve_s=rng.random() * 0.05,
        margin_s=rng.random() * 0.05,
    )
    return Case(budget, (*levels, cloud) if rng.random() < 0.8 else tuple(levels))


def _after(case: Case, decision: Run, rng: random.Random) -> Case:
    on_device = decision.route.placement is Placement.EDGE
    if rng.random() < 0.3:
        return case.failed(decision.route, Reason.DEVICE_FAILED if on_device else rng.choice(FAILURES))
    weights = np.array([rng.random() ** 4 + 1e-6 for _ in range(CLASSES)], dtype=np.float32)
    p = weights / weights.sum()
    answer = Prediction(decision.route, int(p.argmax()), p, rng.random())
    if not on_device:
        return case.answered(answer, decision.reason, ())
    above = [c for c in case.candidates if not 0 < c.route.level <= decision.route.level]
    return case.answered(answer, decision.reason, tuple(above))
