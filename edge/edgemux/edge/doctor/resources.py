"""Findings about what the device has: memory, limits, sensors, power, descriptors, disks, clock. Pure."""

from __future__ import annotations

import datetime
import math
from collections.abc import Mapping, Sequence

import msgspec

from edgemux.edge.budget import BYTES_IN_MEMORY, CRUSHED, HOT_C, LOW_BATTERY, PRESSED, WARM_C
from edgemux.multiplexer.findings import Finding, Findings

MB = 1e6
# What an agent was measured to hold while it serves the starter bundle (README.md, "Measured").
AGENT_BYTES = 103 * MB
# Below this even Python with gRPC and ONNX Runtime does not fit (75 MB, and 10 for the library: the same place).
LEAST_BYTES = 85 * MB
# Standard streams, three ports, channels, models' and sensors' files: measured 40 to 60; each client takes one more.
DESCRIPTORS = 64
ENOUGH_DESCRIPTORS = 1024
LOW_DISK_BYTES = 100 * MB
LEAST_DISK_BYTES = 1 * MB
# No certificate that is in use is as old; a Raspberry Pi without a clock of its own starts in 1970 or when it stopped.
EARLIEST = datetime.datetime(2025, 1, 1, tzinfo=datetime.UTC)
# The largest share of the last ten seconds' waiting that still is nothing to speak of.
CALM = 0.1

# Of each sensor of ours, each reading: what it is, and what follows where the machine does not have it.
_READINGS: Mapping[str, Mapping[str, tuple[str, str]]] = {
    "cpu": {
        "cpu_others": ("others keep the CPUs busy", "the pressure stands in for it, else the CPUs count as free"),
        "cpu_count": ("CPUs", "one CPU is reckoned with"),
        "cpu_pressure": ("waiting for a CPU", "how busy others are is counted all the same"),
    },
    "memory": {
        "memory_available": ("memory available", "memory does not limit the level; set limits.memory_bytes"),
        "memory_pressure": ("waiting for memory", "levels are dropped by what is available alone, which is later"),
        "io_pressure": ("waiting for storage", "nothing, it is only exported"),
    },
    "heat": {
        "temperature_c": ("temperature", "heat does not limit the device's models"),
        "throttled": ("throttled by the firmware", "only the temperature tells of heat; the Raspberry Pi alone says"),
        "cpu_speed": ("clock of the highest", "nothing, it is only exported"),
    },
    "battery": {
        "battery": ("charge", "nothing is saved for a battery: the device counts as plugged in"),
        "discharging": ("running on the battery", "as with the charge"),
    },
}
_PRESSURES = ("cpu_pressure", "memory_pressure", "io_pressure")
_PSI = "boot with psi=1 on the kernel's command line, if the kernel has it (CONFIG_PSI)"


class MemorySeen(msgspec.Struct, frozen=True):
    """Bytes: of the machine, of what can still be had in our control group and in the machine, the group's limit,
    of the levels' files (0: not known). running: an agent runs already, and has its own."""

    total: float
    available: float
    limit: float | None = None
    levels: float = 0.0
    running: bool = False


def memory_findings(seen: MemorySeen) -> list[Finding]:
    """Whether an agent fits."""
    found = Findings("memory")
    room = min(seen.total, math.inf if seen.limit is None else seen.limit)
    says = f"{seen.total / MB:.0f} MB, {seen.available / MB:.0f} MB available; an agent takes about 103 MB"
    fix = "end what else runs, or take a device with 512 MB or more"
    if room < LEAST_BYTES:
        found.problem("memory", f"{says}; it may have {room / MB:.0f} MB", fix, stops=True)
    elif seen.available < AGENT_BYTES and not seen.running:
        found.problem("memory", says, fix)
    else:
        found.ok("memory", says)
    if seen.limit is not None:
        limit = f"the control group may hold {seen.limit / MB:.0f} MB"
        if seen.limit < 1.5 * AGENT_BYTES:
            found.note("memory limit", limit, "raise it (MemoryMax= of the unit) to 160 MB or more")
        else:
            found.ok("memory limit", limit)
    if seen.levels:
        wanted = seen.levels * BYTES_IN_MEMORY
        says = f"all levels of what is served may take {wanted / MB:.1f} MB"
        if wanted > seen.available and not seen.running:
            found.note("levels", f"{says}: the highest will not be loaded", "free memory, or be content with the lower")
        else:
            found.ok("levels", says)
    return found.all


class SensorSeen(msgspec.Struct, frozen=True):
    """A configured sensor: its readings now, names of those that cannot be, why it says nothing at all."""

    name: str
    readings: dict[str, float] = {}
    wrong: tuple[str, ...] = ()
    trouble: str = ""
    unknown: bool = False


def sensor_findings(seen: Sequence[SensorSeen], psi: bool = True) -> list[Finding]:
    """Each configured sensor: its readings, or that they are not on this machine and what follows.

    psi: whether the kernel keeps /proc/pressure.
    """
    found = Findings("sensors")
    for sensor in seen:
        if sensor.unknown:
            found.problem(sensor.name, sensor.trouble, "correct `sensors` in the configuration", stops=True)
        elif sensor.trouble:
            found.problem(sensor.name, f"{sensor.trouble}; its readings are unknown", "mend it, or leave it out")
        else:
            _one(sensor, psi, found)
    missing = [name for name in _READINGS if name not in {sensor.name for sensor in seen}]
    if missing:
        found.note("left out", f"{', '.join(missing)}: not in the configuration's `sensors`, so nothing follows them")
    return found.all


def _one(sensor: SensorSeen, psi: bool, found: Findings) -> None:
    for name in sensor.wrong:
        found.problem(f"{sensor.name}: {name}", "says what cannot be; it counts as unknown", "mend the sensor")
    named = _READINGS.get(sensor.name, {})
    if not named:
        shown = ", ".join(f"{name} {value:g}" for name, value in sensor.readings.items())
        found.ok(sensor.name, shown or "no readings now")
        return
    there = [_shown(name, value) for name, value in sensor.readings.items()]
    hard = _strain(sensor.readings)
    if hard:
        found.note(sensor.name, f"{', '.join(there)}: {hard}", "see docs/dynamic-resources.md")
    elif there:
        found.ok(sensor.name, ", ".join(there))
    if not sensor.readings and not sensor.wrong:
        _, follows = next(iter(named.values()))
        found.note(sensor.name, f"not on this machine; {follows}")
        return
    for name, (what, follows) in named.items():
        if name not in sensor.readings and name not in sensor.wrong:
            fix = _PSI if name in _PRESSURES and not psi else ""
            found.note(f"{sensor.name}: {what}", f"not on this machine; {follows}", fix)


def _strain(readings: Mapping[str, float]) -> str:
    """What of the readings makes the agent do less, empty where nothing does."""
    if readings.get("throttled"):
        return "throttled now, so device models get a quarter of the CPU"
    if readings.get("temperature_c", 0.0) > WARM_C:
        return f"above {WARM_C:g} C device models get less CPU, at {HOT_C:g} C a quarter"
    if readings.get("discharging") and readings.get("battery", 1.0) < LOW_BATTERY:
        return "a low battery, so device models get less CPU"
    if readings.get("memory_pressure", 0.0) > PRESSED:
        return f"under memory pressure levels are dropped, at {CRUSHED:.0%} all but the first"
    if readings.get("cpu_others", 0.0) > 0.9:
        return "hardly any CPU is free, so the level will be a low one"
    if readings.get("cpu_pressure", 0.0) > CALM or readings.get("io_pressure", 0.0) > CALM:
        return "something waits often"
    return ""


def _shown(name: str, value: float) -> str:
    what = next((named[name][0] for named in _READINGS.values() if name in named), name)
    match name:
        case "temperature_c":
            return f"{what} {value:.1f} C"
        case "memory_available":
            return f"{what} {value / MB:.0f} MB"
        case "cpu_count" | "cpu_quota":
            return f"{what.replace('cpu_quota', 'CPUs of the control group')} {value:g}"
        case "throttled" | "discharging":
            return f"{what}: {'yes' if value else 'no'}"
    return f"{what} {value:.0%}"


def cpu_findings(count: float, limit: float | None, compute_share: float) -> list[Finding]:
    """CPUs that this process may use, and what a control group leaves of them."""
    found = Findings("CPU limits")
    says = f"{count:g} CPUs may be used, by device models {compute_share:.0%} of what is free (limits.compute_share)"
    if limit is not None and limit < 1.0:
        says += f"; the control group has {limit:g} of a CPU: a model runs in slices, and answers come late"
        found.note("CPUs", says, "raise it (CPUQuota= of the unit) to 100 % or more")
    elif limit is not None:
        found.ok("CPUs", f"{says}; the control group may have {limit:g}")
    else:
        found.ok("CPUs", says)
    return found.all


_FLAGS = ("under-voltage", "the clock capped", "throttled", "at the soft temperature limit")


def power_findings(flags: int | None) -> list[Finding]:
    """The Raspberry Pi firmware's flags: bits 0 to 3 now, 16 to 19 since boot; None on other machines."""
    found = Findings("power")
    if flags is None:
        found.ok("firmware", "no Raspberry Pi's here (neither /sys nor vcgencmd says): throttling is not seen")
        return found.all
    now = [name for bit, name in enumerate(_FLAGS) if flags >> bit & 1]
    before = [name for bit, name in enumerate(_FLAGS) if flags >> (bit + 16) & 1 and name not in now]
    for names, when in ((now, "now"), (before, "since it was booted")):
        if not names:
            continue
        weak = "under-voltage" in names
        fix = "use the official power supply and a short cable" if weak else "give it a heat sink, a fan, or more air"
        says = f"{', '.join(names)} ({when}): models are slower than was measured"
        if when == "now":
            found.problem("firmware", says, fix)
        else:
            found.note("firmware", says, fix)
    if not now and not before:
        found.ok("firmware", "neither under-voltage nor throttling since it was booted")
    return found.all


def user_findings(root: bool) -> list[Finding]:
    """As whom the doctor looks."""
    found = Findings("limits")
    if root:
        says = "root: what the agent's own user may read and write is not seen"
        found.note("user", says, "run it as that user, or as its unit does (docs/troubleshooting.md)")
    return found.all


def descriptor_findings(limit: float) -> list[Finding]:
    """Files and connections that a process may have open."""
    found = Findings("limits")
    says = f"{'any number of' if math.isinf(limit) else f'{limit:g}'} open files and connections"
    fix = "raise it: LimitNOFILE= of the unit, or ulimit -n"
    if limit < DESCRIPTORS:
        found.problem("descriptors", f"{says}; an agent needs {DESCRIPTORS}", fix, stops=True)
    elif limit < ENOUGH_DESCRIPTORS:
        found.note("descriptors", f"{says}; each client takes one", fix)
    else:
        found.ok("descriptors", says)
    return found.all


class DiskSeen(msgspec.Struct, frozen=True):
    """A place that is written to: the setting's name, whether it may be, bytes free (None: not known)."""

    setting: str
    writable: bool
    free: float | None = None
    hangs: bool = False


def disk_findings(seen: Sequence[DiskSeen], budgets: bool) -> list[Finding]:
    """Where the agent writes. budgets: whether there are any, which are to outlive a restart."""
    found = Findings("disk")
    for place in seen:
        says = "its free space is not known" if place.free is None else f"{place.free / MB:.0f} MB free"
        if place.hangs:
            found.problem(place.setting, "the disk does not answer", "look at the disk, or a network mount of it")
        elif not place.writable:
            found.problem(place.setting, "cannot be written to", "give it to the user that the agent runs as")
        elif place.free is not None and place.free < LEAST_DISK_BYTES:
            found.problem(place.setting, f"{says}: what is written is lost", "make room")
        elif place.free is not None and place.free < LOW_DISK_BYTES:
            found.note(place.setting, says, "make room; a request log grows by about 200 bytes a request")
        else:
            found.ok(place.setting, says)
    if budgets and "state_dir" not in [place.setting for place in seen]:
        found.note("state_dir", "not set: [[budgets]] start empty after every restart", "set state_dir")
    if not found.all:
        found.ok("disk", "nothing is written")
    return found.all


def clock_findings(now: datetime.datetime, tls: bool, newest: datetime.datetime | None = None) -> list[Finding]:
    """Whether the clock can be right. tls: whether certificates are looked at; newest: it is later than this."""
    found = Findings("clock")
    earliest = EARLIEST if newest is None else max(EARLIEST, newest)
    fix = "let it be set over the network (timedatectl set-ntp true), or add a clock with a battery (RTC)"
    if now >= earliest:
        found.ok("clock", f"{now:%Y-%m-%d %H:%M} UTC")
    elif tls:
        found.problem("clock", f"{now:%Y-%m-%d}: every certificate seems not to be valid yet, TLS fails", fix)
    else:
        found.note("clock", f"{now:%Y-%m-%d} cannot be: dates in logs and of alarms are wrong", fix)
    return found.all
