"""Parts are imported on use: a device that has only one extra gets a line that says which other one it lacks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from edgemux.multiplexer.errors import ConfigError


@contextmanager
def extra(names: str) -> Iterator[None]:
    """For imports only: a missing package becomes a ConfigError that names the extra to install."""
    try:
        yield
    except ModuleNotFoundError as error:
        missing = (error.name or "?").partition(".")[0]
        if missing == "edgemux":
            raise
        raise ConfigError(
            f"{missing} is not installed: pip install '.[{names}]' in a checkout, or make setup"
        ) from error
