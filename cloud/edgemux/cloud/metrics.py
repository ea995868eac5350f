"""The cloud server's metrics, in a registry of their own. Labels come from closed sets only."""

from __future__ import annotations

from enum import StrEnum

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from edgemux.cloud.admission import Refused

_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Outcome(StrEnum):
    """How a request ended; the closed set of the ``outcome`` label."""

    ANSWERED = "answered"
    REFUSED = "refused"  # by choice: full, would wait too long, draining
    EXPIRED = "expired"  # its deadline passed first
    INVALID = "invalid"  # it can never be answered as it stands
    CANCELLED = "cancelled"  # the client went away
    FAILED = "failed"  # the model or the server did


class Metrics:
    """Every series exists from the start, at zero: a rate over a counter that appears late is wrong."""

    def __init__(self, model: str) -> None:
        """``model`` is the served model's name, the only value of the ``model`` label."""
        registry = self.registry = CollectorRegistry()
        self.batch_size = Histogram("edgemux_cloud_batch_size", "Rows in a batch.", buckets=_ROWS, registry=registry)
        self.queue_seconds = Histogram(
            "edgemux_cloud_queue_seconds",
            "Wait of a request for its batch.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.compute_seconds = Histogram(
            "edgemux_cloud_compute_seconds", "Model time of a batch.", buckets=_SECONDS, registry=registry
        )
        self.inflight = Gauge("edgemux_cloud_inflight", "Inference requests being worked on.", registry=registry)
        self.inputs = Counter("edgemux_cloud_inputs_total", "Rows that the model computed.", registry=registry)
        refused = Counter("edgemux_cloud_refused_total", "Requests refused by choice.", ["reason"], registry=registry)
        self.refused = {reason: refused.labels(reason) for reason in Refused}
        requests = Counter(
            "edgemux_cloud_requests_total", "Inference requests by outcome.", ["model", "outcome"], registry=registry
        )
        self.requests = {outcome: requests.labels(model, outcome) for outcome in Outcome}

    def counters(self) -> dict[str, float]:
        """The counters as one flat table, for the status page."""
        found: dict[str, float] = {}
        for family in self.registry.collect():
            for sample in family.samples:
                if sample.name.endswith("_total"):
                    labels = ",".join(f"{value}" for key, value in sample.labels.items() if key != "model")
                    name = sample.name.removeprefix("edgemux_cloud_").removesuffix("_total")
                    found[f"{name}.{labels}" if labels else name] = sample.value
        return found
