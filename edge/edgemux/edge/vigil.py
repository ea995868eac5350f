"""The watch over the certificate: is the stream what it was, and do kept answers still agree with the cloud's?

What requests have to say is put into queues of bounded length, a few microseconds each. ``step`` takes it from there,
in a thread beside the event loop: it is the only one that changes anything, and it leaves what requests and pages
read, ``terms`` and ``state``, as whole immutable values.
"""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Callable, Mapping
from enum import StrEnum
from itertools import groupby
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgemux.edge.config import DriftSettings
from edgemux.edge.ledger import Comparison, Ledger, Recertified
from edgemux.edge.sample import Sample
from edgemux.multiplexer.audits import Calibration, log_odds, risk_interval
from edgemux.multiplexer.bundle import Certificate, Manifest
from edgemux.multiplexer.certify import KEEP_ALL
from edgemux.multiplexer.domain import Prediction
from edgemux.multiplexer.drift import Detector, References, Stream, against_risk, light_of, numbers_of
from edgemux.multiplexer.gates import gain_before
from edgemux.multiplexer.usual import skipped

# What waits for the next step; when more comes in between, the oldest is lost.
QUEUE = 4096
# Some hundred numbers of each input wait with it.
INPUT_QUEUE = 1024
# Where a bundle has no certificate, intervals are shown at this confidence.
DELTA = 0.1
INPUT_STREAMS = ("pre_gate_gain", "brightness", "contrast")


class Standing(StrEnum):
    """How the bundle's certificate stands."""

    NONE = "none"  # the bundle has none
    UNWATCHED = "unwatched"  # as in the bundle, and nobody looks whether it still holds
    IN_FORCE = "in_force"
    WITHDRAWN = "withdrawn"
    RE_CERTIFIED = "re_certified"  # withdrawn, and replaced for at least one level by one made here


class Withdrawal(StrEnum):
    """Why a certificate was withdrawn, and why the agent went over to calibrated confidence."""

    AUDITS = "audits"  # kept answers differ from the cloud's more often than certified
    SCORE_SHIFT = "score_shift"  # the post-gate's gains are not what they were
    INPUT_SHIFT = "input_shift"  # the pre-gate's gain, the brightness or the contrast is not what it was
    OTHER_MODEL = "other_model"  # the cloud answers with another model than the bundle's
    WATCH_FAILED = "watch_failed"  # the watch itself ended with an error, which is in the log


class Terms(msgspec.Struct, frozen=True):
    """The prices in force and, after an alarm, the calibrations that score answers instead of the post-gate."""

    epoch: int
    offload_first: float
    defer: tuple[float, ...]
    calibrations: tuple[Calibration, ...] = ()

    def scores(self, prediction: Prediction) -> NDArray[np.float64]:
        """Scores FP64 [1, routes] after an answer: every level has its calibrated confidence, the cloud is right."""
        calibration = self.calibrations[prediction.route.level - 1]
        confidence = calibration.confidence(float(prediction.probabilities[prediction.label]))
        return np.array([[confidence] * len(self.defer) + [1.0]])


class State(msgspec.Struct, frozen=True):
    """What the status page shows. Times are seconds of the wall clock; intervals hold at all times together."""

    standing: Standing
    reason: Withdrawal | None
    since_s: float | None
    bound: float
    learning: bool
    reference: str
    evidence: float
    draws: int
    differ: int
    risk: tuple[float, float]
    agreement: tuple[float, float]
    confidence: float
    recertified: dict[str, Recertified]

    @property
    def alarmed(self) -> bool:
        """Whether there was an alarm, and no new certificate since."""
        return self.reason is not None and self.standing is not Standing.RE_CERTIFIED


class Vigil:
    """Owns detectors, comparisons and the standing of the certificate. ``audit_share``: of inputs, picked by chance."""

    def __init__(
        self,
        manifest: Manifest,
        settings: DriftSettings,
        audit_share: float,
        chance: random.Random | None = None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._manifest = manifest
        self._settings = settings
        self._share = audit_share
        self._chance = chance or random.Random()
        self._wall = wall
        self._light = manifest.inputs[0].name
        certificate = manifest.certificate
        self._delta = certificate.delta if certificate else DELTA
        levels = len(manifest.levels)
        self._ledgers = [
            Ledger(price, alpha, self._delta / levels, self._chance)
            for price, alpha in zip(manifest.multiplexer.defer, _alphas(certificate, levels), strict=True)
        ]
        self._inputs: deque[tuple[NDArray[Any], NDArray[Any]]] = deque(maxlen=INPUT_QUEUE)
        self._scores: deque[tuple[int, int, float | None]] = deque(maxlen=QUEUE)
        self._comparisons: deque[Comparison] = deque(maxlen=QUEUE)
        self._standing = Standing.NONE if certificate is None else Standing.IN_FORCE
        if certificate is not None and not settings.enabled:
            self._standing = Standing.UNWATCHED
        self._reason: Withdrawal | None = None
        self._since_s: float | None = None
        self._other_model = False
        prices = manifest.multiplexer
        self.terms = Terms(0, prices.offload_first, prices.defer)
        self._begin(None if manifest.references is msgspec.UNSET else manifest.references)
        self.state = self._state()

    def _begin(self, usual: References | None = None) -> None:
        """New detectors: each learns what is usual from now on, or knows it from the bundle."""
        learn = self._settings.reference_inputs
        inputs = [getattr(usual, name) if usual else None for name in INPUT_STREAMS]
        self._input_streams = [Stream(learn, reference) for reference in inputs]
        levels = usual.levels if usual else (None,) * len(self._ledgers)
        self._score_streams = [Stream(learn, reference) for reference in levels]
        self._from_bundle = usual is not None
        self._streams = len(self._input_streams) + len(self._score_streams) + 1
        self._watch_risk()

    def _watch_risk(self) -> None:
        certificate = self._manifest.certificate
        self._risk: Detector | None = against_risk(max(certificate.alpha)) if certificate else None
        self._draws = self._kept = self._differ = 0

    # --- on the path of requests ----------------------------------------------------------------------------------

    @property
    def audit_share(self) -> float:
        """The share of inputs that are drawn: kept answers among them are asked again in the cloud."""
        if self.state.standing is Standing.WITHDRAWN and self._settings.enabled and self._share > 0:
            return max(self._share, self._settings.audit_share_alarm)
        return self._share

    def saw(self, tensors: Mapping[str, NDArray[Any]], scores: NDArray[Any]) -> None:
        """Inputs have come in: arrays [n, ...] by name, and the pre-gate's scores [n, routes]."""
        if not self._settings.enabled:
            return
        numbers = numbers_of(tensors[self._light])
        for i in range(len(scores)):
            if self._looks():
                self._inputs.append((scores[i], numbers[i]))

    def _looks(self) -> bool:
        """Whether this one is among those looked at: by chance, so that nothing about it matters."""
        return self._settings.every == 1 or self._chance.random() * self._settings.every < 1.0

    def answered(self, prediction: Prediction, sample: Sample, scores: NDArray[Any], terms: Terms) -> None:
        """A level has answered, and was scored [1, routes] on these terms; ``sample`` keeps the answer.

        Only first answers count, and only to inputs that the pre-gate would not have sent to the cloud: whether the
        rest reaches a level depends on the link and the budgets, and that must not look like a shift.
        """
        first, sample.answer, sample.epoch = sample.answer is None, prediction, terms.epoch
        if not self._settings.enabled:
            return
        level = prediction.route.level
        value: float | None = None
        if first and self._looks() and not skipped(sample.scores[0].tolist(), level, terms.offload_first):
            if terms.calibrations:  # a scale that stays when the calibration is fitted again
                value = -log_odds(float(prediction.probabilities[prediction.label]))
            else:
                value = float(scores[0, -1]) - float(scores[0, level - 1])
        self._scores.append((terms.epoch, level, value))

    def compared(self, sample: Sample, cloud: Prediction, *, kept: bool, drawn: bool) -> None:
        """The cloud has answered, too, or only the cloud has. See Comparison for the arguments."""
        device = sample.answer
        if not self._settings.enabled or (device is None and not drawn):
            return
        if device is None:
            seen = Comparison(self.terms.epoch, 0, 0.0, False, False, drawn)
        else:
            surest = float(device.probabilities[device.label])
            seen = Comparison(sample.epoch, device.route.level, surest, device.label != cloud.label, kept, drawn)
        self._comparisons.append(seen)

    def passed(self, *, drawn: bool) -> None:
        """An input was answered elsewhere, but not by the cloud model itself: not kept, and nothing to compare with."""
        if self._settings.enabled and drawn:
            self._comparisons.append(Comparison(self.terms.epoch, 0, 0.0, False, False, drawn))

    def met_another_model(self) -> None:
        """The cloud has answered with another model than the certificate is about."""
        self._other_model = True

    # --- beside it ------------------------------------------------------------------------------------------------

    @property
    def due(self) -> bool:
        """Whether anything waits for a step."""
        waiting = self._inputs or self._scores or self._comparisons or self._other_model
        return self._reason is not Withdrawal.WATCH_FAILED and bool(waiting)

    def step(self) -> None:
        """Work off what has come in. Some milliseconds at most; never two at once."""
        now = self._wall()
        self._watch_streams()
        self._read_comparisons()
        alarm = Withdrawal.OTHER_MODEL if self._other_model and self._reason is None else self._alarm()
        self._other_model = False
        if alarm is not None:
            self.withdraw(alarm)
        elif self.terms.calibrations:
            self._review(now)
        self.state = self._state()

    def _watch_streams(self) -> None:
        # Where an input may be of any size, as many numbers of it are looked at as there are.
        for _, alike in groupby(drain(self._inputs), lambda seen: seen[1].shape):
            before, numbers = (np.stack(column) for column in zip(*alike, strict=True))
            for stream, values in zip(self._input_streams, (gain_before(before), *light_of(numbers).T), strict=True):
                stream.observe(values)
        scores = [(level, value) for epoch, level, value in drain(self._scores) if epoch == self.terms.epoch]
        for number, (stream, ledger) in enumerate(zip(self._score_streams, self._ledgers, strict=True), start=1):
            own = [value for level, value in scores if level == number]
            ledger.used = ledger.used or bool(own)
            stream.observe(np.array([value for value in own if value is not None]))

    def _read_comparisons(self) -> None:
        for seen in drain(self._comparisons):
            if seen.epoch != self.terms.epoch:
                continue
            if seen.level:
                self._ledgers[seen.level - 1].record(seen)
            if seen.drawn:
                self._draws += 1
                self._kept += seen.kept
                self._differ += seen.kept and seen.differs
                if self._risk is not None and self._certified(seen.level):
                    self._risk.observe(np.array([int(seen.kept and seen.differs)]))

    def _certified(self, level: int) -> bool:
        """Whether answers of this level are under a certificate now; the pre-gate's part in it is, at the start."""
        if self._standing is Standing.RE_CERTIFIED:
            return level > 0 and self._ledgers[level - 1].certified is not None
        return self._standing is Standing.IN_FORCE

    def _alarm(self) -> Withdrawal | None:
        """The mean of all streams' evidence is an e-detector too: none may exceed the run length times their number."""
        limit = self._settings.run_length * self._streams
        # Draws come once in 1 / share inputs, at most.
        if self._risk is not None and self._risk.evidence >= limit * (self._share or 1.0):
            return Withdrawal.AUDITS
        if any(stream.evidence >= limit for stream in self._score_streams):
            return Withdrawal.SCORE_SHIFT
        if any(stream.evidence >= limit for stream in self._input_streams):
            return Withdrawal.INPUT_SHIFT
        return None

    def withdraw(self, reason: Withdrawal) -> None:
        """The certificate is not in force from here on, and max softmax decides instead of the gates."""
        for ledger in self._ledgers:
            ledger.forget()
        if self._standing is not Standing.NONE:
            self._standing = Standing.WITHDRAWN
        self._reason = reason
        self._since_s = self._wall()
        self._begin()
        self._renew(self.terms.epoch + 1)
        self.state = self._state()

    def _renew(self, epoch: int) -> None:
        """Terms by calibrated confidence. The pre-gate does not skip the device any more: it was learned, too."""
        prices = tuple(ledger.price for ledger in self._ledgers)
        self.terms = Terms(epoch, KEEP_ALL, prices, tuple(ledger.calibration for ledger in self._ledgers))

    def _review(self, now_s: float) -> None:
        # A certificate that nobody could see broken is not made.
        watched = all(stream.reference is not None for stream in self._input_streams)
        changed = [ledger.review(now_s, watched) for ledger in self._ledgers]
        if not any(changed):
            return
        if self._standing is Standing.WITHDRAWN and any(ledger.certified for ledger in self._ledgers):
            self._standing = Standing.RE_CERTIFIED
        # What was counted is about the prices before. Rare: reviews come at doublings.
        self._watch_risk()
        self._renew(self.terms.epoch)

    def _state(self) -> State:
        streams = [*self._input_streams, *self._score_streams]
        share = self._share or 1.0
        evidence = [stream.evidence for stream in streams] + ([self._risk.evidence / share] if self._risk else [])
        return State(
            standing=self._standing,
            reason=self._reason,
            since_s=self._since_s,
            bound=self._bound(),
            learning=any(stream.reference is None for stream in self._input_streams),
            reference="bundle" if self._from_bundle else "first inputs",
            evidence=max(evidence) / (self._settings.run_length * self._streams),
            draws=self._draws,
            differ=self._differ,
            risk=risk_interval(self._differ, self._draws, self._delta),
            agreement=_turned(risk_interval(self._differ, self._kept, self._delta)),
            confidence=1.0 - self._delta,
            recertified={
                level.name: ledger.certified
                for level, ledger in zip(self._manifest.levels, self._ledgers, strict=True)
                if ledger.certified is not None
            },
        )

    def _bound(self) -> float:
        """What P(kept and differs) is at most: the certificate's word while it is in force, then that of the draws."""
        certificate = self._manifest.certificate
        if certificate is not None and self._standing in (Standing.IN_FORCE, Standing.UNWATCHED):
            return max(level.upper_bound for level in certificate.levels)
        if not any(ledger.used for ledger in self._ledgers):
            return 1.0
        return max(ledger.risk_limit for ledger in self._ledgers)


def _alphas(certificate: Certificate | None, levels: int) -> tuple[float | None, ...]:
    """What is certified for each level; one that is given for all is that of each."""
    if certificate is None:
        return (None,) * levels
    return certificate.alpha if len(certificate.alpha) == levels else (min(certificate.alpha),) * levels


def drain(queue: deque[Any]) -> list[Any]:
    """Everything that is in a queue now; what is appended meanwhile stays for the next time."""
    return [queue.popleft() for _ in range(len(queue))]


def _turned(interval: tuple[float, float]) -> tuple[float, float]:
    return 1.0 - interval[1], 1.0 - interval[0]
