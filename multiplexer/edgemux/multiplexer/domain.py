"""The words of the system as values: what can be run, what it costs, what may be spent, what to do next.

Everything is immutable. Times are seconds, durations unless a name says otherwise; probabilities are in [0, 1].
"""

from __future__ import annotations

import math
from enum import StrEnum
from typing import Any

import msgspec
from numpy.typing import NDArray


class Placement(StrEnum):
    """Where a route runs."""

    EDGE = "edge"
    CLOUD = "cloud"
    SPLIT = "split"


class Reason(StrEnum):
    """Why a request was answered the way it was; the closed set of the ``reason`` label."""

    CONFIDENT = "confident"  # the device's answer was good enough for its price
    OFFLOADED = "offloaded"  # the cloud by first choice
    DEFERRED = "deferred"  # the cloud after a device answer
    DEVICE_BUSY = "device_busy"  # the device could not afford the level that was wanted, or any
    BUDGET = "budget"  # the device, because the offload or byte budget was spent, or is kept for others
    LINK = "link"  # the device, because the cloud could not answer in the time left
    BREAKER = "breaker"  # the device, because the cloud failed too often to be asked now
    NO_CLOUD = "no_cloud"  # the device, because no cloud is configured
    CLOUD_TIMEOUT = "cloud_timeout"  # the device, after the cloud did not answer in time (hedge)
    CLOUD_UNREACHABLE = "cloud_unreachable"  # the device, after nobody answered
    CLOUD_TLS = "cloud_tls"  # the device, after no connection could be made that both sides trust
    CLOUD_DENIED = "cloud_denied"  # the device: the cloud does not know our token, or does not let us ask
    CLOUD_OVERLOADED = "cloud_overloaded"  # the device, after the cloud refused
    CLOUD_BAD_ANSWER = "cloud_bad_answer"  # the device, after the cloud answered nonsense
    CLOUD_INCOMPATIBLE = "cloud_incompatible"  # the device: the cloud lacks the model or method, or has another version
    DEVICE_FAILED = "device_failed"  # the cloud, after the device's own model failed
    NO_MODEL = "no_model"  # the cloud, because no model of the device can be trusted
    EXPIRED = "expired"  # shed: the deadline passed before anything could run
    OVERLOADED = "overloaded"  # shed: it would only have waited past its deadline, or has more than its share already
    NO_ROUTE = "no_route"  # shed: every route failed or is too expensive


class Route(msgspec.Struct, frozen=True, order=True):
    """A variant and where it runs; ``level`` is 0 for what is not part of the nested family."""

    variant: str
    placement: Placement
    level: int = 0


class Cost(msgspec.Struct, frozen=True):
    """What running a route is predicted to take. ``compute_s`` is CPU time on the device."""

    latency_s: float = 0.0
    compute_s: float = 0.0
    memory_bytes: float = 0.0
    energy_j: float = 0.0
    sent_bytes: float = 0.0
    offloads: float = 0.0
    money: float = 0.0


class Budget(msgspec.Struct, frozen=True):
    """What may be spent on this request, on the axes of Cost; infinite where nothing is known or limited.

    ``latency_s`` is the time to the deadline. Of it ``margin_s`` is kept back from routes that leave the device, and
    ``reserve_s`` too while no answer is held yet, for the device's own.
    """

    latency_s: float = math.inf
    compute_s: float = math.inf
    memory_bytes: float = math.inf
    energy_j: float = math.inf
    sent_bytes: float = math.inf
    offloads: float = math.inf
    money: float = math.inf
    reserve_s: float = 0.0
    margin_s: float = 0.0


class Candidate(msgspec.Struct, frozen=True):
    """A route that could run next, its P(correct), its cost, and the price of choosing it.

    ``price`` and ``toll`` are in units of P(correct): the gain that the route must bring over what is at hand. The
    price is what is wanted (a certificate's, where there is one); the toll is what a scarce budget adds to it now, or
    takes off it. ``blocked`` says why the route must not run at all, None when it may. ``sure`` is the confidence that
    its answer will have if it looks right, None when nobody looks again and the answer is taken as it comes.
    """

    route: Route
    score: float
    cost: Cost
    price: float = 0.0
    blocked: Reason | None = None
    toll: float = 0.0
    sure: float | None = None


class Prediction(msgspec.Struct, frozen=True):
    """An answer: ``probabilities`` FP32 [classes], and P(it is right) as far as is known.

    peer: which of several clouds gave it, None where there is but one, or none.
    """

    route: Route
    label: int
    probabilities: NDArray[Any]
    confidence: float
    peer: int | None = None


class Run(msgspec.Struct, frozen=True):
    """Decision: run this route, for at most ``timeout_s``."""

    route: Route
    timeout_s: float
    reason: Reason


class Accept(msgspec.Struct, frozen=True):
    """Decision: reply with this prediction. ``degraded``: a better route was wanted and could not be had."""

    prediction: Prediction
    reason: Reason
    degraded: bool = False


class Shed(msgspec.Struct, frozen=True):
    """Decision: refuse."""

    reason: Reason


Decision = Run | Accept | Shed


class Case(msgspec.Struct, frozen=True):
    """All that a policy may look at: the budget, what can still be run, the answer at hand, and what failed.

    ``held`` is the latest prediction, None before the first. ``chosen`` is why it was run; ``failed`` is the cause of
    the latest failure. A route leaves ``candidates`` when it was tried, so a request ends within one attempt a route.
    """

    budget: Budget
    candidates: tuple[Candidate, ...]
    held: Prediction | None = None
    chosen: Reason | None = None
    failure: Reason | None = None

    def answered(self, prediction: Prediction, chosen: Reason, candidates: tuple[Candidate, ...]) -> Case:
        """The case after a route answered; ``candidates`` are what remains, re-scored."""
        return Case(self.budget, candidates, prediction, chosen, self.failure)

    def failed(self, route: Route, cause: Reason) -> Case:
        """The case after a route failed."""
        rest = tuple(candidate for candidate in self.candidates if candidate.route != route)
        return Case(self.budget, rest, self.held, self.chosen, cause)

    def joined(self, candidate: Candidate) -> Case:
        """The same case with one more route."""
        return Case(self.budget, (*self.candidates, candidate), self.held, self.chosen, self.failure)

    def within(self, budget: Budget) -> Case:
        """The same case with what is left of the budget."""
        return Case(budget, self.candidates, self.held, self.chosen, self.failure)
