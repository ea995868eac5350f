"""The lower half of the dashboard "One edge": the cloud as it is seen from the device, and the device itself."""

from __future__ import annotations

from deploy.grafana import palette
from deploy.grafana.layout import ONE_EDGE, Page, Row, Variable
from deploy.grafana.one_edge import (
    ACCURACY,
    AGENT,
    LATENCY,
    MODEL,
    NOW,
    OFFLOADS,
    ROUTES,
    rate,
    reading,
    readings,
)
from deploy.grafana.palette import BAD, GOOD, WARNING
from deploy.grafana.panels import Panel, Query

LINK = Row(
    60,
    "Cloud and link",
    (
        Panel(
            61,
            "Breakers",
            "Closed: the cloud is asked. Open: it failed, and the device answers. Half-open: one input tries it. "
            "One line for all clouds together, and one for each by its place in [cloud] addresses.",
            "none",
            (
                Query(f"edgemux_breaker_state{{{AGENT}}}", "all"),
                Query(f"edgemux_peer_breaker_state{{{AGENT}}}", "cloud {{peer}}"),
            ),
            kind="states",
            height=8,
            states=palette.BREAKER,
        ),
        Panel(
            62,
            "Calls by outcome",
            "Inputs sent, by how that ended. unreachable: network or server; timeout: too slow for the deadline; "
            "overloaded: the cloud refused; denied: the token; incompatible: another model or version.",
            "reqps",
            (Query(rate("edgemux_cloud_calls_total", "outcome", AGENT), "{{outcome}}"),),
            kind="stack",
            colours=palette.CALLS,
        ),
        Panel(
            63,
            "Answers of another model",
            "The cloud serves another model than the one this bundle was certified with. Not 0: update one of them.",
            "reqps",
            (Query(rate("edgemux_other_model_total", where=AGENT), "answers"),),
            steps=((0.001, BAD),),
        ),
        Panel(
            64,
            "Round trip",
            "As measured on calls and probes, and the cloud's queue as its answers tell it.",
            "s",
            (
                Query(reading("link_rtt_seconds"), "round trip"),
                Query(reading("cloud_queue_seconds"), "queue in the cloud"),
            ),
        ),
        Panel(
            65,
            "Bandwidth",
            "As measured on what was sent. Small: the agent picks smaller forms of inputs, then keeps them.",
            "Bps",
            (Query(reading("link_bytes_per_second"), "to the cloud"),),
        ),
        Panel(
            66,
            "Lost calls",
            "Share of recent calls that were not answered.",
            "percentunit",
            (Query(reading("link_lost_share"), "lost"),),
            most=1.0,
        ),
        Panel(
            67,
            "Way to the cloud",
            "Of a bundle with splits: in which way inputs are sent, whole (the cloud's model) or cut in two. The one "
            "that is expected to be answered soonest. Empty for other bundles.",
            "none",
            (Query(f"edgemux_split_chosen{{{MODEL}}}", "{{model}} {{variant}}"),),
            kind="states",
            height=8,
            states=palette.CHOSEN,
        ),
        Panel(
            68,
            "Splits left alone",
            "While a split is not used, and why; docs/metrics.md says what to do. Inputs go another way meanwhile. "
            "Empty where every split may be used.",
            "none",
            (Query(f"edgemux_split_left_alone{{{MODEL}}}", "{{model}} {{variant}}: {{reason}}"),),
            kind="states",
            height=8,
            states=palette.ALONE,
        ),
        Panel(
            69,
            "Bytes by form",
            "What each form takes of the link. bits8, bits4 and bits2 are what heads of splits make.",
            "Bps",
            (Query(rate("edgemux_offload_payload_bytes_total", "payload", AGENT), "{{payload}}"),),
            kind="stack",
        ),
    ),
)

LEVELS = Row(
    70,
    "Levels",
    (
        Panel(
            71,
            "Levels",
            "The highest level that the device affords now, and the one the scheduler has planned for each model. "
            "0 affords none: device_busy.",
            "none",
            (
                Query(f"edgemux_level{{{MODEL}}}", "{{model}} affords", dotted=True),
                Query(f"edgemux_plan_level{{{MODEL}}}", "{{model}} planned"),
            ),
            decimals=0,
        ),
        Panel(
            72,
            "Share of the CPU",
            "What the scheduler gives to each model.",
            "percentunit",
            (Query(f"edgemux_plan_share{{{MODEL}}}", "{{model}}"),),
            most=1.0,
        ),
        Panel(
            73,
            "Switches",
            "Changes a minute of the level that is given. Raising pages in a delta, lowering is free. Many: others "
            "keep changing the load, set [scheduler] settle_s higher.",
            "cpm",
            (Query(f"60 * {rate('edgemux_level_changes_total', 'direction')}", "{{direction}}"),),
            colours=palette.DIRECTIONS,
        ),
        Panel(
            74,
            "Time of a switch",
            "Loading a delta, p99. Slow storage shows here; requests go on at the old level meanwhile.",
            "s",
            (Query(f"histogram_quantile(0.99, sum by (le) (edgemux_level_switch_seconds_bucket{{{AGENT}}}))", "p99"),),
        ),
        Panel(
            75,
            "Model memory",
            "Bytes of the files of the levels, and of the heads of splits, that are loaded.",
            "bytes",
            (Query(f"edgemux_resident_bytes{{{MODEL}}}", "{{model}}"),),
        ),
        Panel(
            76,
            "Paged in",
            "Bytes of deltas and heads that have been loaded since the agent started.",
            "bytes",
            (Query(f"edgemux_paged_bytes_total{{{MODEL}}}", "{{model}}"),),
        ),
    ),
)

DEVICE = Row(
    80,
    "Device",
    (
        Panel(
            81,
            "CPU",
            "Share of the CPUs that other programs keep busy, share of time in which something waited for a CPU, and "
            "the clock that is allowed, of the highest. Others near 1: the device is squeezed, levels go down.",
            "percentunit",
            (Query(readings("cpu_others", "cpu_pressure", "cpu_speed"), "{{sensor}}"),),
            colours={name: palette.SENSORS[name] for name in ("cpu_others", "cpu_pressure", "cpu_speed")},
            most=1.0,
        ),
        Panel(
            82,
            "CPUs",
            "That this process may use, and the limit of its control group where there is one.",
            "short",
            (Query(readings("cpu_count", "cpu_quota"), "{{sensor}}"),),
            colours={name: palette.SENSORS[name] for name in ("cpu_count", "cpu_quota")},
        ),
        Panel(
            83,
            "Free memory",
            "What can still be had, in the machine and in the control group.",
            "bytes",
            (Query(reading("memory_available"), "free"),),
        ),
        Panel(
            84,
            "Waiting for memory and storage",
            "Share of the last ten seconds in which everything waited for memory, or something for storage.",
            "percentunit",
            (Query(readings("memory_pressure", "io_pressure"), "{{sensor}}"),),
            colours={name: palette.SENSORS[name] for name in ("memory_pressure", "io_pressure")},
            most=1.0,
        ),
        Panel(
            85,
            "Heat",
            "The hottest zone. A Raspberry Pi slows down at 80 to 85 °C: give it a fan, or less to do.",
            "celsius",
            (Query(reading("temperature_c"), "hottest"),),
            steps=((70.0, WARNING), (80.0, BAD)),
            least=None,
        ),
        Panel(
            86,
            "Throttled, on battery",
            "Whether the firmware has slowed the device down (heat, or too weak a supply), and whether it runs on its "
            "battery.",
            "none",
            (Query(readings("throttled", "discharging"), "{{sensor}}"),),
            kind="states",
            height=8,
            states=palette.YES_NO,
        ),
        Panel(
            87,
            "Battery",
            "Charge. With a joules budget the agent spends less as it goes down.",
            "percentunit",
            (Query(reading("battery"), "charge"),),
            most=1.0,
        ),
        Panel(
            801,
            "CPU of the agent",
            "CPUs that its process uses, all models and the servers together.",
            "short",
            (Query(f'rate(process_cpu_seconds_total{{job="edgemux-edge",{AGENT}}}[$__rate_interval])', "CPUs"),),
        ),
        Panel(
            802,
            "Memory of the agent",
            "Resident, and what of it is for the levels that are loaded. Growing for days: a leak, please report it.",
            "bytes",
            (
                Query(f'process_resident_memory_bytes{{job="edgemux-edge",{AGENT}}}', "resident"),
                Query(f"sum(edgemux_resident_bytes{{{AGENT}}})", "levels"),
            ),
        ),
        Panel(
            88,
            "Age of the sensors",
            "Since each could last be read. More than some seconds: it is broken, and its readings are unknown.",
            "s",
            (Query(f"edgemux_sensor_age_seconds{{{AGENT}}}", "{{sensor}}"),),
            width=12,
            steps=((5.0, WARNING),),
        ),
        Panel(
            89,
            "Lag of the loop",
            "How late the agent's own loop is: more than its requests can wait is a device without a CPU to spare.",
            "s",
            (Query(reading("loop_lag_seconds"), "lag"),),
            width=12,
            steps=((0.1, WARNING),),
        ),
    ),
)

ENERGY = Row(
    90,
    "Energy and alerts",
    (
        Panel(
            91,
            "Power by route",
            "What the models and the link take, by the proxy in [energy]: CPU seconds and bytes sent. Not a "
            "measurement.",
            "watt",
            (Query(rate("edgemux_energy_joules_total", "route"), "{{route}}"),),
            kind="stack",
            colours=palette.ROUTES,
        ),
        Panel(
            92,
            "Energy of an answer",
            "By the same proxy, all routes together.",
            "joule",
            (Query(f"{rate('edgemux_energy_joules_total')} / ({rate('edgemux_requests_total')} > 0)", "mean"),),
        ),
        Panel(
            94,
            "Lines lost from the request log",
            "The file of [log] requests takes fewer than come. Above 0: slower storage than traffic.",
            "short",
            (Query(rate("edgemux_log_dropped_total", where=AGENT), "lost"),),
            steps=((0.001, WARNING),),
        ),
        Panel(
            93,
            "Alerts of this edge",
            "Those that are pending or firing; 1 while they are. docs/troubleshooting.md says what to do about each.",
            "none",
            (Query(f"max by (alertname, alertstate) (ALERTS{{{AGENT}}})", "{{alertname}} {{alertstate}}"),),
            kind="states",
            width=16,
            height=10,
            states={1: ("on", BAD)},
        ),
        Panel(
            95,
            "TLS certificate ends in",
            "Replace the files before: they are read again by themselves. No data where the agent listens without TLS.",
            "s",
            (Query(f"edgemux_certificate_until_seconds{{{AGENT}}} - time()"),),
            kind="stat",
            width=4,
            height=10,
            decimals=0,
            least=None,
            plain=True,
            steps=((None, BAD), (172_800.0, WARNING), (1_209_600.0, GOOD)),
        ),
        Panel(
            96,
            "Version",
            "Of edgemux, as installed on this device.",
            "none",
            (Query(f'edgemux_build_info{{job="edgemux-edge",{AGENT}}}', "{{version}}"),),
            kind="stat",
            width=4,
            height=10,
            named=True,
            plain=True,
        ),
    ),
)

PAGE = Page(
    ONE_EDGE,
    "One edge",
    "What one agent does with its inputs and why, how good its answers are, and what the device has to give.",
    (
        Variable(
            "instance",
            "Edge",
            'label_values(edgemux_inflight{job="edgemux-edge"}, instance)',
            "The agent, by the address that Prometheus scrapes.",
            several=False,
        ),
        Variable(
            "model",
            "Model",
            'label_values(edgemux_inflight{job="edgemux-edge",instance="$instance"}, model)',
            "The applications of that agent.",
        ),
    ),
    (NOW, ROUTES, OFFLOADS, ACCURACY, LATENCY, LINK, LEVELS, DEVICE, ENERGY),
)
