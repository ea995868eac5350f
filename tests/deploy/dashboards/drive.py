"""Drives the scenario and asks every panel: python -m tests.deploy.dashboards.drive [--out FILE], from the root.

FILE gets, for every target of every panel, what Prometheus answered, as it came. Exit status 1 where a panel fails.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import yaml

from deploy.grafana.generate import FOLDER, PAGES
from tests.deploy.dashboards.scenario import Run, driven
from tests.deploy.dashboards.server import RULES
from tests.deploy.dashboards.verdict import Answer, answers, picked, rule_faults, unexpected

# Targets that may be empty on a machine like the one of the check, by name, and why.
EXCEPTIONS: dict[str, str] = {}
# Metrics that rules read and this run does not make, and why.
UNDRIVEN = {
    "edgemux_cloud_processes": "only a cloud of several processes exports it; the one here has one, and "
    "tests/system/test_processes.py reads it from one that has two"
}


def committed() -> list[dict[str, Any]]:
    """The dashboards as they are committed."""
    return [json.loads((FOLDER / f"{name}.json").read_text()) for name in PAGES]


def judged(run: Run) -> tuple[list[Answer], list[str]]:
    """Every target of every panel, and a line for everything that is wrong, the rules' expressions included."""
    found = [answer for dashboard in committed() for answer in answers(dashboard, run.server, run.span)]
    groups = [group for path in sorted(RULES.glob("*.yml")) for group in yaml.safe_load(path.read_text())["groups"]]
    return found, unexpected(found, EXCEPTIONS) + rule_faults(groups, run.server, run.span, UNDRIVEN)


def as_json(run: Run, found: Sequence[Answer]) -> dict[str, Any]:
    """The run as plain values, for whoever draws it. picked: by dashboard, what its variables say."""
    said: dict[str, Any] = msgspec.to_builtins({"span": run.span, "acts": run.acts, "answers": found})
    words = {board["uid"]: picked(board, run.server, run.span) for board in committed()}
    return {"step_s": run.span.step_s(), "picked": words, **said}


def main() -> int:
    """Run it and say what is wrong."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--out", type=Path, help="a file for what Prometheus answered, as JSON")
    options.add_argument("--keep", type=Path, help="an empty folder for logs and Prometheus' data")
    options.add_argument("--stretch", type=float, default=1.0, help="how many times as long everything takes")
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory() as scratch, driven(chosen.keep or Path(scratch), chosen.stretch) as run:
        found, faults = judged(run)
        if chosen.out is not None:
            chosen.out.write_bytes(msgspec.json.encode(as_json(run, found)))
    for line in faults:
        print(line)
    print(f"{len(found)} targets, {len(faults)} faults, {run.span.end_s - run.span.start_s:.0f} s")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
