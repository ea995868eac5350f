"""Readings to budgets, and where readings come from: a fake /sys, since most machines have no battery to test with."""

from __future__ import annotations

import math
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgemux.edge.budget import Allowance, Demand, Readings, budget_for, cpu_share
from edgemux.edge.sensors import Battery, Cpu, Heat, Memory, Sampler
from edgemux.multiplexer.domain import Budget

MAYBE = st.none() | st.floats(0, 1)
READINGS = st.builds(
    Readings,
    cpu_others=MAYBE,
    cpu_count=st.none() | st.sampled_from([1.0, 4.0]),
    memory_available=st.none() | st.floats(0, 1e10),
    temperature_c=st.none() | st.floats(-40, 150),
    throttled=st.none() | st.sampled_from([0.0, 1.0]),
    battery=MAYBE,
    discharging=st.none() | st.sampled_from([0.0, 1.0]),
)


def budget(readings: Readings, demand: Demand = Demand(10.0), left_s: float = 0.25) -> Budget:  # noqa: B008 - frozen
    return budget_for(
        readings,
        demand,
        Allowance(),
        left_s=left_s,
        reserve_s=0.01,
        margin_s=0.01,
        compute_share=0.5,
        memory_limit_bytes=math.inf,
    )


@given(READINGS)
def test_the_cpu_share_is_never_zero_and_never_more_than_one_core(readings: Readings) -> None:
    assert 0 < cpu_share(readings) <= 1


def test_what_is_unknown_does_not_limit() -> None:
    unknown = budget(Readings())
    assert (unknown.memory_bytes, unknown.sent_bytes, unknown.offloads) == (math.inf,) * 3
    assert cpu_share(Readings()) == 1.0


@given(READINGS, st.floats(0, 1), st.floats(0, 1))
def test_busier_others_never_leave_more_compute(readings: Readings, less: float, more: float) -> None:
    less, more = sorted((less, more))
    idle, busy = (
        {name: getattr(readings, name) for name in readings.__struct_fields__} | {"cpu_others": v} for v in (less, more)
    )
    assert cpu_share(Readings(**busy)) <= cpu_share(Readings(**idle))


def test_heat_throttling_and_a_low_battery_each_leave_less() -> None:
    for readings in (Readings(temperature_c=85), Readings(throttled=1.0), Readings(battery=0.1, discharging=1.0)):
        assert cpu_share(readings) < 1
    assert cpu_share(Readings(temperature_c=60, throttled=0.0, battery=0.1, discharging=0.0)) == 1


def test_compute_for_an_input_is_what_is_free_divided_by_the_inputs_that_come() -> None:
    readings = Readings(cpu_others=0.75, cpu_count=1.0)
    assert budget(readings, Demand(100.0)).compute_s == pytest.approx(0.25 * 0.5 / 100)


def test_a_late_event_loop_widens_the_margin() -> None:
    assert budget(Readings(), Demand(1.0, loop_lag_s=0.05)).margin_s == pytest.approx(0.1)


def test_an_hour_of_suspension_does_not_widen_the_margin_by_hours() -> None:
    assert budget(Readings(), Demand(1.0, loop_lag_s=3600.0)).margin_s <= 0.2


def test_the_margin_is_for_what_leaves_the_device_and_takes_nothing_from_the_device() -> None:
    assert budget(Readings(), left_s=0.005).latency_s == 0.005


def test_memory_that_is_not_there_cannot_be_spent() -> None:
    assert budget(Readings(memory_available=5e4)).memory_bytes == 5e4


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_a_raspberry_pi_s_heat_and_throttling_are_read(tmp_path: Path) -> None:
    write(tmp_path / "class/thermal/thermal_zone0/temp", "61300\n")
    write(tmp_path / "class/thermal/thermal_zone1/temp", "72500\n")
    flags = tmp_path / "devices/platform/soc/soc:firmware/get_throttled"
    for text, now in (("50005\n", 1.0), ("50000\n", 0.0)):
        write(flags, text)
        assert Heat(tmp_path).read() == {"temperature_c": 72.5, "throttled": now}


@pytest.mark.parametrize("text", ["1000000\n", "garbage\n", "", "nan\n"])
def test_a_temperature_that_makes_no_sense_is_unknown(tmp_path: Path, text: str) -> None:
    write(tmp_path / "class/thermal/thermal_zone0/temp", text)
    assert Heat(tmp_path).read() == {}


def test_a_battery_is_read_and_its_absence_is_unknown(tmp_path: Path) -> None:
    assert Battery(tmp_path).read() == {}
    write(tmp_path / "class/power_supply/BAT0/capacity", "17\n")
    write(tmp_path / "class/power_supply/BAT0/status", "Discharging\n")
    assert Battery(tmp_path).read() == {"battery": 0.17, "discharging": 1.0}


def test_this_machine_s_cpu_and_memory_are_read() -> None:
    cpu = Cpu()
    assert set(cpu.read()) == {"cpu_count"}
    assert 0 <= cpu.read()["cpu_others"] <= 1
    assert Memory().read()["memory_available"] > 0


class Hanging:
    def __init__(self) -> None:
        self.release = threading.Event()

    def read(self) -> dict[str, float]:
        self.release.wait()
        return {}


def test_a_sensor_that_hangs_holds_up_neither_start_nor_stop() -> None:
    sensor = Hanging()
    sampler = Sampler([sensor], 0.01)
    sampler.start()
    assert sampler.latest == Readings()
    sampler.stop()
    sensor.release.set()


class Broken:
    def read(self) -> dict[str, float]:
        raise OSError("gone")


class Absurd:
    def read(self) -> dict[str, float]:
        return {"battery": math.nan, "temperature_c": math.inf, "weather": 1.0}


def test_a_sensor_that_raises_or_says_nonsense_is_unknown_and_complained_about_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    sampler = Sampler([Broken(), Absurd(), Memory()], 1.0)
    for _ in range(3):
        readings = sampler.sample()
        assert readings.battery is None
        assert readings.temperature_c is None
        assert readings.memory_available is not None
    assert len(caplog.records) == 1
