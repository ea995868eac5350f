"""The reader of PromQL, the replacing of variables and the verdict on a panel, without a Prometheus."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.deploy.dashboards.promql import (
    Aggregation,
    Binary,
    Call,
    Labels,
    Matcher,
    NotPromQL,
    Number,
    Selector,
    parse,
    selectors,
)
from tests.deploy.dashboards.server import quicker
from tests.deploy.dashboards.variables import ALL, Span, UnknownVariable, label_values, replaced, written

METRICS = {
    "requests": frozenset({"instance", "model", "route"}),
    "seconds_bucket": frozenset({"instance", "route", "le"}),
    "info": frozenset({"instance", "version"}),
    "level:requests:rate5m": frozenset({"model"}),
}


def found(text: str) -> tuple[frozenset[str], list[str]]:
    """The labels of the result, and the faults."""
    labels = Labels(METRICS.get)
    return labels.through(parse(text)), labels.faults


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("up", Selector("up")),
        ('up{job="a",x!~"b|c"}', Selector("up", (Matcher("job", "=", "a"), Matcher("x", "!~", "b|c")))),
        ('{__name__="up",}', Selector("", (Matcher("__name__", "=", "up"),))),
        ("rate(a:b:rate5m[5m] offset 1h)", Call("rate", (Selector("a:b:rate5m"),))),
        ("max_over_time(rate(x[1m])[1h30m:5s])", Call("max_over_time", (Call("rate", (Selector("x"),)),))),
        ("sum by (a, b) (x)", Aggregation("sum", "by", ("a", "b"), (Selector("x"),))),
        ("sum(x) without (a)", Aggregation("sum", "without", ("a",), (Selector("x"),))),
        ("topk(3, x)", Aggregation("topk", "", (), (Number("3"), Selector("x")))),
        ("x < Inf", Binary("<", Selector("x"), Number("Inf"))),
        ("1 + 2 * 3", Binary("+", Number("1"), Binary("*", Number("2"), Number("3")))),
        ("1 - 2 - 3", Binary("-", Binary("-", Number("1"), Number("2")), Number("3"))),
        ("2 ^ 3 ^ 4", Binary("^", Number("2"), Binary("^", Number("3"), Number("4")))),
        ("-1 ^ 2", Binary("-", Number("0"), Binary("^", Number("1"), Number("2")))),
        ("x > bool 0", Binary(">", Selector("x"), Number("0"))),
        (
            "x * on (a) group_left (v) y or z",
            Binary("or", Binary("*", Selector("x"), Selector("y"), "on", ("a",), "group_left", ("v",)), Selector("z")),
        ),
        ("x @ end() # the last\n + 1", Binary("+", Selector("x"), Number("1"))),
        ("information", Selector("information")),
        ("sum", Selector("sum")),
    ],
)
def test_expressions_are_read_as_prometheus_reads_them(text: str, meant: Any) -> None:
    assert parse(text) == meant


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x{",
        "x{a}",
        "x{a=b}",
        "sum by (",
        "x[5m",
        "x[5]",
        "(x",
        "x)",
        "x y",
        "1 +",
        "$x",
        'x{a=~"b}',
        "sum by a (x)",
    ],
)
def test_what_is_no_expression_is_refused(text: str) -> None:
    with pytest.raises(NotPromQL):
        parse(text)


@given(st.text(alphabet="x{}()[]=~!\"',5m sumbyratele+-*/<>:@#\n", max_size=40))
def test_any_text_is_read_or_refused_and_nothing_else_happens(text: str) -> None:
    with contextlib.suppress(NotPromQL):
        parse(text)


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("requests", {"instance", "model", "route"}),
        ('sum by (route) (rate(requests{model="m"}[5m]))', {"route"}),
        ("sum(requests)", set()),
        ("sum without (instance) (requests)", {"model", "route"}),
        ("topk(5, requests)", {"instance", "model", "route"}),
        ("histogram_quantile(0.9, sum by (le, route) (rate(seconds_bucket[5m])))", {"route"}),
        ("requests * on (instance) group_left (version) info", {"instance", "model", "route", "version"}),
        ("sum by (route) (requests) / sum by (route) (seconds_bucket)", {"route"}),
        ("requests / ignoring (version) info", {"instance", "model", "route"}),
        ("100 * requests", {"instance", "model", "route"}),
        ("requests > 0 and on (instance) info", {"instance", "model", "route"}),
        ("sum(requests) or vector(0)", set()),
        ('label_replace(info, "site", "$1", "instance", "(.*):.*")', {"instance", "version", "site"}),
        ('{__name__="level:requests:rate5m"}', {"model"}),
        ("info - time()", {"instance", "version"}),
    ],
)
def test_labels_are_followed_through_an_expression(text: str, labels: set[str]) -> None:
    assert found(text) == (labels, [])


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("nobody", "unknown metric 'nobody'"),
        ('requests{nobody="x"}', "unused label 'nobody' in requests"),
        ('requests{nobody!="x"}', "unused label 'nobody' in requests"),
        ("sum by (nobody) (requests)", "unused label 'nobody' in sum by"),
        ("sum without (nobody) (requests)", "unused label 'nobody' in sum without"),
        ("max by (route) (sum by (model) (requests))", "unused label 'route' in max by"),
        ("requests * on (version) info", "unused label 'version' in on, left of *"),
        ("requests * ignoring (nobody) info", "unused label 'nobody' in ignoring"),
        ("requests * on (instance) group_left (nobody) info", "unused label 'nobody' in group_left"),
        ("histogram_quantile(0.9, requests)", "unused label 'le' in histogram_quantile"),
        ('label_replace(info, "a", "$1", "nobody", "(.*)")', "unused label 'nobody' in label_replace"),
    ],
)
def test_unknown_metrics_and_unused_labels_are_told(text: str, fault: str) -> None:
    assert fault in found(text)[1]


def test_all_selectors_are_found_wherever_they_stand() -> None:
    text = "sum(a) / on (x) (b - rate(c[5m])) > bool topk(2, d)"
    assert [selector.name for selector in selectors(parse(text))] == ["a", "b", "c", "d"]


MULTI = {"name": "instance", "multi": True, "includeAll": True, "allValue": ".+"}


@pytest.mark.parametrize(
    ("variable", "picked", "text"),
    [
        (MULTI, ALL, ".+"),
        (MULTI, "a.b:9002", r"a\\.b:9002"),
        (MULTI, ["a.b"], r"a\\.b"),
        (MULTI, ["a.b", "c"], r"(a\\.b|c)"),
        (MULTI, "a\\b", r"a\\\\b"),
        ({"name": "instance", "multi": False, "includeAll": False}, "a.b:9002", "a.b:9002"),
        ({"name": "instance", "multi": False, "includeAll": False}, 'a"b', r"a\"b"),
    ],
)
def test_values_are_escaped_as_grafana_escapes_them(variable: dict[str, Any], picked: Any, text: str) -> None:
    assert written(variable, picked) == text


def test_variables_are_replaced_in_every_spelling() -> None:
    values = {"a": "1", "ab": "2"}
    assert replaced("$a ${a} ${a:regex} [[a]] $ab", values) == "1 1 1 1 2"
    with pytest.raises(UnknownVariable):
        replaced("$nobody", values)


def test_a_rate_has_four_scrapes_or_a_step_and_one_more() -> None:
    short = Span(0.0, 60.0, 1.0).built_in()
    assert (short["__interval"], short["__rate_interval"], short["__range"]) == ("1s", "4s", "60s")
    long = Span(0.0, 86_400.0, 15.0).built_in()
    assert (long["__interval"], long["__rate_interval"]) == ("144s", "159s")


def test_the_query_of_a_variable_is_taken_apart() -> None:
    assert label_values('label_values(up{job="a",x="b"}, instance)') == ('up{job="a",x="b"}', "instance")
    assert label_values("label_values(instance)") == (None, "instance")
    with pytest.raises(ValueError, match="not a query"):
        label_values("query_result(up)")


def test_durations_of_rules_are_shortened_as_the_scrapes_are() -> None:
    assert [quicker(text, 15.0) for text in ("5m", "1h", "30s", "1d")] == ["20000ms", "240000ms", "2000ms", "5760000ms"]
    with pytest.raises(ValueError, match="not a duration"):
        quicker("5", 15.0)
