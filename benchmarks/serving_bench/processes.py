"""What a server's processes use, from /proc: CPU seconds and memory of a whole tree."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class Use(NamedTuple):
    """cpu_s: since the start, of all that still run or were waited for; memory_mb: proportional, so shared pages once."""

    cpu_s: float
    memory_mb: float


def tree(root: int) -> list[int]:
    """A process and all that descend from it, or have been left behind in its session."""
    parents: dict[int, int] = {}
    sessions: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            fields = _stat(int(entry.name))
            if fields:
                parents[int(entry.name)], sessions[int(entry.name)] = int(fields[1]), int(fields[3])
    found = {root}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return sorted(found | {pid for pid, session in sessions.items() if session == root})


def _stat(pid: int) -> list[str]:
    """The fields after the name, which may hold blanks: state, parent, group, session, ..."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def use(root: int) -> Use:
    """Of the tree at this moment."""
    ticks, kilobytes = 0, 0
    for pid in tree(root):
        fields = _stat(pid)
        if fields:
            ticks += sum(int(each) for each in fields[11:15])  # own user and system time, and the waited-for children's
            kilobytes += _kilobytes(pid)
    return Use(ticks / TICKS_PER_S, kilobytes / 1024)


def _kilobytes(pid: int) -> int:
    for name, key in (("smaps_rollup", "Pss:"), ("status", "VmRSS:")):
        try:
            lines = Path(f"/proc/{pid}/{name}").read_text().splitlines()
        except OSError:
            continue
        for line in lines:
            if line.startswith(key):
                return int(line.split()[1])
    return 0
