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
# A way that changes answers counts as longer, by this and by so much for all that it changes: where times are alike
# nothing is to be lost, and of two that are alike less.
LOSSY, CHANGED = 0.1, 2.5
# Seconds and their like are taken for no more than this, and bandwidths for no less than its inverse: beyond there is
# nothing to tell ways apart by.
MOST = 1e9


class Way(msgspec.Struct, frozen=True):
    """One way to answer an input. ``name``: of a cut, or of the form in which the input is sent.

    device_s: CPU time on the device when nothing else runs there, encoding included. cloud_s: computing in the cloud,
    decoding included. sent_bytes, answer_bytes: on the link, each way; none where the device answers. changed: the
    share of answers that are others than to the input itself.
    """

    name: str
    placement: Placement
    device_s: float
    cloud_s: float = 0.0
    sent_bytes: float = 0.0
    answer_bytes: float = 0.0
    changed: float = 0.0


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

    @property
    def known(self) -> bool:
        """Whether these are readings at all: none is NaN or below zero, and the device takes some time."""
        seconds = self.rtt_s, self.bytes_per_s, self.queue_s, self.lost_share
        return all(each >= 0 for each in seconds) and self.slowdown > 0

    def within_reason(self) -> Conditions:
        """With finite times, and a bandwidth over zero."""
        return Conditions(
            min(self.rtt_s, MOST),
            max(self.bytes_per_s, 1 / MOST),
            min(self.queue_s, MOST),
            min(self.slowdown, MOST),
            min(self.lost_share, 1.0),
        )


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
        """Raises ValueError without ways, and for one that takes less than nothing, or no number."""
        if not ways:
            raise ValueError("there must be a way")
        if not all(0 <= each < math.inf for way in ways for each in _axes(way)):
            raise ValueError("a way takes what is no number")
        self.ways = tuple(undominated(ways))
        self._price = price or Price()
        self._device = np.array([way.device_s for way in self.ways])
        self._cloud = np.array([way.cloud_s for way in self.ways])
        self._bytes = np.array([way.sent_bytes + way.answer_bytes for way in self.ways])
        self._counts = np.array([counted(way.changed) for way in self.ways])
        self._leaves = np.array([way.placement is not Placement.EDGE for way in self.ways], float)
        self._energy_s = self._price.seconds_per_joule * self.energies_j()

    def latencies_s(self, conditions: Conditions) -> NDArray[np.float64]:
        """Seconds of each way, [ways]."""
        conditions = conditions.within_reason()
        link_s = self._leaves * (conditions.rtt_s + conditions.queue_s) + self._bytes / conditions.bytes_per_s
        # A call that is lost with probability p is made 1 / (1 - p) times on average.
        often = 1.0 / max(1.0 - conditions.lost_share, 1e-3)
        latency: NDArray[np.float64] = self._device * conditions.slowdown + (link_s + self._cloud) * often
        return latency

    def prices_s(self, conditions: Conditions) -> NDArray[np.float64]:
        """What is made small, of each way, [ways]."""
        prices: NDArray[np.float64] = self._counts * (self.latencies_s(conditions) + self._energy_s)
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
    if not ways:
        return []
    # By the bytes sent and the name too: of equal ways the same one is left whatever order they come in.
    ordered = sorted(ways, key=lambda way: (*_axes(way), way.sent_bytes, way.name, way.placement))
    axes = np.array([_axes(way) for way in ordered]).reshape(len(ordered), -1)
    no_worse = (axes[:, None] <= axes[None, :]).all(axis=2)
    # Whatever beats a way comes before it, or is its equal.
    beaten = np.triu(no_worse, 1).any(axis=0)
    return [ordered[at] for at in np.flatnonzero(~beaten)]


def _axes(way: Way) -> tuple[float, ...]:
    leaves = float(way.placement is not Placement.EDGE)
    return leaves, way.changed, way.device_s, way.cloud_s, way.sent_bytes + way.answer_bytes


def counted(changed: float) -> float:
    """As how many times as long a way counts that changes this share of answers."""
    return 1.0 + LOSSY + CHANGED * changed if changed > 0 else 1.0


class Planner:
    """The way that is taken, kept until another one is clearly better. Not thread-safe; readings are passed in."""

    def __init__(self, table: Table) -> None:
        self.table = table
        self._chosen: int | None = None

    def plan(self, conditions: Conditions | None) -> Way:
        """The way for now. conditions: None while the link is not known, and so are readings that are none: what was
        chosen stays, at first the way that needs no link, else the first of the table.
        """
        if conditions is None or not conditions.known:
            return self.table.ways[self._unknown() if self._chosen is None else self._chosen]
        prices = self.table.prices_s(conditions)
        best = int(prices.argmin())
        if self._chosen is None or prices[best] < BETTER * prices[self._chosen]:
            self._chosen = best
        return self.table.ways[self._chosen]

    def forget(self) -> None:
        """What was chosen is not kept."""
        self._chosen = None

    def _unknown(self) -> int:
        places = [way.placement for way in self.table.ways]
        return places.index(Placement.EDGE) if Placement.EDGE in places else 0
