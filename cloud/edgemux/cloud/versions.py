"""Which versions of a model there are on the disk, and which of them are to be served."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import msgspec

from edgemux.cloud.config import ModelSettings
from edgemux.multiplexer.bundle import MANIFEST
from edgemux.multiplexer.errors import ArtifactError

# What a version's folder holds, by kind.
FILES = {"bundle": (MANIFEST,), "onnx": ("model.onnx",), "torch": ("model.pt2",)}


class Source(msgspec.Struct, frozen=True):
    """One version on the disk; version None: what a bundle says, or "1"."""

    version: str | None
    path: Path


def sources(settings: ModelSettings) -> tuple[Source, ...]:
    """The versions to serve, rising. Raises ArtifactError when there is none of them."""
    path = settings.path
    if not path.is_dir() or (settings.kind == "bundle" and (path / MANIFEST).is_file()):
        return (Source(settings.version, path),)
    found = {int(folder.name): folder for folder in path.iterdir() if _is_version(folder, settings.kind)}
    if not found:
        file = FILES[settings.kind][0]
        raise ArtifactError(f"{path.name}: holds neither {file} nor folders of versions like 1/{file}")
    wanted = chosen(found, settings.versions)
    if not wanted:
        raise ArtifactError(f"{path.name}: holds none of the versions that are to be served")
    return tuple(Source(str(number), _content(found[number], settings.kind)) for number in wanted)


def chosen(found: Iterable[int], policy: str | tuple[int, ...]) -> list[int]:
    """The versions that a policy serves out of those that were found, rising."""
    rising = sorted(found)
    if policy == "latest":
        return rising[-1:]
    if policy == "all":
        return rising
    return [number for number in rising if number in policy]


def _is_version(folder: Path, kind: str) -> bool:
    name = folder.name
    plain = name.isascii() and name.isdigit() and len(name) <= 18 and not name.startswith("0")
    return plain and any((folder / file).is_file() for file in FILES[kind])


def _content(folder: Path, kind: str) -> Path:
    if kind == "bundle":
        return folder
    return next(folder / file for file in FILES[kind] if (folder / file).is_file())


def mark(settings: ModelSettings) -> tuple[tuple[str, int, int], ...]:
    """What tells whether the files of a model have changed: names, times and sizes. Empty for another server's."""
    if settings.kind == "address":
        return ()
    try:
        paths = [source.path for source in sources(settings)]
        files = [file for path in paths for file in (sorted(path.iterdir()) if path.is_dir() else [path])]
        return tuple((str(file), file.stat().st_mtime_ns, file.stat().st_size) for file in files)
    except (ArtifactError, OSError):
        return ()
