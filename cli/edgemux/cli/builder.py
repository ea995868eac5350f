"""`edgemux build`: a recipe, or what the options say instead of one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec
from rich.progress import Progress

from edgemux.compression.build import build, build_own
from edgemux.compression.own import plan
from edgemux.multiplexer.errors import ConfigError


class Run(msgspec.Struct, frozen=True):
    """Where to, how long, from where, and what shows how far it is."""

    out: Path | None
    quick: bool
    work: Path | None
    progress: Progress

    def tell(self, line: str) -> None:
        """Print a line above the bars."""
        self.progress.console.print(line, highlight=False, markup=False, soft_wrap=True)


class About(msgspec.Struct, frozen=True):
    """The options that say more about a user's models; None for the default."""

    labels: str | None
    name: str | None
    version: str
    alpha: float
    delta: float


def by_recipe(recipe: Path, models_of: Path | None, run: Run) -> Path:
    """Build what a recipe says, with the models of a bundle if one is given; the bundle's folder."""
    return build(recipe, run.out, run.quick, run.work, run.progress, run.tell, models_of)


def of_yours(paths: Mapping[str, Path | None], about: About, run: Run) -> Path:
    """Build a bundle of the models and inputs in ``paths``, by option. Raises ConfigError naming an option."""
    given: dict[str, str] = {}
    for option, path in paths.items():
        if path is None:
            raise ConfigError(f"build: {option} is needed too")
        given[option] = str(path)
    fields = {
        "name": about.name if about.name is not None else plan.name_of(Path(given["--cloud"])),
        "models": {"device": given["--edge"], "cloud": given["--cloud"]},
        "inputs": {"path": given["--inputs"], "labels": about.labels},
        "certify": {"alpha": [about.alpha], "delta": about.delta},
        "pack": {"version": about.version},
    }
    try:
        made = msgspec.convert(fields, plan.Plan)
    except msgspec.ValidationError as error:
        raise ConfigError(f"build: {error}") from error
    return build_own(made, run.out, run.quick, run.work, run.progress, run.tell)
