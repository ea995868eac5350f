"""The agent's metrics. Every label comes from a closed set, and every child is made once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
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

_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
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
REFUSALS = ("input", "unknown_model", "too_large", "expired", "overloaded", "failed", "cancelled")


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


class Answers(msgspec.Struct, frozen=True):
    """So many inputs were answered so."""

    route: str
    variant: str
    reason: str
    count: int


def _series(family: Any, model: str) -> Iterator[tuple[dict[str, str], float]]:
    """Labels and value of each series of a model."""
    for metric in family.collect():
        for sample in metric.samples:
            if sample.name.endswith("_total") and sample.labels["model"] == model:
                yield sample.labels, sample.value


class EdgeMetrics:
    """What the agent counts for one model. All models of a process are in one registry and share what is no model's."""

    def __init__(
        self, model: str, variants: tuple[str, ...], energy: EnergyProxy, beside: EdgeMetrics | None = None
    ) -> None:
        """``beside``: the metrics of another model of this process, None for the first."""
        self.registry: CollectorRegistry = CollectorRegistry() if beside is None else beside.registry
        self._families: dict[str, Any] = {} if beside is None else beside._families
        self._energy = energy
        self._model = model
        self._requests = self._counter("edgemux_requests", "Answered inputs.", "model", "route", "variant", "reason")
        self._refused = self._counter("edgemux_refused", "Requests refused with a typed error.", "model", "reason")
        # Only read when somebody scrapes.
        self.inflight = 0
        inside = self._gauge("edgemux_inflight", "Requests that are being answered.", "model").labels(model)
        inside.set_function(lambda: self.inflight)
        self.log_dropped = self._counter("edgemux_log_dropped", "Lines of the request log that were given up.")
        duration = self._histogram(
            "edgemux_request_duration_seconds", "From arrival to answer, per input.", _SECONDS, "model", "route"
        )
        stage = self._histogram("edgemux_stage_duration_seconds", "Time in each stage.", _SECONDS, "stage")
        self._bytes = self._counter("edgemux_offload_bytes", "Bytes sent to the cloud.")
        self._attempts = self._counter("edgemux_offload_attempts", "Inputs sent to the cloud, answered or not.")
        self._calls = self._counter("edgemux_cloud_calls", "Inputs sent, by cloud and outcome.", "peer", "outcome")
        self._together = self._histogram("edgemux_offload_rows", "Inputs in a call to the cloud.", _ROWS)
        self._forms = self._counter("edgemux_offload_payloads", "Inputs sent to the cloud, by form.", "payload")
        self.other_model = self._counter("edgemux_other_model", "Answers of another cloud model than the bundle's.")
        self._score = self._histogram("edgemux_score", "P(correct) of the answer given.", _SCORES, "model").labels(
            model
        )
        joules = self._counter("edgemux_energy_joules", "Energy by the proxy in the configuration.", "model", "route")
        self.budget = self._gauge("edgemux_budget_remaining", "What is left of a long-run budget.", "budget")
        self.toll = self._gauge("edgemux_budget_price", "P(correct) that an offload must gain for it.", "budget")
        self._resource = self._gauge("edgemux_resource", "Sensor readings; absent when unknown.", "sensor")
        self._age = self._gauge(
            "edgemux_sensor_age_seconds", "Since a sensor could be read; absent if never.", "sensor"
        )
        self._sensed: set[str] = set()
        self.level = self._gauge("edgemux_level", "The highest level that the device affords.", "model").labels(model)
        self._degraded = self._gauge("edgemux_degraded", "1 while that is so; see the log.", "model", "cause")
        self.plan_level = self._gauge("edgemux_plan_level", "The level that the scheduler gives.", "model").labels(
            model
        )
        self.plan_share = self._gauge(
            "edgemux_plan_share", "The share of the device's CPU that the scheduler gives.", "model"
        ).labels(model)
        self.resident = self._gauge(
            "edgemux_resident_bytes", "Bytes of the files of the levels that are loaded.", "model"
        ).labels(model)
        self._paged = self._counter("edgemux_paged_bytes", "Bytes of deltas that were loaded.", "model").labels(model)
        self.level_switch = self._histogram("edgemux_level_switch_seconds", "Loading the delta of a level.", _SECONDS)
        self.breaker = self._gauge("edgemux_breaker_state", "0 closed, 1 half-open, 2 open; the best of several.")
        self.peer_breaker = self._gauge("edgemux_peer_breaker_state", "The same of each cloud.", "peer")
        self.bound = self._gauge(
            "edgemux_disagreement_upper_bound", "Bound on the share of inputs kept and different.", "model"
        ).labels(model)
        self.drift = self._gauge("edgemux_drift", "1 after an alarm, until certified again.", "model").labels(model)
        self._audits = self._counter("edgemux_audit", "Kept answers re-run in the cloud.", "model", "outcome")
        self._durations = {p: duration.labels(model, p.value) for p in Placement}
        self._joules = {p: joules.labels(model, p.value) for p in Placement}
        self._stages = {name: stage.labels(name) for name in STAGES}
        self._answers: dict[tuple[Placement, str, Reason], Counter] = {}
        self._variants = frozenset(variants)
        for reason in REFUSALS:
            self._refused.labels(model, reason)
        for outcome in ("agree", "differ", "failed"):
            self._audits.labels(model, outcome)

    def of_another(self, model: str, variants: tuple[str, ...] = ()) -> EdgeMetrics:
        """The metrics of another model of the same process."""
        return EdgeMetrics(model, variants, self._energy, beside=self)

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

    def answered(self, place: Placement, variant: str, reason: Reason, score: float, elapsed_s: float) -> None:
        """An input was answered."""
        key = (place, variant, reason)
        child = self._answers.get(key)
        if child is None:
            known = variant if variant in self._variants else "other"
            child = self._answers[key] = self._requests.labels(self._model, place.value, known, reason.value)
        child.inc()
        self._durations[place].observe(elapsed_s)
        self._score.observe(score)

    def totals(self) -> tuple[list[Answers], dict[str, int]]:
        """Answered inputs by what became of them, and refused requests by reason, since the start."""
        answers, refused = [], {}
        for labels, value in _series(self._requests, self._model):
            answers.append(Answers(labels["route"], labels["variant"], labels["reason"], int(value)))
        for labels, value in _series(self._refused, self._model):
            refused[labels["reason"]] = int(value)
        return answers, refused

    def degraded(self, fallback: Fallback | None) -> None:
        """What is served instead of the bundle that was asked for, None for that bundle."""
        for cause in Fallback:
            self._degraded.labels(self._model, cause.value).set(cause is fallback)

    def forgets(self, forgetful: bool) -> None:
        """Whether budgets start empty next time, because nothing can be kept on disk."""
        self._degraded.labels(self._model, NO_STATE).set(forgetful)

    def refused(self, reason: str) -> None:
        """A request was refused; ``reason`` is one of REFUSALS."""
        self._refused.labels(self._model, reason).inc()

    def stage(self, name: str, elapsed_s: float) -> None:
        """A stage took this long; ``name`` is one of STAGES."""
        self._stages[name].observe(elapsed_s)

    def offloaded(self, sent_bytes: int) -> None:
        """An input is being sent to the cloud."""
        self._attempts.inc()
        self._bytes.inc(sent_bytes)
        self._joules[Placement.CLOUD].inc(sent_bytes * self._energy.joules_per_byte)

    def sent_together(self, rows: int) -> None:
        """A call with so many inputs was answered."""
        self._together.observe(rows)

    def packed(self, encoding: str) -> None:
        """An input is about to be sent in this form, one of wire/payload.py's."""
        self._forms.labels(encoding).inc()

    def called(self, peer: int, error: ExecutionError | None) -> None:
        """A call to a cloud, by its place in the configuration, has ended: well, or with an error."""
        outcome = "answered" if error is None else next(name for kind, name in CALLS if isinstance(error, kind))
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

    def paged(self, seconds: float, size: int) -> None:
        """A delta was loaded."""
        self.level_switch.observe(seconds)
        self._paged.inc(size)

    def audited(self, outcome: str) -> None:
        """A kept answer was compared with the cloud's: ``agree``, ``differ`` or ``failed``."""
        self._audits.labels(self._model, outcome).inc()
