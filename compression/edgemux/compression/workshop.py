"""Stages that are done once: each leaves its results in a folder named by what it depends on.

The key of a stage is a digest of recipe values and of the stages before it, never of code: an interrupted build
resumes, and a changed alpha does not train the cloud model again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from rich.progress import Progress

from edgemux.compression.recipe import digest

if TYPE_CHECKING:
    from edgemux.compression.fit import Tick

Make = Callable[[Path, "Tick"], None]
DONE = "done"
ELAPSED = "elapsed.json"
SAVE_EVERY_S = 5.0


class Workshop:
    """Runs stages below one folder and remembers how long each took, interrupted runs included."""

    def __init__(self, folder: Path, progress: Progress | None = None) -> None:
        self.folder = folder
        self.progress = progress
        self.seconds: dict[str, float] = {}

    def stage(self, name: str, make: Make, *depends_on: object) -> Path:
        """The folder with the results of a stage; ``make(folder, tick)`` fills it unless that was done before."""
        folder = self.folder / f"{name}-{digest(name, *depends_on)[:16]}"
        folder.mkdir(parents=True, exist_ok=True)
        bar = self.progress.add_task(name, total=1.0) if self.progress else None
        clock = _Clock(folder / ELAPSED)

        def tick(done: float) -> None:
            clock.save()
            if self.progress and bar is not None:
                self.progress.update(bar, completed=done)

        if not (folder / DONE).exists():
            make(folder, tick)
            clock.save(force=True)
            (folder / DONE).touch()
        if self.progress and bar is not None:
            self.progress.update(bar, completed=1.0)
        self.seconds[name] = clock.total_s()
        return folder


class _Clock:
    """Seconds spent on a stage over all its runs, kept in a file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._before_s = float(json.loads(path.read_text())) if path.is_file() else 0.0
        self._start_s = self._saved_s = time.monotonic()

    def save(self, force: bool = False) -> None:
        now_s = time.monotonic()
        if force or now_s - self._saved_s >= SAVE_EVERY_S:
            self._saved_s = now_s
            self._path.write_text(json.dumps(self._before_s + now_s - self._start_s))

    def total_s(self) -> float:
        return float(json.loads(self._path.read_text())) if self._path.is_file() else 0.0
