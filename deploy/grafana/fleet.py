"""The dashboard "Edge fleet": all agents together, and which of them to look at.

It reads what deploy/prometheus/rules/recording.yml has summed, so that it asks for as many series with a thousand
agents as with one. Only its table has a line for each agent.
"""

from __future__ import annotations

from deploy.grafana import palette
from deploy.grafana.fleet_devices import ALERTS, DEVICES, TABLE
from deploy.grafana.layout import FLEET, Page, Row, Variable
from deploy.grafana.palette import BAD, WARNING
from deploy.grafana.panels import Panel, Query

MODEL = 'model=~"$model"'
ANSWERS = "model_route_reason:edgemux_requests:rate5m"


def total(rule: str, by: str = "", where: str = MODEL) -> str:
    """The sum of a recorded rate over the chosen models."""
    return f"sum{f' by ({by})' if by else ''} ({rule}{{{where}}})"


# The tail of a split runs there, too.
BY_CLOUD = MODEL + ',route=~"cloud|split"'
LATENCY = "model_route:edgemux_request_duration_seconds"
AUDITS = "model_outcome:edgemux_audit:rate5m"
DIFFER = MODEL + ',outcome="differ"'
COMPARED = MODEL + ',outcome=~"agree|differ"'

NOW = Row(
    10,
    "Now",
    (
        Panel(
            11,
            "Agents",
            "How many Prometheus reaches, and how many it should. For the difference sort the table below by Up.",
            "none",
            (
                Query('job:up:sum{job="edgemux-edge"}', "reached"),
                Query('job:up:count{job="edgemux-edge"}', "known"),
            ),
            kind="stat",
            width=6,
            decimals=0,
        ),
        Panel(
            12,
            "Answered",
            "Inputs answered in a second, by all agents.",
            "reqps",
            (Query(total(ANSWERS)),),
            kind="stat",
            width=3,
            decimals=1,
        ),
        Panel(
            13,
            "From the cloud",
            "Share of the answers that came from the cloud, those to inputs that were cut in two among them. What that "
            "may cost: Offloads and budgets below.",
            "percentunit",
            (Query(f"{total(ANSWERS, where=BY_CLOUD)} / {total(ANSWERS)}"),),
            kind="stat",
            width=3,
            most=1.0,
            decimals=1,
        ),
        Panel(
            14,
            "Breakers not closed",
            "Agents that do not ask the cloud now, or only try it. All at once is the cloud or the network to it; one "
            "is that device's network.",
            "none",
            (Query("fleet:edgemux_breakers_not_closed:sum"),),
            kind="stat",
            width=4,
            decimals=0,
            steps=((1.0, WARNING),),
        ),
        Panel(
            15,
            "Agents in drift",
            "Agents whose certificate is withdrawn. One: look at its camera. Many: the world has changed, or the "
            "cloud's model; build a new bundle.",
            "none",
            (Query("fleet:edgemux_drift:sum"),),
            kind="stat",
            width=4,
            decimals=0,
            steps=((1.0, WARNING),),
        ),
        Panel(
            16,
            "Alerts that fire",
            "All agents and clouds together; which: Alerts below.",
            "none",
            (Query('count(ALERTS{alertname=~"Edgemux.+",alertstate="firing"}) or vector(0)'),),
            kind="stat",
            width=4,
            decimals=0,
            steps=((1.0, WARNING), (10.0, BAD)),
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
            "Where inputs were answered; split: a model's head on the device, its tail in the cloud. The cloud's share "
            "falls in an outage and the device's grows; the sum stays.",
            "reqps",
            (Query(total(ANSWERS, "route"), "{{route}}"),),
            kind="stack",
            colours=palette.ROUTES,
        ),
        Panel(
            22,
            "Answers by reason",
            "Why they were answered there. confident, offloaded and deferred are choices; device_busy, budget and link "
            "are constraints; breaker and cloud_... are failures of the cloud. docs/metrics.md explains each.",
            "reqps",
            (Query(total(ANSWERS, "reason"), "{{reason}}"),),
            kind="stack",
            colours=palette.REASONS,
        ),
        Panel(
            23,
            "Answers by variant",
            "Which models answered. More and more of small levels: devices are busy, hot or short of memory.",
            "reqps",
            (Query(total("model_variant:edgemux_requests:rate5m", "variant"), "{{variant}}"),),
            kind="stack",
            colours=palette.VARIANTS,
        ),
        Panel(
            24,
            "Refusals by reason",
            "Requests that got a typed error. overloaded and expired are more work than there is time for; input, "
            "too_large and unknown_model are the clients' mistakes.",
            "reqps",
            (Query(total("model_reason:edgemux_refused:rate5m", "reason"), "{{reason}}"),),
            colours=palette.AGENT_REFUSALS,
        ),
        Panel(
            25,
            "Latency by route",
            "From arrival to answer: half of the inputs, and 99 of 100, were quicker. The worst of the models.",
            "s",
            (
                Query(f"max by (route) ({LATENCY}:p50_rate5m{{{MODEL}}})", "{{route}} p50", dotted=True),
                Query(f"max by (route) ({LATENCY}:p99_rate5m{{{MODEL}}})", "{{route}} p99"),
            ),
            colours=palette.ROUTES,
        ),
        Panel(
            26,
            "Time in each stage, p99",
            "Where the time goes: checks, scoring, the device's model, scoring again, the call to the cloud.",
            "s",
            (Query("stage:edgemux_stage_duration_seconds:p99_rate5m", "{{stage}}"),),
            colours=palette.STAGES,
        ),
    ),
)

OFFLOADS = Row(
    30,
    "Offloads and budgets",
    (
        Panel(
            31,
            "Offload share and what budgets allow",
            "Share of the inputs that were sent, answered or not, and, dashed, the share that the offload budgets of "
            "all agents together allow for good. Sent stays below allowed but for short bursts.",
            "percentunit",
            (
                Query("fleet:edgemux_offload_attempts:rate5m / (fleet:edgemux_requests:rate5m > 0)", "sent"),
                Query(
                    'clamp_max(sum(budget:edgemux_budget_rate:sum{budget="offloads"}) / '
                    "(fleet:edgemux_requests:rate5m > 0), 1)",
                    "allowed",
                    dashed=True,
                ),
            ),
            colours={"sent": palette.ORANGE, "allowed": palette.GREY},
        ),
        Panel(
            32,
            "Spent of what budgets allow",
            "What is taken from the budgets, of what they fill up by in the same time. 100 % for long is a fleet that "
            "could use more; above it, agents live on what they have saved.",
            "percentunit",
            (Query("budget:edgemux_budget_spent:rate5m / (budget:edgemux_budget_rate:sum > 0)", "{{budget}}"),),
            colours=palette.BUDGETS,
            steps=((1.0, WARNING),),
        ),
        Panel(
            33,
            "Emptiest budgets",
            "What is left to the agent that has least of each budget, of what it can hold. At 0 its inputs stay on the "
            "device (reason budget); below 0 it is in debt.",
            "percentunit",
            (Query("budget:edgemux_budget_left_share:min", "{{budget}}"),),
            colours=palette.BUDGETS,
            least=None,
            most=1.0,
        ),
        Panel(
            34,
            "Sent to the cloud",
            "Bytes in a second, from all agents. Much for so few offloads: set [cloud] payload_max_loss above 0.",
            "Bps",
            (Query("fleet:edgemux_offload_bytes:rate5m", "bytes"),),
        ),
        Panel(
            35,
            "Forms of what is sent",
            "In which form inputs leave the devices: the one that is expected to be answered soonest.",
            "reqps",
            (Query("payload:edgemux_offload_payloads:rate5m", "{{payload}}"),),
            kind="stack",
        ),
        Panel(
            36,
            "Calls by outcome",
            "Inputs sent, by how that ended. unreachable: network or server; timeout: too slow for the deadline; "
            "overloaded: the cloud refused; denied: the token; incompatible: another model or version.",
            "reqps",
            (Query("outcome:edgemux_cloud_calls:rate5m", "{{outcome}}"),),
            kind="stack",
            colours=palette.CALLS,
        ),
        Panel(
            37,
            "Bytes by form",
            "What each form takes of the links. bits8, bits4 and bits2 are what heads of splits make.",
            "Bps",
            (Query("payload:edgemux_offload_payload_bytes:rate5m", "{{payload}}"),),
            kind="stack",
        ),
        Panel(
            38,
            "Ways to the cloud",
            "Of bundles with splits: how many agents send inputs in which way now, whole or as what a head makes. "
            "Empty where no bundle has any.",
            "none",
            (Query(total("model_variant:edgemux_split_chosen:sum", "variant"), "{{variant}}"),),
            kind="stack",
            decimals=0,
        ),
        Panel(
            39,
            "Splits left alone",
            "How many splits of how many agents are not used, by reason; docs/metrics.md says what to do. Inputs go "
            "another way meanwhile. Empty where every split may be used.",
            "none",
            (Query(total("model_reason:edgemux_split_left_alone:sum", "reason"), "{{reason}}"),),
            kind="stack",
            colours=palette.LEFT_ALONE,
            decimals=0,
        ),
    ),
)

ACCURACY = Row(
    40,
    "Accuracy",
    (
        Panel(
            41,
            "Disagreement, at most",
            "The highest bound of any agent on the share of inputs that it keeps and answers other than the cloud "
            "would, and, dashed, what the strictest certificate promises.",
            "percentunit",
            (
                Query(f"model:edgemux_disagreement_upper_bound:max{{{MODEL}}}", "{{model}}"),
                Query(f"model:edgemux_certificate_alpha:min{{{MODEL}}}", "{{model}} promised", dashed=True),
            ),
            colours=palette.BOUND,
        ),
        Panel(
            42,
            "Certificates",
            "How the agents' certificates stand. withdrawn goes back to re_certified by itself, with enough audits; "
            "unwatched is [drift] enabled = false; none is a bundle without one.",
            "none",
            (Query(total("model_standing:edgemux_certificate:sum", "standing"), "{{standing}}"),),
            kind="stack",
            colours=palette.STANDINGS,
            decimals=0,
        ),
        Panel(
            43,
            "Causes of drift",
            "Agents in alarm, by what has changed: the audits' word, the scores, the inputs, or the cloud's model.",
            "none",
            (Query(total("model_cause:edgemux_drift_alarm:sum", "cause"), "{{cause}}"),),
            kind="stack",
            colours=palette.CAUSES,
            decimals=0,
        ),
        Panel(
            44,
            "Audits",
            "Kept answers that were asked again in the cloud. None for long: audit_share is 0, or no budget is left.",
            "reqps",
            (Query(total(AUDITS, "outcome"), "{{outcome}}"),),
            kind="stack",
            colours=palette.AUDITS,
        ),
        Panel(
            45,
            "Audits that differ",
            "Of the audits that were answered. It estimates the disagreement itself, where the bound says at most.",
            "percentunit",
            (Query(f"{total(AUDITS, 'model', DIFFER)} / {total(AUDITS, 'model', COMPARED)}", "{{model}}"),),
        ),
        Panel(
            46,
            "Energy of an answer",
            "By the proxy in [energy], in the configurations: CPU seconds and bytes sent. Not a measurement.",
            "joule",
            (Query(f"{total('model_route:edgemux_energy_joules:rate5m')} / ({total(ANSWERS)} > 0)", "mean"),),
        ),
    ),
)

PAGE = Page(
    FLEET,
    "Edge fleet",
    "All agents together: where inputs are answered and why, what that costs, and which agent to look at.",
    (
        Variable("model", "Model", "label_values(model_variant:edgemux_requests:rate5m, model)", "The applications."),
        Variable(
            "instance",
            "Edges",
            'label_values(up{job="edgemux-edge"}, instance)',
            "The agents in the table; everything else on this page is about all of them.",
        ),
    ),
    (NOW, ROUTES, OFFLOADS, ACCURACY, DEVICES, TABLE, ALERTS),
)
