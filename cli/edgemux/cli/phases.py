"""The phases of the demo: what happens to the device, the link and the cloud, and for how many requests."""

from __future__ import annotations

from typing import Literal

import msgspec

from edgemux.cli.link import Conditions


class Phase(msgspec.Struct, frozen=True):
    """One phase. ``percent`` of all requests, at ``pace`` times the rate; ``link`` None for the one the user wants.

    busy: other processes compete for the device's CPU. cloud: what happens to it at the phase's start.
    """

    name: str
    title: str
    percent: int
    busy: bool = False
    link: Conditions | None = None
    pace: float = 1.0
    cloud: Literal["stays", "is_killed", "comes_back"] = "stays"


# Here bytes decide: half a kilobyte takes nearly as long as the round trip.
NARROW = "narrow_link"
NARROW_LINK = Conditions(round_trip_s=0.04, bits_per_s=128e3)
SLOW_LINK = Conditions(round_trip_s=0.4, bits_per_s=0.5e6)

PHASES = (
    Phase("normal", "normal", 40),
    # Half as many a second: the link is to decide here, not how much of its CPU the device can spare for heads.
    Phase(NARROW, "narrow link", 12, link=NARROW_LINK, pace=0.5),
    # Half as many here too: two others want the CPU, and a third of it does not always carry the full rate.
    Phase("busy_device", "busy device", 12, busy=True, pace=0.5),
    Phase("slow_link", "slow link", 12, link=SLOW_LINK),
    Phase("cloud_killed", "cloud killed", 12, cloud="is_killed"),
    Phase("cloud_back", "cloud back", 12, cloud="comes_back"),
)

KILL_AFTER = 5
MIN_REQUESTS = 20


def sizes(requests: int, phases: tuple[Phase, ...] = PHASES) -> list[int]:
    """How many of ``requests`` each phase gets: by its percentage, remainders to the first, none empty."""
    counts = [max(1, requests * phase.percent // 100) for phase in phases]
    counts[0] += requests - sum(counts)
    return counts


def kill_after(count: int) -> int:
    """How many requests of a phase of ``count`` are sent before the cloud is killed: under load, not between loads."""
    return min(KILL_AFTER, (count + 1) // 2)
