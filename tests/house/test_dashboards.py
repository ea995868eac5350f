"""The dashboards are what the code makes, whole, and ask for metrics that there are.

That every panel has data in a real Prometheus is checked by tests/deploy/dashboards/test_dashboards.py.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.grafana import palette
from deploy.grafana.generate import FOLDER, PAGES, dashboards
from edgemux.cloud.admission import Refused
from edgemux.cloud.statistics import Outcome
from edgemux.edge.heads import Alone
from edgemux.edge.metrics import AUDITS, DIRECTIONS, OUTCOMES, REFUSALS, STAGES
from edgemux.edge.purse import KINDS
from edgemux.edge.vigil import Standing, Withdrawal
from edgemux.multiplexer.domain import Placement, Reason
from tests import exported
from tests.authority import Authority
from tests.deploy.dashboards.promql import Aggregation, Labels, parse, selectors
from tests.deploy.dashboards.variables import ALL, label_values
from tests.deploy.dashboards.verdict import panels, variables

ROOT = Path(__file__).parents[2]
CORE = {"timeseries", "stat", "state-timeline", "heatmap", "table", "bargauge"}
UIDS = {"edge-fleet": "edgemux-edge-fleet", "one-edge": "edgemux-one-edge", "cloud": "edgemux-cloud"}
TITLES = {"edge-fleet": "Edge fleet", "one-edge": "One edge", "cloud": "Cloud"}
# Prometheus' own, with their labels beside those of the scrape.
OTHERS = {"up": frozenset[str](), "ALERTS": frozenset({"alertname", "alertstate", "severity"})}
BUILT_IN = {"__rate_interval", "__interval", "__range", "datasource"}
_NAME = re.compile(r"\$\{?(\w+)")


def board(name: str) -> dict[str, Any]:
    made: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text())
    return made


BOARDS = [board(name) for name in PAGES]
every_board = pytest.mark.parametrize("made", BOARDS, ids=list(PAGES))


def expression(text: str) -> Any:
    return parse(re.sub(r"\[\$\w+\]", "[5m]", text))


def read_by(made: dict[str, Any]) -> Iterator[str]:
    for panel in panels(made):
        for target in panel["targets"]:
            yield from (selector.name for selector in selectors(expression(target["expr"])))


@pytest.fixture(scope="module")
def known(tiny_bundle: Path, authority: Authority) -> Callable[[str], frozenset[str] | None]:
    """The labels of a metric that agents and clouds export, or that rules record from those; None for others."""
    agent = exported.edge(exported.config_of(tiny_bundle, models=2, clouds=2))
    families = exported.families(agent, exported.left_alone(), exported.cloud(), exported.tls(authority))
    rules = recorded()
    of_scrapes = frozenset({"job", "instance"})

    def labels_of(name: str) -> frozenset[str] | None:
        if name in OTHERS:
            return of_scrapes | OTHERS[name]
        if name in rules:
            return Labels(labels_of).through(parse(rules[name]))
        whole = re.sub("_(bucket|sum|count)$", "", name)
        family = families.get(name) or families.get(whole)
        if family is None or (family.kind == "histogram") == (name == whole):
            return None
        return of_scrapes | family.labels.keys() | ({"le"} if name.endswith("_bucket") else set())

    return labels_of


def recorded() -> dict[str, str]:
    groups = yaml.safe_load((ROOT / "deploy/prometheus/rules/recording.yml").read_text())["groups"]
    return {rule["record"]: rule["expr"] for group in groups for rule in group["rules"]}


def test_the_committed_dashboards_are_what_the_code_makes() -> None:
    made = dict(dashboards())
    assert {path.name for path in FOLDER.glob("*")} == set(made)
    for name, text in made.items():
        assert (FOLDER / name).read_text() == text, f"{name}: run python -m deploy.grafana.generate"


@pytest.mark.parametrize("name", UIDS)
def test_each_has_the_address_and_the_title_that_others_count_on(name: str) -> None:
    made = board(name)
    assert (made["uid"], made["title"]) == (UIDS[name], TITLES[name])
    assert made["description"]


@every_board
def test_ids_are_given_once(made: dict[str, Any]) -> None:
    ids = [panel["id"] for panel in made["panels"]]
    assert len(set(ids)) == len(ids)


@every_board
def test_panels_lie_on_the_grid_and_not_on_each_other(made: dict[str, Any]) -> None:
    taken: dict[tuple[int, int], int] = {}
    for panel in made["panels"]:
        at = panel["gridPos"]
        assert at["x"] >= 0 and at["w"] > 0 and at["h"] > 0 and at["x"] + at["w"] <= 24, panel["title"]
        for x in range(at["x"], at["x"] + at["w"]):
            for y in range(at["y"], at["y"] + at["h"]):
                assert (x, y) not in taken, (panel["title"], taken[x, y])
                taken[x, y] = panel["id"]


@every_board
def test_no_row_of_the_grid_is_left_half_empty(made: dict[str, Any]) -> None:
    widths: dict[int, int] = {}
    for panel in made["panels"]:
        widths[panel["gridPos"]["y"]] = widths.get(panel["gridPos"]["y"], 0) + panel["gridPos"]["w"]
    assert {y: width for y, width in widths.items() if width != 24} == {}


@every_board
def test_every_panel_says_what_it_shows_in_which_unit_and_from_where(made: dict[str, Any]) -> None:
    for panel in panels(made):
        assert len(panel["description"]) > 20 and panel["description"].endswith((".", "?"))
        assert panel["fieldConfig"]["defaults"]["unit"]
        for asked in (panel, *panel["targets"]):
            assert asked["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert panel["type"] in CORE


@every_board
def test_letters_of_targets_are_given_once(made: dict[str, Any]) -> None:
    for panel in panels(made):
        letters = [target["refId"] for target in panel["targets"]]
        assert len(set(letters)) == len(letters)


@every_board
def test_lines_of_several_targets_have_names(made: dict[str, Any]) -> None:
    for panel in panels(made):
        if panel["type"] != "table" and len(panel["targets"]) > 1:
            legends = [target["legendFormat"] for target in panel["targets"]]
            assert "__auto" not in legends and len(set(legends)) == len(legends)


@every_board
def test_variables_are_declared_and_used(made: dict[str, Any]) -> None:
    declared = {variable["name"] for variable in made["templating"]["list"]}
    used = {name for panel in panels(made) for target in panel["targets"] for name in _NAME.findall(target["expr"])} | {
        name for variable in variables(made) for name in _NAME.findall(variable["query"]["query"])
    }
    assert used <= declared | BUILT_IN
    assert declared - used == {"datasource"}
    assert {"instance", "model", "datasource"} <= declared


@every_board
def test_a_variable_asks_only_for_those_before_it(made: dict[str, Any]) -> None:
    before: set[str] = set()
    for variable in variables(made):
        text = variable["query"]["query"]
        assert set(_NAME.findall(text)) <= before
        selector, _ = label_values(text)
        assert selector is not None and expression(selector)
        before.add(variable["name"])


@every_board
def test_all_of_a_variable_is_one_pattern_and_not_a_list_of_a_thousand_names(made: dict[str, Any]) -> None:
    for variable in variables(made):
        if variable["includeAll"]:
            assert variable["allValue"] == ".+"
            assert variable["current"]["value"] == [ALL]


@every_board
def test_a_panel_asks_for_metrics_and_labels_that_are_exported_or_recorded(
    made: dict[str, Any], known: Callable[[str], frozenset[str] | None]
) -> None:
    for panel in panels(made):
        for target in panel["targets"]:
            labels = Labels(known)
            left = labels.through(expression(target["expr"]))
            assert labels.faults == [], panel["title"]
            assert set(re.findall(r"\{\{(\w+)\}\}", target.get("legendFormat", ""))) <= left


def test_a_metric_that_nobody_exports_is_found(known: Callable[[str], frozenset[str] | None]) -> None:
    labels = Labels(known)
    labels.through(expression("edgemux_request_duration_seconds + sum by (colour) (edgemux_nothing_total)"))
    assert labels.faults == [
        "unknown metric 'edgemux_request_duration_seconds'",
        "unknown metric 'edgemux_nothing_total'",
        "unused label 'colour' in sum by",
    ]


def test_the_fleet_reads_what_was_summed_before() -> None:
    # One series an agent is what a table of agents needs; everything else would be read a thousand times.
    assert {name for name in read_by(board("edge-fleet")) if ":" not in name} == {"up", "ALERTS"}


def test_the_fleet_leads_to_the_page_of_one_edge() -> None:
    links = re.findall(r"/d/([\w-]+)/[\w-]+\?var-(\w+)=", json.dumps(board("edge-fleet")))
    one = board("one-edge")
    assert links and set(links) == {(one["uid"], "instance")}
    assert "instance" in {variable["name"] for variable in variables(one)}


@every_board
def test_the_three_lead_to_each_other(made: dict[str, Any]) -> None:
    (link,) = made["links"]
    assert link["type"] == "dashboards" and set(link["tags"]) <= set(made["tags"])


@pytest.mark.parametrize(
    ("colours", "labels"),
    [
        (palette.REASONS, set(Reason)),
        (palette.LEFT_ALONE, set(Alone)),
        (palette.ROUTES, set(Placement)),
        (palette.AUDITS, set(AUDITS)),
        (palette.CALLS, set(OUTCOMES)),
        (palette.OUTCOMES, set(Outcome)),
        (palette.REFUSALS, set(Refused)),
        (palette.STAGES, set(STAGES)),
        (palette.BUDGETS, set(KINDS)),
        (palette.AGENT_REFUSALS, set(REFUSALS)),
        (palette.STANDINGS, set(Standing)),
        (palette.CAUSES, set(Withdrawal)),
        (palette.DIRECTIONS, set(DIRECTIONS)),
    ],
)
def test_colours_are_for_labels_that_there_are(colours: dict[str, str], labels: set[str]) -> None:
    assert set(colours) <= {str(label) for label in labels}
    if colours is not palette.REASONS:
        assert set(colours) == {str(label) for label in labels}


def test_the_reasons_without_a_colour_are_those_that_are_rare() -> None:
    shed = {"expired", "overloaded", "no_route"}
    assert {str(reason) for reason in Reason} - set(palette.REASONS) - shed == {"no_cloud", "device_failed", "no_model"}


def test_grafana_is_told_where_the_dashboards_and_prometheus_are() -> None:
    folder = ROOT / "deploy/grafana/provisioning"
    (source,) = yaml.safe_load((folder / "datasources/prometheus.yml").read_text())["datasources"]
    (provider,) = yaml.safe_load((folder / "dashboards/edgemux.yml").read_text())["providers"]
    assert source["type"] == "prometheus" and source["url"] == "$EDGEMUX_PROMETHEUS_URL"
    scrapes = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())["global"]["scrape_interval"]
    assert source["jsonData"]["timeInterval"] == scrapes
    compose = yaml.safe_load((ROOT / "deploy/docker/compose.yaml").read_text())["services"]["grafana"]
    mounted = dict(volume.split(":")[:2] for volume in compose["volumes"])
    assert mounted["../grafana/dashboards"] == provider["options"]["path"]
    assert mounted["../grafana/provisioning"] == "/etc/grafana/provisioning"
    assert compose["environment"]["EDGEMUX_PROMETHEUS_URL"] == "http://prometheus:9090"


@every_board
def test_columns_of_a_table_are_joined_by_the_same_labels(
    made: dict[str, Any], known: Callable[[str], frozenset[str] | None]
) -> None:
    for panel in panels(made):
        if panel["type"] == "table":
            # What is not aggregated has its own name as a label too, and nothing is joined.
            queries = [expression(target["expr"]) for target in panel["targets"]]
            assert all(isinstance(query, Aggregation) for query in queries)
            assert len({Labels(known).through(query) for query in queries}) == 1


@every_board
def test_pages_that_a_panel_refers_to_are_there(made: dict[str, Any]) -> None:
    for panel in panels(made):
        for page in re.findall(r"docs/[\w-]+\.md", panel["description"]):
            assert (ROOT / page).exists()
