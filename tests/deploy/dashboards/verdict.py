"""Asks Prometheus for every target of every panel, and says what is wrong with each.

A target fails that Prometheus refuses, that reads a metric which was never seen, that uses a label which the metric
has not got, in matchers, groupings or its legend, that draws two lines under one name, that has no finite point, or an
infinite one, which no axis can show.
"""

from __future__ import annotations

import functools
import itertools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from tests.deploy.dashboards.promql import Labels, NotPromQL, parse, selectors
from tests.deploy.dashboards.server import Prometheus, Refused
from tests.deploy.dashboards.variables import ALL, Span, UnknownVariable, label_values, replaced, written

_LEGEND = re.compile(r"\{\{\s*(\w+)\s*\}\}")
# Grafana names lines by all their labels then.
NO_LEGEND = frozenset({"", "__auto"})


class Answer(msgspec.Struct, frozen=True):
    """What became of one target: Prometheus' own data, over the run and now, and what is wrong with it."""

    dashboard: str
    panel: int
    title: str
    ref_id: str
    expr: str
    asked: str
    result: Sequence[Any] = ()
    instant: Sequence[Any] = ()
    faults: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """What it is called in the closed list of exceptions."""
        return f"{self.dashboard}/{self.panel}/{self.ref_id}"


def panels(dashboard: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The panels of a dashboard that ask something, those in folded rows too."""
    for panel in dashboard["panels"]:
        yield from (inner for inner in panel.get("panels") or () if inner.get("targets"))
        if panel.get("targets"):
            yield panel


def variables(dashboard: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The variables of a dashboard that are filled by queries, in order."""
    return [variable for variable in dashboard["templating"]["list"] if variable["type"] == "query"]


def choices(dashboard: Mapping[str, Any], server: Prometheus, span: Span) -> Iterator[dict[str, str]]:
    """What the variables can be: everything, all values picked one by one, and the first alone.

    Raises LookupError where a variable has no values.
    """
    for pick in ("all", "each", "first"):
        values = span.built_in()
        for variable, found in _offered(dashboard, server, span, values):
            if pick == "all" and variable.get("includeAll"):
                chosen: str | Sequence[str] = ALL
            else:
                chosen = found if pick == "each" and variable.get("multi") else found[0]
            values[variable["name"]] = written(variable, chosen)
        yield values


def picked(dashboard: Mapping[str, Any], server: Prometheus, span: Span) -> dict[str, str]:
    """The first of the choices in words."""
    values = span.built_in()
    words = {}
    for variable, found in _offered(dashboard, server, span, values):
        every = variable.get("includeAll")
        values[variable["name"]] = written(variable, ALL if every else found[0])
        words[variable["name"]] = "All" if every else found[0]
    return words


def _offered(
    dashboard: Mapping[str, Any], server: Prometheus, span: Span, values: Mapping[str, str]
) -> Iterator[tuple[Mapping[str, Any], Sequence[str]]]:
    """Each variable with its values, given the ``values`` of those before it."""
    for variable in variables(dashboard):
        selector, label = label_values(variable["query"]["query"])
        match = {} if selector is None else {"match[]": replaced(selector, values)}
        found = server.ask(f"label/{label}/values", start=span.start_s, end=span.end_s, **match)
        if not found:
            raise LookupError(f"variable {variable['name']} has no values")
        yield variable, found


def answers(dashboard: Mapping[str, Any], server: Prometheus, span: Span) -> Iterator[Answer]:
    """All targets of a dashboard, asked with everything that its variables can be; the raw data is of the first."""
    offered = list(choices(dashboard, server, span))
    known = functools.cache(server.labels)
    for panel in panels(dashboard):
        for target in panel["targets"]:
            made = [_asked(dashboard, panel, target, values, server, span, known) for values in offered]
            faults = dict.fromkeys(itertools.chain.from_iterable(answer.faults for answer in made))
            yield msgspec.structs.replace(made[0], faults=tuple(faults))


def _asked(
    dashboard: Mapping[str, Any],
    panel: Mapping[str, Any],
    target: Mapping[str, Any],
    values: Mapping[str, str],
    server: Prometheus,
    span: Span,
    known: Callable[[str], frozenset[str] | None],
) -> Answer:
    named = (dashboard["uid"], panel["id"], panel["title"], target["refId"], target["expr"])
    try:
        asked = replaced(target["expr"], values)
        expression = parse(asked)
        data = server.over(asked, span.start_s, span.end_s, span.step_s())
        instant = server.at(asked, span.end_s)
    except (NotPromQL, Refused, UnknownVariable) as error:
        return Answer(*named, "", faults=(f"{type(error).__name__}: {error}",))
    labels = Labels(known)
    left = labels.through(expression)
    faults = [*labels.faults, *_legend_faults(target.get("legendFormat", ""), left, data["result"])]
    if not any(map(_has_points, data["result"])) and not labels.faults:
        faults.append("no finite point")
    if any(math.isinf(float(value)) for series in data["result"] for _, value in series["values"]):
        faults.append("an infinite point")
    return Answer(*named, asked, data["result"], instant, tuple(dict.fromkeys(faults)))


def _has_points(series: Mapping[str, Any]) -> bool:
    return any(math.isfinite(float(value)) for _, value in series["values"])


def _legend_faults(legend: str, labels: frozenset[str], result: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    unused = [label for label in _LEGEND.findall(legend) if label not in labels]
    yield from (f"unused label {label!r} in the legend" for label in unused)
    if unused or legend in NO_LEGEND:
        return
    drawn = [_drawn(legend, series["metric"]) for series in result]
    if len(set(drawn)) < len(drawn):
        yield f"two lines are called {next(name for name in drawn if drawn.count(name) > 1)!r}"


def _drawn(legend: str, labels: Mapping[str, str]) -> str:
    """The name of a line."""
    return _LEGEND.sub(lambda found: labels.get(found[1], ""), legend)


def unexpected(found: Sequence[Answer], exceptions: Mapping[str, str]) -> list[str]:
    """A line for everything that is wrong: faults, and exceptions that are none. ``exceptions``: reasons by name."""
    lines = [
        f"{answer.name} {answer.title!r}: {fault}"
        for answer in found
        for fault in answer.faults
        if not (fault == "no finite point" and answer.name in exceptions)
    ]
    empty = {answer.name for answer in found if "no finite point" in answer.faults}
    return lines + [f"{name} is an exception, and is not empty" for name in exceptions if name not in empty]


def rule_faults(
    groups: Sequence[Mapping[str, Any]], server: Prometheus, span: Span, undriven: Mapping[str, str]
) -> list[str]:
    """What is wrong with the expressions of rules: Prometheus refuses them, unknown metrics, unused labels.

    ``undriven``: metrics that may be unknown, and why; one that is known all the same is reported too.
    """
    known = functools.cache(server.labels)
    lines = [f"{name} is an exception, and is known" for name in undriven if known(name) is not None]
    for rule in itertools.chain.from_iterable(group["rules"] for group in groups):
        name = rule.get("alert") or rule["record"]
        try:
            expression = parse(rule["expr"])
            server.at(rule["expr"], span.end_s)
        except (NotPromQL, Refused) as error:
            lines.append(f"{name}: {type(error).__name__}: {error}")
            continue
        labels = Labels(known)
        labels.through(expression)
        excused = {f"unknown metric {metric!r}" for metric in undriven}
        lines += [f"{name}: {fault}" for fault in labels.faults if fault not in excused]
    return lines


def metrics_read(dashboards: Sequence[Mapping[str, Any]]) -> set[str]:
    """Every metric that a panel reads."""
    found = set()
    for dashboard in dashboards:
        for panel in panels(dashboard):
            for target in panel["targets"]:
                text = re.sub(r"\[\$\w+\]", "[5m]", target["expr"])
                found |= {selector.name for selector in selectors(parse(text))}
    return found
