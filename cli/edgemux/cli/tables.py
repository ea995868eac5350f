"""The demo's report for a reader: a few tables and a few sentences."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table

from edgemux.cli.live import number
from edgemux.cli.phases import NARROW, PHASES
from edgemux.cli.report import ByRoute, Report, Summary

_TITLES = {phase.name: phase.title for phase in PHASES}


def print_report(report: Report, console: Console) -> None:
    """Print the summary of a run."""
    rows = [(_TITLES.get(name, name), summary) for name, summary in report.phases.items()]
    console.print(_answers(rows, report))
    console.print(_routes(rows, report))
    console.print(_counted("reason", rows, report))
    console.print(_counted("variant", rows, report))
    for line in closing_lines(report):
        console.print(line, highlight=False, soft_wrap=True)


def _answers(rows: list[tuple[str, Summary]], report: Report) -> Table:
    """Narrow enough for 80 columns. "right": share of right answers by either model alone, and as multiplexed."""
    about = f"{report.bundle}, link {report.link}, {report.rate_per_s:g} requests/s"
    table = Table(title=about, title_justify="left", box=box.SIMPLE_HEAD, padding=0, pad_edge=False)
    table.add_column("phase", no_wrap=True)
    routes = [route for route, count in report.routes.items() if count or route != "split"]
    shares = ("off-\nload\n%", "right\nedge\n%", "right\ncloud\n%", "right\nmux\n%")
    for column in ("sent", *routes, *shares, "p50\nms", "p95\nms", "p99\nms", "late", "err"):
        table.add_column(column, justify="right", no_wrap=True)
    for title, summary in rows:
        accuracy = summary.accuracy
        shown = (summary.offload_share, accuracy.edge_only, accuracy.cloud_only, accuracy.multiplexed)
        table.add_row(title, *_counts(summary, routes), *(f"{share * 100:.1f}" for share in shown), *_times(summary))
    table.add_section()
    # Shares under different conditions make no meaningful mean: the totals leave them out.
    table.add_row("all", *_counts(report, routes), *("" for _ in shares), *_times(report))
    return table


def _routes(rows: list[tuple[str, Summary]], report: Report) -> Table:
    """What each route gave: of the whole run, and of those phases in which splits were taken."""
    table = Table(title="answers by route", title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("phase", no_wrap=True)
    table.add_column("route")
    columns = ("answers", "right\n%", "right\nedge %", "right\ncloud %", "p50\nms", "p99\nms", "bytes")
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    for title, summary in (*(row for row in rows if row[1].routes["split"]), ("all", report)):
        shown = title
        for route, found in summary.by_route.items():
            if found.answers:
                table.add_row(shown, route, *_cells(found))
                shown = ""
        table.add_section()
    return table


def _cells(found: ByRoute) -> list[str]:
    shares = (found.right, found.edge_only, found.cloud_only)
    size = "-" if found.bytes is None else f"{found.bytes:.0f}"
    told = ("-" if share is None else f"{share * 100:.1f}" for share in shares)
    return [str(found.answers), *told, number(found.latency_ms.p50), number(found.latency_ms.p99), size]


def _counts(summary: Summary, routes: list[str]) -> list[str]:
    return [str(summary.requests), *(str(summary.routes.get(route, 0)) for route in routes)]


def _times(summary: Summary) -> list[str]:
    taken = summary.latency_ms
    return [*(number(value) for value in (taken.p50, taken.p95, taken.p99)), str(summary.late), str(summary.errors)]


def _counted(what: str, rows: list[tuple[str, Summary]], report: Report) -> Table:
    """Answers by ``what``: "reason" or "variant", a row for each that occurred."""
    table = Table(title=f"answers by {what}", title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column(what, no_wrap=True)
    for title, _ in rows:
        table.add_column(title.replace(" ", "\n"), justify="right")
    table.add_column("all", justify="right")
    for name, total in _counts_of(report, what).items():
        table.add_row(name, *(str(_counts_of(summary, what).get(name, 0) or "") for _, summary in rows), str(total))
    return table


def _counts_of(summary: Summary, what: str) -> dict[str, int]:
    return summary.reasons if what == "reason" else summary.variants


def closing_lines(report: Report) -> list[str]:
    """What to take away, in sentences."""
    first = report.accuracy
    lines = [
        f"Normal phase: {percent(first.multiplexed)} right, {percent(first.cloud_only)} with the cloud alone, "
        f"{percent(first.edge_only)} with the device alone; {percent(1 - report.offload_share)} kept on the device.",
    ]
    lines += _of_splits(report)
    if report.cloud_compute_saved is not None:
        lines.append(f"Cloud compute saved over the whole run: {percent(report.cloud_compute_saved)}.")
    if report.errors or report.late:
        kinds = ", ".join(f"{kind} {count}" for kind, count in report.error_kinds.items())
        what = f"{report.errors} requests without an answer{f' ({kinds})' if kinds else ''}"
        lines.append(f"NOT every request was answered in time: {what}, {report.late} late.")
    else:
        deadline_ms = report.timeout_s * 1000
        lines.append(f"All {report.requests} requests were answered within their deadline of {deadline_ms:g} ms.")
    return lines


def _of_splits(report: Report) -> list[str]:
    """What splits did while the link was narrow; nothing where there were none."""
    narrow = report.phases.get(NARROW)
    if narrow is None or not narrow.routes["split"]:
        return []
    split, whole = narrow.by_route["split"], report.by_route["cloud"]
    size = "" if split.bytes is None else f", of {split.bytes:.0f} bytes each"
    size += "" if split.bytes is None or whole.bytes is None else f" and not {whole.bytes:.0f}"
    away = narrow.routes["split"] + narrow.routes["cloud"]
    right, alone, cloud = (percent(share or 0.0) for share in (split.right, split.edge_only, split.cloud_only))
    return [
        f"{_TITLES[NARROW].capitalize()}: {split.answers} of {away} answers from the cloud came by a split{size}, p50 "
        f"{number(split.latency_ms.p50)} ms; of these {right} right, {alone} with the device alone, {cloud} with the "
        "cloud alone."
    ]


def percent(share: float) -> str:
    """A share for a sentence."""
    return f"{share * 100:.1f} %"
