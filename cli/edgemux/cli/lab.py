"""`edgemux lab`: from files to a table, a page, or JSON."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import torch
from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from edgemux.multiplexer.errors import ConfigError
from edgemux.multiplexer.lab.page import page
from edgemux.multiplexer.lab.pairs import RunModels, SavedLogits, splits_of
from edgemux.multiplexer.lab.results import Options, Study
from edgemux.multiplexer.lab.saved import prepare
from edgemux.multiplexer.lab.study import check, study
from edgemux.multiplexer.lab.table import HEADERS, figures_of, policy_lines, sentences


class Files(msgspec.Struct, frozen=True):
    """What to look at: saved logits, or two models with inputs."""

    data: Path | None = None
    edge: Path | None = None
    cloud: Path | None = None
    inputs: Path | None = None
    labels: Path | None = None


def look(files: Files, options: Options, out: Path, console: Console, save: Path | None = None) -> Study:
    """Fit and judge every router, write the page to ``out`` and what an agent can run to ``save``.

    Raises ConfigError or InputError for what does not fit.
    """
    check_out(out)
    source = _source(files)
    check(options, source.labelled)
    if files.data is not None and (options.device_ms is None) != (options.cloud_ms is None):
        raise ConfigError("lab: --edge-ms and --cloud-ms are needed both, or neither")
    if save is not None:
        prepare(save)
    # Nets this small are slower on many threads.
    torch.set_num_threads(1)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        reading = progress.add_task("reading", total=1.0)
        splits = splits_of(source, options.seed, lambda done: progress.update(reading, completed=done))
        if isinstance(source, RunModels):
            device_ms, cloud_ms = source.times_ms()
            splits = splits.timed(device_ms, cloud_ms)
        fitting = progress.add_task("routers", total=1.0)
        found, pictures = study(splits, options, lambda done: progress.update(fitting, completed=done), save)
    try:
        out.write_text(page(found, pictures, "edgemux lab"), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--out: {out} cannot be written ({error.strerror})") from error
    return found


def check_out(out: Path) -> None:
    """Raises ConfigError when the page cannot be written there, before minutes are spent on it."""
    if os.path.isdir(out) or not os.path.isdir(out.parent):
        raise ConfigError(f"--out: {out} is not a file in a folder that exists")
    if not os.access(out if out.exists() else out.parent, os.W_OK):
        raise ConfigError(f"--out: {out} may not be written")


def _source(files: Files) -> SavedLogits | RunModels:
    if files.data is not None:
        if any(part is not None for part in (files.edge, files.cloud, files.inputs, files.labels)):
            raise ConfigError("lab: give either --data, or --edge, --cloud and --inputs")
        return SavedLogits(files.data)
    if files.edge is None or files.cloud is None or files.inputs is None:
        raise ConfigError("lab: give either --data, or all of --edge, --cloud and --inputs")
    return RunModels(files.edge, files.cloud, files.inputs, files.labels)


def print_study(found: Study, out: Path, console: Console) -> None:
    """The table, and the sentences around it."""
    first, second, *rest = sentences(found)
    for line in (first, second):
        console.print(line, highlight=False, soft_wrap=True)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for number, name in enumerate(HEADERS):
        table.add_column(name, justify="right" if number else "left", no_wrap=True)
    for name, judged in found.routers.items():
        table.add_row(*figures_of(name, judged), style="bold" if name == found.chosen else None)
    console.print(table)
    for line in (*rest, f"The report with plots: {out}"):
        console.print(line, highlight=False, soft_wrap=True)
    for line in policy_lines(found):
        console.print(line, highlight=False, soft_wrap=True, markup=False, emoji=False)
