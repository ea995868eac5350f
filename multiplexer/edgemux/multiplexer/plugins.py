"""Plug-ins by name, from entry points, imported on use; ours are found in the same way."""

from __future__ import annotations

from functools import cache
from importlib.metadata import EntryPoint, entry_points
from inspect import Parameter, signature
from typing import Any

from edgemux.multiplexer import written
from edgemux.multiplexer.errors import ConfigError
from edgemux.multiplexer.written import read


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


def make(group: str, text: str, where: str) -> Any:
    """The plug-in that ``text`` names, with the parameters it gives: ``max-softmax(threshold=0.9)``.

    A class is made with them; anything else is the plug-in itself and takes none. ``where`` opens every message.
    Raises ConfigError that names the plug-in or the parameter that is wrong, and what is there.
    """
    call = read(text, where, "plug-in", "name or name(parameter=1)")
    if call.name not in names(group):
        raise ConfigError(f"{where}: no {call.name!r} in {group}; installed: {', '.join(names(group)) or 'none'}")
    found = load(group, call.name)
    if not isinstance(found, type):
        return written.make(lambda: found, call, where, [], [])
    parameters = signature(found).parameters
    needed = [name for name, parameter in parameters.items() if parameter.default is Parameter.empty]
    return written.make(found, call, where, list(parameters), needed)
