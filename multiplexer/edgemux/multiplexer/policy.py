"""Case -> decision: the pure chooser.

The policy maximises expected correctness less the price of what is run, under hard budgets. It opens routes in the
order of their reservation values and stops when none exceeds the answer at hand: optimal where the routes' answers are
independent and one of them is taken (Weitzman 1979, "Optimal search for the best alternative"). A route's reservation
value is the z for which E[(V - z)+] is its price, V being the confidence that its answer will have.

A certificate is about gains: an answer is kept while the cloud's ``score`` exceeds it by at most the certified price.
A route that nobody looks at again (``sure`` is None) has the reservation value ``score - price``, so that opening the
cloud is exactly that comparison. The agent gives no ``sure``: the price of skipping the device is fitted with the
second look in the loop, and would count it twice; and levels that follow the input are what its certificate excludes.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from edgemux.multiplexer.domain import (
    Accept,
    Budget,
    Candidate,
    Case,
    Cost,
    Decision,
    Placement,
    Prediction,
    Reason,
    Run,
    Shed,
)

Policy = Callable[[Case], Decision]


def decide(case: Case) -> Decision:
    """The policy of edgemux. Terminates: each Run takes a candidate out of the case."""
    held = case.held
    if held is not None and held.route.placement is not Placement.EDGE:
        return Accept(held, case.chosen or Reason.OFFLOADED)
    best: Candidate | None = None
    most = held.confidence if held is not None else -math.inf
    for candidate in case.candidates:
        value = worth(candidate)
        if value > most and obstacle(candidate, case.budget, held) is None:
            best, most = candidate, value
    if best is not None:
        return _run(best, case)
    if held is None:
        return _last_resort(case)
    return _accept(held, case)


def worth(candidate: Candidate) -> float:
    """The reservation value of a route, in P(correct), after its price and toll.

    With ``sure`` the answer will look right with probability ``score / sure`` and be worth that much, and nothing
    otherwise: z solves ``score / sure * (sure - z) = price``, or ``score - z = price`` where that is below 0. Without
    it the answer is worth ``score`` whatever it says, and z is ``score - price``.
    """
    price = candidate.price + candidate.toll
    plain = candidate.score - price
    if candidate.sure is None or plain <= 0:
        return plain
    return max(plain, candidate.sure * plain / candidate.score)


def obstacle(candidate: Candidate, budget: Budget, held: Prediction | None) -> Reason | None:
    """Why a candidate cannot be afforded, None when it can. Every axis is a hard bound."""
    if candidate.blocked is not None:
        return candidate.blocked
    cost = candidate.cost
    if cost.latency_s > time_for(candidate, budget, held):
        return Reason.LINK if candidate.route.placement is not Placement.EDGE else Reason.EXPIRED
    if cost.offloads > budget.offloads or cost.sent_bytes > budget.sent_bytes or cost.money > budget.money:
        return Reason.BUDGET
    if cost.energy_j > budget.energy_j:
        return Reason.BUDGET
    if cost.memory_bytes > budget.memory_bytes or cost.compute_s > budget.compute_s:
        return Reason.DEVICE_BUSY
    return None


def time_for(candidate: Candidate, budget: Budget, held: Prediction | None) -> float:
    """Seconds a route may take: all that is left, less what the device needs to answer if nothing else does."""
    if candidate.route.placement is Placement.EDGE:
        return budget.latency_s
    return budget.latency_s - budget.margin_s - (budget.reserve_s if held is None else 0.0)


def _run(candidate: Candidate, case: Case) -> Run:
    return Run(candidate.route, time_for(candidate, case.budget, case.held), _why(candidate, case))


def _why(candidate: Candidate, case: Case) -> Reason:
    if candidate.route.placement is Placement.EDGE:
        return Reason.CONFIDENT
    if case.held is not None:
        return Reason.DEFERRED
    if case.failure in (Reason.DEVICE_FAILED, Reason.NO_MODEL):
        return case.failure
    device = [other for other in case.candidates if other.route.placement is Placement.EDGE]
    if any(obstacle(other, case.budget, None) is None for other in device):
        return Reason.OFFLOADED
    return Reason.DEVICE_BUSY


def _last_resort(case: Case) -> Decision:
    """Nothing is affordable and nothing is at hand: the smallest level, if there is any time at all."""
    if case.budget.latency_s <= 0:
        return Shed(Reason.EXPIRED)
    device = [other for other in case.candidates if other.route.placement is Placement.EDGE and other.blocked is None]
    if device:
        return _run(min(device, key=lambda candidate: candidate.route.level), case)
    if any(other.blocked is None for other in case.candidates):
        return _run(next(other for other in case.candidates if other.blocked is None), case)
    if any(other.blocked is Reason.OVERLOADED for other in case.candidates):
        return Shed(Reason.OVERLOADED)
    return Shed(case.failure or Reason.NO_ROUTE)


def _accept(held: Prediction, case: Case) -> Accept:
    """Keep a device answer, and say whether something better was wanted and why it was not had.

    What is wanted is without its toll: an answer that is kept only because a budget is kept for other inputs is outside
    of the certificate, like one that is kept because the budget is spent.
    """
    if case.failure is not None:
        return Accept(held, case.failure, degraded=True)
    wanted = max(case.candidates, key=_untolled, default=None)
    if wanted is not None and _untolled(wanted) > held.confidence:
        return Accept(held, obstacle(wanted, case.budget, held) or Reason.BUDGET, degraded=True)
    return Accept(held, Reason.CONFIDENT)


def _untolled(candidate: Candidate) -> float:
    return candidate.score - candidate.price


def lacking(case: Case) -> Cost | None:
    """What an input whose device answer is kept would have taken, where it was worth that at today's toll and only the
    tokens were not there; None otherwise.
    """
    held = case.held
    if held is None or case.failure is not None:
        return None
    for candidate in case.candidates:
        if worth(candidate) > held.confidence and obstacle(candidate, case.budget, held) is Reason.BUDGET:
            return candidate.cost
    return None
