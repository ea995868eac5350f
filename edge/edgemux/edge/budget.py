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
# A process that was suspended for an hour lags by an hour, once: it says nothing about the next moment.
WORST_LAG_S = 0.1


class Readings(msgspec.Struct, frozen=True):
    """What the sensors say; None is unknown. cpu_others: share of our CPUs kept busy by others, [0, 1]."""

    cpu_others: float | None = None
    cpu_count: float | None = None
    memory_available: float | None = None
    temperature_c: float | None = None
    throttled: float | None = None
    battery: float | None = None
    discharging: float | None = None


class Demand(msgspec.Struct, frozen=True):
    """What is being asked of the device: inputs per second, and how late its event loop runs (seconds)."""

    inputs_per_s: float = 0.0
    loop_lag_s: float = 0.0


class Allowance(msgspec.Struct, frozen=True):
    """What the long-run budgets still hold: offloads, bytes to send, joules."""

    offloads: float = math.inf
    sent_bytes: float = math.inf
    energy_j: float = math.inf


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
) -> Budget:
    """The budget of one input that has ``left_s`` until its deadline.

    CPU time per input is the free share of one core, times the share of it that we may use, divided by the inputs that
    arrive a second. From what goes to the cloud ``margin_s`` (at least twice the event loop's lag) is kept back for the
    way home, and ``reserve_s`` for the device's own answer. Unknown readings do not limit.
    """
    return Budget(
        latency_s=left_s,
        margin_s=max(margin_s, 2 * min(demand.loop_lag_s, WORST_LAG_S)),
        compute_s=cpu_share(readings) * compute_share / max(demand.inputs_per_s, 1.0),
        memory_bytes=min(
            memory_limit_bytes, math.inf if readings.memory_available is None else readings.memory_available
        ),
        energy_j=allowance.energy_j,
        sent_bytes=allowance.sent_bytes,
        offloads=allowance.offloads,
        reserve_s=reserve_s,
    )


def cpu_share(readings: Readings) -> float:
    """Share of one core that is there for models: what others leave, less in heat and on a low battery. (0, 1]."""
    share = 1.0
    if readings.cpu_others is not None:
        # A model runs on one thread: as long as one whole core is free, it has all that it can use.
        share = (1.0 - readings.cpu_others) * (readings.cpu_count or 1.0)
    share = min(1.0, max(LEAST_FREE_CPU, share))
    if readings.throttled:
        share *= LEAST_HEAT_SHARE
    elif readings.temperature_c is not None and readings.temperature_c > WARM_C:
        hot = min(1.0, (readings.temperature_c - WARM_C) / (HOT_C - WARM_C))
        share *= 1.0 - hot * (1.0 - LEAST_HEAT_SHARE)
    if readings.discharging and readings.battery is not None and readings.battery < LOW_BATTERY:
        share *= LOW_BATTERY_SHARE
    return share
