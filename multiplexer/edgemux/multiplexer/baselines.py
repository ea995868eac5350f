"""The policies that ours is judged against, each runnable by the agent: ``policy = "max-softmax(threshold=0.9)"``.

A baseline only rewrites what routes seem to be worth and then asks ``decide``: deadlines, budgets, the breaker and what
is done after a failure are the same for all. None of them knows a toll: tokens go to whoever comes first.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta
from msgspec.structs import replace
from numpy.typing import NDArray

from edgemux.multiplexer.domain import Candidate, Case, Decision, Placement
from edgemux.multiplexer.features import entropy, log_tail, tempered_total
from edgemux.multiplexer.learned import Router
from edgemux.multiplexer.policy import decide

# Beyond any score, so that only an obstacle decides against it, or only an obstacle of all others for it.
WANTED, UNWANTED = 10.0, -10.0
Doubts = Callable[[NDArray[Any]], Any]
Share = Annotated[float, Meta(ge=0, le=1)]
Positive = Annotated[float, Meta(gt=0)]


def device_only(case: Case) -> Decision:
    """The best affordable level, whatever it says."""
    return decide(_with(case, [other for other in case.candidates if _on_device(other)]))


def cloud_only(case: Case) -> Decision:
    """The cloud whenever it can be had, the device otherwise."""
    return decide(_with(case, [c if _on_device(c) else _valued(c, WANTED) for c in case.candidates]))


def cascade(case: Case, doubts: Doubts) -> Decision:
    """The best affordable level first; then the cloud if its answer, FP32 [classes], is doubted. No refinement."""
    if case.held is None:
        return decide(_with(case, [c if _on_device(c) else _valued(c, UNWANTED) for c in case.candidates]))
    rest = [other for other in case.candidates if not _on_device(other)]
    if rest:
        value = WANTED if doubts(case.held.probabilities) else UNWANTED
        rest = [_valued(other, value) for other in rest]
    return decide(_with(case, rest))


class Threshold(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A cascade with a threshold on what the device's answer looks like."""

    threshold: float

    def __call__(self, case: Case) -> Decision:
        """Decide."""
        return cascade(case, self.doubts)

    def doubts(self, p: NDArray[Any]) -> Any:
        """Whether answers, probabilities [..., classes], are to be deferred: bool [...]."""
        raise NotImplementedError


class MaxSoftmax(Threshold, frozen=True):
    """Defers while the largest probability is below the threshold. Sedna's Threshold filter, for one label."""

    def doubts(self, p: NDArray[Any]) -> Any:
        # In float64: beside float32 a threshold would be rounded, and nearly all that is sure lies within 1e-7 of 1.
        return np.asarray(p.max(axis=-1), np.float64) < self.threshold


class BoxThreshold(Threshold, frozen=True):
    """Sedna's IBT filter: the share of boxes whose score is at most the threshold; of one label, all or none."""

    def doubts(self, p: NDArray[Any]) -> Any:
        return np.asarray(p.max(axis=-1), np.float64) <= self.threshold


class Margin(Threshold, frozen=True):
    """Defers while the two largest probabilities differ by less than the threshold."""

    def doubts(self, p: NDArray[Any]) -> Any:
        if p.shape[-1] < 2:
            return np.full(p.shape[:-1], False)
        two = np.partition(p, -2, axis=-1)[..., -2:].astype(np.float64)
        return two[..., 1] - two[..., 0] < self.threshold


class Entropy(Threshold, frozen=True):
    """Defers while the entropy, as a share of its most, exceeds the threshold.

    KubeEdge Sedna's CrossEntropy filter compares 1 less this with 1 less the threshold.
    """

    def doubts(self, p: NDArray[Any]) -> Any:
        return entropy(p) > self.threshold


class Temperature(Threshold, frozen=True):
    """Max-softmax of softmax(log p / temperature) (Guo et al. 2017, "On calibration of modern neural networks").

    kept: beyond so many of the likeliest, classes count with their mean, as in ``edgemux lab``; none does unless given.
    """

    temperature: Positive = 1.0
    kept: Annotated[int, Meta(ge=1)] | None = None

    def doubts(self, p: NDArray[Any]) -> Any:
        classes = p.shape[-1]
        logs, rest = log_tail(_table(p), self.kept or classes)
        return (1.0 / tempered_total(logs, rest, classes, self.temperature) < self.threshold).reshape(p.shape[:-1])


class Random(msgspec.Struct, forbid_unknown_fields=True, dict=True):
    """Defers this share of the answers, by lot."""

    share: Share
    seed: int = 0

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)

    def __call__(self, case: Case) -> Decision:
        """Decide; one draw for each answer that could be deferred."""
        return cascade(case, lambda _: self._random.random() < self.share)


class Learned(msgspec.Struct, forbid_unknown_fields=True, dict=True):
    """Defers where a small net scores the device's answer above the threshold.

    weights: a file that ``edgemux lab --save`` wrote, see ``Router``. threshold: the file's own, unless given.
    """

    weights: str
    threshold: float | None = None

    def __post_init__(self) -> None:
        self._router = Router.read(Path(self.weights))
        self._bound = self._router.threshold if self.threshold is None else self.threshold

    def check(self, classes: int) -> None:
        """Raises ConfigError when the net is not for answers of so many classes."""
        self.doubts(np.full(classes, 1.0 / classes, np.float32))

    def __call__(self, case: Case) -> Decision:
        """Decide."""
        return cascade(case, self.doubts)

    def doubts(self, p: NDArray[Any]) -> Any:
        """Whether answers, probabilities [..., classes], are to be deferred: bool [...]."""
        return (self._router.score(_table(p)) > self._bound).reshape(p.shape[:-1])


def _table(p: NDArray[Any]) -> NDArray[Any]:
    """[n, classes] of [..., classes]."""
    return p.reshape(-1, p.shape[-1])


class FixedLevel(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One level for every input, whatever is free (NestDNN's own baseline); only where it cannot run, a neighbour."""

    level: Annotated[int, Meta(ge=1)]

    def __call__(self, case: Case) -> Decision:
        """Decide."""
        return _by_level(case, self.level)


class RoundRobin(msgspec.Struct, forbid_unknown_fields=True, dict=True):
    """The levels in turn, one input each."""

    def __post_init__(self) -> None:
        self._turn = 0

    def __call__(self, case: Case) -> Decision:
        """Decide; a failure does not take a turn."""
        levels = sorted(other.route.level for other in case.candidates if _on_device(other))
        if case.held is not None or not levels:
            return _by_level(case, 0)
        level = levels[self._turn % len(levels)]
        if case.failure is None:
            self._turn += 1
        return _by_level(case, level)


def largest_that_fits(case: Case) -> Decision:
    """The highest level that the budgets hold, whatever the input looks like."""
    return _by_level(case, max((other.route.level for other in case.candidates), default=0))


def _by_level(case: Case, level: int) -> Decision:
    """Decide with this level first, then the ones below it, then above; the cloud is weighed as ever.

    The levels exchange their scores, so that the cloud is compared with the same best score. No refinement.
    """
    device = [other for other in case.candidates if _on_device(other)]
    rest = [other for other in case.candidates if not _on_device(other)]
    if case.held is not None:
        return decide(_with(case, rest))
    scores = sorted((other.score - other.price for other in device), reverse=True)
    device.sort(key=lambda other: (other.route.level > level, abs(other.route.level - level)))
    # Equal scores would be taken in the order of the case, which is this one.
    return decide(_with(case, [*map(_valued, device, scores), *rest]))


def _on_device(candidate: Candidate) -> bool:
    return candidate.route.placement is Placement.EDGE


def _valued(candidate: Candidate, worth: float) -> Candidate:
    return replace(candidate, score=worth, price=0.0, toll=0.0, sure=None)


def _with(case: Case, candidates: Sequence[Candidate]) -> Case:
    return replace(case, candidates=tuple(candidates))
