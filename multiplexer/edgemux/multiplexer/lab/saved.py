"""The fitted routers as policies of the agent: one line of text each, and a file for each that has weights."""

from __future__ import annotations

from pathlib import Path

from edgemux.multiplexer.certify import DEFER_ALL
from edgemux.multiplexer.errors import ConfigError
from edgemux.multiplexer.lab.routers import Scorer
from edgemux.multiplexer.learned import Router

# The learned routers that may read the device's answer alone.
NAMES = ("logistic", "appealnet", "selective-query", "gain-regression", "multiplexer")


def prepare(folder: Path) -> None:
    """Make the folder, if it may be used. Raises ConfigError when it holds anything that the lab would not write."""
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--save: {folder} is no folder")
    if '"' in str(folder):
        raise ConfigError(f"--save: {folder} has a quotation mark in its name, which a policy cannot be written with")
    foreign = sorted(path.name for path in folder.iterdir() if not _ours(path)) if folder.is_dir() else []
    if foreign:
        raise ConfigError(f"--save: {folder} holds {foreign[0]}, which is not the lab's: give a new or empty folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--save: {folder} cannot be made: {error.strerror}") from error


def _ours(path: Path) -> bool:
    return path.is_file() and path.suffix == ".npz" and path.stem in NAMES


def save(fitted: dict[str, Scorer], prices: dict[str, float], folder: Path) -> dict[str, str]:
    """Write the nets of the routers that have a price, instead of any before, and return all policies, name to text."""
    try:
        for name in NAMES:
            _file(folder, name).unlink(missing_ok=True)
        for name, price in prices.items():
            scorer = fitted[name]
            if scorer.net is not None and scorer.reads is not None:
                Router(scorer.net, scorer.reads, price).write(_file(folder, name))
    except OSError as error:
        raise ConfigError(f"--save: {folder} cannot be written: {error.strerror}") from error
    return {name: policy(fitted[name], price, folder) for name, price in prices.items()}


def policy(scorer: Scorer, price: float, folder: Path) -> str:
    """The policy that defers what this router scores above the price."""
    if scorer.written is not None:
        return scorer.written(price)
    return f'learned(weights="{_file(folder, scorer.name)}")'


def notes(prices: dict[str, float]) -> list[str]:
    """What could not be saved, and what could not be certified."""
    unsaved = [name for name in NAMES if name not in prices]
    nothing = [name for name, price in prices.items() if price == DEFER_ALL]
    return [
        *([f"Not saved, since they read the inputs too: {', '.join(unsaved)}."] if unsaved else []),
        *([f"Nothing is certified for {', '.join(nothing)}: as saved, they defer everything."] if nothing else []),
    ]


def _file(folder: Path, name: str) -> Path:
    return folder / f"{name}.npz"
