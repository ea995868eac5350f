"""The readers of CPU, memory, heat and battery, and the thread that asks them.

A sensor's ``read()`` returns readings by name, and leaves out what it cannot know: absent is unknown, never zero. A
value that makes no sense is unknown too.
"""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import psutil

from edgemux.edge.budget import Readings

_log = logging.getLogger("edgemux.edge")

SYS = Path("/sys")
# A sensor that hangs holds up neither the start nor the end for longer than this.
FIRST_READING_S = 0.5


class Sensor(Protocol):
    """The plug-in protocol ``edgemux.sensors``: readings by the names of ``Readings``' fields."""

    def read(self) -> dict[str, float]: ...


class Cpu:
    """Share of the CPUs that this process may use which other processes keep busy, since the last reading."""

    def __init__(self) -> None:
        self._last: tuple[float, float, float] | None = None

    def read(self) -> dict[str, float]:
        """``cpu_others`` in [0, 1], from the second reading on, and ``cpu_count``."""
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
        return readings


class Memory:
    """Memory that can still be had."""

    def read(self) -> dict[str, float]:
        """``memory_available`` in bytes."""
        return {"memory_available": float(psutil.virtual_memory().available)}


class Heat:
    """Temperature of the hottest zone, and the Raspberry Pi firmware's throttling flags."""

    def __init__(self, sys_root: Path = SYS) -> None:
        self._root = sys_root

    def read(self) -> dict[str, float]:
        """``temperature_c`` and ``throttled`` (0 or 1), where the kernel says."""
        readings: dict[str, float] = {}
        zones = [_number(zone) for zone in self._root.glob("class/thermal/thermal_zone*/temp")]
        degrees = [zone / 1000 for zone in zones if zone is not None and -40_000 <= zone <= 150_000]
        if degrees:
            readings["temperature_c"] = max(degrees)
        flags = _number(self._root / "devices/platform/soc/soc:firmware/get_throttled", radix=16)
        if flags is not None:
            # Bits 0-3 are "now" (under-voltage, capped, throttled, soft limit); 16-19 are "since boot".
            readings["throttled"] = float(int(flags) & 0xF != 0)
        return readings


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


class Sampler:
    """Asks every sensor again and again on a thread of its own; ``latest`` is always ready, at once."""

    def __init__(self, sensors: Sequence[Sensor], interval_s: float) -> None:
        self._sensors = sensors
        self._interval_s = interval_s
        self._stop = threading.Event()
        self._complained: set[str] = set()
        self._read_once = threading.Event()
        self._thread: threading.Thread | None = None
        self.latest = Readings()

    def start(self) -> None:
        """Keep reading until ``stop``; returns after the first reading, or after FIRST_READING_S if one hangs."""
        self._thread = threading.Thread(target=self._loop, name="edgemux-sensors", daemon=True)
        self._thread.start()
        self._read_once.wait(FIRST_READING_S)

    def stop(self) -> None:
        """Stop reading; a sensor that hangs is left behind (its thread is a daemon)."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=FIRST_READING_S)

    def sample(self) -> Readings:
        """One reading of every sensor; one that raises is unknown, and is complained about once."""
        values: dict[str, float] = {}
        for sensor in self._sensors:
            try:
                values.update(sensor.read())
            except Exception:
                name = type(sensor).__name__
                if name not in self._complained:
                    self._complained.add(name)
                    _log.warning("sensor %s cannot be read; its readings are unknown", name, exc_info=True)
        known = Readings.__struct_fields__
        return Readings(**{name: value for name, value in values.items() if name in known and math.isfinite(value)})

    def _loop(self) -> None:
        while True:
            self.latest = self.sample()
            self._read_once.set()
            if self._stop.wait(self._interval_s):
                return
