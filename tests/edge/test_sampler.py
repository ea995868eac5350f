"""Sensors that lie, hang or are gone: their readings are unknown, nothing else happens, and the log says it once."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgemux.edge.budget import RANGES, Readings
from edgemux.edge.sampler import STALE_INTERVALS, TIMEOUT_S, Sampler, Source, sound
from edgemux.edge.sensors import Memory

PATIENCE_S = 30.0


class Told:
    """Says what it is told to; waits while ``gate`` is closed."""

    def __init__(self, **values: Any) -> None:
        self.values = values
        self.error: Exception | None = None
        self.gate = threading.Event()
        self.gate.set()
        self.reading = threading.Event()

    def read(self) -> dict[str, Any]:
        self.reading.set()
        self.gate.wait()
        if self.error is not None:
            raise self.error
        return self.values


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def source_of(sampler: Sampler, number: int = 0) -> Source:
    return sampler._sources[number]


def test_a_sensor_that_hangs_holds_up_neither_start_nor_stop_and_hides_no_other() -> None:
    hanging = Told(temperature_c=50.0)
    hanging.gate.clear()
    sampler = Sampler({"heat": hanging, "memory": Memory()}, 0.01)
    sampler.start()
    assert sampler.latest.temperature_c is None
    assert sampler.latest.memory_available is not None
    sampler.stop()
    hanging.gate.set()


def test_a_sensor_that_starts_to_hang_is_unknown_complained_about_once_and_known_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock, sensor = Clock(), Told(temperature_c=50.0)
    sampler = Sampler({"heat": sensor}, 0.1, clock)
    source_of(sampler).read()
    assert sampler.refresh(clock()).temperature_c == 50.0
    sensor.gate.clear()
    sensor.reading.clear()
    thread = threading.Thread(target=source_of(sampler).read)
    thread.start()
    assert sensor.reading.wait(PATIENCE_S)
    assert sampler.refresh(clock() + 0.9 * TIMEOUT_S).temperature_c == 50.0
    clock.now_s += 1.1 * TIMEOUT_S
    for _ in range(3):
        assert sampler.refresh(clock()).temperature_c is None
    assert [record.getMessage() for record in caplog.records] == ['sensor lost sensor=heat cause="does not answer"']
    sensor.gate.set()
    thread.join(PATIENCE_S)
    assert sampler.refresh(clock()).temperature_c == 50.0


def test_a_reading_that_is_too_old_is_unknown_and_its_age_says_so() -> None:
    clock = Clock()
    sampler = Sampler({"heat": Told(temperature_c=50.0), "battery": Told(battery=0.5)}, 1.0, clock)
    assert sampler.ages_s(clock()) == {"heat": None, "battery": None}
    source_of(sampler).read()
    bound_s = TIMEOUT_S + STALE_INTERVALS
    assert sampler.refresh(clock() + 0.99 * bound_s).temperature_c == 50.0
    assert sampler.refresh(clock() + 1.01 * bound_s) == Readings()
    assert sampler.ages_s(clock() + 7) == {"heat": 7.0, "battery": None}


def test_a_sensor_that_raises_is_unknown_at_once_and_ages_from_when_it_last_worked(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock, sensor = Clock(), Told(temperature_c=50.0)
    sampler = Sampler({"heat": sensor, "memory": Memory()}, 1.0, clock)
    for number in range(2):
        source_of(sampler, number).read()
    sensor.error = OSError("gone")
    clock.now_s += 2.0
    for _ in range(3):
        source_of(sampler).read()
        readings = sampler.refresh(clock())
        assert readings.temperature_c is None
        assert readings.memory_available is not None
    assert sampler.ages_s(clock()) == {"heat": 2.0, "memory": 2.0}
    assert len(caplog.records) == 1
    sensor.error = None
    source_of(sampler).read()
    assert sampler.refresh(clock()).temperature_c == 50.0


@pytest.mark.parametrize("value", [math.nan, math.inf, 1000.0, -300.0, "hot", None, [50.0]])
def test_what_cannot_be_is_unknown_and_complained_about_once(caplog: pytest.LogCaptureFixture, value: Any) -> None:
    clock = Clock()
    sampler = Sampler({"odd": Told(temperature_c=value, battery=0.25, weather="fine")}, 1.0, clock)
    for _ in range(3):
        source_of(sampler).read()
        readings = sampler.refresh(clock())
        assert (readings.temperature_c, readings.battery) == (None, 0.25)
    assert [record.getMessage() for record in caplog.records] == [
        'sensor lost sensor=odd cause="says what cannot be" readings=temperature_c'
    ]


@pytest.mark.parametrize("said", [None, 7, "temperature", [("battery", 0.5)]])
def test_a_plug_in_that_does_not_say_readings_by_name_is_unknown(caplog: pytest.LogCaptureFixture, said: Any) -> None:
    sensor = Told()
    sensor.values = said
    sampler = Sampler({"odd": sensor}, 1.0)
    source_of(sampler).read()
    assert sampler.refresh(0.0) == Readings()
    assert len(caplog.records) == 1


VALUES = st.one_of(st.floats(), st.integers(), st.text(max_size=3), st.none(), st.booleans())


@given(st.dictionaries(st.sampled_from(sorted(RANGES)) | st.text(max_size=5), VALUES))
def test_whatever_is_said_what_is_taken_is_within_its_range(said: dict[str, Any]) -> None:
    values, wrong = sound(said)
    assert values.keys().isdisjoint(wrong)
    assert {*values, *wrong} == said.keys() & RANGES.keys()
    for name, value in values.items():
        low, high = RANGES[name]
        assert low <= value <= high


def until(holds: Callable[[], bool]) -> None:
    waited = threading.Event()
    for _ in range(int(PATIENCE_S / 0.01)):
        if holds():
            return
        waited.wait(0.01)
    raise AssertionError("it never came to hold")


def test_readings_are_renewed_beside_whoever_uses_them() -> None:
    sensor = Told(battery=1.0)
    sampler = Sampler({"battery": sensor}, 0.001)
    sampler.start()
    assert sampler.latest.battery == 1.0
    sensor.values = {"battery": 0.5}
    until(lambda: sampler.refresh(source_of(sampler).said.at_s or 0.0).battery == 0.5)
    sampler.stop()
