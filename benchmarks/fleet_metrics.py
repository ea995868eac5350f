"""What a Prometheus with our rules takes of a machine that watches a fleet, and what the recorded sums are worth.

    python benchmarks/fleet_metrics.py [--edges N] [--minutes M] [--interval S] [--json]

Needs Debian's `prometheus`. One agent answers inputs beside a cloud server, and its page is taken twice; a cheap local
server then tells that page for every agent of the fleet, with counters that move at paces of their own. A Prometheus
scrapes them all by our configuration. Half a minute: --edges 50 --minutes 0.5 --interval 2.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import yaml
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from edgemux.compression.hardware import hardware
from edgemux.edge import EdgeConfig, open_agent
from edgemux.edge.config import CloudSettings
from edgemux.multiplexer.bundle import Bundle

ROOT = Path(__file__).resolve().parents[1]
PROMETHEUS = ROOT / "deploy" / "prometheus"
STARTER = ROOT / "deploy" / "bundles" / "fashion-mnist"
INPUTS = 600
INPUTS_PER_S = 10.0  # of each agent in the fleet, on average
# Work is repeated until it has taken so much CPU, in all: the kernel counts in hundredths of a second.
SEEN_S = 0.3
MOST_ROUNDS = 40
# What the fleet's panels ask for, from the recorded sums and from the agents' own series.
QUESTIONS = {
    "inputs a second, by route and reason": (
        "model_route_reason:edgemux_requests:rate5m",
        "sum by (model, route, reason) (rate(edgemux_requests_total[5m]))",
    ),
    "offload share": (
        "fleet:edgemux_offload:ratio_rate5m",
        'sum(rate(edgemux_requests_total{route="cloud"}[5m])) / sum(rate(edgemux_requests_total[5m]))',
    ),
    "p99 by route": (
        "model_route:edgemux_request_duration_seconds:p99_rate5m",
        "histogram_quantile(0.99, sum by (model, route, le) (rate(edgemux_request_duration_seconds_bucket[5m])))",
    ),
    "p99 by stage": (
        "stage:edgemux_stage_duration_seconds:p99_rate5m",
        "histogram_quantile(0.99, sum by (stage, le) (rate(edgemux_stage_duration_seconds_bucket[5m])))",
    ),
    "certificates by standing": (
        "model_standing:edgemux_certificate:sum",
        "sum by (model, standing) (edgemux_certificate)",
    ),
    "hottest, emptiest, busiest": ("sensor:edgemux_resource:max", "max by (sensor) (edgemux_resource)"),
    "breakers not closed": ("fleet:edgemux_breakers_not_closed:sum", "sum(edgemux_breaker_state > bool 0)"),
    "the ten agents that offload most": (
        "topk(10, instance:edgemux_offload:ratio_rate5m)",
        'topk(10, sum by (instance) (rate(edgemux_requests_total{route="cloud"}[5m])) '
        "/ sum by (instance) (rate(edgemux_requests_total[5m])))",
    ),
}


# --- the page of one agent ------------------------------------------------------------------------------------------
@contextlib.contextmanager
def cloud() -> Iterator[str]:
    """A cloud server as a process of its own: its address."""
    ports = ["--grpc-port", "0", "--http-port", "0", "--metrics-port", "0"]
    command = [sys.executable, "-m", "edgemux.cli.main", "cloud", "--bundle", str(STARTER), *ports]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as popen:
        try:
            assert popen.stdout is not None
            found = re.search(r" grpc=(\S+)", popen.stdout.readline())
            assert found is not None
            yield found[1]
        finally:
            popen.terminate()


async def two_pages(address: str) -> tuple[str, str]:
    """What an agent shows before and after it has answered INPUTS inputs."""
    images = np.load(STARTER / str(Bundle.open(STARTER).manifest.samples))["images"]
    there = CloudSettings(address=address)
    async with open_agent(EdgeConfig(bundle=STARTER, cloud=there, audit_share=0.05)) as agent:
        pages = []
        for half in range(2):
            for number in range(INPUTS):
                at = (half * INPUTS + number) % len(images)
                await agent.infer({"image": images[at : at + 1]})
            await asyncio.sleep(0.5)  # the gauges are brought up to date ten times a second
            pages.append(generate_latest(agent.metrics.registry).decode())
    return pages[0], pages[1]


class Template:
    """A page as a text with a gap for every counter, and what stands there after one input more."""

    def __init__(self, before: str, after: str) -> None:
        counters = {f.name for f in text_string_to_metric_families(after) if f.type in ("counter", "histogram")}
        old = dict(line.rsplit(" ", 1) for line in before.splitlines() if line[0] != "#")
        lines: list[str] = []
        self.first, self.step = [], []
        for line in after.splitlines():
            name, _, value = line.rpartition(" ")
            family = re.sub(r"(_total|_bucket|_sum|_count)?(\{.*)?$", "", name)
            if line[0] == "#" or family not in counters:
                lines.append(line.replace("%", "%%"))
                continue
            lines.append(name.replace("%", "%%") + " %.6g")
            self.first.append(float(value))
            self.step.append((float(value) - float(old.get(name, 0.0))) / INPUTS)
        self.text = "\n".join(lines) + "\n"
        self.series = sum(line[0] != "#" for line in lines)

    def page(self, inputs: float) -> bytes:
        """The page after so many inputs more."""
        return (self.text % tuple(f + s * inputs for f, s in zip(self.first, self.step, strict=True))).encode()


@contextlib.asynccontextmanager
async def fleet(template: Template, edges: int) -> AsyncIterator[int]:
    """Tell the page of agent n at /n: the port. Each has a pace of its own, and none has slept at the start."""
    chance = random.Random(7)
    paces = [INPUTS_PER_S * chance.uniform(0.2, 1.8) for _ in range(edges)]
    began = time.monotonic()

    async def tell(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                number = int(head.split(b" ", 2)[1].strip(b"/"))
                body = template.page(paces[number] * (time.monotonic() - began))
                writer.write(
                    b"HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4\r\nContent-Length: %d\r\n\r\n"
                    % len(body)
                )
                writer.write(body)
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(tell, "127.0.0.1", 0, backlog=1024)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


# --- the Prometheus that watches them -------------------------------------------------------------------------------
def configure(folder: Path, port: int, edges: int, interval_s: float) -> Path:
    """Our configuration and rules, with the fleet as its targets and, where asked, another interval."""
    shutil.copytree(PROMETHEUS, folder, dirs_exist_ok=True)
    path = folder / "prometheus.yml"
    config = yaml.safe_load(path.read_text())
    config["global"] |= {f"{name}_interval": f"{int(interval_s * 1000)}ms" for name in ("scrape", "evaluation")}
    config["global"]["scrape_timeout"] = f"{int(min(5.0, interval_s) * 1000)}ms"
    path.write_text(yaml.safe_dump(config))
    targets = [
        {"targets": [f"127.0.0.1:{port}"], "labels": {"instance": f"edge-{n}", "__metrics_path__": f"/{n}"}}
        for n in range(edges)
    ]
    (folder / "targets" / "edge.yml").write_text(yaml.safe_dump(targets))
    (folder / "targets" / "cloud.yml").write_text("[]\n")
    return path


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


@contextlib.contextmanager
def prometheus(config: Path) -> Iterator[tuple[str, psutil.Process]]:
    """A running Prometheus with no past: its address, and its process."""
    address = f"127.0.0.1:{free_port()}"
    store = config.parent / "data"
    flags = [f"--config.file={config}", f"--storage.tsdb.path={store}", f"--web.listen-address={address}"]
    with (config.parent / "log").open("wb") as log, subprocess.Popen(["prometheus", *flags], stderr=log) as popen:
        try:
            yield f"http://{address}", psutil.Process(popen.pid)
        finally:
            popen.terminate()


def get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=60) as answer:
        return answer.read()


def ask(base: str, expression: str, at_s: float, minutes: float = 0.0) -> tuple[int, int]:
    """The samples that a query reads, and how many series it gives; over a range where ``minutes`` are given."""
    how: dict[str, Any] = {"query": expression, "stats": "all"}
    how |= {"start": at_s - 60 * minutes, "end": at_s, "step": 15} if minutes else {"time": at_s}
    url = f"{base}/api/v1/query{'_range' if minutes else ''}?{urllib.parse.urlencode(how)}"
    answer = json.loads(get(url))["data"]
    return answer["stats"]["samples"]["totalQueryableSamples"], len(answer["result"])


def cpu_ms(process: psutil.Process, work: Callable[[], object]) -> float:
    """CPU milliseconds that a piece of work takes a server which does nothing else: rounds until they can be seen.

    Unlike wall time it is hardly moved by what else the machine does.
    """
    began, rounds = process.cpu_times(), 0
    while True:
        work()
        rounds += 1
        now = process.cpu_times()
        used_s = now.user + now.system - began.user - began.system
        if used_s >= SEEN_S or rounds >= MOST_ROUNDS:
            return 1000 * used_s / rounds


def told(base: str) -> dict[str, float]:
    """Prometheus' own metrics."""
    lines = (line for line in get(f"{base}/metrics").decode().splitlines() if line[0] != "#")
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


def value_of(base: str, expression: str) -> float:
    found = json.loads(get(f"{base}/api/v1/query?{urllib.parse.urlencode({'query': expression})}"))["data"]["result"]
    return float(found[0]["value"][1]) if found else float("nan")


def look(base: str, process: psutil.Process) -> dict[str, Any]:
    """How the Prometheus is that has watched the fleet for a while."""
    own = told(base)
    groups = json.loads(get(f"{base}/api/v1/rules"))["data"]["groups"]
    return {
        "up": value_of(base, 'sum(up{job="edgemux-edge"})'),
        "head_series": int(own["prometheus_tsdb_head_series"]),
        "resident_mb": round(process.memory_info().rss / 2**20),
        "scrape_s": [round(value_of(base, f"quantile({q}, scrape_duration_seconds)"), 4) for q in (0.5, 0.99)],
        "rule_groups_s": {group["name"]: round(group["evaluationTime"], 2) for group in groups},
        "evaluations_missed": sum(v for k, v in own.items() if k.startswith("prometheus_rule_group_iterations_missed")),
    }


def weigh(base: str, process: psutil.Process, at_s: float, minutes: float) -> dict[str, Any]:
    """What the rules and the panels' questions take of a Prometheus that has the same data and nothing else to do."""
    rules = [
        rule
        for path in sorted((PROMETHEUS / "rules").glob("*.yml"))
        for group in yaml.safe_load(path.read_text())["groups"]
        for rule in group["rules"]
    ]
    costs = {}
    for rule in rules:
        costs[rule.get("record") or rule["alert"]] = cpu_ms(process, partial(ask, base, rule["expr"], at_s))
    questions = {}
    for what, ways in QUESTIONS.items():
        row = questions[what] = dict[str, list[float]](samples=[], series=[], ms=[], range_ms=[])
        for expression in ways:
            samples, series = ask(base, expression, at_s)
            row["samples"].append(samples)
            row["series"].append(series)
            row["ms"].append(round(cpu_ms(process, partial(ask, base, expression, at_s)), 1))
            row["range_ms"].append(round(cpu_ms(process, partial(ask, base, expression, at_s, minutes)), 1))
    dearest = sorted(costs, key=lambda name: -costs[name])[:5]
    return {
        "evaluation_cpu_s": round(sum(costs.values()) / 1000, 2),
        "dearest_ms": {name: round(costs[name]) for name in dearest},
        "questions": questions,
    }


async def watched(edges: int, minutes: float, interval_s: float) -> dict[str, Any]:
    """The whole run."""
    with cloud() as address:
        before, after = await two_pages(address)
    template = Template(before, after)
    seen: dict[str, Any] = {"edges": edges, "minutes": minutes, "interval_s": interval_s}
    seen["series_of_a_page"] = template.series
    with tempfile.TemporaryDirectory(prefix="edgemux-fleet-") as folder:
        config = Path(folder) / "prometheus.yml"
        async with fleet(template, edges) as port:
            configure(Path(folder), port, edges, interval_s)
            with prometheus(config) as (base, process):
                await asyncio.sleep(60 * minutes / 2)
                cpu, began = process.cpu_times(), time.monotonic()
                await asyncio.sleep(60 * minutes / 2)
                later, elapsed = process.cpu_times(), time.monotonic() - began
                used_s = later.user + later.system - cpu.user - cpu.system
                seen |= {"cpu_cores": round(used_s / elapsed, 3)} | await asyncio.to_thread(look, base, process)
                at_s = time.time()
        config.write_text("global: {}\n")
        with prometheus(config) as (base, process):
            wait_until_ready(base)
            return seen | weigh(base, process, at_s, minutes)


def wait_until_ready(base: str) -> None:
    """A Prometheus first reads again what it had in memory."""
    for _ in range(600):
        with contextlib.suppress(OSError):
            get(f"{base}/-/ready")
            return
        time.sleep(0.5)
    raise SystemExit("prometheus does not become ready")


def show(seen: dict[str, Any]) -> None:
    """For people."""
    print(
        f"{seen['edges']} agents of {seen['series_of_a_page']} series, every {seen['interval_s']:g} s, for "
        f"{seen['minutes']:g} min\nup: {seen['up']:g}; head series: {seen['head_series']:,}; resident: "
        f"{seen['resident_mb']} MB; CPU: {seen['cpu_cores']} cores; a scrape: {seen['scrape_s'][0]} s, "
        f"p99 {seen['scrape_s'][1]} s\nall rules once: {seen['evaluation_cpu_s']} s of CPU; by the clock, s: "
        + ", ".join(f"{name} {seconds}" for name, seconds in seen["rule_groups_s"].items())
        + f"; evaluations missed: {seen['evaluations_missed']:g}\ndearest rules, ms of CPU: "
        + ", ".join(f"{name} {ms}" for name, ms in seen["dearest_ms"].items())
    )
    print("\n| what a panel asks | samples read: sums, agents | ms of CPU: sums, agents | for the whole time |")
    print("|---|---|---|---|")
    for what, row in seen["questions"].items():
        assert row["series"][0] == row["series"][1], f"{what}: {row['series']} series"
        pairs = [f"{row[key][0]:,}, {row[key][1]:,}" for key in ("samples", "ms", "range_ms")]
        print(f"| {what} | {' | '.join(pairs)} |")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--edges", type=int, default=1000)
    parser.add_argument("--minutes", type=float, default=4.0)
    parser.add_argument("--interval", type=float, default=15.0, help="between scrapes, seconds; ours is 15")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if shutil.which("prometheus") is None:
        print("prometheus is missing; on Debian: apt install --no-install-recommends prometheus", file=sys.stderr)
        return 2
    seen = asyncio.run(watched(options.edges, options.minutes, options.interval))
    if options.json:
        print(json.dumps({"hardware": hardware(), **seen}))
    else:
        print(hardware())
        show(seen)
    return 0


if __name__ == "__main__":
    sys.exit(main())
