"""A registry of metrics that says which version runs and what its process takes of the machine."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import version

from prometheus_client import CollectorRegistry, Gauge, ProcessCollector
from prometheus_client.metrics_core import Metric


class ProcessRegistry(CollectorRegistry):
    """One process's. Without the times at which each series was made: they would nearly double what is exported."""

    def __init__(self) -> None:
        super().__init__()
        ProcessCollector(registry=self)
        text = "1; which version of edgemux this is."
        Gauge("edgemux_build_info", text, ["version"], registry=self).labels(version("edgemux")).set(1)

    def collect(self) -> Iterable[Metric]:
        """What the metrics port shows."""
        for family in super().collect():
            family.samples = [sample for sample in family.samples if not sample.name.endswith("_created")]
            yield family
