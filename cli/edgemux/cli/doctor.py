"""`edgemux doctor`: what this device has and can do, what keeps an agent from serving on it, and how to fix that."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import typer

from edgemux.cli.machine import look_at_machine, look_at_packages, machine_findings, package_findings
from edgemux.multiplexer.errors import ConfigError
from edgemux.multiplexer.findings import Finding, Findings, Grade, can_serve, verdict

_COLOURS = {Grade.OK: "green", Grade.NOTE: "yellow", Grade.PROBLEM: "red"}


def tell(config: Path | None, overrides: dict[str, Any], json: bool) -> bool:
    """Examine, and print what is found as it is found, or as one JSON object. True: an agent can serve.

    Raises ConfigError.
    """
    # What the parts would say to an agent's log is said here, once, by the findings.
    logging.getLogger("edgemux").addHandler(logging.NullHandler())
    found: list[Finding] = []
    for finding in examine(config, overrides):
        found.append(finding)
        if not json:
            _show(finding, first=len(found) < 2 or found[-2].part != finding.part)
    if json:
        typer.echo(msgspec.json.encode(report(found)).decode())
    else:
        typer.echo(f"\n{verdict(found)}")
    return can_serve(found)


def examine(config: Path | None, overrides: dict[str, Any]) -> Iterator[Finding]:
    """The machine and its packages first; the rest where an agent's code can be imported. Raises ConfigError."""
    first = [*machine_findings(look_at_machine()), *package_findings(look_at_packages())]
    if not can_serve(first):
        yield from first
        return
    try:
        from edgemux.edge.config import load
        from edgemux.edge.doctor.examination import examine as examine_agent
    except ImportError as error:
        yield from first
        found = Findings("packages")
        # A wheel of another machine, or one that was not written whole.
        found.problem(error.name or "?", "installed, but it cannot be imported", "pip install --force-reinstall", True)
        yield from found.all
        return
    served = config is not None or overrides["bundle"] is not None
    try:
        settings = load(config, overrides if served else overrides | {"bundle": "."})
    except ConfigError:
        rest = _of_a_cloud(config)
        if rest is None:
            raise
    else:
        rest = examine_agent(settings, served)
    yield from first
    yield from rest


def _of_a_cloud(config: Path | None) -> Iterator[Finding] | None:
    """The examination of a cloud server's machine, where ``config`` is its file and it is installed here."""
    try:
        from edgemux.cli.cloud_examination import examine as examine_cloud
        from edgemux.cloud.config import load

        return None if config is None else examine_cloud(load(config, {}))
    except (ImportError, ConfigError):
        return None


def report(found: Iterable[Finding]) -> dict[str, Any]:
    """For machines."""
    findings = list(found)
    counts = {grade.value: sum(finding.grade is grade for finding in findings) for grade in Grade}
    return {"serves": can_serve(findings), "counts": counts, "findings": findings}


def _show(finding: Finding, first: bool) -> None:
    """One finding, and before the first one of its part, the part. Coloured where that can be seen."""
    if first:
        typer.secho(f"\n{finding.part}", bold=True)
    grade = typer.style(f"{finding.grade.value:8}", fg=_COLOURS[finding.grade])
    typer.echo(f"  {grade}{finding.about}: {finding.says}")
    if finding.fix:
        typer.echo(f"          -> {finding.fix}")
