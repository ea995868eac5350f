"""Whether a process holds on to anything for good: memory, files and threads, seen while it serves."""

from __future__ import annotations

import os
import statistics
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

PAGE_BYTES = os.sysconf("SC_PAGESIZE")
# Arenas and caches of a process that leaks nothing still move by some pages. A leak of 100 bytes a request, less than
# any object of Python takes, is 5 MB over the half of a hundred thousand requests that is looked at.
MOST_GROWTH_BYTES = 4 * 2**20


class Sample(msgspec.Struct, frozen=True):
    """What a process held at one time."""

    resident_bytes: int
    files: int
    threads: int


def look(pid: int) -> Sample:
    """What a process holds now."""
    proc = Path(f"/proc/{pid}")
    resident = int((proc / "statm").read_text().split()[1]) * PAGE_BYTES
    return Sample(resident, len(os.listdir(proc / "fd")), len(os.listdir(proc / "task")))


def growth(samples: Sequence[Sample], of: Callable[[Sample], int]) -> float:
    """From the second quarter of the time to the last: the difference of the medians. The first is for warming up."""
    quarter = len(samples) // 4
    early = statistics.median(of(sample) for sample in samples[quarter : 2 * quarter])
    return statistics.median(of(sample) for sample in samples[-quarter:]) - early


def held(samples: Sequence[Sample]) -> list[str]:
    """What the process holds more and more of; at least eight samples are needed."""
    assert len(samples) >= 8
    resident = growth(samples, lambda sample: sample.resident_bytes)
    files = growth(samples, lambda sample: sample.files)
    threads = growth(samples, lambda sample: sample.threads)
    found = []
    if resident > MOST_GROWTH_BYTES:
        found.append(f"{resident / 2**20:.1f} MB of memory")
    if files > 2:  # a connection more or less
        found.append(f"{files:g} files")
    if threads > 1:
        found.append(f"{threads:g} threads")
    return found


class Watch:
    """Looks at a process every so often, in a thread, within its block."""

    def __init__(self, pid: int, interval_s: float) -> None:
        self.samples: list[Sample] = []
        self._pid = pid
        self._interval_s = interval_s
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.wait(self._interval_s):
            self.samples.append(look(self._pid))
