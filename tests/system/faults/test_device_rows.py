"""Rows 70 and 72 to 74: too little memory, too little CPU, heat, and sensors that are broken."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from edgemux.wire.channel import client_options
from edgemux.wire.codec import make_request
from tests.system.faults import http2
from tests.system.faults.ledgers import percentile
from tests.system.faults.stage import Agent, Pictures, Stage, found_by, settings, write_config
from tests.system.faults.table import Found
from tests.system.faults.test_host_rows import ask, wait_for

Report = Callable[[Found], None]
# What the slowed levels burn of the CPU, and what the rate of the load leaves for an input: between level 1 and level 2
# while the device is throttled (a quarter), above level 4 when it is not.
LEVEL_S = 0.0004
RATE_PER_S = 40.0
AFFORDS_S = 0.0025
# So many inputs of that rate, and it is known: its estimate has a time constant of 2 s.
ENOUGH = 200
# An agent whose sensors read the folders sys and proc of argv[1], and whose level n takes n * LEVEL_S of the CPU. That
# others keep this machine busy is hidden from it, and its own quota is not.
HOUSED = f"""
import functools, pathlib, sys, time
from edgemux.edge import device_executor, sensors, server
from edgemux.edge.config import load

root = pathlib.Path(sys.argv[1])
sensors.Heat = functools.partial(sensors.Heat, root / "sys")
sensors.Memory = functools.partial(sensors.Memory, root / "proc", root / "sys")
timed = device_executor.DeviceExecutor._timed

class Quota(sensors.Cpu):
    def read(self):
        said = super().read()
        return {{name: said[name] for name in ("cpu_count", "cpu_quota") if name in said}}

sensors.Cpu = Quota

def slowed(self, level, activations):
    below = activations.reached
    probabilities, elapsed, cpu_s = timed(self, level, activations)
    began, burnt = time.monotonic(), time.thread_time()
    while time.thread_time() - burnt < {LEVEL_S} * (level - below):
        pass
    return probabilities, elapsed + time.monotonic() - began, cpu_s + time.thread_time() - burnt

device_executor.DeviceExecutor._timed = slowed
ports = {{f"listen.{{name}}_port": 0 for name in ("grpc", "http", "metrics")}}
server.serve(load(pathlib.Path(sys.argv[2]), ports))
"""
# An agent of whose sensors one raises, one hangs, one says NaN and one says 1000 C.
BROKEN = """
import math, pathlib, sys, threading
from edgemux.edge import sensors, server
from edgemux.edge.config import load

def made(said):
    return lambda: type("Broken", (), {"read": lambda self: said()})()

sensors.Cpu = made(lambda: 1 / 0)
sensors.Memory = made(threading.Event().wait)
sensors.Heat = made(lambda: {"temperature_c": 1000.0})
sensors.Battery = made(lambda: {"battery": math.nan, "discharging": 1.0})
ports = {f"listen.{name}_port": 0 for name in ("grpc", "http", "metrics")}
server.serve(load(pathlib.Path(sys.argv[1]), ports))
"""
GROUPS = Path("/sys/fs/cgroup/cpu")
# What a process may still take of memory.
ROOM_BYTES = 8 * 2**20
PERIOD_US, QUOTA_US = 10_000, 2_000
ADAPTS_S, BUSY_ADAPTS_S = 2.0, 3.0

pytestmark = pytest.mark.timeout(200)


@pytest.fixture
def good(message: Any) -> bytes:
    """A good request."""
    return bytes(message.SerializeToString())


class House:
    """The folders from which the sensors read."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._write("proc/self/cgroup", "")
        self.pressure(0.0)
        self.heat(50.0, 0)

    def heat(self, celsius: float, flags: int) -> None:
        """A zone's temperature, and the firmware's throttling flags."""
        self._write("sys/class/thermal/thermal_zone0/temp", f"{celsius * 1000:.0f}\n")
        self._write("sys/devices/platform/soc/soc:firmware/get_throttled", f"{flags:x}\n")

    def pressure(self, percent: float) -> None:
        """How much of the last ten seconds everything waited for memory."""
        line = f"avg10={percent:.2f} avg60=0.00 avg300=0.00 total=0"
        self._write("proc/pressure/memory", f"some {line}\nfull {line}\n")

    def _write(self, path: str, text: str) -> None:
        """As a whole, as the kernel's files are read."""
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        fresh = file.with_suffix(".new")
        fresh.write_text(text)
        fresh.replace(file)


@contextlib.contextmanager
def housed(
    serving_by: Any, folder: Path, bundle: Path, address: str | None, house: House, *sensors: str, **more: Any
) -> Iterator[Agent]:
    """An agent with ``sensors``, of which those for heat and memory read what is in the house."""
    log = folder / "requests.jsonl"
    limits = {"compute_share": AFFORDS_S * RATE_PER_S}
    chosen = settings(bundle, address, log, limits=limits, **more)
    chosen = {"sensors": list(sensors), "sensor_interval_s": 0.05} | chosen
    config = write_config(folder / "agent.toml", chosen)
    with serving_by(HOUSED, str(house.root), str(config)) as server:
        yield Agent(server, log)


def level(agent: Agent) -> int:
    """The highest that the device affords now."""
    return int(agent.metric("edgemux_level"))


def levels_seen(agent: Agent, seconds: float) -> list[int]:
    """What it affords, looked at often."""
    seen, until_s = [], time.monotonic() + seconds
    while time.monotonic() < until_s:
        seen.append(level(agent))
        time.sleep(0.05)
    return seen


def squeezed(
    on_stage: Stage, agent: Agent, begin: Callable[[], None], end: Callable[[], None], aftermath: Callable[[], None]
) -> tuple[Any, float, float]:
    """A load meanwhile: the load, and the seconds until the smallest level and until the highest again.

    ``aftermath`` is what remains of the fault once it is over, and must change nothing.
    """
    with agent.load(on_stage.backstage, on_stage.pictures, rate_per_s=RATE_PER_S, timeout_s=1.0) as load:
        load.more(ENOUGH)
        load.wait(lambda: level(agent) == 4)
        began_s = time.monotonic()
        begin()
        load.wait(lambda: level(agent) == 1)
        fell_s = time.monotonic() - began_s
        assert set(levels_seen(agent, 1.5)) == {1}, "it flaps"
        since_s = time.monotonic()
        load.more(20)
        over_s = time.monotonic()
        end()
        load.wait(lambda: level(agent) == 4)
        rose_s = time.monotonic() - over_s
        aftermath()
        assert set(levels_seen(agent, 1.5)) == {4}, "it flaps"
        load.more(10)
    during = [e for e in load.entries if since_s <= e.sent_s and e.ended_s < over_s and e.answered]
    assert during
    assert {e.variant for e in during} <= {"level-1", "cloud"}
    return load, fell_s, rose_s


@pytest.mark.parametrize(
    ("fault", "celsius", "flags"), [("throttled, flags 0xf", 60.0, 0xF000F), ("85 C", 85.0, 0)], ids=["flags", "heat"]
)
def test_row_73_a_device_that_is_throttled_has_its_smallest_level_until_it_is_cool_again(
    on_stage: Stage,
    serving_by: Any,
    tiny_bundle: Path,
    tmp_path: Path,
    report: Report,
    fault: str,
    celsius: float,
    flags: int,
) -> None:
    house = House(tmp_path / "house")
    with housed(serving_by, tmp_path, tiny_bundle, on_stage.proxy.address, house, "heat") as agent:
        # Bits 16 to 19 say what was so since the boot: that is over.
        load, fell_s, rose_s = squeezed(
            on_stage,
            agent,
            lambda: house.heat(celsius, flags),
            lambda: house.heat(50.0, flags & 0xF0000),
            lambda: house.heat(50.0, 0xF0000),
        )
        verdict = on_stage.judge_of(agent, load)
        note = f"level 4 to 1 in {fell_s:.2f} s, back in {rose_s:.2f} s"
        report(found_by(verdict, 73, fault, load, note=note))
        assert verdict.faults + verdict.refused == ()


def test_row_70_memory_pressure_leaves_the_smallest_level_until_it_is_over(
    on_stage: Stage, serving_by: Any, tiny_bundle: Path, tmp_path: Path, report: Report
) -> None:
    house = House(tmp_path / "house")
    with housed(serving_by, tmp_path, tiny_bundle, on_stage.proxy.address, house, "memory") as agent:
        load, fell_s, rose_s = squeezed(
            on_stage, agent, lambda: house.pressure(40.0), lambda: house.pressure(2.0), lambda: house.pressure(0.0)
        )
        verdict = on_stage.judge_of(agent, load)
        note = f"level 4 to 1 in {fell_s:.2f} s, back in {rose_s:.2f} s"
        report(found_by(verdict, 70, "memory pressure 40 %", load, note=note))
        assert verdict.faults + verdict.refused == ()


def test_row_74_sensors_that_raise_hang_or_lie_are_unknown_and_complained_about_once(
    on_stage: Stage, serving_by: Any, tiny_bundle: Path, tmp_path: Path, report: Report
) -> None:
    log = tmp_path / "requests.jsonl"
    chosen = {"sensor_interval_s": 0.05} | settings(tiny_bundle, on_stage.proxy.address, log)
    config = write_config(tmp_path / "agent.toml", chosen)
    with serving_by(BROKEN, str(config)) as server:
        agent = Agent(server, log)
        with agent.load(on_stage.backstage, on_stage.pictures, rate_per_s=60.0, timeout_s=1.0) as load:
            # The one that hangs is found out after a second.
            load.wait(lambda: "sensor=memory" in server.errors())
            load.more(60)
        verdict = on_stage.judge_of(agent, load)
        warned = re.findall(r"sensor lost sensor=(\w+)", server.errors())
        report(found_by(verdict, 74, "sensors raise, hang, NaN, 1000 C", load, note=f"{len(warned)} warnings"))
        assert verdict.faults + verdict.refused == ()
        assert sorted(warned) == ["battery", "cpu", "heat", "memory"]
        series = server.scrape()
        for name in ("temperature_c", "battery", "cpu_others", "memory_available"):
            assert f'edgemux_resource{{sensor="{name}"}}' not in series
        assert series['edgemux_resource{sensor="discharging"}'] == 1.0
        assert level(agent) == 4


def test_row_74_a_device_without_any_zone_or_flag_has_all_levels(
    on_stage: Stage, serving_by: Any, tiny_bundle: Path, tmp_path: Path, report: Report
) -> None:
    house = House(tmp_path / "house")
    for file in (house.root / "sys").rglob("*"):
        if file.is_file():
            file.unlink()
    with housed(serving_by, tmp_path, tiny_bundle, on_stage.proxy.address, house, "heat") as agent:
        with agent.load(on_stage.backstage, on_stage.pictures, rate_per_s=RATE_PER_S, timeout_s=1.0) as load:
            load.more(60)
        verdict = on_stage.judge_of(agent, load)
        report(found_by(verdict, 74, "no sensor at all", load))
        assert verdict.faults + verdict.refused == ()
        assert level(agent) == 4
        assert "sensor lost" not in agent.server.errors()


@contextlib.contextmanager
def a_fifth_of_a_cpu(pid: int) -> Iterator[float]:
    """A control group of our own for a process: the monotonic time since which it has 2 ms in every 10."""
    group = GROUPS / f"edgemux-test-{os.getpid()}-{pid}"
    try:
        group.mkdir()
    except OSError:
        pytest.skip("no right to make a control group of the first version")
    try:
        (group / "cpu.cfs_period_us").write_text(str(PERIOD_US))
        (group / "cpu.cfs_quota_us").write_text(str(QUOTA_US))
        (group / "cgroup.procs").write_text(str(pid))
        yield time.monotonic()
    finally:
        with contextlib.suppress(OSError):  # it has ended
            (GROUPS / "cgroup.procs").write_text(str(pid))
        wait_for(lambda: not (group / "cgroup.procs").read_text(), "nobody in the group")
        group.rmdir()


def test_row_72_a_fifth_of_a_cpu_costs_levels_and_no_deadline(
    on_stage: Stage, serving_by: Any, tiny_bundle: Path, tmp_path: Path, report: Report
) -> None:
    house = House(tmp_path / "house")
    with housed(serving_by, tmp_path, tiny_bundle, on_stage.proxy.address, house, "cpu") as agent:
        with agent.load(on_stage.backstage, on_stage.pictures, rate_per_s=RATE_PER_S, timeout_s=0.5) as load:
            load.more(ENOUGH)
            load.wait(lambda: level(agent) == 4)
            with a_fifth_of_a_cpu(agent.server.popen.pid) as since_s:
                load.wait(lambda: level(agent) == 1)
                adapted_s = time.monotonic() - since_s
                load.more(160)
                until_s = time.monotonic()
                quota = agent.server.scrape()['edgemux_resource{sensor="cpu_quota"}']
            load.more(20)
        verdict = on_stage.judge_of(agent, load)
        lines = agent.ledger(load.entries).lines
        by_id = {line.id: line.elapsed_s for line in lines}
        during = [e for e in load.entries if since_s + ADAPTS_S <= e.sent_s <= until_s]
        own_ms = 1000 * percentile([by_id[e.id] for e in during if e.id in by_id], 0.99)
        note = f"level 4 to 1 in {adapted_s:.2f} s, the agent's p99 then {own_ms:.0f} ms"
        report(found_by(verdict, 72, "20 % of a CPU", load, note=note))
        assert quota == QUOTA_US / PERIOD_US
        assert verdict.faults == ()
        assert adapted_s <= ADAPTS_S + BUSY_ADAPTS_S
        assert {e.variant for e in during if e.answered} <= {"level-1", "cloud"}
        # What is refused is refused in time, and little is.
        assert len(verdict.refused) <= len(load.entries) // 10


def leave_room(pid: int) -> None:
    """Let a process take no more than ROOM_BYTES of address space beside what it has."""
    found = re.search(r"VmSize:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found
    limit = int(found[1]) * 1024 + ROOM_BYTES
    resource.prlimit(pid, resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))


def outcomes_of_large(address: str, seen: Pictures, rows: int) -> Counter[str]:
    """What becomes of four requests of so many rows, one after another."""
    images = np.resize(seen.images, (rows, *seen.images.shape[1:]))
    message = make_request("fashion-mnist", {"image": images}).SerializeToString()
    outcomes: Counter[str] = Counter()
    with grpc.insecure_channel(address, options=client_options()) as channel:
        infer = channel.unary_unary(http2.INFER)
        for _ in range(4):
            error = infer.future(message, timeout=5.0).exception(timeout=30.0)
            outcomes["answered" if error is None else error.code().name] += 1
    return outcomes


@pytest.mark.parametrize("rows", [256, 5000])
def test_row_70_with_hardly_any_memory_left_large_requests_have_a_typed_outcome_and_small_ones_go_on(
    serving: Any, tiny_bundle: Path, seen: Pictures, good: bytes, report: Report, rows: int
) -> None:
    with serving("edge", "--bundle", str(tiny_bundle)) as server:
        ask(server.grpc, good, count=5)
        leave_room(server.popen.pid)
        large = outcomes_of_large(server.grpc, seen, rows)
        assert server.popen.poll() is None, server.errors()
        assert set(large) <= {"answered", "RESOURCE_EXHAUSTED", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED"}
        small = ask(server.grpc, good, count=20)
        note = ", ".join(f"{count} {name}" for name, count in large.items())
        report(Found(70, f"8 MB left, {rows} rows a request", 29, p99_ms=max(small) * 1000, note=note))
