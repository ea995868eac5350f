"""docs/metrics.md has every metric, label and value that agent and cloud export, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from edgemux.cloud.admission import Refused
from edgemux.cloud.statistics import Outcome
from edgemux.edge.breaker import State
from edgemux.edge.budget import Readings
from edgemux.edge.heads import Alone
from edgemux.edge.loading import Fallback
from edgemux.edge.metrics import NO_STATE
from edgemux.edge.vigil import Standing, Withdrawal
from edgemux.multiplexer.domain import Reason
from tests import exported
from tests.authority import Authority
from tests.exported import Family

PAGE = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
METRIC = re.compile(r"^\| `((?:edgemux|process)_\w+)` \| ([\w, ]*)\|", re.MULTILINE)
SECTION = re.compile(r"^### (\w+): (\w+)\n(.*?)(?=^##|\Z)", re.MULTILINE | re.DOTALL)
VALUE = re.compile(r"^\| `([\w-]+)` \|", re.MULTILINE)
# Names, not words: of the configuration, of the bundle, of a place in a list.
NAMES = {"model", "variant", "peer", "version"}
# The sensors of the configuration; what they read is in the table of edgemux_resource.
SAID_ELSEWHERE = {("edgemux_sensor_age_seconds", "sensor")}


def sections() -> dict[tuple[str, str], list[str]]:
    """The values in the table of a metric's label."""
    return {(metric, label): VALUE.findall(text) for metric, label, text in SECTION.findall(PAGE)}


@pytest.fixture(scope="module")
def known(tiny_bundle: Path, authority: Authority) -> dict[str, Family]:
    agent = exported.edge(exported.config_of(tiny_bundle, models=2, clouds=2))
    split = exported.splits("model-0", "split-1")
    return exported.families(agent, split, exported.left_alone(), exported.cloud(), exported.tls(authority))


def test_every_metric_that_is_exported_has_one_row_with_its_labels_and_there_are_no_other_rows(
    known: dict[str, Family],
) -> None:
    rows = METRIC.findall(PAGE)
    assert len({name for name, _ in rows}) == len(rows)
    written = {name: {label.strip() for label in labels.split(",") if label.strip()} for name, labels in rows}
    assert written == {name: set(family.labels) for name, family in known.items()}


def test_every_value_of_every_label_has_a_row_and_there_are_no_other_rows(known: dict[str, Family]) -> None:
    for (metric, label), written in sections().items():
        assert len(set(written)) == len(written), (metric, label)
        assert set(written) == known[metric].labels[label], (metric, label)


def test_the_values_of_no_label_are_left_out(known: dict[str, Family]) -> None:
    told = [known[metric].labels[label] for metric, label in sections()]
    for metric, family in known.items():
        for label, values in family.labels.items():
            if label not in NAMES and (metric, label) not in SAID_ELSEWHERE:
                assert any(values <= every for every in told), (metric, label)


@pytest.mark.parametrize(
    ("metric", "label", "values"),
    [
        ("edgemux_requests_total", "reason", set(Reason)),
        ("edgemux_certificate", "standing", set(Standing)),
        ("edgemux_drift_alarm", "cause", set(Withdrawal)),
        ("edgemux_split_left_alone", "reason", set(Alone)),
        ("edgemux_degraded", "cause", {*Fallback, NO_STATE}),
        ("edgemux_resource", "sensor", {*Readings.__struct_fields__, *exported.BESIDE_SENSORS}),
        ("edgemux_cloud_requests_total", "outcome", set(Outcome)),
        ("edgemux_cloud_refused_total", "reason", set(Refused)),
    ],
)
def test_every_word_of_the_code_is_on_the_page(metric: str, label: str, values: set[str]) -> None:
    assert set(sections()[metric, label]) == {str(value) for value in values}


def test_the_states_of_a_breaker_are_on_the_page() -> None:
    said = ", ".join(f"{state.value} {state.name.lower().replace('_', '-')}" for state in State)
    assert said in PAGE
