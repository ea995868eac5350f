"""What the rules ask for is what agent and cloud export, and every rule has a test. promtool itself: tests/deploy."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests import exported
from tests.authority import Authority
from tests.exported import Family

PROMETHEUS = Path(__file__).parents[2] / "deploy" / "prometheus"
PARTS = ("_bucket", "_sum", "_count")
# Given to every series by the scrape, or by the cloud server of several processes.
SCRAPED = {"job": {"edgemux-edge", "edgemux-cloud"}, "instance": None, "process": None}
UP = Family("gauge", {})

_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
_SELECTOR = re.compile(r"(?<![\w:])([a-zA-Z_:][\w:]*)\s*(?:\{([^}]*)\})?(?!\s*\(|[\w:])")
_LISTS = re.compile(r"\b(by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)")
_MATCHER = re.compile(r'(\w+)\s*(=~|!~|!=|=)\s*"((?:[^"\\]|\\.)*)"')
_WORDS = {"and", "or", "unless", "bool", "offset", "by", "without", "on", "ignoring", "group_left", "group_right"}


@cache
def rules_of(name: str) -> list[dict[str, Any]]:
    """The rules of a file, in order."""
    groups = msgspec.yaml.decode((PROMETHEUS / "rules" / name).read_bytes())["groups"]
    return [rule for group in groups for rule in group["rules"]]


@cache
def records() -> dict[str, str]:
    return {rule["record"]: rule["expr"] for rule in rules_of("recording.yml")}


def alerts() -> dict[str, str]:
    return {rule["alert"]: rule["expr"] for rule in rules_of("alerts.yml")}


def selectors(expression: str) -> Iterator[tuple[str, list[tuple[str, str, str]]]]:
    """Every metric that an expression asks for, and what it wants of its labels: (label, operator, value)."""
    bare = _LISTS.sub(" ", re.sub(r"\[[^\]]*\]", " ", expression))
    # Functions are followed by a bracket, numbers do not begin with a letter.
    for found in _SELECTOR.finditer(_without_calls(bare)):
        if found[1] not in _WORDS:
            yield found[1], _MATCHER.findall(found[2] or "")


def _without_calls(expression: str) -> str:
    aggregations = r"\b(sum|min|max|avg|count|topk|bottomk|quantile)\s*(?=\()"
    return re.sub(aggregations, " ", re.sub(r"\b[a-z_]+\s*(?=\()", " ", expression))


def asked_labels(expression: str) -> set[str]:
    """Labels by which an expression groups or joins."""
    return {label.strip() for _, names in _LISTS.findall(expression) for label in names.split(",") if label.strip()}


def labels_of(name: str, known: dict[str, Family]) -> dict[str, set[str] | None] | None:
    """The labels of a metric, of a histogram's part or of a recorded sum, None for one that nobody exports."""
    if name in records():
        level = name.split(":")[0]
        found: dict[str, set[str] | None] = dict.fromkeys(() if level == "fleet" else level.split("_"), None)
        if "job" in found:
            found["job"] = SCRAPED["job"]
        # A sum has no other values than what it is a sum of.
        for source, _ in selectors(records()[name]):
            for label, values in (labels_of(source, known) or {}).items():
                if label in found and values is not None:
                    found[label] = values
        return found
    whole = next((name.removesuffix(part) for part in PARTS if name.endswith(part)), name)
    family = known.get(name) or known.get(whole)
    if family is None or (family.kind == "histogram") == (name == whole):
        return None
    return SCRAPED | family.labels | ({"le": None} if name.endswith("_bucket") else {})


def troubles(expression: str, known: dict[str, Family]) -> list[str]:
    """What an expression asks for that nobody exports."""
    found, there = [], set[str]()
    for name, matchers in selectors(expression):
        labels = labels_of(name, known)
        if labels is None:
            found.append(f"no metric {name}")
            continue
        there |= set(labels)
        for label, operator, value in matchers:
            if label not in labels:
                found.append(f"{name} has no label {label}")
            elif (values := labels[label]) is not None:
                wanted = re.compile(value if "~" in operator else re.escape(value))
                if not any(wanted.fullmatch(each) for each in values):
                    found.append(f"{name} is never {label}={value}")
    return found + [f"nothing here has the label {label}" for label in sorted(asked_labels(expression) - there)]


@pytest.fixture(scope="module")
def known(tiny_bundle: Path, authority: Authority) -> dict[str, Family]:
    agent = exported.edge(exported.config_of(tiny_bundle, models=2, clouds=2))
    there = exported.families(agent, exported.left_alone(), exported.cloud(), exported.tls(authority))
    for name in ("edgemux_request_duration_seconds", "edgemux_cloud_queue_seconds"):
        assert there[name].kind == "histogram"
    return there | {"up": UP}


@pytest.mark.parametrize("name", records())
def test_a_recording_rule_asks_for_what_is_exported(name: str, known: dict[str, Family]) -> None:
    assert not troubles(records()[name], known)


@pytest.mark.parametrize("name", alerts())
def test_an_alert_asks_for_what_is_exported(name: str, known: dict[str, Family]) -> None:
    assert not troubles(alerts()[name], known)


@pytest.mark.parametrize(
    ("expression", "trouble"),
    [
        ("sum(rate(edgemux_request_total[5m])) > 0", "no metric edgemux_request_total"),
        ("edgemux_request_duration_seconds > 1", "no metric edgemux_request_duration_seconds"),
        ('edgemux_requests_total{path="edge"} > 1', "edgemux_requests_total has no label path"),
        ('edgemux_requests_total{route="boat"}', "edgemux_requests_total is never route=boat"),
        ('edgemux_refused_total{reason=~"late|later"}', "edgemux_refused_total is never reason=late|later"),
        ("sum by (site) (edgemux_inflight)", "nothing here has the label site"),
        ("model:edgemux_nothing:sum", "no metric model:edgemux_nothing:sum"),
        ('up{job="edgemux-edges"} == 0', "up is never job=edgemux-edges"),
    ],
)
def test_what_nobody_exports_is_found(expression: str, trouble: str, known: dict[str, Family]) -> None:
    assert troubles(expression, known) == [trouble]


def test_the_level_of_a_sum_names_the_labels_that_it_keeps() -> None:
    for name, expression in records().items():
        level, metric, operation = name.split(":")
        assert re.fullmatch(r"[a-z0-9_]+", metric) and re.fullmatch(r"[a-z0-9_]+", operation), name
        kept = [set(names.replace(" ", "").split(",")) for word, names in _LISTS.findall(expression) if word == "by"]
        if level == "fleet":
            assert not kept or expression.startswith("sum("), name
        elif kept:
            wanted = set(level.split("_"))
            assert wanted in kept or wanted | {"le"} in kept, name


def scenarios(pattern: str) -> Iterator[dict[str, Any]]:
    for path in sorted((PROMETHEUS / "tests").glob(pattern)):
        yield from msgspec.yaml.decode(path.read_bytes())["tests"]


def test_every_recording_rule_has_a_test() -> None:
    tested = {asked["expr"] for test in scenarios("recording.yml") for asked in test["promql_expr_test"]}
    assert tested == set(records())


def test_every_alert_is_seen_to_fire_and_not_to_fire() -> None:
    fires, quiet = set(), set()
    for test in scenarios("alerts-*.yml"):
        for asked in test["alert_rule_test"]:
            assert test["name"].split()[0] == asked["alertname"]
            if test["name"].endswith("is quiet"):
                assert not asked["exp_alerts"]
                quiet.add(asked["alertname"])
            elif asked["exp_alerts"]:
                fires.add(asked["alertname"])
    assert fires == quiet == set(alerts())


def test_every_alert_says_how_bad_it_is_what_it_means_and_where_to_read_on() -> None:
    for rule in rules_of("alerts.yml"):
        assert rule["labels"]["severity"] in ("critical", "warning", "info"), rule["alert"]
        notes = rule["annotations"]
        assert set(notes) == {"summary", "description", "runbook"}, rule["alert"]
        assert notes["runbook"] == f"docs/troubleshooting.md#{rule['alert'].lower()}"
        assert len(notes["summary"]) < 100 and notes["description"].endswith(".")


def test_the_jobs_are_those_that_rules_and_dashboards_ask_for() -> None:
    config = msgspec.yaml.decode((PROMETHEUS / "prometheus.yml").read_bytes())
    jobs = {job["job_name"]: job for job in config["scrape_configs"]}
    assert set(jobs) == SCRAPED["job"]
    for name, port in (("edgemux-edge", 9002), ("edgemux-cloud", 8002)):
        (file,) = jobs[name]["file_sd_configs"][0]["files"]
        (group,) = msgspec.yaml.decode((PROMETHEUS / file).read_bytes())
        assert group["targets"] == [f"127.0.0.1:{port}"]
