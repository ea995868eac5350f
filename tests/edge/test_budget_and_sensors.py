"""Readings to budgets, and where readings come from: a fake /sys, since most machines have no battery to test with."""

from __future__ import annotations

import math
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgemux.edge.budget import (
    BYTES_IN_MEMORY,
    CRUSHED,
    PRESSED,
    RANGES,
    Allowance,
    Demand,
    Readings,
    budget_for,
    cpu_share,
    memory_for,
)
from edgemux.edge.sensors import Battery, Cpu, Heat, Memory
from edgemux.multiplexer.domain import Budget

MAYBE = st.none() | st.floats(0, 1)
READINGS = st.builds(
    Readings,
    cpu_others=MAYBE,
    cpu_count=st.none() | st.sampled_from([1.0, 4.0]),
    cpu_quota=st.none() | st.floats(0, 8),
    cpu_pressure=MAYBE,
    memory_available=st.none() | st.floats(0, 1e10),
    memory_pressure=MAYBE,
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
    assert budget(Readings(memory_available=14e4)).memory_bytes == 14e4 / BYTES_IN_MEMORY


@given(READINGS, st.floats(0, 1), st.floats(0, 1))
def test_more_memory_pressure_never_affords_more(readings: Readings, less: float, more: float) -> None:
    less, more = sorted((less, more))
    mild, hard = (msgspec.structs.replace(readings, memory_pressure=value) for value in (less, more))
    assert memory_for(hard, 1e6) <= memory_for(mild, 1e6) <= 1e6


def test_memory_pressure_leaves_everything_at_first_and_nothing_in_the_end() -> None:
    for limit in (1e6, math.inf):
        assert memory_for(Readings(memory_pressure=PRESSED), limit) == limit
        assert memory_for(Readings(memory_pressure=CRUSHED), limit) == 0
    assert memory_for(Readings(memory_pressure=(PRESSED + CRUSHED) / 2), 1e6) == pytest.approx(5e5)


def test_what_levels_take_already_is_not_what_is_available_but_it_is_ours() -> None:
    assert memory_for(Readings(memory_available=1e5), 1e6, resident_bytes=3e5) == 3e5 + 1e5 / BYTES_IN_MEMORY


def test_a_quota_bounds_the_cpu_share_however_idle_the_machine_is() -> None:
    assert cpu_share(Readings(cpu_others=0.0, cpu_count=4.0, cpu_quota=0.3)) == pytest.approx(0.3)
    assert cpu_share(Readings(cpu_others=0.9, cpu_count=1.0, cpu_quota=3.0)) == pytest.approx(0.1)


def test_where_nobody_says_how_busy_others_are_the_pressure_stands_in() -> None:
    assert cpu_share(Readings(cpu_pressure=0.7, cpu_count=1.0)) == pytest.approx(0.3)
    assert cpu_share(Readings(cpu_others=0.1, cpu_pressure=0.7, cpu_count=1.0)) == pytest.approx(0.9)


def test_every_reading_has_a_range_of_what_it_can_be() -> None:
    assert set(RANGES) == set(Readings.__struct_fields__)


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


def test_the_clock_that_is_allowed_is_a_share_of_the_highest(tmp_path: Path) -> None:
    for number, allowed in enumerate((1_500_000, 600_000)):
        folder = tmp_path / f"devices/system/cpu/cpu{number}/cpufreq"
        write(folder / "cpuinfo_max_freq", "1500000\n")
        write(folder / "scaling_max_freq", f"{allowed}\n")
    assert Heat(tmp_path).read() == {"cpu_speed": 0.4}


def psi(some: str, full: str = "0.00") -> str:
    return f"some avg10={some} avg60=1.00 avg300=2.00 total=9\nfull avg10={full} avg60=0.00 avg300=0.00 total=0\n"


def test_pressure_is_read_where_the_kernel_tells_it(tmp_path: Path) -> None:
    cpu, memory = Cpu(tmp_path, tmp_path), Memory(tmp_path, tmp_path)
    assert "cpu_pressure" not in cpu.read()
    assert set(memory.read()) == {"memory_available"}
    write(tmp_path / "pressure/cpu", psi("12.50"))
    write(tmp_path / "pressure/memory", psi("90.00", full="7.00"))
    write(tmp_path / "pressure/io", psi("3.00"))
    assert cpu.read()["cpu_pressure"] == 0.125
    read = memory.read()
    assert (read["memory_pressure"], read["io_pressure"]) == (pytest.approx(0.07), pytest.approx(0.03))


@pytest.mark.parametrize("text", ["", "some avg10=", "nonsense\n", "some avg10=1.2.3 avg60=0.00 avg300=0.00 total=0\n"])
def test_pressure_that_makes_no_sense_is_not_read(tmp_path: Path, text: str) -> None:
    write(tmp_path / "pressure/cpu", text)
    assert "cpu_pressure" not in Cpu(tmp_path, tmp_path).read()


@pytest.mark.parametrize("inner", [True, False])
def test_the_limits_of_a_control_group_are_read_in_its_second_version(tmp_path: Path, inner: bool) -> None:
    write(tmp_path / "self/cgroup", "0::/box/agent\n")
    group = tmp_path / ("fs/cgroup/box/agent" if inner else "fs/cgroup/box")
    write(group / "cpu.max", "30000 100000\n")
    write(group / "memory.max", "1000000\n")
    write(group / "memory.current", "700000\n")
    write(group / "memory.stat", "anon 1\ninactive_file 100000\n")
    write(tmp_path / "fs/cgroup/cpu.max", "max 100000\n")
    assert Cpu(tmp_path, tmp_path).read()["cpu_quota"] == 0.3
    assert Memory(tmp_path, tmp_path, lambda: 1e9).read()["memory_available"] == 400_000


def test_the_limits_of_a_control_group_are_read_in_its_first_version(tmp_path: Path) -> None:
    write(tmp_path / "self/cgroup", "4:memory:/box\n3:cpu,cpuacct:/box\n1:name=systemd:/\n")
    write(tmp_path / "fs/cgroup/cpu/box/cpu.cfs_quota_us", "2000\n")
    write(tmp_path / "fs/cgroup/cpu/box/cpu.cfs_period_us", "10000\n")
    write(tmp_path / "fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n")
    write(tmp_path / "fs/cgroup/cpu/cpu.cfs_period_us", "100000\n")
    write(tmp_path / "fs/cgroup/memory/box/memory.limit_in_bytes", "5000\n")
    write(tmp_path / "fs/cgroup/memory/box/memory.usage_in_bytes", "6000\n")
    assert Cpu(tmp_path, tmp_path).read()["cpu_quota"] == 0.2
    assert Memory(tmp_path, tmp_path, lambda: 1e9).read()["memory_available"] == 0


def test_without_a_limit_there_is_no_quota(tmp_path: Path) -> None:
    write(tmp_path / "self/cgroup", "0::/\n")
    write(tmp_path / "fs/cgroup/cpu.max", "max 100000\n")
    assert "cpu_quota" not in Cpu(tmp_path, tmp_path).read()
    assert Memory(tmp_path, tmp_path, lambda: 7.0).read()["memory_available"] == 7.0


def test_this_machine_s_cpu_and_memory_are_read() -> None:
    cpu = Cpu()
    assert "cpu_others" not in cpu.read()
    assert 0 <= cpu.read()["cpu_others"] <= 1
    assert Memory().read()["memory_available"] > 0
