"""A dashboard from rows of panels: places on the grid, variables, links between the dashboards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from grafana_foundation_sdk.builders import dashboard as build
from grafana_foundation_sdk.models import dashboard

from deploy.grafana.panels import DATASOURCE, Panel, drawn

COLUMNS = 24
TAG = "edgemux"
FLEET, ONE_EDGE, CLOUD = "edgemux-edge-fleet", "edgemux-one-edge", "edgemux-cloud"
# What a link to the page of one edge takes along: the same Prometheus, the same time.
_KEPT = "${datasource:queryparam}&from=${__from}&to=${__to}"


def edge_link(instance: str) -> str:
    """The address of "One edge" for an instance, given as a Grafana expression."""
    return f"/d/{ONE_EDGE}/one-edge?var-instance={instance}&{_KEPT}"


class Row(msgspec.Struct, frozen=True):
    """A heading and what stands below it, from left to right. ``id`` is never given to another row or panel."""

    id: int
    title: str
    panels: tuple[Panel, ...]


class Variable(msgspec.Struct, frozen=True):
    """A variable whose values are those of a label. ``several``: more than one may be picked, or all."""

    name: str
    label: str
    query: str
    text: str
    several: bool = True


class Page(msgspec.Struct, frozen=True):
    """A dashboard: ``text`` is its description, ``since`` how far back it looks when opened."""

    uid: str
    title: str
    text: str
    variables: tuple[Variable, ...]
    rows: tuple[Row, ...]
    since: str = "now-1h"
    refresh: str = "10s"


def places(panels: Sequence[Panel], top: int) -> tuple[list[tuple[int, int]], int]:
    """Where panels stand, filled from left to right: (x, y) of each, and the first row of the grid below them all."""
    found: list[tuple[int, int]] = []
    x, y, tallest = 0, top, 0
    for panel in panels:
        if x + panel.width > COLUMNS:
            x, y, tallest = 0, y + tallest, 0
        found.append((x, y))
        x, tallest = x + panel.width, max(tallest, panel.rows)
    return found, y + tallest


def built(page: Page) -> Any:
    """The SDK's dashboard."""
    made = build.Dashboard(page.title).uid(page.uid).description(page.text).tags([TAG]).readonly()
    made = made.timezone("browser").time(page.since, "now").refresh(page.refresh)
    made = made.tooltip(dashboard.DashboardCursorSync.CROSSHAIR)
    made = made.link(_other_dashboards()).with_variable(_datasource())
    for variable in page.variables:
        made = made.with_variable(_variable(variable))
    y = 0
    for row in page.rows:
        head = build.Row(row.title).id(row.id).collapsed(False)
        made = made.with_row(head.grid_pos(dashboard.GridPos(h=1, w=COLUMNS, x=0, y=y)))
        spots, y_next = places(row.panels, y + 1)
        for panel, (x, top) in zip(row.panels, spots, strict=True):
            made = made.with_panel(drawn(panel, x, top))
        y = y_next
    return made.build()


def _other_dashboards() -> build.DashboardLink:
    link = build.DashboardLink("edgemux").type(dashboard.DashboardLinkType.DASHBOARDS).tags([TAG])
    return link.include_vars(False).keep_time(True).as_dropdown(False)


def _datasource() -> build.DatasourceVariable:
    made = build.DatasourceVariable("datasource").label("Prometheus").type("prometheus")
    return made.description("The Prometheus that scrapes the agents and the clouds.")


def _variable(variable: Variable) -> build.QueryVariable:
    query = {"query": variable.query, "refId": "Values", "qryType": 1}
    made = build.QueryVariable(variable.name).label(variable.label).description(variable.text).query(query)
    made = made.datasource(DATASOURCE).refresh(dashboard.VariableRefresh.ON_TIME_RANGE_CHANGED)
    made = made.sort(dashboard.VariableSort.ALPHABETICAL_ASC)
    if variable.several:
        # All is one short pattern, however many there are: a list of 1,000 names is slow to match.
        every = dashboard.VariableOption(True, ["All"], ["$__all"])
        made = made.multi(True).include_all(True).all_value(".+").current(every)
    return made
