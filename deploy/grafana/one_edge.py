"""The dashboard "One edge": what a single agent does, why, and what it has to do it with."""

from __future__ import annotations

from deploy.grafana import palette
from deploy.grafana.layout import Row
from deploy.grafana.palette import BAD, WARNING
from deploy.grafana.panels import Panel, Query

# Of the agent, and of one of its models.
AGENT = 'instance="$instance"'
MODEL = 'instance="$instance",model=~"$model"'
# The tail of a split runs there, too.
FROM_CLOUD = MODEL + ',route=~"cloud|split"'


def rate(metric: str, by: str = "", where: str = MODEL) -> str:
    """The sum of a counter's rate over the window that suits the scrapes."""
    return f"sum{f' by ({by})' if by else ''} (rate({metric}{{{where}}}[$__rate_interval]))"


def quantile(share: float, metric: str, by: str = "", where: str = MODEL) -> str:
    """A quantile of a histogram."""
    return f"histogram_quantile({share}, {rate(f'{metric}_bucket', f'le, {by}' if by else 'le', where)})"


def mean(histogram: str, by: str = "", where: str = MODEL) -> str:
    """The mean of a histogram."""
    return f"{rate(f'{histogram}_sum', by, where)} / ({rate(f'{histogram}_count', by, where)} > 0)"


def reading(name: str) -> str:
    """A sensor's reading."""
    return f'edgemux_resource{{{AGENT},sensor="{name}"}}'


def readings(*names: str) -> str:
    """Several sensors' readings."""
    return f'edgemux_resource{{{AGENT},sensor=~"{"|".join(names)}"}}'


def standing() -> str:
    """How each model's certificate stands, as the number of palette.STANDING."""
    each = (
        f'{number} * sum by (model) (edgemux_certificate{{{MODEL},standing="{name}"}})'
        for number, name in enumerate(palette.STANDINGS)
        if number
    )
    return " + ".join(each)


ANSWERED = "edgemux_requests_total"
REFUSED = "edgemux_refused_total"
SOME = rate(ANSWERED, where=AGENT)

NOW = Row(
    10,
    "Now",
    (
        Panel(
            11,
            "Scraped",
            "Whether Prometheus reaches the agent. If not: is the device on, and its metrics port open to Prometheus?",
            "none",
            (Query(f'up{{job="edgemux-edge",{AGENT}}}'),),
            kind="stat",
            width=3,
            states=palette.SCRAPED,
        ),
        Panel(
            12,
            "Answered",
            "Inputs answered in a second, on the device or by the cloud.",
            "reqps",
            (Query(rate(ANSWERED)),),
            kind="stat",
            width=3,
            decimals=1,
        ),
        Panel(
            13,
            "From the cloud",
            "Share of the answers that came from the cloud, those to inputs that were cut in two among them. High "
            "while the network is dear: lower a budget.",
            "percentunit",
            (Query(f"{rate(ANSWERED, where=FROM_CLOUD)} / {rate(ANSWERED)}"),),
            kind="stat",
            width=3,
            most=1.0,
            decimals=1,
        ),
        Panel(
            14,
            "p99 latency",
            "99 of 100 inputs were answered sooner. Above the deadline of your clients: look at Latency below.",
            "s",
            (Query(quantile(0.99, "edgemux_request_duration_seconds")),),
            kind="stat",
            width=3,
            steps=((0.25, WARNING), (1.0, BAD)),
        ),
        Panel(
            15,
            "Differs, at most",
            "Bound on the share of inputs that are kept on the device and answered other than the cloud would have. "
            "It is the certificate's while that is in force, then that of the audits.",
            "percentunit",
            (Query(f"max(edgemux_disagreement_upper_bound{{{MODEL}}})"),),
            kind="stat",
            width=3,
            decimals=1,
        ),
        Panel(
            16,
            "Certificate",
            "Withdrawn: inputs or scores are not what they were, or audits disagree. The agent goes by calibrated "
            "confidence and audits more until it has certified itself again; see Accuracy below.",
            "none",
            (Query(f"max({standing()})"),),
            kind="stat",
            width=3,
            states=palette.STANDING,
        ),
        Panel(
            17,
            "Breaker",
            "Whether the cloud is asked. Open: it failed too often, and the device answers; see Cloud and link below.",
            "none",
            (Query(f"max(edgemux_breaker_state{{{AGENT}}})"),),
            kind="stat",
            width=3,
            states=palette.BREAKER,
        ),
        Panel(
            18,
            "Refused",
            "Share of the requests that got an error instead of an answer. Which errors: Refusals below.",
            "percentunit",
            (Query(f"{rate(REFUSED)} / ({rate(REFUSED)} + {rate(ANSWERED)})"),),
            kind="stat",
            width=3,
            most=1.0,
            decimals=2,
            steps=((0.001, WARNING), (0.01, BAD)),
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
            "Where inputs were answered; split: the head of a model ran here, its tail in the cloud. A cloud that "
            "fades while reasons like breaker grow is an outage.",
            "reqps",
            (Query(rate(ANSWERED, "route"), "{{route}}"),),
            kind="stack",
            colours=palette.ROUTES,
        ),
        Panel(
            22,
            "Answers by reason",
            "Why they were answered there. confident, offloaded and deferred are choices; device_busy, budget and link "
            "are constraints; breaker and cloud_... are failures of the cloud. docs/metrics.md explains each.",
            "reqps",
            (Query(rate(ANSWERED, "reason"), "{{reason}}"),),
            kind="stack",
            colours=palette.REASONS,
        ),
        Panel(
            23,
            "Answers by variant",
            "Which of the models answered: a level of the nested family, the cloud's model, or a split.",
            "reqps",
            (Query(rate(ANSWERED, "variant"), "{{variant}}"),),
            kind="stack",
            colours=palette.VARIANTS,
        ),
        Panel(
            24,
            "Refusals",
            "Requests that got a typed error. overloaded: more than the device and the cloud can answer in time; "
            "expired: the deadline was too short; input and too_large are the clients' mistakes.",
            "reqps",
            (Query(rate("edgemux_refused_total", "reason"), "{{reason}}"),),
            colours=palette.AGENT_REFUSALS,
        ),
        Panel(
            25,
            "Inside",
            "Requests that are being answered now. Near [admission] max_inflight new ones are refused.",
            "short",
            (Query(f"sum by (model) (edgemux_inflight{{{MODEL}}})", "{{model}}"),),
        ),
        Panel(
            26,
            "Served instead",
            "Yes while something else than what was asked for is served: the previous bundle, the cloud alone, or "
            "budgets that start empty next time. The agent's log says why.",
            "none",
            (Query(f"max by (cause) (edgemux_degraded{{{MODEL}}})", "{{cause}}"),),
            kind="states",
            height=8,
            states=palette.YES_NO,
        ),
    ),
)

OFFLOADS = Row(
    30,
    "Offloads and budgets",
    (
        Panel(
            31,
            "Offload share and what the budget allows",
            "Inputs sent to the cloud, answered or not, of those answered, and, dashed, the share that the tightest "
            "offload budget allows for good. Above it for a while is a burst of what was saved.",
            "percentunit",
            (
                Query(f"{rate('edgemux_offload_attempts_total', where=AGENT)} / ({SOME} > 0)", "sent"),
                Query(
                    f'clamp_max(sum(edgemux_budget_rate{{{AGENT},budget="offloads"}}) / ({SOME} > 0), 1)',
                    "allowed",
                    dashed=True,
                ),
            ),
            colours={"sent": palette.ORANGE, "allowed": palette.GREY},
        ),
        Panel(
            32,
            "Left of budgets",
            "Of what each can hold. At 0 inputs stay on the device (reason budget); joules below 0 are a debt, and "
            "only the smallest level runs until it is paid.",
            "percentunit",
            (Query(f"edgemux_budget_left_share{{{AGENT}}}", "{{budget}}"),),
            colours=palette.BUDGETS,
            least=None,
            most=1.0,
        ),
        Panel(
            33,
            "Price of an offload",
            "How much likelier to be right an offload must make an answer, for the budget to last. It rises as a "
            "budget is spent faster than it fills. High all day: the budget is small for this traffic.",
            "percentunit",
            (Query(f"edgemux_budget_price{{{AGENT}}}", "{{budget}}"),),
            colours=palette.BUDGETS,
        ),
        Panel(
            37,
            "Spent of what budgets allow",
            "What is taken from each budget, of what it fills up by in the same time. Above 100 % it gets emptier.",
            "percentunit",
            (
                Query(
                    f"{rate('edgemux_budget_spent_total', 'budget', AGENT)} / "
                    f"sum by (budget) (edgemux_budget_rate{{{AGENT}}})",
                    "{{budget}}",
                ),
            ),
            colours=palette.BUDGETS,
            steps=((1.0, WARNING),),
            width=12,
        ),
        Panel(
            38,
            "What can be spent now",
            "Offloads, bytes, joules or money, as they are in the budgets. What is not limited is not shown.",
            "short",
            (Query(f"edgemux_budget_remaining{{{AGENT}}} < Inf", "{{budget}}"),),
            kind="stat",
            height=8,
            units={"bytes": "bytes", "joules": "joule"},
            plain=True,
            least=None,
            width=12,
        ),
        Panel(
            34,
            "Sent to the cloud",
            "Bytes in a second. Much for the number of offloads: set [cloud] payload_max_loss above 0.",
            "Bps",
            (Query(rate("edgemux_offload_bytes_total", where=AGENT), "bytes"),),
        ),
        Panel(
            35,
            "Forms of what is sent",
            "In which form inputs leave the device: the one that is expected to be answered soonest.",
            "reqps",
            (Query(rate("edgemux_offload_payloads_total", "payload", AGENT), "{{payload}}"),),
            kind="stack",
        ),
        Panel(
            36,
            "Inputs in a call",
            "How many inputs go to the cloud in one call: the mean. More than 1 only with [cloud] most_together.",
            "short",
            (Query(mean("edgemux_offload_rows", where=AGENT), "mean"),),
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
            "Bound on the share of inputs kept on the device and answered other than by the cloud, and, dashed, what "
            "the certificate promises. A jump is a certificate withdrawn; it falls again as audits come in.",
            "percentunit",
            (
                Query(f"edgemux_disagreement_upper_bound{{{MODEL}}}", "{{model}}"),
                Query(f"edgemux_certificate_alpha{{{MODEL}}}", "{{model}} promised", dashed=True),
            ),
            colours=palette.BOUND,
            most=1.0,
        ),
        Panel(
            42,
            "Certificate",
            "Withdrawn from the alarm of the watch for drift until the agent has certified itself again. If it stays "
            "withdrawn: look at the inputs (camera, light), then build a new bundle from today's data.",
            "none",
            (Query(standing(), "{{model}}"),),
            kind="states",
            height=8,
            states=palette.STANDING,
        ),
        Panel(
            43,
            "Audits",
            "Kept answers that were asked again in the cloud. differ is what the bound is about; failed says "
            "nothing about accuracy, only about the cloud or the budget.",
            "reqps",
            (Query(rate("edgemux_audit_total", "outcome"), "{{outcome}}"),),
            kind="stack",
            colours=palette.AUDITS,
        ),
        Panel(
            44,
            "Disagreement, as audits say",
            "Between which shares it lies, with the certificate's confidence. Narrower with more audits. The low end "
            "above what is promised proves that the certificate does not hold: build a new bundle.",
            "percentunit",
            (
                Query(f"edgemux_disagreement_interval{{{MODEL}}}", "{{model}} {{end}}"),
                Query(f"edgemux_certificate_alpha{{{MODEL}}}", "{{model}} promised", dashed=True),
            ),
            colours=palette.ENDS,
        ),
        Panel(
            45,
            "Evidence of drift",
            "Of the watch: at 1 it raises the alarm and withdraws the certificate. Slow growth is a slow change.",
            "short",
            (Query(f"edgemux_drift_evidence{{{MODEL}}}", "{{model}}"),),
            steps=((1.0, BAD),),
        ),
        Panel(
            46,
            "Cause of the alarm",
            "What has changed: the audits' word, the scores, the inputs (gain, brightness, contrast), the cloud's "
            "model; or the watch itself has failed, see the log.",
            "none",
            (Query(f"max by (cause) (edgemux_drift_alarm{{{MODEL}}})", "{{cause}}"),),
            kind="states",
            height=8,
            states=palette.YES_NO,
        ),
        Panel(
            47,
            "Scores of the answers",
            "P(correct) of the answers given, as estimated. A drift shows as a band that moves down.",
            "percentunit",
            (Query(rate("edgemux_score_bucket", "le"), "{{le}}"),),
            kind="heat",
            width=12,
        ),
        Panel(
            48,
            "Median and low scores",
            "Half of the answers, and 9 of 10, had a score above the line.",
            "percentunit",
            (
                Query(quantile(0.5, "edgemux_score", "model"), "{{model}} half"),
                Query(quantile(0.1, "edgemux_score", "model"), "{{model}} 9 of 10", dotted=True),
            ),
            width=12,
            most=1.0,
        ),
    ),
)

LATENCY = Row(
    50,
    "Latency",
    (
        Panel(
            51,
            "Latency by route",
            "From arrival to answer: half of the inputs, and 99 of 100, were quicker. Slow on the edge: the device is "
            "busy or hot. Slow in the cloud: compare with the link and with the cloud's queue. Dashed: the deadline "
            "of requests that give none.",
            "s",
            (
                Query(quantile(0.5, "edgemux_request_duration_seconds", "route"), "{{route}} p50", dotted=True),
                Query(quantile(0.99, "edgemux_request_duration_seconds", "route"), "{{route}} p99"),
                Query(f"edgemux_default_timeout_seconds{{{AGENT}}}", "deadline", dashed=True),
            ),
            colours={**palette.ROUTES, "deadline": palette.GREY},
        ),
        Panel(
            52,
            "Time in each stage, p99",
            "Where the time goes: checks, scoring, the device's model, scoring again, the call to the cloud.",
            "s",
            (Query(quantile(0.99, "edgemux_stage_duration_seconds", "stage", AGENT), "{{stage}}"),),
            colours=palette.STAGES,
        ),
        Panel(
            53,
            "All latencies",
            "How many inputs took how long. Two bands are the device and the cloud.",
            "s",
            (Query(rate("edgemux_request_duration_seconds_bucket", "le"), "{{le}}"),),
            kind="heat",
        ),
    ),
)
