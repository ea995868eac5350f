"""The agent's metrics. Every label comes from a closed set, and every child is made once."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import msgspec
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from edgemux.edge.loading import Fallback
from edgemux.multiplexer.domain import Placement, Reason
from edgemux.multiplexer.errors import (
    DeadlineExceeded,
    ExecutionError,
    Forbidden,
    Incompatible,
    Overloaded,
    Unauthenticated,
    Unreachable,
)
from edgemux.wire.registry import ProcessRegistry

_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
# For parts of a request, of which there are many: half as many buckets.
_PARTS = (0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0)
_ROWS = (1, 2, 4, 8, 16, 32, 64)
_SCORES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
STAGES = ("validate", "pre_gate", "device", "post_gate", "cloud")
# How calls to a cloud end.
CALLS: tuple[tuple[type[ExecutionError], str], ...] = (
    (DeadlineExceeded, "timeout"),
    (Overloaded, "overloaded"),
    (Unreachable, "unreachable"),
    (Unauthenticated, "denied"),
    (Forbidden, "denied"),
    (Incompatible, "incompatible"),
    (ExecutionError, "bad_answer"),
)
OUTCOMES = ("answered", *dict.fromkeys(name for _, name in CALLS))
REFUSALS = ("input", "unknown_model", "too_large", "expired", "overloaded", "failed", "cancelled")
AUDITS = ("agree", "differ", "failed")
ENDS = ("low", "high")
DIRECTIONS = ("raise", "lower")
# Where inputs are answered, by bundles without splits.
PLACES = (Placement.EDGE, Placement.CLOUD)
# Instead of the name of a model, or a variant, that nobody knows.
NOBODY = "other"


def outcome_of(error: ExecutionError | None) -> str:
    """How a call to a cloud has ended, out of a closed set; None for one that was answered."""
    return "answered" if error is None else next(name for kind, name in CALLS if isinstance(error, kind))


# Like Fallback: what can be missing while requests are answered all the same.
NO_STATE = "no_state"


class EnergyProxy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """E = active_watts * CPU seconds + joules_per_byte * bytes sent: a proxy, not a measurement.

    Defaults: about what one busy core adds on a Raspberry Pi 4, and Wi-Fi at 100 nJ a bit. Set your own.
    """

    active_watts: float = 1.0
    joules_per_byte: float = 8e-7

    def __post_init__(self) -> None:
        for name in ("active_watts", "joules_per_byte"):
            # A counter refuses to go down: a negative price would fail every request.
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be finite and not negative")


class Doorway:
    """Requests that ask for one model: how many are inside, and how many were turned away."""

    def __init__(self, model: str, registry: CollectorRegistry, families: dict[str, Any]) -> None:
        """``families``: by name, those that the registry has; what is missing is added."""
        self.registry = registry
        self._families = families
        self._model = model
        refused = self._counter("edgemux_refused", "Requests refused with a typed error.", "model", "reason")
        self._refused = {reason: refused.labels(model, reason) for reason in REFUSALS}
        # Only read when somebody scrapes.
        self.inflight = 0
        # Requests refused because there were too many; what the log says of it.
        self.overloads = 0
        inside = self._gauge("edgemux_inflight", "Requests that are being answered.", "model").labels(model)
        inside.set_function(lambda: self.inflight)

    def refused(self, reason: str) -> None:
        """A request was refused; ``reason`` is one of REFUSALS."""
        self.overloads += reason == "overloaded"
        self._refused[reason].inc()

    def of_nobody(self) -> Doorway:
        """What asks for no model that is here."""
        return Doorway(NOBODY, self.registry, self._families)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        found: Counter = self._family(Counter, name, text, labels)
        return found

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        found: Gauge = self._family(Gauge, name, text, labels)
        return found

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        found: Histogram = self._family(partial(Histogram, buckets=buckets), name, text, labels)
        return found

    def _family(self, kind: Callable[..., Any], name: str, text: str, labels: tuple[str, ...]) -> Any:
        if name not in self._families:
            self._families[name] = kind(name, text, labels, registry=self.registry)
        return self._families[name]


class EdgeMetrics(Doorway):
    """What the agent counts for one model. All models of a process are in one registry and share what is no model's.

    docs/metrics.md says what each of them means, and how many series there are at most.
    """

    def __init__(
        self,
        model: str,
        variants: tuple[str, ...],
        energy: EnergyProxy,
        beside: EdgeMetrics | None = None,
        splits: tuple[str, ...] = (),
    ) -> None:
        """``variants``: the levels' by rising level, then the cloud's. ``beside``: the metrics of another model of this
        process, None for the first. ``splits``: the routes with a head here and a tail there.
        """
        if beside is None:
            super().__init__(model, ProcessRegistry(), {})
        else:
            super().__init__(model, beside.registry, beside._families)
        self._energy = energy
        self._request_metrics(variants, splits)
        self._offload_metrics()
        self._budget_metrics()
        self._device_metrics()
        self._certificate_metrics()

    def _request_metrics(self, variants: tuple[str, ...], splits: tuple[str, ...]) -> None:
        model = self._model
        self._requests = self._counter("edgemux_requests", "Answered inputs.", "model", "route", "variant", "reason")
        duration = self._histogram(
            "edgemux_request_duration_seconds", "From arrival to answer, per input.", _SECONDS, "model", "route"
        )
        self.default_timeout = self._gauge(
            "edgemux_default_timeout_seconds", "What a request may take that gives no deadline."
        )
        stage = self._histogram("edgemux_stage_duration_seconds", "Time in each stage.", _PARTS, "stage")
        self._score = self._histogram("edgemux_score", "P(correct) of the answer given.", _SCORES, "model").labels(
            model
        )
        joules = self._counter("edgemux_energy_joules", "Energy by the proxy in the configuration.", "model", "route")
        self.log_dropped = self._counter("edgemux_log_dropped", "Lines of the request log that were given up.")
        places = (*PLACES, Placement.SPLIT) if splits else PLACES
        self._durations = {place: duration.labels(model, place.value) for place in places}
        self._joules = {place: joules.labels(model, place.value) for place in places}
        self._stages = {name: stage.labels(name) for name in STAGES}
        self._answers: dict[tuple[Placement, str, Reason], Counter] = {}
        self._variants = frozenset((*variants, *splits))
        self._split_metrics(variants[-1:], splits)
        # A rate over a counter that appears late misses its first increase: what is usual is there from the start.
        for level in variants[:-1]:
            self._answered_by(Placement.EDGE, level, Reason.CONFIDENT)
        for cloud in variants[-1:]:
            self._answered_by(Placement.CLOUD, cloud, Reason.OFFLOADED)
            self._answered_by(Placement.CLOUD, cloud, Reason.DEFERRED)
        for split in splits:
            self._answered_by(Placement.SPLIT, split, Reason.OFFLOADED)
            self._answered_by(Placement.SPLIT, split, Reason.DEFERRED)

    def _split_metrics(self, cloud: tuple[str, ...], splits: tuple[str, ...]) -> None:
        chosen = self._gauge(
            "edgemux_split_chosen",
            "1 for the way in which inputs are sent now.",
            "model",
            "variant",
        )
        self._alone = self._gauge(
            "edgemux_split_left_alone", "1 while a split is not used, and why.", "model", "variant", "reason"
        )
        self._left: dict[str, str] = {}
        self._chosen = {name: chosen.labels(self._model, name) for name in ((*splits, *cloud) if splits else ())}

    def chose(self, variant: str | None) -> None:
        """Inputs that leave the device go this way from now on: a split's name, the cloud's, None for no way at all."""
        for name, gauge in self._chosen.items():
            gauge.set(name == variant)

    def left_alone(self, reasons: Mapping[str, str]) -> None:
        """The splits that are not used, by name, and why; others have no series."""
        for name, reason in self._left.items():
            if reasons.get(name) != reason:
                self._alone.remove(self._model, name, reason)
        for name, reason in reasons.items():
            if self._left.get(name) != reason:
                self._alone.labels(self._model, name, reason).set(1)
        self._left = dict(reasons)

    def _offload_metrics(self) -> None:
        self._bytes = self._counter("edgemux_offload_bytes", "Bytes sent to the cloud.")
        self._attempts = self._counter("edgemux_offload_attempts", "Inputs sent to the cloud, answered or not.")
        self._calls = self._counter("edgemux_cloud_calls", "Inputs sent, by cloud and outcome.", "peer", "outcome")
        self._together = self._histogram("edgemux_offload_rows", "Inputs in a call to the cloud.", _ROWS)
        self._forms = self._counter("edgemux_offload_payloads", "Inputs sent to the cloud, by form.", "payload")
        self._form_bytes = self._counter("edgemux_offload_payload_bytes", "Bytes of those, by form.", "payload")
        self.other_model = self._counter("edgemux_other_model", "Answers of another cloud model than the bundle's.")
        self.breaker = self._gauge("edgemux_breaker_state", "0 closed, 1 half-open, 2 open; the best of several.")
        self.peer_breaker = self._gauge("edgemux_peer_breaker_state", "The same of each cloud.", "peer")

    def _budget_metrics(self) -> None:
        self.budget = self._gauge("edgemux_budget_remaining", "What is left of a long-run budget.", "budget")
        self.toll = self._gauge("edgemux_budget_price", "P(correct) that an offload must gain for it.", "budget")
        self.amount = self._gauge(
            "edgemux_budget_amount", "What the configuration allows a period; absent without limit.", "budget", "per"
        )
        self.rate = self._gauge("edgemux_budget_rate", "What is added to it a second; absent without limit.", "budget")
        self.share = self._gauge(
            "edgemux_budget_left_share", "What is left of what it can hold; absent without limit.", "budget"
        )
        self._spent = self._counter("edgemux_budget_spent", "What was taken from it; absent without limit.", "budget")
        self._spent_until: dict[str, float] = {}

    def _device_metrics(self) -> None:
        model = self._model
        self._resource = self._gauge("edgemux_resource", "Sensor readings; absent when unknown.", "sensor")
        self._age = self._gauge(
            "edgemux_sensor_age_seconds", "Since a sensor could be read; absent if never.", "sensor"
        )
        self._sensed: set[str] = set()
        self._degraded = self._gauge("edgemux_degraded", "1 while that is so; see the log.", "model", "cause")
        self.level = self._gauge("edgemux_level", "The highest level that the device affords.", "model").labels(model)
        self._plan_level = self._gauge("edgemux_plan_level", "The level that the scheduler gives.", "model").labels(
            model
        )
        self._plan_share = self._gauge(
            "edgemux_plan_share", "The share of the device's CPU that the scheduler gives.", "model"
        ).labels(model)
        changes = self._counter("edgemux_level_changes", "Changes of the level that is given.", "model", "direction")
        self._changes = {direction: changes.labels(model, direction) for direction in DIRECTIONS}
        self._given: int | None = None
        self.resident = self._gauge("edgemux_resident_bytes", "Bytes of the files of what is loaded.", "model").labels(
            model
        )
        self._paged = self._counter(
            "edgemux_paged_bytes", "Bytes of deltas and heads that were loaded.", "model"
        ).labels(model)
        self.level_switch = self._histogram("edgemux_level_switch_seconds", "Loading the delta of a level.", _PARTS)

    def _certificate_metrics(self) -> None:
        model = self._model
        self.certificate = self._gauge(
            "edgemux_certificate", "1 for how the bundle's certificate stands.", "model", "standing"
        )
        self.alpha = self._gauge(
            "edgemux_certificate_alpha", "The share kept and different that it promises; absent if none.", "model"
        )
        self.confidence = self._gauge(
            "edgemux_certificate_confidence", "How sure the promise is; absent if there is none.", "model"
        )
        self.bound = self._gauge(
            "edgemux_disagreement_upper_bound", "Bound on the share of inputs kept and different.", "model"
        ).labels(model)
        self.risk = self._gauge("edgemux_disagreement_interval", "What draws say of that share.", "model", "end")
        self.drift = self._gauge("edgemux_drift", "1 after an alarm, until certified again.", "model").labels(model)
        self.alarm = self._gauge("edgemux_drift_alarm", "1 for the cause of an alarm, as long.", "model", "cause")
        self.evidence = self._gauge("edgemux_drift_evidence", "Evidence of a shift; 1 is an alarm.", "model").labels(
            model
        )
        # What the gauges above show.
        self.seen: object = None
        self._audits = self._counter("edgemux_audit", "Kept answers re-run in the cloud.", "model", "outcome")
        for outcome in AUDITS:
            self._audits.labels(model, outcome)

    def of_another(self, model: str, variants: tuple[str, ...] = (), splits: tuple[str, ...] = ()) -> EdgeMetrics:
        """The metrics of another model of the same process."""
        return EdgeMetrics(model, variants, self._energy, self, splits)

    def asks(self, clouds: int) -> None:
        """So many clouds may be asked: every end of a call to each of them is there from the start."""
        for peer in range(clouds):
            for outcome in OUTCOMES:
                self._calls.labels(str(peer), outcome)

    def answered(self, place: Placement, variant: str, reason: Reason, score: float, elapsed_s: float) -> None:
        """An input was answered."""
        child = self._answers.get((place, variant, reason)) or self._answered_by(place, variant, reason)
        child.inc()
        self._durations[place].observe(elapsed_s)
        self._score.observe(score)

    def _answered_by(self, place: Placement, variant: str, reason: Reason) -> Counter:
        known = variant if variant in self._variants else NOBODY
        child = self._answers[place, variant, reason] = self._requests.labels(
            self._model, place.value, known, reason.value
        )
        return child

    def degraded(self, fallback: Fallback | None) -> None:
        """What is served instead of the bundle that was asked for, None for that bundle."""
        for cause in Fallback:
            self._degraded.labels(self._model, cause.value).set(cause is fallback)

    def forgets(self, forgetful: bool) -> None:
        """Whether budgets start empty next time, because nothing can be kept on disk."""
        self._degraded.labels(self._model, NO_STATE).set(forgetful)

    def stage(self, name: str, elapsed_s: float) -> None:
        """A stage took this long; ``name`` is one of STAGES."""
        self._stages[name].observe(elapsed_s)

    def offloaded(self, sent_bytes: int, form: str, place: Placement = Placement.CLOUD) -> None:
        """An input is being sent to the cloud, whole or as what a head makes of it; ``form``: see ``packed``."""
        self._attempts.inc()
        self._bytes.inc(sent_bytes)
        self._form_bytes.labels(form).inc(sent_bytes)
        self._joules[place].inc(sent_bytes * self._energy.joules_per_byte)

    def sent_together(self, rows: int) -> None:
        """A call with so many inputs was answered."""
        self._together.observe(rows)

    def packed(self, encoding: str) -> None:
        """An input is about to be sent in this form, one of wire/payload.py's."""
        self._forms.labels(encoding).inc()

    def called(self, peer: int, error: ExecutionError | None) -> None:
        """A call to a cloud, by its place in the configuration, has ended: well, or with an error."""
        outcome = outcome_of(error)
        self._calls.labels(str(peer), outcome).inc()

    def spent_cpu(self, place: Placement, cpu_s: float) -> None:
        """A model used this much CPU time on the device."""
        self._joules[place].inc(cpu_s * self._energy.active_watts)

    def sensed(self, values: Mapping[str, float | None]) -> None:
        """Readings by sensor; one that is unknown is absent from the page."""
        for name, value in values.items():
            if value is not None:
                self._resource.labels(name).set(value)
                self._sensed.add(name)
            elif name in self._sensed:
                self._resource.remove(name)
                self._sensed.discard(name)

    def aged(self, ages_s: Mapping[str, float | None]) -> None:
        """Seconds since each configured sensor could last be read, None for never."""
        for name, age_s in ages_s.items():
            if age_s is not None:
                self._age.labels(name).set(age_s)

    def spent(self, kind: str, whole: float) -> None:
        """So much was taken from a limited budget since the start."""
        self._spent.labels(kind).inc(max(0.0, whole - self._spent_until.get(kind, 0.0)))
        self._spent_until[kind] = whole

    def gave(self, level: int, share: float) -> None:
        """The level and the share of the CPU that the scheduler gives now."""
        if self._given is not None and level != self._given:
            self._changes["raise" if level > self._given else "lower"].inc()
        self._given = level
        self._plan_level.set(level)
        self._plan_share.set(share)

    def paged(self, seconds: float, size: int) -> None:
        """A delta was loaded."""
        self.level_switch.observe(seconds)
        self._paged.inc(size)

    def paged_head(self, size: int) -> None:
        """A head was loaded."""
        self._paged.inc(size)

    def audited(self, outcome: str) -> None:
        """A kept answer was compared with the cloud's: ``agree``, ``differ`` or ``failed``."""
        self._audits.labels(self._model, outcome).inc()
