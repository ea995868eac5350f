"""The dashboard "Cloud": batches, queues, refusals and outcomes of the cloud servers."""

from __future__ import annotations

from deploy.grafana import palette
from deploy.grafana.layout import CLOUD, Page, Row, Variable
from deploy.grafana.palette import BAD, GOOD, WARNING
from deploy.grafana.panels import Panel, Query

SERVED = 'instance=~"$instance",model=~"$model"'


def rate(metric: str, by: str = "") -> str:
    """The sum of a counter's rate over the window that suits the scrapes."""
    return f"sum{f' by ({by})' if by else ''} (rate({metric}{{{SERVED}}}[$__rate_interval]))"


def quantile(share: float, metric: str, by: str = "") -> str:
    """A quantile of a histogram."""
    return f"histogram_quantile({share}, {rate(f'{metric}_bucket', f'le, {by}' if by else 'le')})"


def mean(histogram: str, by: str = "") -> str:
    """The mean of a histogram."""
    return ratio(f"{histogram}_sum", f"{histogram}_count", by)


def ratio(over: str, under: str, by: str = "") -> str:
    """Of two counters' rates."""
    return f"{rate(over, by)} / ({rate(under, by)} > 0)"


REFUSED = "sum(rate(edgemux_cloud_requests_total{" + SERVED + ',outcome=~"refused|expired"}[$__rate_interval]))'

NOW = Row(
    10,
    "Now",
    (
        Panel(
            11,
            "Servers",
            "How many servers Prometheus reaches. Fewer than you run: look at their logs and at /v2/health/ready.",
            "none",
            (Query('sum(up{job="edgemux-cloud",instance=~"$instance"})'),),
            kind="stat",
            width=4,
            decimals=0,
        ),
        Panel(
            12,
            "Answered",
            "Inference requests answered in a second.",
            "reqps",
            (Query(rate("edgemux_cloud_requests_total") + " - " + REFUSED),),
            kind="stat",
            width=4,
            decimals=1,
        ),
        Panel(
            13,
            "Refused or expired",
            "Share of the requests that got no answer for want of time or room. Above 0 for minutes: add servers.",
            "percentunit",
            (Query(f"{REFUSED} / {rate('edgemux_cloud_requests_total')}"),),
            kind="stat",
            width=4,
            most=1.0,
            decimals=2,
            steps=((0.001, WARNING), (0.01, BAD)),
        ),
        Panel(
            14,
            "p99 wait in the queue",
            "99 of 100 requests waited less for their batch. What the autoscaling goes by.",
            "s",
            (Query(quantile(0.99, "edgemux_cloud_queue_seconds")),),
            kind="stat",
            width=4,
            steps=((0.05, WARNING), (0.25, BAD)),
        ),
        Panel(
            15,
            "Rows in a batch",
            "The mean. Near [batching] max_batch the servers are full.",
            "short",
            (Query(mean("edgemux_cloud_batch_size")),),
            kind="stat",
            width=4,
            decimals=1,
        ),
        Panel(
            16,
            "Being worked on",
            "Requests inside, waiting or in a batch.",
            "short",
            (Query(f"sum(edgemux_cloud_inflight{{{SERVED}}})"),),
            kind="stat",
            width=4,
            decimals=0,
        ),
    ),
)

TRAFFIC = Row(
    20,
    "Requests",
    (
        Panel(
            21,
            "Requests by outcome",
            "How requests ended. refused and expired are overload; invalid and cancelled are the clients'; failed "
            "is ours: see the log.",
            "reqps",
            (Query(rate("edgemux_cloud_requests_total", "outcome"), "{{outcome}}"),),
            kind="stack",
            colours=palette.OUTCOMES,
        ),
        Panel(
            22,
            "Refusals by reason",
            "full: the queue is at [admission] max_queue; wait: it would be answered too late; expired: it came too "
            "late; draining: the server is stopping. Agents answer by themselves meanwhile.",
            "reqps",
            (Query(rate("edgemux_cloud_refused_total", "reason"), "{{reason}}"),),
            colours=palette.REFUSALS,
        ),
        Panel(
            23,
            "Being worked on",
            "Requests inside, by server. One that has many more than others is slow, or the balancer is unfair.",
            "short",
            (Query(f"sum by (instance) (edgemux_cloud_inflight{{{SERVED}}})", "{{instance}}"),),
        ),
        Panel(
            24,
            "Rows by model",
            "Inputs that the models computed in a second.",
            "rowsps",
            (Query(rate("edgemux_cloud_inputs_total", "model"), "{{model}}"),),
            kind="stack",
        ),
        Panel(
            25,
            "Answered by server",
            "Requests that were answered, by server.",
            "reqps",
            (
                Query(
                    "sum by (instance) (rate(edgemux_cloud_requests_total{" + SERVED + ',outcome="answered"}'
                    "[$__rate_interval]))",
                    "{{instance}}",
                ),
            ),
            kind="stack",
        ),
        Panel(
            26,
            "Servers",
            "Which servers Prometheus reaches.",
            "none",
            (Query('up{job="edgemux-cloud",instance=~"$instance"}', "{{instance}}"),),
            kind="states",
            height=8,
            states=palette.SCRAPED,
        ),
    ),
)

BATCHES = Row(
    30,
    "Batches, queue and compute",
    (
        Panel(
            31,
            "Batch sizes",
            "How many batches had how many rows. Mostly 1 is a server with time to spare.",
            "short",
            (Query(rate("edgemux_cloud_batch_size_bucket", "le"), "{{le}}"),),
            kind="heat",
        ),
        Panel(
            32,
            "Wait in the queue",
            "Of a request for its batch: half of them, and 99 of 100, waited less. Rises before anything is refused.",
            "s",
            (
                Query(quantile(0.5, "edgemux_cloud_queue_seconds", "model"), "{{model}} p50", dotted=True),
                Query(quantile(0.99, "edgemux_cloud_queue_seconds", "model"), "{{model}} p99"),
            ),
        ),
        Panel(
            33,
            "Time of a batch",
            "What the model takes. Rises with the rows of a batch; else the machine is busy with something else.",
            "s",
            (
                Query(quantile(0.5, "edgemux_cloud_compute_seconds", "model"), "{{model}} p50", dotted=True),
                Query(quantile(0.99, "edgemux_cloud_compute_seconds", "model"), "{{model}} p99"),
            ),
        ),
        Panel(
            34,
            "Rows in a batch",
            "The mean, by model. It grows with the load: that is what keeps the wait short.",
            "short",
            (
                Query(
                    mean("edgemux_cloud_batch_size", "model"),
                    "{{model}}",
                ),
            ),
        ),
        Panel(
            35,
            "Busy with models",
            "Seconds of model time in a second, by server. Near the number of its workers it is full: add servers.",
            "percentunit",
            (Query(rate("edgemux_cloud_compute_seconds_sum", "instance"), "{{instance}}"),),
        ),
        Panel(
            36,
            "Time of a row",
            "Model time divided by rows: what batching saves shows here.",
            "s",
            (
                Query(
                    ratio("edgemux_cloud_compute_seconds_sum", "edgemux_cloud_inputs_total", "model"),
                    "{{model}}",
                ),
            ),
        ),
    ),
)

ALERTS = Row(
    40,
    "Alerts and servers",
    (
        Panel(
            41,
            "Alerts of the cloud",
            "Those that are pending or firing. docs/troubleshooting.md says what to do about each.",
            "none",
            (
                Query(
                    'max by (alertname, alertstate) (ALERTS{alertname=~"EdgemuxCloud.+"})',
                    "{{alertname}} {{alertstate}}",
                ),
            ),
            kind="states",
            height=8,
            width=12,
            states={1: ("on", BAD)},
        ),
        Panel(
            42,
            "CPU of the servers",
            "CPUs that each process uses. As many as it has workers: it is full.",
            "short",
            (
                Query(
                    'sum by (instance) (rate(process_cpu_seconds_total{job="edgemux-cloud",instance=~"$instance"}'
                    "[$__rate_interval]))",
                    "{{instance}}",
                ),
            ),
            width=6,
        ),
        Panel(
            43,
            "Memory of the servers",
            "Resident, by server. Growing for days: a leak, please report it.",
            "bytes",
            (
                Query(
                    'sum by (instance) (process_resident_memory_bytes{job="edgemux-cloud",instance=~"$instance"})',
                    "{{instance}}",
                ),
            ),
            width=6,
        ),
        Panel(
            44,
            "TLS certificates end in",
            "By server. Replace the files before: they are read again by themselves.",
            "s",
            (
                Query(
                    'min by (instance) (edgemux_certificate_until_seconds{job="edgemux-cloud",instance=~"$instance"})'
                    " - time()",
                    "{{instance}}",
                ),
            ),
            kind="stat",
            width=12,
            decimals=0,
            least=None,
            plain=True,
            steps=((None, BAD), (172_800.0, WARNING), (1_209_600.0, GOOD)),
        ),
        Panel(
            45,
            "Versions",
            "How many processes run which version.",
            "none",
            (Query('job_version:edgemux_build_info:count{job="edgemux-cloud"}', "{{version}}"),),
            kind="stat",
            width=12,
            decimals=0,
            plain=True,
        ),
    ),
)

PAGE = Page(
    CLOUD,
    "Cloud",
    "How the cloud servers cope: requests and refusals, batches, queue and compute.",
    (
        Variable(
            "instance",
            "Server",
            'label_values(edgemux_cloud_inflight{job="edgemux-cloud"}, instance)',
            "The servers, by the address that Prometheus scrapes.",
        ),
        Variable(
            "model",
            "Model",
            'label_values(edgemux_cloud_inflight{job="edgemux-cloud",instance=~"$instance"}, model)',
            "The models they serve.",
        ),
    ),
    (NOW, TRAFFIC, BATCHES, ALERTS),
)
