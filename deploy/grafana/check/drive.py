"""Drives the scenario and asks every panel: python -m deploy.grafana.check.drive [--out FILE], from the root.

FILE gets, for every target of every panel, what Prometheus answered, as it came. Exit status 1 where a panel fails.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import msgspec
import yaml

from deploy.grafana.check.scenario import Run, as_json, driven
from deploy.grafana.check.server import RULES
from deploy.grafana.check.verdict import Answer, alert_faults, answers, unexpected
from deploy.grafana.generate import FOLDER, PAGES

# Targets that may be empty on a machine like the one of the check, by name, and why.
EXCEPTIONS: dict[str, str] = {}


def committed() -> list[dict[str, Any]]:
    """The dashboards as they are committed."""
    return [json.loads((FOLDER / f"{name}.json").read_text()) for name in PAGES]


def judged(run: Run) -> tuple[list[Answer], list[str]]:
    """Every target of every panel, and a line for everything that is wrong, the rules' expressions included."""
    found = [answer for dashboard in committed() for answer in answers(dashboard, run.server, run.span)]
    groups = [group for path in sorted(RULES.glob("*.yml")) for group in yaml.safe_load(path.read_text())["groups"]]
    return found, unexpected(found, EXCEPTIONS) + alert_faults(groups, run.server)


def main() -> int:
    """Run it and say what is wrong."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--out", type=Path, help="a file for what Prometheus answered, as JSON")
    options.add_argument("--keep", type=Path, help="an empty folder for logs and Prometheus' data")
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory() as scratch, driven(chosen.keep or Path(scratch)) as run:
        found, faults = judged(run)
        if chosen.out is not None:
            chosen.out.write_bytes(msgspec.json.encode(as_json(run, found)))
    for line in faults:
        print(line)
    print(f"{len(found)} targets, {len(faults)} faults, {run.span.end_s - run.span.start_s:.0f} s")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
