"""One panel as a value, and how the SDK draws it. Only the panels that come with Grafana are used."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import msgspec
from grafana_foundation_sdk.builders import bargauge, heatmap, prometheus, stat, statetimeline, table, timeseries
from grafana_foundation_sdk.builders import common as parts
from grafana_foundation_sdk.builders import dashboard as build
from grafana_foundation_sdk.models import common, dashboard
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode, HeatmapColorScale
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from deploy.grafana.palette import BLUE, GOOD

DATASOURCE = dashboard.DataSourceRef(type_val="prometheus", uid="${datasource}")
Kind = Literal["lines", "stack", "stat", "states", "heat", "table", "bars"]
# From which value on which colour. A first step without a value is for all values below; otherwise they are good.
Steps = tuple[tuple[float | None, str], ...]
HEIGHT = {"stat": 4, "states": 6}
# A legend value is a column; more than two do not fit a third of the screen. Neither do more than three rows: longer
# legends are lists.
CALCS = ["lastNotNull", "max"]
ROWS = 3


class Query(msgspec.Struct, frozen=True):
    """What is asked. ``legend`` as Grafana's, {{label}} and text; ``dashed``: a limit; ``dotted``: a median."""

    expr: str
    legend: str = ""
    dashed: bool = False
    dotted: bool = False


class Column(msgspec.Struct, frozen=True):
    """A column of a table: the label, or ``Value #A`` for a query, and how it is shown."""

    source: str
    title: str
    unit: str = "short"
    steps: Steps = ()
    states: Mapping[int, tuple[str, str]] = {}
    link: str | None = None
    width: int | None = None


class Panel(msgspec.Struct, frozen=True):
    """A panel. ``id`` is part of links to it: never given to another. ``text``: what it says, and what to do.

    colours: by the name in the legend. states: by value, the word and its colour. named: a stat shows its legend
    instead of its value; plain: without its course. units: by the name in the legend. ``width`` of 24 columns.
    sort: the column by which a table is sorted, from the largest.
    """

    id: int
    title: str
    text: str
    unit: str
    queries: tuple[Query, ...]
    kind: Kind = "lines"
    width: int = 8
    height: int = 0
    colours: Mapping[str, str] = {}
    states: Mapping[int, tuple[str, str]] = {}
    steps: Steps = ()
    columns: tuple[Column, ...] = ()
    least: float | None = 0.0
    most: float | None = None
    decimals: int | None = None
    link: tuple[str, str] | None = None
    no_value: str = ""
    sort: str = ""
    named: bool = False
    plain: bool = False
    units: Mapping[str, str] = {}

    @property
    def rows(self) -> int:
        """The height on the grid."""
        return self.height or HEIGHT.get(self.kind, 8)


def target(panel: Panel, number: int, query: Query) -> prometheus.Dataquery:
    """The query of a panel, as A, B, C ... by its place."""
    made = prometheus.Dataquery().expr(query.expr).ref_id(chr(ord("A") + number)).datasource(DATASOURCE)
    if panel.kind == "table":
        return made.instant().format(PromQueryFormat.TABLE)
    made = made.range().legend_format(query.legend or "__auto")
    return made.format(PromQueryFormat.HEATMAP) if panel.kind == "heat" else made


def drawn(panel: Panel, x: int, y: int) -> Any:
    """The SDK's builder for a panel, at its place on the grid."""
    made = _KINDS[panel.kind](panel)
    made = made.id(panel.id).title(panel.title).description(panel.text).datasource(DATASOURCE).unit(panel.unit)
    made = made.grid_pos(dashboard.GridPos(h=panel.rows, w=panel.width, x=x, y=y))
    for number, query in enumerate(panel.queries):
        made = made.with_target(target(panel, number, query))
    made = made.thresholds(_thresholds(panel.steps))
    if panel.least is not None and panel.kind not in ("states", "heat"):
        made = made.min(panel.least)
    if panel.most is not None:
        made = made.max(panel.most)
    if panel.decimals is not None:
        made = made.decimals(panel.decimals)
    if panel.no_value:
        made = made.no_value(panel.no_value)
    if panel.states:
        made = made.mappings([_words(panel.states)])
    if panel.link is not None:
        made = made.data_links([build.DashboardLink(panel.link[0]).url(panel.link[1])])
    return _overridden(made, panel)


def _words(states: Mapping[int, tuple[str, str]]) -> dashboard.ValueMap:
    said = {str(n): dashboard.ValueMappingResult(text, colour, index=n) for n, (text, colour) in states.items()}
    return dashboard.ValueMap(said)


def _whole(steps: Steps) -> Steps:
    return steps if steps and steps[0][0] is None else ((None, GOOD), *steps)


def _thresholds(steps: Steps) -> build.ThresholdsConfig:
    made = [dashboard.Threshold(value, colour) for value, colour in _whole(steps)]
    return build.ThresholdsConfig().mode(dashboard.ThresholdsMode.ABSOLUTE).steps(made)


def _overridden(made: Any, panel: Panel) -> Any:
    for name, colour in panel.colours.items():
        fixed = dashboard.DynamicConfigValue("color", {"mode": "fixed", "fixedColor": colour})
        # Legends are "edge" or "edge p99": the first word is the label.
        made = made.override_by_regexp(f"/^{name}( .*)?$/", [fixed])
    for name, unit in panel.units.items():
        made = made.override_by_regexp(f"/^{name}$/", [dashboard.DynamicConfigValue("unit", unit)])
    for number, query in enumerate(panel.queries):
        if query.dashed or query.dotted:
            style = {"fill": "dash", "dash": [8, 6] if query.dashed else [2, 4]}
            dashes = [dashboard.DynamicConfigValue("custom.lineStyle", style)]
            made = made.override_by_query(chr(ord("A") + number), dashes)
    return made


def _lines_of(panel: Panel) -> int:
    """How many lines are to be expected: each query with a label has one for each of the names that have a colour."""
    named = sum("*" not in name for name in panel.colours)
    each = sum("{{" in query.legend for query in panel.queries)
    return len(panel.queries) + each * max(0, named - 1)


def _legend(panel: Panel) -> parts.VizLegendOptions:
    shown = parts.VizLegendOptions().show_legend(True).placement(common.LegendPlacement.BOTTOM)
    if _lines_of(panel) > ROWS:
        return shown.display_mode(common.LegendDisplayMode.LIST)
    return shown.display_mode(common.LegendDisplayMode.TABLE).calcs(CALCS)


def _tooltip() -> parts.VizTooltipOptions:
    return parts.VizTooltipOptions().mode(common.TooltipDisplayMode.MULTI).sort(common.SortOrder.DESCENDING)


def _lines(panel: Panel) -> Any:
    made = timeseries.Panel().legend(_legend(panel)).tooltip(_tooltip()).line_width(2).fill_opacity(0)
    made = made.show_points(common.VisibilityMode.AUTO).span_nulls(False)
    if len(panel.queries) == 1 and "{{" not in panel.queries[0].legend:
        made = made.color_scheme(build.FieldColor().mode(dashboard.FieldColorModeId.FIXED).fixed_color(BLUE))
    else:
        made = made.color_scheme(build.FieldColor().mode(dashboard.FieldColorModeId.PALETTE_CLASSIC))
    if panel.unit == "none":
        # Whole things: between two of them is nothing.
        made = made.line_interpolation(common.LineInterpolation.STEP_AFTER).axis_soft_max(1)
    if panel.steps:
        style = parts.GraphThresholdsStyleConfig().mode(common.GraphTresholdsStyleMode.DASHED)
        made = made.thresholds_style(style)
    return made


def _stack(panel: Panel) -> Any:
    stacked = parts.StackingConfig().mode(common.StackingMode.NORMAL)
    return _lines(panel).stacking(stacked).fill_opacity(60).line_width(1).show_points(common.VisibilityMode.NEVER)


def _reduced() -> parts.ReduceDataOptions:
    return parts.ReduceDataOptions().calcs(["lastNotNull"])


def _stat(panel: Panel) -> Any:
    made = stat.Panel().reduce_options(_reduced()).text_mode(common.BigValueTextMode.VALUE_AND_NAME)
    if len(panel.queries) == 1 and "{{" not in panel.queries[0].legend:
        made = made.text_mode(common.BigValueTextMode.VALUE)
    if panel.named:
        made = made.text_mode(common.BigValueTextMode.NAME)
    graph = common.BigValueGraphMode.NONE if panel.states or panel.plain else common.BigValueGraphMode.AREA
    made = made.graph_mode(graph).color_mode(common.BigValueColorMode.VALUE)
    return made.color_scheme(build.FieldColor().mode(dashboard.FieldColorModeId.THRESHOLDS))


def _states(panel: Panel) -> Any:
    made = statetimeline.Panel().show_value(common.VisibilityMode.AUTO).row_height(0.8).merge_values(True)
    made = made.fill_opacity(85).line_width(0).legend(parts.VizLegendOptions().show_legend(True))
    return made.color_scheme(build.FieldColor().mode(dashboard.FieldColorModeId.THRESHOLDS))


def _heat(panel: Panel) -> Any:
    # Viridis is read alike by everybody, and its order is one of lightness too.
    colours = heatmap.HeatmapColorOptions().mode(HeatmapColorMode.SCHEME).scheme("Viridis")
    colours = colours.scale(HeatmapColorScale.EXPONENTIAL).exponent(0.5).steps(64).reverse(False)
    made = heatmap.Panel().calculate(False).color(colours).cell_gap(1)
    return made.y_axis(heatmap.YAxisConfig().unit(panel.unit)).show_legend()


def _bars(panel: Panel) -> Any:
    made = bargauge.Panel().reduce_options(_reduced()).orientation(common.VizOrientation.HORIZONTAL)
    made = made.display_mode(common.BarGaugeDisplayMode.BASIC)
    return made.color_scheme(build.FieldColor().mode(dashboard.FieldColorModeId.THRESHOLDS))


def _table(panel: Panel) -> Any:
    """Queries joined by their labels into one row each; columns named and in the order given."""
    made = table.Panel().show_header(True).with_transformation(dashboard.DataTransformerConfig(id_val="merge"))
    kept = {column.source: number for number, column in enumerate(panel.columns)}
    order = {
        "excludeByName": {"Time": True},
        "indexByName": kept,
        "renameByName": {column.source: column.title for column in panel.columns},
    }
    made = made.with_transformation(dashboard.DataTransformerConfig(id_val="organize", options=order))
    if panel.sort:
        made = made.sort_by([parts.TableSortByFieldState().display_name(panel.sort).desc(True)])
    for column in panel.columns:
        made = made.override_by_name(column.title, _cell(column))
    return made


def _cell(column: Column) -> list[dashboard.DynamicConfigValue]:
    said: dict[str, object] = {"unit": column.unit}
    if column.steps:
        steps = [{"value": value, "color": colour} for value, colour in _whole(column.steps)]
        said["thresholds"] = {"mode": "absolute", "steps": steps}
        said["custom.cellOptions"] = {"type": "color-text"}
    if column.states:
        said["mappings"] = [_words(column.states).to_json()]
        said["custom.cellOptions"] = {"type": "color-text"}
    if column.link is not None:
        said["links"] = [{"title": "One edge", "url": column.link}]
    if column.width is not None:
        said["custom.width"] = column.width
    return [dashboard.DynamicConfigValue(name, value) for name, value in said.items()]


_KINDS = {
    "lines": _lines,
    "stack": _stack,
    "stat": _stat,
    "states": _states,
    "heat": _heat,
    "table": _table,
    "bars": _bars,
}
