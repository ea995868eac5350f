"""Readings -> Budget: what this request may spend. Pure."""

from __future__ import annotations

import math

import msgspec

from edgemux.multiplexer.domain import Budget

# A device hotter than WARM_C gets less to do; at HOT_C, where the Raspberry Pi starts to throttle by itself, a quarter.
WARM_C = 70.0
HOT_C = 80.0
LEAST_HEAT_SHARE = 0.25
LOW_BATTERY = 0.2
LOW_BATTERY_SHARE = 0.5
# However busy the others are, the kernel's fair share leaves a process something.
LEAST_FREE_CPU = 0.05
# Memory pressure: share of ten seconds in which everything that could run waited for memory ("full avg10").
# systemd-oomd kills from 0.6 on (oomd.conf(5), DefaultMemoryPressureLimit). Chosen, not measured: nothing but the
# smallest level at half of that, and from a tenth of it on less and less.
PRESSED = 0.06
CRUSHED = 0.3
# A process that was suspended for an hour lags by an hour, once: it says nothing about the next moment.
WORST_LAG_S = 0.1


# What a byte of a level's file takes in memory, where it is stored as int8: measured, docs/nested.md (79.6 MB of
# private memory for files of 5.6 MB; the runtime's own layout in float32, and what it needed on the way there).
BYTES_IN_MEMORY = 14.0
# An input may not take longer than the share allows in a second, however rarely one comes.
LEAST_RATE = 1.0


class Readings(msgspec.Struct, frozen=True):
    """What the sensors say; None is unknown.

    cpu_others: share of our CPUs kept busy by others. cpu_quota: CPUs that our control group may use, where it is
    limited. cpu_pressure, io_pressure: share of the last ten seconds in which something waited for CPU or storage;
    memory_pressure: in which everything waited for memory. memory_available: bytes. cpu_speed: the clock that is
    allowed now, of the highest; exported and no more, since what a model takes is measured. battery: charge.
    throttled, discharging: 0 or 1.
    """

    cpu_others: float | None = None
    cpu_count: float | None = None
    cpu_quota: float | None = None
    cpu_pressure: float | None = None
    cpu_speed: float | None = None
    memory_available: float | None = None
    memory_pressure: float | None = None
    io_pressure: float | None = None
    temperature_c: float | None = None
    throttled: float | None = None
    battery: float | None = None
    discharging: float | None = None


# What a reading can be; anything else is a broken sensor. The Pi's own sensor is rated for -40 to 125 C.
RANGES: dict[str, tuple[float, float]] = {
    "cpu_count": (1.0, 4096.0),
    "cpu_quota": (0.0, 4096.0),
    "memory_available": (0.0, 2.0**60),
    "temperature_c": (-40.0, 150.0),
} | dict.fromkeys(
    (
        "cpu_others",
        "cpu_pressure",
        "cpu_speed",
        "memory_pressure",
        "io_pressure",
        "throttled",
        "battery",
        "discharging",
    ),
    (0.0, 1.0),
)


class Demand(msgspec.Struct, frozen=True):
    """What is being asked of the device: inputs per second, and how late its event loop runs (seconds)."""

    inputs_per_s: float = 0.0
    loop_lag_s: float = 0.0


class Allowance(msgspec.Struct, frozen=True):
    """What the long-run budgets still hold: offloads, bytes to send, joules, money."""

    offloads: float = math.inf
    sent_bytes: float = math.inf
    energy_j: float = math.inf
    money: float = math.inf


def budget_for(
    readings: Readings,
    demand: Demand,
    allowance: Allowance,
    *,
    left_s: float,
    reserve_s: float,
    margin_s: float,
    compute_share: float,
    memory_limit_bytes: float,
    resident_bytes: float = 0.0,
) -> Budget:
    """The budget of one input that has ``left_s`` until its deadline.

    CPU time per input is the free share of one core, times the share of it that we may use, divided by the inputs that
    arrive a second. From what goes to the cloud ``margin_s`` (at least twice the event loop's lag) is kept back for the
    way home, and ``reserve_s`` for the device's own answer. Unknown readings do not limit.
    """
    return Budget(
        latency_s=left_s,
        margin_s=max(margin_s, 2 * min(demand.loop_lag_s, WORST_LAG_S)),
        compute_s=cpu_share(readings) * compute_share / max(demand.inputs_per_s, LEAST_RATE),
        memory_bytes=memory_for(readings, memory_limit_bytes, resident_bytes),
        energy_j=allowance.energy_j,
        sent_bytes=allowance.sent_bytes,
        offloads=allowance.offloads,
        money=allowance.money,
        reserve_s=reserve_s,
    )


def memory_for(readings: Readings, limit_bytes: float, resident_bytes: float = 0.0) -> float:
    """Bytes of weights that all levels together may have: the limit, what is there, less of both under pressure.

    ``resident_bytes`` are those that levels take already: they are ours, and no longer among what is available.
    """
    there = math.inf
    if readings.memory_available is not None:
        there = resident_bytes + readings.memory_available / BYTES_IN_MEMORY
    left = _not_pressed(readings)
    return left * min(limit_bytes, there) if left > 0 else 0.0  # 0 of infinity would be no number


def _not_pressed(readings: Readings) -> float:
    """What memory pressure leaves: 1 up to PRESSED, then falling to 0 at CRUSHED."""
    pressure = readings.memory_pressure or 0.0
    return min(1.0, max(0.0, (CRUSHED - pressure) / (CRUSHED - PRESSED)))


def cpu_share(readings: Readings) -> float:
    """Share of one core that is there for models: what others leave, less in heat and on a low battery. (0, 1].

    Where nobody says how busy the others are, the pressure stands in: it is how often something waits for a CPU. A
    quota of our control group is a bound of its own.
    """
    busy, count = readings.cpu_others, readings.cpu_count or 1.0
    if busy is None:
        busy = readings.cpu_pressure or 0.0
    # A model runs on one thread: as long as one whole core is free, it has all that it can use.
    share = min(1.0, max(LEAST_FREE_CPU, (1.0 - busy) * count))
    if readings.cpu_quota is not None:
        share = min(share, max(LEAST_FREE_CPU, readings.cpu_quota))
    if readings.throttled:
        share *= LEAST_HEAT_SHARE
    elif readings.temperature_c is not None and readings.temperature_c > WARM_C:
        hot = min(1.0, (readings.temperature_c - WARM_C) / (HOT_C - WARM_C))
        share *= 1.0 - hot * (1.0 - LEAST_HEAT_SHARE)
    if readings.discharging and readings.battery is not None and readings.battery < LOW_BATTERY:
        share *= LOW_BATTERY_SHARE
    return share
