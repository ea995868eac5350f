"""Asking the sensors again and again: each on a thread of its own, so that one that hangs takes none with it.

A reading is unknown when its sensor leaves it out, raises, hangs, says what cannot be, or has not spoken for too long.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from edgemux.edge.budget import RANGES, Readings
from edgemux.edge.events import SensorLost
from edgemux.edge.sensors import Sensor
from edgemux.wire.events import Name, kind, tell

_log = logging.getLogger("edgemux.edge")

# Sensors that hang hold up neither the start nor the end for longer than this.
FIRST_READING_S = 0.5
# Reading a file of /proc or /sys takes microseconds: a sensor that takes this long hangs.
TIMEOUT_S = 1.0
# Readings that are missing in a row until the last one is too old.
STALE_INTERVALS = 4


class Said(msgspec.Struct, frozen=True):
    """What a sensor said last, and when it was last able to say anything."""

    values: dict[str, float] = {}
    at_s: float | None = None


class Source:
    """One sensor and its thread."""

    def __init__(self, name: str, sensor: Sensor, interval_s: float, clock: Callable[[], float]) -> None:
        self.name = name
        self.said = Said()
        self.began_s: float | None = None  # of the reading in progress
        self.stopped = threading.Event()
        self.read_once = threading.Event()
        self.thread = threading.Thread(target=self._loop, name=f"edgemux-sensor-{name}", daemon=True)
        self._sensor = sensor
        self._interval_s = interval_s
        self._clock = clock
        self._complained = False

    def read(self) -> None:
        """Ask once. Whatever comes of it, nothing is raised."""
        self.began_s = self._clock()
        try:
            values, wrong = sound(self._sensor.read())
        except Exception as error:
            self.said = Said({}, self.said.at_s)
            self.complain("raises", error=kind(error))
        else:
            self.said = Said(values, self._clock())
            if wrong:
                self.complain("says what cannot be", readings=Name(",".join(wrong)))
        self.began_s = None

    def hangs(self, now_s: float) -> bool:
        """Whether a reading has been going on for too long."""
        began_s = self.began_s
        return began_s is not None and now_s - began_s > TIMEOUT_S

    def complain(self, cause: str, readings: Name | None = None, error: Name | None = None) -> None:
        """Say it in the log, the first time."""
        if not self._complained:
            self._complained = True
            tell(_log, SensorLost(sensor=Name(self.name), cause=Name(cause), readings=readings, error=error))

    def _loop(self) -> None:
        while True:
            self.read()
            self.read_once.set()
            if self.stopped.wait(self._interval_s):
                return


class Sampler:
    """Every sensor by the name it has in the configuration. ``latest`` is always ready, at once.

    Somebody has to call ``refresh`` now and then: that is when readings become too old.
    """

    def __init__(
        self, sensors: Mapping[str, Sensor], interval_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.latest = Readings()
        self._clock = clock
        self._stale_s = TIMEOUT_S + STALE_INTERVALS * interval_s
        self._sources = [Source(name, sensor, interval_s, clock) for name, sensor in sensors.items()]

    def start(self) -> None:
        """Keep reading until ``stop``; returns after the first readings, or after FIRST_READING_S if one hangs."""
        for source in self._sources:
            source.thread.start()
        until_s = self._clock() + FIRST_READING_S
        for source in self._sources:
            source.read_once.wait(max(0.0, until_s - self._clock()))
        self.refresh(self._clock())

    def stop(self) -> None:
        """Stop reading; a sensor that hangs is left behind (its thread is a daemon)."""
        for source in self._sources:
            source.stopped.set()
        until_s = self._clock() + FIRST_READING_S
        for source in self._sources:
            if source.thread.ident is not None:
                source.thread.join(max(0.0, until_s - self._clock()))

    def refresh(self, now_s: float) -> Readings:
        """The readings as of now, also as ``latest``: those of sensors that hang or are silent for long are unknown."""
        values: dict[str, float] = {}
        for source in self._sources:
            said = source.said
            if source.hangs(now_s):
                source.complain("does not answer")
            elif said.at_s is not None and now_s - said.at_s <= self._stale_s:
                values.update(said.values)
        self.latest = Readings(**values)
        return self.latest

    def ages_s(self, now_s: float) -> dict[str, float | None]:
        """Seconds since each sensor could last be read, None where it never could."""
        return {
            source.name: None if source.said.at_s is None else max(0.0, now_s - source.said.at_s)
            for source in self._sources
        }


def sound(said: Any) -> tuple[dict[str, float], list[str]]:
    """The readings that can be, and the names of those that cannot. Names that nobody knows are left out."""
    values: dict[str, float] = {}
    wrong = []
    for name, value in said.items():
        if name not in RANGES:
            continue
        low, high = RANGES[name]
        if isinstance(value, int | float) and low <= value <= high:  # false for what is not a number, too
            values[name] = float(value)
        else:
            wrong.append(name)
    return values, wrong
