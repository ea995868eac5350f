"""Every panel of every dashboard, asked of a real Prometheus that has watched the real agent and cloud.

One run of about a minute, with an outage, a squeeze, a slow link, an overload and a drift; see scenario.py.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest

from tests.deploy.dashboards.drive import EXCEPTIONS, UNDRIVEN, as_json, committed, judged
from tests.deploy.dashboards.scenario import CLOUD, FIRST, Run, driven
from tests.deploy.dashboards.verdict import Answer, answers, panels, rule_faults, unexpected

pytestmark = [pytest.mark.deploy, pytest.mark.timeout(600)]
GOOD = "sum by (route) (rate(edgemux_requests_total[$__rate_interval]))"
# What is broken in each panel of the control, and what has to be said about it.
BROKEN = {
    "a good one": (GOOD, "{{route}}", ()),
    "unknown metric": ("edgemux_requests_of_nobody_total", "", ("unknown metric 'edgemux_requests_of_nobody_total'",)),
    "unknown label in a matcher": (
        'sum(edgemux_requests_total{colour!="red"})',
        "",
        ("unused label 'colour' in edgemux_requests_total",),
    ),
    "unknown label in by": ("sum by (colour) (edgemux_requests_total)", "", ("unused label 'colour' in sum by",)),
    "unknown label in the legend": (GOOD, "{{colour}}", ("unused label 'colour' in the legend",)),
    "a label that by has dropped": (
        "sum by (route) (edgemux_requests_total)",
        "{{reason}}",
        ("unused label 'reason' in the legend",),
    ),
    "no series": ('sum(edgemux_requests_total{route="boat"})', "", ("no finite point",)),
    "nothing but NaN": ("0 * sum(edgemux_requests_total) / 0", "", ("no finite point",)),
    "infinite": ("sum(edgemux_requests_total) / 0", "", ("no finite point", "an infinite point")),
    "not PromQL": ("sum by (route (edgemux_requests_total)", "", ("NotPromQL: ",)),
    "what Prometheus refuses": ("rate(edgemux_requests_total)", "", ("Refused: ",)),
    "unknown variable": ('edgemux_requests_total{instance="$nobody"}', "", ("UnknownVariable: nobody",)),
    "two lines of one name": (
        "sum by (reason) (edgemux_requests_total)",
        "answers",
        ("two lines are called 'answers'",),
    ),
}
# What the run is for, each a query that has series where it came to that.
CAME_TO = {
    "the cloud was away": f'min_over_time(up{{job="edgemux-cloud",instance="{CLOUD}"}}[$run]) == 0',
    "the breaker opened": f"max_over_time(edgemux_breaker_state{{{FIRST}}}[$run]) == 2",
    "and closed": f"edgemux_breaker_state{{{FIRST}}} == 0",
    "inputs stayed for the breaker": f'increase(edgemux_requests_total{{{FIRST},reason="breaker"}}[$run]) > 0',
    "the device was busy": f'increase(edgemux_requests_total{{{FIRST},reason="device_busy"}}[$run]) > 0',
    "levels were lowered": f'increase(edgemux_level_changes_total{{{FIRST},direction="lower"}}[$run]) > 0',
    "levels were raised": f'increase(edgemux_level_changes_total{{{FIRST},direction="raise"}}[$run]) > 0',
    "it was hot": f'max_over_time(edgemux_resource{{{FIRST},sensor="temperature_c"}}[$run]) > 80',
    "the link was slow": f'max_over_time(edgemux_resource{{{FIRST},sensor="link_rtt_seconds"}}[$run]) > 0.1',
    "the cloud refused": "sum(increase(edgemux_cloud_refused_total[$run])) > 0",
    "the agent refused": f"sum(increase(edgemux_refused_total{{{FIRST}}}[$run])) > 0",
    "kept answers were audited": f'increase(edgemux_audit_total{{{FIRST},outcome="agree"}}[$run]) > 0',
    "offloads had a price": f'max_over_time(edgemux_budget_price{{{FIRST},budget="offloads"}}[$run]) > 0',
    "the certificate was withdrawn": f'edgemux_certificate{{{FIRST},standing="withdrawn"}} == 1',
    "inputs were answered by a split": 'sum(increase(edgemux_requests_total{route="split"}[$run])) > 0',
    "another was left alone": f'edgemux_split_left_alone{{{FIRST},reason="loses_too_much"}} == 1',
    "an alert fired": 'max_over_time(ALERTS{alertname="EdgemuxCloudDown",alertstate="firing"}[$run]) == 1',
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    with driven(tmp_path_factory.mktemp("run")) as made:
        yield made


@pytest.fixture(scope="module")
def told(run: Run) -> dict[str, Answer]:
    return {answer.title: answer for answer in answers(control(), run.server, run.span)}


def control() -> dict[str, Any]:
    """A dashboard of broken panels, one for each way to be broken."""
    board = copy.deepcopy(committed()[0])
    panel = next(panels(board))
    board["panels"] = [
        panel
        | {
            "id": number,
            "title": title,
            "targets": [panel["targets"][0] | {"expr": expr, "legendFormat": legend or "__auto"}],
        }
        for number, (title, (expr, legend, _)) in enumerate(BROKEN.items())
    ]
    return board


def test_every_target_of_every_panel_has_points_and_nothing_is_wrong_with_any(run: Run) -> None:
    found, faults = judged(run)
    assert faults == []
    asked = {
        (board["uid"], panel["id"], t["refId"])
        for board in committed()
        for panel in panels(board)
        for t in panel["targets"]
    }
    assert {(answer.dashboard, answer.panel, answer.ref_id) for answer in found} == asked
    assert len(asked) > 100
    assert all(answer.result for answer in found if answer.name not in EXCEPTIONS)
    said = as_json(run, found)
    assert len(said["answers"]) == len(found)
    assert {uid: set(words) for uid, words in said["picked"].items()} == {
        board["uid"]: {"instance", "model"} for board in committed()
    }


@pytest.mark.parametrize("title", BROKEN)
def test_a_broken_panel_is_reported(told: dict[str, Answer], title: str) -> None:
    found = told[title]
    expected = BROKEN[title][2]
    assert len(found.faults) == len(expected)
    assert all(fault.startswith(start) for fault, start in zip(found.faults, expected, strict=True)), found.faults
    assert len(unexpected([found], {})) == len(expected)


def test_an_exception_that_has_points_is_reported(run: Run) -> None:
    found = [
        answer for answer in answers(control(), run.server, run.span) if answer.title in ("a good one", "no series")
    ]
    good, empty = (answer.name for answer in found)
    assert unexpected(found, {empty: "nobody goes by boat"}) == []
    assert unexpected(found, {empty: "nobody goes by boat", good: "?"}) == [f"{good} is an exception, and is not empty"]


def test_a_broken_rule_is_reported(run: Run) -> None:
    rules = [
        {"alert": "Good", "expr": "sum by (route) (rate(edgemux_requests_total[1m])) > 1e9"},
        {"alert": "Unknown", "expr": "edgemux_requests_of_nobody_total > 0"},
        {"record": "label", "expr": "sum by (colour) (edgemux_requests_total)"},
        {"record": "refused", "expr": "rate(edgemux_requests_total)"},
        {"alert": "Excused", "expr": "edgemux_of_another_machine == 1"},
    ]
    excused = {"edgemux_of_another_machine": "it is not here", "up": "?"}
    lines = rule_faults([{"rules": rules}], run.server, run.span, excused)
    assert lines[:3] == [
        "up is an exception, and is known",
        "Unknown: unknown metric 'edgemux_requests_of_nobody_total'",
        "label: unused label 'colour' in sum by",
    ]
    assert lines[3].startswith("refused: Refused: ") and len(lines) == 4


def test_every_exception_says_why() -> None:
    for name, reason in (EXCEPTIONS | UNDRIVEN).items():
        assert len(reason.split()) > 5, name


@pytest.mark.parametrize("what", CAME_TO)
def test_the_run_came_to_what_it_is_for(run: Run, what: str) -> None:
    whole = f"{run.span.end_s - run.span.start_s:.0f}s"
    assert run.server.at(CAME_TO[what].replace("$run", whole), run.span.end_s)
