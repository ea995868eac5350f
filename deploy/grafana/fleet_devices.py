"""The lower half of the dashboard "Edge fleet": the devices, a table of the agents, and the alerts."""

from __future__ import annotations

from deploy.grafana import palette
from deploy.grafana.layout import Row, edge_link
from deploy.grafana.palette import BAD, WARNING
from deploy.grafana.panels import Column, Panel, Query

MODEL = 'model=~"$model"'
CHANGES = "model_direction:edgemux_level_changes:rate5m"
PICKED = 'instance=~"$instance"'


def spread(sensor: str, *kinds: str) -> tuple[Query, ...]:
    """A sensor's least, mean or largest reading of all agents."""
    words = {"min": "least", "avg": "mean", "max": "most"}
    return tuple(Query(f'sensor:edgemux_resource:{kind}{{sensor="{sensor}"}}', words[kind]) for kind in kinds)


def column_of(metric: str, where: str = "") -> Query:
    """A value for each agent, with no label but its name: columns are joined by all labels, their own name included."""
    return Query(f"max by (instance) ({metric}{{{where}{PICKED}}})")


SPREAD = {"least": palette.SKY, "mean": palette.BLUE, "most": palette.ORANGE}

DEVICES = Row(
    50,
    "Devices",
    (
        Panel(
            51,
            "Levels",
            "The level that schedulers give: the mean, and the agent that has the lowest. 0 runs no model at all.",
            "none",
            (
                Query(f"model:edgemux_plan_level:avg{{{MODEL}}}", "{{model}} mean"),
                Query(f"model:edgemux_plan_level:min{{{MODEL}}}", "{{model}} lowest", dotted=True),
            ),
            decimals=1,
        ),
        Panel(
            52,
            "Switches of level",
            "Changes a minute, in all agents. Many without a change of load: set [scheduler] settle_s higher.",
            "cpm",
            (
                Query(
                    f"60 * sum by (direction) (model_direction:edgemux_level_changes:rate5m{{{MODEL}}})",
                    "{{direction}}",
                ),
            ),
            colours=palette.DIRECTIONS,
        ),
        Panel(
            53,
            "Busy with others",
            "Share of the CPUs that other programs take. Near 1 a device has little left for its models.",
            "percentunit",
            spread("cpu_others", "avg", "max"),
            colours=SPREAD,
            most=1.0,
        ),
        Panel(
            54,
            "Heat",
            "The mean, and the hottest device. A Raspberry Pi slows down at 80 to 85 °C.",
            "celsius",
            spread("temperature_c", "avg", "max"),
            colours=SPREAD,
            steps=((70.0, WARNING), (80.0, BAD)),
            least=None,
        ),
        Panel(
            55,
            "Free memory",
            "The mean, and the device that has least. Near 0 levels are lowered, then the system ends programs.",
            "bytes",
            spread("memory_available", "min", "avg"),
            colours=SPREAD,
        ),
        Panel(
            56,
            "Batteries",
            "Charge: the mean, and the emptiest. Devices without a battery are not counted.",
            "percentunit",
            spread("battery", "min", "avg"),
            colours=SPREAD,
            most=1.0,
        ),
        Panel(
            57,
            "Round trip to the cloud",
            "The mean, and the farthest agent. Longer than deadlines allow: inputs stay on the device (reason link).",
            "s",
            spread("link_rtt_seconds", "avg", "max"),
            colours=SPREAD,
        ),
        Panel(
            58,
            "Power by route",
            "What models and links of all agents take, by the proxy in [energy]. Not a measurement.",
            "watt",
            (Query(f"sum by (route) (model_route:edgemux_energy_joules:rate5m{{{MODEL}}})", "{{route}}"),),
            kind="stack",
            colours=palette.ROUTES,
        ),
        Panel(
            59,
            "Served instead",
            "Agents that serve something else than they were asked to, by cause. Their logs say why.",
            "none",
            (Query("cause:edgemux_degraded:sum", "{{cause}}"),),
            decimals=0,
        ),
    ),
)

TABLE = Row(
    60,
    "Which agent to look at",
    (
        Panel(
            61,
            "Agents",
            "Now, an agent a line. Sort by a column to find the worst; click on a name for that agent's own page.",
            "short",
            (
                column_of("up", 'job="edgemux-edge",'),
                Query(f"sum by (instance) (instance_route:edgemux_requests:rate5m{{{PICKED}}})"),
                column_of("instance:edgemux_offload:ratio_rate5m"),
                column_of("instance:edgemux_refused:ratio_rate5m"),
                column_of("instance:edgemux_request_duration_seconds:p99_rate5m"),
                column_of("instance:edgemux_kept_for_budget:ratio_rate5m"),
            ),
            kind="table",
            width=24,
            height=12,
            columns=(
                Column("instance", "Agent", "none", link=edge_link("${__value.raw}"), width=280),
                Column("Value #A", "Up", "none", states=palette.SCRAPED),
                Column("Value #B", "Answered", "reqps"),
                Column("Value #C", "By the cloud", "percentunit"),
                Column("Value #D", "Refused", "percentunit", steps=((0.001, WARNING), (0.05, BAD))),
                Column("Value #E", "p99", "s"),
                Column("Value #F", "Kept for want of budget", "percentunit", steps=((0.1, WARNING),)),
            ),
            sort="Refused",
        ),
    ),
)

ALERTS = Row(
    70,
    "Alerts and versions",
    (
        Panel(
            71,
            "Alerts that fire",
            "How many agents or clouds each alert is about. docs/troubleshooting.md says what to do, by its name.",
            "none",
            (
                Query(
                    'count by (alertname, severity) (ALERTS{alertname=~"Edgemux.+",alertstate="firing"})',
                    "{{alertname}}, {{severity}}",
                ),
            ),
            width=16,
            decimals=0,
        ),
        Panel(
            72,
            "Versions",
            "How many processes run which version. Two for long: an update that stopped half-way.",
            "none",
            (Query("job_version:edgemux_build_info:count", "{{job}} {{version}}"),),
            kind="stat",
            height=8,
            decimals=0,
            plain=True,
        ),
    ),
)
