"""Where to cut a model, or whether to cut it at all: every way to answer an input, priced for the link as it is. Pure.

The sum that is made small is Neurosurgeon's (Kang et al., ASPLOS 2017): time on the device, on the link and in the
cloud, and the device's energy for computing and sending. Unlike there the cloud's queue counts, and the whole input in
the smallest form that is known is a way like any other: a cut often loses to it (Matsubara et al., TMLR 2023).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgemux.multiplexer.domain import Placement

# Another way must be better by this share: estimates are not that good, and each change costs a first time.
BETTER = 0.9


class Way(msgspec.Struct, frozen=True):
    """One way to answer an input. ``name``: of a cut, or of the form in which the input is sent.

    device_s: CPU time on the device when nothing else runs there, encoding included. cloud_s: computing in the cloud,
    decoding included. sent_bytes, answer_bytes: on the link, each way; none where the device answers.
    """

    name: str
    placement: Placement
    device_s: float
    cloud_s: float = 0.0
    sent_bytes: float = 0.0
    answer_bytes: float = 0.0


class Conditions(msgspec.Struct, frozen=True):
    """How things stand. ``slowdown``: how many times as long the device takes as when nothing else runs there.

    bytes_per_s: towards the cloud; infinite where sending takes no time. lost_share: of calls that come to nothing and
    are made again.
    """

    rtt_s: float
    bytes_per_s: float
    queue_s: float = 0.0
    slowdown: float = 1.0
    lost_share: float = 0.0


class Price(msgspec.Struct, frozen=True):
    """What is made small: seconds, and ``seconds_per_joule`` for each joule of the device.

    watts: what computing adds to the device's draw; joules_per_byte: sending and receiving.
    """

    seconds_per_joule: float = 0.0
    watts: float = 1.0
    joules_per_byte: float = 8e-7


class Expected(msgspec.Struct, frozen=True):
    """What a way is expected to take under some conditions, and its price in seconds. Energy is the device's."""

    way: Way
    latency_s: float
    energy_j: float
    sent_bytes: float
    price_s: float


class Table:
    """Ways as columns: what they take under any conditions is a product. Those that can never be best are left out."""

    def __init__(self, ways: Sequence[Way], price: Price | None = None) -> None:
        """Raises ValueError without ways."""
        if not ways:
            raise ValueError("there must be a way")
        self.ways = tuple(undominated(ways))
        self._price = price or Price()
        self._device = np.array([way.device_s for way in self.ways])
        self._cloud = np.array([way.cloud_s for way in self.ways])
        self._bytes = np.array([way.sent_bytes + way.answer_bytes for way in self.ways])
        self._leaves = np.array([way.placement is not Placement.EDGE for way in self.ways], float)

    def latencies_s(self, conditions: Conditions) -> NDArray[np.float64]:
        """Seconds of each way, [ways]."""
        link_s = self._leaves * (conditions.rtt_s + conditions.queue_s) + self._bytes / conditions.bytes_per_s
        # A call that is lost with probability p is made 1 / (1 - p) times on average.
        often = 1.0 / max(1.0 - conditions.lost_share, 1e-3)
        latency: NDArray[np.float64] = self._device * conditions.slowdown + (link_s + self._cloud) * often
        return latency

    def prices_s(self, conditions: Conditions) -> NDArray[np.float64]:
        """What is made small, of each way, [ways]."""
        prices: NDArray[np.float64] = self.latencies_s(conditions) + self._price.seconds_per_joule * self.energies_j()
        return prices

    def energies_j(self) -> NDArray[np.float64]:
        """Joules of the device, of each way, [ways]."""
        energy: NDArray[np.float64] = self._price.watts * self._device + self._price.joules_per_byte * self._bytes
        return energy

    def expected(self, conditions: Conditions) -> list[Expected]:
        """Every way that may be best, the best first."""
        columns = (self.latencies_s(conditions), self.energies_j(), self._bytes, self.prices_s(conditions))
        rows = zip(self.ways, *(column.tolist() for column in columns), strict=True)
        return sorted((Expected(*row) for row in rows), key=lambda each: each.price_s)


def undominated(ways: Sequence[Way]) -> list[Way]:
    """Without ways that take at least as much of everything as another one: no conditions make these best."""
    kept: list[Way] = []
    for way in sorted(ways, key=lambda way: (*_axes(way), way.name)):
        axes = _axes(way)
        if not any(all(a <= b for a, b in zip(_axes(other), axes, strict=True)) for other in kept):
            kept.append(way)
    return kept


def _axes(way: Way) -> tuple[float, ...]:
    leaves = float(way.placement is not Placement.EDGE)
    return leaves, way.device_s, way.cloud_s, way.sent_bytes + way.answer_bytes


class Planner:
    """The way that is taken, kept until another one is clearly better. Not thread-safe; readings are passed in."""

    def __init__(self, table: Table) -> None:
        self.table = table
        self._chosen: int | None = None

    def plan(self, conditions: Conditions | None) -> Way:
        """The way for now. conditions: None while the link is not known: what was chosen stays, at first the way that
        needs no link, else the first of the table.
        """
        if conditions is None:
            return self.table.ways[self._unknown() if self._chosen is None else self._chosen]
        prices = self.table.prices_s(conditions)
        best = int(prices.argmin())
        if (
            self._chosen is None
            or not math.isfinite(prices[self._chosen])
            or prices[best] < BETTER * prices[self._chosen]
        ):
            self._chosen = best
        return self.table.ways[self._chosen]

    def _unknown(self) -> int:
        places = [way.placement for way in self.table.ways]
        return places.index(Placement.EDGE) if Placement.EDGE in places else 0
