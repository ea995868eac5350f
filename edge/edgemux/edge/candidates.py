"""The routes that could be run next for an input, with their scores and what they are expected to cost."""

from __future__ import annotations

from typing import Any

import msgspec
from numpy.typing import NDArray

from edgemux.edge.clouds import Cloud
from edgemux.edge.config import EdgeConfig
from edgemux.edge.device_executor import DeviceExecutor
from edgemux.edge.purse import Purse
from edgemux.edge.sample import Sample
from edgemux.edge.split_executor import Half, SplitExecutor
from edgemux.edge.variants import Family
from edgemux.multiplexer.domain import Candidate, Cost, Reason, Route

# A higher level must promise at least this much more P(correct) than the answer at hand.
REFINE_PRICE = 0.02
LEAST_STEP = 1e-9


class Candidates:
    """Of one application. Not thread-safe; time is passed in."""

    def __init__(
        self,
        config: EdgeConfig,
        family: Family,
        device: DeviceExecutor,
        cloud: Cloud | None,
        splits: SplitExecutor | None,
        purse: Purse,
        away: Route,
    ) -> None:
        """``away``: the route of the whole input in the cloud; ``cloud``: None where no whole input may be sent."""
        self._watts = config.energy.active_watts
        self._fully = config.limits.spend == "fully"
        self._family = family
        self._device = device
        self._cloud = cloud
        self._splits = splits
        self._purse = purse
        self._away = away

    def above(
        self, level: int, price: float, sample: Sample, scores: NDArray[Any], now_s: float
    ) -> tuple[Candidate, ...]:
        """The levels above ``level``, and the cloud at ``price``, by one way only. scores: [1, routes]."""
        row = scores[0].tolist()
        device, family = self._device, self._family
        left_s, wait_s = sample.deadline_s - now_s, device.backlog.wait_s
        resident = len(sample.activations.chain or family.chain)
        found = []
        best = 0.0
        for i in range(level, len(family.routes)):
            # A higher level is never taken to be worse: the level follows what the device affords, not the input. The
            # certificate is one per level; it would not hold for levels picked by the input.
            row[i] = best = max(row[i], best + LEAST_STEP)
            compute_s = device.compute[i].mean_s
            latency_s = wait_s + device.latency[i].mean_s
            cost = Cost(latency_s, compute_s, family.bytes_of[i + 1], self._watts * compute_s)
            blocked = None if device.fits(i + 1, sample.client, left_s, now_s) else Reason.OVERLOADED
            if i >= resident:
                blocked = Reason.DEVICE_BUSY
            found.append(Candidate(family.routes[i], row[i], cost, REFINE_PRICE if level else 0.0, blocked))
        half = None if self._splits is None else self._splits.offered(sample, resident, now_s)
        if self._splits is None or half is None:
            found.append(self.whole(row[-1], price, sample, level, now_s))
        else:
            found.append(self._split(self._splits, half, row[-1], price, sample, level, now_s))
        return tuple(found)

    def _split(
        self,
        splits: SplitExecutor,
        half: Half,
        score: float,
        price: float,
        sample: Sample,
        held: int,
        now_s: float,
    ) -> Candidate:
        """What a head makes of the input, in the cloud. It counts as right as often as the cloud, like any form of an
        input that is sent: what a certificate says is deferred is deferred, whichever way is open."""
        latency_s, compute_s = splits.work_s(half, sample.activations.reached)
        wait_s = self._device.backlog.wait_s
        sending = self._sending(wait_s + latency_s + splits.predict_s(half, now_s), half.tail.request_bytes)
        cost = msgspec.structs.replace(
            sending,
            compute_s=compute_s,
            memory_bytes=self._family.bytes_of.get(half.split.level, 0),
            energy_j=sending.energy_j + self._watts * compute_s,
        )
        resident = len(sample.activations.chain or self._family.chain)
        blocked = half.blocked(resident, now_s, sample.lot)
        return Candidate(half.route, score, cost, price, blocked, self._toll(price, held, now_s))

    def whole(self, score: float, price: float, sample: Sample, held: int, now_s: float) -> Candidate:
        """The whole input in the cloud. held: the level that has answered, 0 for none."""
        if self._cloud is None:
            return Candidate(self._away, score, Cost(), price, Reason.NO_CLOUD)
        cost = self._sending(self._cloud.predict_s(now_s), self._cloud.request_bytes)
        blocked = self._cloud.blocked(now_s, sample.lot)
        return Candidate(self._away, score, cost, price, blocked, self._toll(price, held, now_s))

    def _sending(self, latency_s: float, size: float) -> Cost:
        tariff = self._purse.tariff
        return Cost(
            latency_s,
            energy_j=size * tariff.joules_per_byte,
            sent_bytes=size,
            offloads=1,
            money=tariff.money_per_offload + size * tariff.money_per_byte,
        )

    def _toll(self, price: float, held: int, now_s: float) -> float:
        toll = self._purse.toll(now_s)
        if held and self._fully:
            toll -= max(0.0, price)  # the toll alone is the price, but what is certified to be sent is still sent
        return toll
