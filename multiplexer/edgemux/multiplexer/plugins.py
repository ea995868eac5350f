"""Plug-ins by name, from entry points, imported on use; ours are found in the same way."""

from __future__ import annotations

from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from edgemux.multiplexer.errors import ConfigError


@cache
def _installed(group: str) -> tuple[EntryPoint, ...]:
    """Looked up once: it reads the metadata of every installed package."""
    return tuple(entry_points(group=group))


def names(group: str) -> list[str]:
    """Names of the plug-ins installed for a group."""
    return sorted({entry.name for entry in _installed(group)})


def load(group: str, name: str) -> Any:
    """Import the plug-in ``name`` of ``group``. Raises ConfigError that lists what is installed."""
    for entry in _installed(group):
        if entry.name == name:
            try:
                return entry.load()
            except (ImportError, AttributeError) as error:
                raise ConfigError(f"plug-in {name!r} of {group} cannot be imported") from error
    raise ConfigError(f"{group}: no plug-in {name!r}, installed: {', '.join(names(group)) or 'none'}")
