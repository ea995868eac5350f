"""A real Prometheus on a free port of this machine, with the repository's rules, and its HTTP API."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import yaml

RULES = Path(__file__).parents[3] / "deploy" / "prometheus" / "rules"
PATIENCE_S = 30.0
USUAL_SCRAPE_S = 15.0
SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"(\d+)([smhd])")
_WINDOW = re.compile(r"\[(\d+[smhd])\]")


class Refused(Exception):
    """Prometheus does not answer a query; its own words."""


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Prometheus(msgspec.Struct, frozen=True):
    """Its API, at ``url``."""

    url: str

    def ask(self, path: str, **parameters: Any) -> Any:
        """The data of an answer. Raises Refused."""
        query = urllib.parse.urlencode(parameters)
        try:
            with urllib.request.urlopen(f"{self.url}/api/v1/{path}?{query}", timeout=PATIENCE_S) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            with error:
                raise Refused(json.load(error).get("error", error.reason)) from error

    def over(self, expression: str, start_s: float, end_s: float, step_s: float) -> Any:
        """query_range's data."""
        return self.ask("query_range", query=expression, start=start_s, end=end_s, step=step_s)

    def at(self, expression: str, time_s: float) -> Any:
        """An instant query's result."""
        return self.ask("query", query=expression, time=time_s)["result"]

    def labels(self, metric: str) -> frozenset[str] | None:
        """The labels that the series of a metric have or had; None for a metric that was never seen."""
        found = self.ask("labels", **{"match[]": metric})
        return frozenset(found) - {"__name__"} if found else None


def quicker(duration: str, pace: float) -> str:
    """A duration like 5m, divided, in whole milliseconds."""
    found = _DURATION.fullmatch(duration)
    if found is None:
        raise ValueError(f"not a duration: {duration}")
    return f"{float(found[1]) * SECONDS[found[2]] / pace * 1000:.0f}ms"


def rules_for(folder: Path, scrape_s: float) -> list[str]:
    """Copies of the repository's rules for scrapes that come so often. Their file names.

    The rules are made for scrapes every 15 s: all their durations, windows and patience alike, are shortened as the
    scrapes are. So an alert that waits five minutes waits for as many scrapes as it would.
    """
    names = []
    pace = USUAL_SCRAPE_S / scrape_s
    for path in sorted(RULES.glob("*.yml")):
        whole = yaml.safe_load(path.read_text())
        for group in whole["groups"]:
            group["interval"] = f"{scrape_s:g}s"
            for rule in group["rules"]:
                rule["expr"] = _WINDOW.sub(lambda found: f"[{quicker(found[1], pace)}]", rule["expr"])
                if "for" in rule:
                    rule["for"] = quicker(rule["for"], pace)
        (folder / path.name).write_text(yaml.safe_dump(whole, sort_keys=False))
        names.append(path.name)
    return names


@contextlib.contextmanager
def prometheus(
    folder: Path, jobs: Mapping[str, Mapping[str, str]], ca: Path, scrape_s: float = 1.0
) -> Iterator[Prometheus]:
    """A Prometheus that keeps its data in ``folder``. ``jobs``: by job, the address of each instance by its name.

    ca: whose certificates the instances show.
    """
    port = free_port()
    config = {
        "global": {"scrape_interval": f"{scrape_s:g}s", "evaluation_interval": f"{scrape_s:g}s"},
        "rule_files": rules_for(folder, scrape_s),
        "scrape_configs": [
            {
                "job_name": job,
                "scheme": "https",
                "tls_config": {"ca_file": str(ca)},
                "static_configs": [
                    {"targets": [address], "labels": {"instance": name}} for name, address in instances.items()
                ],
            }
            for job, instances in jobs.items()
        ],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    command = ["prometheus", f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}"]
    command += [f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn"]
    with (folder / "prometheus.log").open("w+") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            _await_ready(f"http://127.0.0.1:{port}/-/ready", process)
            yield Prometheus(f"http://127.0.0.1:{port}")
        finally:
            process.terminate()


def _await_ready(url: str, process: subprocess.Popen[bytes]) -> None:
    end_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < end_s and process.poll() is None:
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=1.0):
            return
        time.sleep(0.1)
    raise RuntimeError("Prometheus does not become ready; see prometheus.log")
