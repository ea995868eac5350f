"""The dashboard "Edge fleet": all agents together, and which of them to look at."""

from __future__ import annotations

from deploy.grafana import palette
from deploy.grafana.layout import FLEET, Page, Row, Variable, edge_link
from deploy.grafana.palette import BAD, WARNING
from deploy.grafana.panels import Column, Panel, Query

EDGES = 'job="edgemux-edge",instance=~"$instance"'
MODEL = EDGES + ',model=~"$model"'
ANSWERED = "edgemux_requests_total"


def rate(metric: str, by: str = "", where: str = MODEL) -> str:
    return f"sum{f' by ({by})' if by else ''} (rate({metric}{{{where}}}[$__rate_interval]))"


def quantile(share: float, metric: str, by: str = "") -> str:
    return f"histogram_quantile({share}, {rate(f'{metric}_bucket', f'le, {by}' if by else 'le')})"


NOW = Row(
    10,
    "Now",
    (
        Panel(
            11,
            "Edges",
            "How many agents Prometheus reaches.",
            "none",
            (Query("sum(up{" + EDGES + "})"),),
            kind="stat",
            width=4,
            decimals=0,
        ),
        Panel(
            12,
            "Answered",
            "Inputs answered in a second, by the whole fleet.",
            "reqps",
            (Query(rate(ANSWERED)),),
            kind="stat",
            width=4,
            decimals=1,
        ),
    ),
)

EDGE_TABLE = Row(
    50,
    "Which to look at",
    (
        Panel(
            51,
            "Edges",
            "The twenty with the most refusals. Click on one for its own page.",
            "short",
            (Query(f"topk(20, {rate('edgemux_refused_total', 'instance')})"), Query(rate(ANSWERED, "instance"))),
            kind="table",
            width=24,
            height=10,
            columns=(
                Column("instance", "Edge", "none", link=edge_link("${__value.raw}")),
                Column("Value #A", "Refused", "reqps", steps=((0.001, WARNING), (1.0, BAD))),
                Column("Value #B", "Answered", "reqps"),
            ),
        ),
    ),
)

ROUTES = Row(
    20,
    "Routes and reasons",
    (
        Panel(
            21,
            "Answers by route",
            "Where the fleet's inputs were answered.",
            "reqps",
            (Query(rate(ANSWERED, "route"), "{{route}}"),),
            kind="stack",
            colours=palette.ROUTES,
        ),
        Panel(
            22,
            "Answers by reason",
            "Why they were answered there.",
            "reqps",
            (Query(rate(ANSWERED, "reason"), "{{reason}}"),),
            kind="stack",
            colours=palette.REASONS,
        ),
        Panel(
            23,
            "Latency by route",
            "Half of the inputs, and 99 of 100, were quicker.",
            "s",
            (
                Query(quantile(0.5, "edgemux_request_duration_seconds", "route"), "{{route}} p50"),
                Query(quantile(0.99, "edgemux_request_duration_seconds", "route"), "{{route}} p99"),
            ),
            colours=palette.ROUTES,
        ),
    ),
)

PAGE = Page(
    FLEET,
    "Edge fleet",
    "All agents together: where inputs are answered and why, and which agent to look at.",
    (
        Variable(
            "instance",
            "Edges",
            'label_values(edgemux_inflight{job="edgemux-edge"}, instance)',
            "The agents, by the address that Prometheus scrapes.",
        ),
        Variable(
            "model",
            "Model",
            'label_values(edgemux_inflight{job="edgemux-edge",instance=~"$instance"}, model)',
            "The applications of the agents.",
        ),
    ),
    (NOW, ROUTES, EDGE_TABLE),
)
