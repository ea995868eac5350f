"""The readers of CPU, memory, heat and battery. Each is given the roots of /proc and /sys, for tests with others.

A sensor's ``read()`` returns readings by name, and leaves out what it cannot know: absent is unknown, never zero.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import psutil

SYS = Path("/sys")
PROC = Path("/proc")
# The first version of control groups writes "no limit" as the largest number of pages there could be.
NO_LIMIT_BYTES = 2.0**60
_PRESSURE = re.compile(r"^(some|full) avg10=([0-9]+\.[0-9]+) ", re.MULTILINE)


class Sensor(Protocol):
    """The plug-in protocol ``edgemux.sensors``: readings by the names of ``Readings``' fields.

    A sensor may raise, hang or say nonsense: its readings are unknown then.
    """

    def read(self) -> dict[str, float]: ...


class Cpu:
    """How busy other processes keep the CPUs that this one may use, what of them its group may have, and the wait."""

    def __init__(self, proc_root: Path = PROC, sys_root: Path = SYS) -> None:
        self._proc = proc_root
        self._sys = sys_root
        self._last: tuple[float, float, float] | None = None

    def read(self) -> dict[str, float]:
        """``cpu_count``, ``cpu_others`` from the second reading on; ``cpu_quota`` and ``cpu_pressure`` where known."""
        allowed = os.sched_getaffinity(0)
        times = psutil.cpu_times(percpu=True)
        busy = sum(sum(t) - t.idle - getattr(t, "iowait", 0.0) for n, t in enumerate(times) if n in allowed)
        # user already contains guest, so sum(t) counts guests twice; on a device that runs no guests both are 0.
        now, own = time.monotonic(), time.process_time()
        last, self._last = self._last, (now, busy, own)
        readings = {"cpu_count": float(len(allowed))}
        if last is not None and now > last[0]:
            share = ((busy - last[1]) - (own - last[2])) / ((now - last[0]) * len(allowed))
            readings["cpu_others"] = min(1.0, max(0.0, share))
        return readings | _known(
            cpu_quota=cpu_limit(self._proc, self._sys),
            cpu_pressure=_pressure(self._proc, "cpu", "some"),
        )


class Memory:
    """Memory that can still be had, in the machine and in our control group, and what waits for it or for storage."""

    def __init__(
        self,
        proc_root: Path = PROC,
        sys_root: Path = SYS,
        available: Callable[[], float] = lambda: float(psutil.virtual_memory().available),
    ) -> None:
        self._proc = proc_root
        self._sys = sys_root
        self._available = available

    def read(self) -> dict[str, float]:
        """``memory_available`` in bytes; ``memory_pressure`` and ``io_pressure`` where the kernel says."""
        rooms = [_room(folder) for folder in _groups(self._proc, self._sys, "memory")]
        return {"memory_available": min([self._available(), *(room for room in rooms if room is not None)])} | _known(
            memory_pressure=_pressure(self._proc, "memory", "full"), io_pressure=_pressure(self._proc, "io", "some")
        )


class Heat:
    """Temperature of the hottest zone, the Raspberry Pi firmware's throttling flags, the clock that is allowed."""

    def __init__(self, sys_root: Path = SYS) -> None:
        self._root = sys_root

    def read(self) -> dict[str, float]:
        """``temperature_c``, ``throttled`` (0 or 1) and ``cpu_speed``, where the kernel says."""
        readings: dict[str, float] = {}
        zones = [_number(zone) for zone in self._root.glob("class/thermal/thermal_zone*/temp")]
        # A zone that is broken must not hide one that is hot.
        degrees = [zone / 1000 for zone in zones if zone is not None and -40_000 <= zone <= 150_000]
        if degrees:
            readings["temperature_c"] = max(degrees)
        flags = firmware_flags(self._root)
        if flags is not None:
            readings["throttled"] = float(flags & 0xF != 0)
        speeds = []
        for clock in self._root.glob("devices/system/cpu/cpu[0-9]*/cpufreq"):
            allowed, highest = _number(clock / "scaling_max_freq"), _number(clock / "cpuinfo_max_freq")
            if allowed is not None and highest:
                speeds.append(min(1.0, allowed / highest))
        return readings | _known(cpu_speed=min(speeds, default=None))


class Battery:
    """Charge of the first battery, and whether it is what the device runs on."""

    def __init__(self, sys_root: Path = SYS) -> None:
        self._root = sys_root

    def read(self) -> dict[str, float]:
        """``battery`` in [0, 1] and ``discharging`` (0 or 1), where there is a battery."""
        for supply in sorted(self._root.glob("class/power_supply/*/capacity")):
            percent = _number(supply)
            if percent is not None and 0 <= percent <= 100:
                return {
                    "battery": percent / 100,
                    "discharging": float(_text(supply.parent / "status") == "Discharging"),
                }
        return {}


def cpu_limit(proc: Path = PROC, sys_root: Path = SYS) -> float | None:
    """CPUs that our control group may use, None where nothing limits it."""
    quotas = [_quota(folder) for folder in _groups(proc, sys_root, "cpu")]
    return min((quota for quota in quotas if quota is not None), default=None)


def memory_limit(proc: Path = PROC, sys_root: Path = SYS) -> float | None:
    """Bytes that our control group may hold, None where nothing limits it."""
    limits = [_memory_limit(folder)[0] for folder in _groups(proc, sys_root, "memory")]
    return min((limit for limit in limits if limit is not None), default=None)


def firmware_flags(sys_root: Path = SYS) -> int | None:
    """The Raspberry Pi firmware's flags: bits 0-3 are now, 16-19 since it booted; None on other machines.

    Under-voltage, clock capped, throttled, soft temperature limit.
    """
    flags = _number(sys_root / "devices/platform/soc/soc:firmware/get_throttled", radix=16)
    return None if flags is None else int(flags)


def _known(**values: float | None) -> dict[str, float]:
    return {name: value for name, value in values.items() if value is not None}


def _text(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return None


def _number(path: Path, radix: int = 10) -> float | None:
    try:
        return float(int(_text(path) or "", radix))
    except ValueError:
        return None


def _pressure(proc: Path, kind: str, who: str) -> float | None:
    """The share of the last ten seconds in which ``who`` ("some" or "full") waited for ``kind``."""
    found = dict(_PRESSURE.findall(_text(proc / "pressure" / kind) or ""))
    return float(found[who]) / 100 if who in found else None


def _groups(proc: Path, sys_root: Path, kind: str) -> Iterator[Path]:
    """The folders of our control group and those above it, of either version; each of them may hold a limit."""
    for line in (_text(proc / "self/cgroup") or "").splitlines():
        number, _, rest = line.partition(":")
        kinds, _, path = rest.partition(":")
        if number == "0" and not kinds:
            top = sys_root / "fs/cgroup"
        elif kind in kinds.split(","):
            top = sys_root / "fs/cgroup" / kind
        else:
            continue
        own = Path(path.lstrip("/"))
        # Inside a container the path may be the host's, and its folder is not there: what is there is read.
        yield from (top / folder for folder in (own, *own.parents) if ".." not in folder.parts)


def _quota(group: Path) -> float | None:
    """CPUs that a group may use, None where it may use all."""
    words = (_text(group / "cpu.max") or "").split()
    if len(words) != 2:
        words = [_text(group / "cpu.cfs_quota_us") or "", _text(group / "cpu.cfs_period_us") or ""]
    try:
        quota, period = (int(word) for word in words)
    except ValueError:  # no limit is written as "max"
        return None
    return quota / period if quota > 0 and period > 0 else None


def _room(group: Path) -> float | None:
    """Bytes that a group may still take, None where it has no limit. What it holds of files it can give back."""
    limit, usage = _memory_limit(group)
    used = None if limit is None else _number(group / usage)
    if limit is None or used is None:
        return None
    stat = dict(line.split() for line in (_text(group / "memory.stat") or "").splitlines() if len(line.split()) == 2)
    files = stat.get("inactive_file", "0")
    return max(0.0, limit - used + (int(files) if files.isdigit() else 0))


def _memory_limit(group: Path) -> tuple[float | None, str]:
    """Bytes that a group may hold, None where it has no limit, and the file that says what it holds."""
    limit, usage = _number(group / "memory.max"), "memory.current"
    if limit is None:
        limit, usage = _number(group / "memory.limit_in_bytes"), "memory.usage_in_bytes"
    return (limit if limit is not None and limit < NO_LIMIT_BYTES else None), usage
