"""Where things go: the user's cache, and folders that are replaced as a whole."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgemux.multiplexer.errors import ConfigError


def cache(name: str) -> Path:
    """The folder ``name`` of our part of the user's cache (XDG Base Directory); it may not be there yet."""
    root = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(root) / "edgemux" / name


def check_place(out: Path, marker: str, otherwise: str) -> None:
    """Raises ConfigError for a place that holds anything but an older one, which is known by its file ``marker``.

    Also where nothing may be written, before any work is done.

    otherwise: what a place without the marker is, in words.
    """
    if out.is_file() or (out.is_dir() and any(out.iterdir()) and not (out / marker).is_file()):
        raise ConfigError(f"{out}: is there and is {otherwise}; it is left alone")
    above = next(folder for folder in out.absolute().parents if folder.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise ConfigError(f"{out}: no folder can be made in {above}")


@contextmanager
def replacing(out: Path) -> Iterator[Path]:
    """An empty folder beside ``out`` to write into; it takes the place of ``out``, or is gone if something is raised.

    Raises ConfigError where no folder can be.
    """
    place = out.resolve()  # of a link, what it leads to
    part = place.with_name(f"{place.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir(parents=True)
    except OSError as error:
        raise ConfigError(f"{out}: no folder can be made there ({error.strerror})") from error
    try:
        yield part
        shutil.rmtree(place, ignore_errors=True)
        try:
            part.replace(place)
        except OSError as error:
            raise ConfigError(f"{out}: cannot be replaced ({error.strerror})") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
