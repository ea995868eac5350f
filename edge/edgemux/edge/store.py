"""What the agent remembers over a restart: how much of its long-run budgets is left.

The file says whether the agent that wrote it stopped in order. While one runs, the file says that it did not: after a
crash nobody knows what was spent, so the budgets start empty, and no sequence of crashes gets more than the amount.
"""

from __future__ import annotations

import contextlib
import logging
import os
import zlib
from collections.abc import Mapping
from pathlib import Path

import msgspec

from edgemux.edge.events import StateUnwritable
from edgemux.wire.events import kind, tell

_log = logging.getLogger("edgemux.edge")

FILE = "budgets.json"
MAX_BYTES = 65536
CHECKSUM_BYTES = 9


class Kept(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The file: tokens by the budget's name, and whether they are what was left."""

    in_order: bool
    tokens: dict[str, float]


class Store:
    """The file in ``folder``, None for no memory. ``works``: whether what is spent will be known next time."""

    def __init__(self, folder: Path | None) -> None:
        self._file = None if folder is None else folder / FILE
        self.works = False

    def begin(self) -> dict[str, float] | None:
        """What the budgets hold now: None where this agent has never run, nothing where that is not known."""
        if self._file is None:
            return {}
        kept = _read(self._file)
        self.works = self._write(Kept(False, {}))
        if not self.works:
            return {}
        if kept is None:
            return None
        return dict(kept.tokens) if kept.in_order else {}

    def end(self, tokens: Mapping[str, float]) -> None:
        """The agent stops in order. Never raises: what cannot be written is not remembered."""
        if self.works:
            self.works = self._write(Kept(True, dict(tokens)))

    def _write(self, kept: Kept) -> bool:
        """Replace the file as a whole: whoever reads it finds the old or the new one."""
        assert self._file is not None
        fresh = self._file.with_suffix(".new")
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with fresh.open("wb") as file:
                file.write(_sealed(kept))
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(self._file)
            folder = os.open(self._file.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as error:
            with contextlib.suppress(OSError):
                fresh.unlink(missing_ok=True)
            tell(_log, StateUnwritable(cause=kind(error)))
            return False
        return True


def _read(file: Path) -> Kept | None:
    """What was kept, None where there is no file; a file that is damaged was not written in order."""
    try:
        with file.open("rb") as opened:
            content = opened.read(MAX_BYTES)
    except FileNotFoundError:
        return None
    except OSError:
        return Kept(False, {})
    try:
        kept = msgspec.json.decode(content[CHECKSUM_BYTES:], type=Kept)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return Kept(False, {})
    return kept if content == _sealed(kept) else Kept(False, {})


def _sealed(kept: Kept) -> bytes:
    """The file's content: a CRC-32 in hex, and JSON."""
    content = msgspec.json.encode(kept)
    return b"%08x " % zlib.crc32(content) + content
