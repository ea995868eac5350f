"""The cloud server's metrics, made from the tallies when somebody asks. Labels come from closed sets only.

Per request only plain numbers are added to: the client library's own counters take locks, and several microseconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from edgemux.cloud.admission import Refused
from edgemux.cloud.statistics import ROWS, SECONDS, Outcome, Spread, Tally
from edgemux.wire.registry import ProcessRegistry

__all__ = ["Metrics", "Outcome"]

_PREFIX = "edgemux_cloud_"


def count_processes(registry: CollectorRegistry) -> Gauge:
    """The gauge of how many processes of one server serve, where there are several."""
    return Gauge(f"{_PREFIX}processes", "Processes that serve.", registry=registry)


class Metrics(Collector):
    """The tallies of all models, in a registry of their own.

    Every series of a model exists, at zero, from the time it is served: a rate over a counter that appears late is
    wrong. A version that is served no more stays in its model's counters, which never go back.
    """

    def __init__(self) -> None:
        self._tallies: dict[str, dict[str, Tally]] = {}
        self.registry = ProcessRegistry()
        self.registry.register(self)

    def of(self, model: str, version: str = "") -> Tally:
        """The tally of one version of a model that is served."""
        return self._tallies.setdefault(model, {}).setdefault(version, Tally())

    def overloads(self) -> int:
        """Requests refused since the start because there were too many."""
        every = (tally.refused for versions in self._tallies.values() for tally in versions.values())
        return sum(refused[Refused.FULL] + refused[Refused.WAIT] for refused in every)

    def collect(self) -> Iterator[Metric]:
        """What the metrics port shows."""
        models = {model: list(versions.values()) for model, versions in list(self._tallies.items())}
        yield self._spread("batch_size", "Rows in a batch.", models, "batch_rows", ROWS)
        yield self._spread("queue_seconds", "Wait of a request for its batch.", models, "queue", SECONDS)
        yield self._spread("compute_seconds", "Model time of a batch.", models, "compute", SECONDS)
        inflight = GaugeMetricFamily(f"{_PREFIX}inflight", "Inference requests being worked on.", labels=["model"])
        inputs = CounterMetricFamily(f"{_PREFIX}inputs", "Rows that the model computed.", labels=["model"])
        labels = ["model", "reason"]
        refused = CounterMetricFamily(f"{_PREFIX}refused", "Requests refused by choice.", labels=labels)
        labels = ["model", "outcome"]
        requests = CounterMetricFamily(f"{_PREFIX}requests", "Inference requests by outcome.", labels=labels)
        for model, tallies in models.items():
            inflight.add_metric([model], sum(tally.inflight for tally in tallies))
            inputs.add_metric([model], sum(tally.rows for tally in tallies))
            for reason in Refused:
                refused.add_metric([model, reason.value], sum(tally.refused[reason] for tally in tallies))
            for outcome in Outcome:
                requests.add_metric([model, outcome.value], sum(tally.requests[outcome] for tally in tallies))
        yield from (inflight, inputs, refused, requests)

    def _spread(
        self, name: str, text: str, models: dict[str, list[Tally]], field: str, bounds: Iterable[float]
    ) -> Metric:
        family = HistogramMetricFamily(f"{_PREFIX}{name}", text, labels=["model"])
        for model, tallies in models.items():
            whole = Spread(tuple(bounds))
            for tally in tallies:
                whole.add(getattr(tally, field))
            buckets, below = [], 0
            for bound, count in zip((*whole.bounds, float("inf")), whole.counts, strict=True):
                below += count
                buckets.append(("+Inf" if bound == float("inf") else str(float(bound)), below))
            family.add_metric([model], buckets, whole.total)
        return family

    def counters(self, model: str | None = None) -> dict[str, float]:
        """The counters as one flat table, for the status page: one model's, or all models' together."""
        found: dict[str, float] = {}
        for family in self.collect():
            for sample in family.samples:
                if not sample.name.endswith("_total") or model not in (None, sample.labels["model"]):
                    continue
                labels = ",".join(value for key, value in sample.labels.items() if key != "model")
                name = sample.name.removeprefix(_PREFIX).removesuffix("_total")
                key = f"{name}.{labels}" if labels else name
                found[key] = found.get(key, 0.0) + sample.value
        return found
