"""The routes that could be run next for an input, with their scores and what they are expected to cost."""

from __future__ import annotations

from typing import Any

import msgspec
from numpy.typing import NDArray

from edgemux.edge.clouds import Cloud
from edgemux.edge.config import EdgeConfig
from edgemux.edge.device_executor import INLINE_S, DeviceExecutor
from edgemux.edge.purse import Purse
from edgemux.edge.sample import Sample
from edgemux.edge.split_executor import Half, SplitExecutor
from edgemux.edge.variants import Family
from edgemux.multiplexer.domain import Budget, Candidate, Cost, Prediction, Reason, Route
from edgemux.multiplexer.policy import obstacle

# A higher level must promise at least this much more P(correct) than the answer at hand.
REFINE_PRICE = 0.02
LEAST_STEP = 1e-9
# What keeps one way from being taken, and may not keep another.
HINDRANCES = (Reason.BUDGET, Reason.DEVICE_BUSY, Reason.OVERLOADED, Reason.LINK)


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
        self,
        held: Prediction | None,
        price: float,
        sample: Sample,
        scores: NDArray[Any],
        budget: Budget,
        now_s: float,
    ) -> tuple[Candidate, ...]:
        """The levels above that of ``held``, and the cloud at ``price``, by one way only. scores: [1, routes]."""
        level = 0 if held is None else held.route.level
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
        found.append(self._onward(held, row[-1], price, sample, budget, resident, now_s))
        return tuple(found)

    def _onward(
        self,
        held: Prediction | None,
        score: float,
        price: float,
        sample: Sample,
        budget: Budget,
        resident: int,
        now_s: float,
    ) -> Candidate:
        """The cloud by the way that is expected to be answered soonest, of those that can be paid for and are in time.

        Where a scarce budget makes one dearer, the way that is worth most: a split has a smaller toll, but may be wrong
        more often.
        """
        splits, level = self._splits, 0 if held is None else held.route.level
        if splits is None:
            return self.whole(score, price, sample, level, now_s)
        half = splits.offered(sample, resident, now_s)
        first = (
            self.whole(score, price, sample, level, now_s)
            if half is None
            else self._split(splits, half, score, price, sample, level, now_s)
        )
        hindered = obstacle(first, budget, held)
        if sample.exact or hindered not in (None, *HINDRANCES) or (hindered is None and not self._purse.dear(now_s)):
            return first
        others = [
            self._split(splits, each, score, price, sample, level, now_s)
            for each in splits.cheaper(half, resident, now_s)
        ]
        if half is not None and self._cloud is not None:
            others.append(self.whole(score, price, sample, level, now_s))
        able = [each for each in others if obstacle(each, budget, held) is None]
        if hindered is None:  # others only where they are cheaper: sooner answers are better
            able = [first, *(each for each in able if each.toll < first.toll)]
        return max(able, key=self._net, default=first)

    def _net(self, away: Candidate) -> float:
        """What a way is worth after its toll, and what its answers are known to lose."""
        lost = 0.0 if self._splits is None else self._splits.loses(away.route.variant)
        return -away.toll - lost

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
            memory_bytes=self._family.bytes_of.get(half.split.level, 0) + half.head.bytes,
            energy_j=sending.energy_j + self._watts * compute_s,
        )
        resident = len(sample.activations.chain or self._family.chain)
        blocked = half.blocked(resident, now_s, sample.lot)
        if blocked is None and not self._has_time(latency_s, sample, now_s):
            blocked = Reason.OVERLOADED
        toll = self._toll(price, held, half.tail.request_bytes, now_s)
        return Candidate(half.route, score, cost, price, blocked, toll)

    def _has_time(self, work_s: float, sample: Sample, now_s: float) -> bool:
        """Whether the device has the time for a head that does not run at once, as it must for a level."""
        left_s = sample.deadline_s - now_s
        return work_s <= INLINE_S or self._device.backlog.fits(sample.client, work_s, left_s, now_s)

    def whole(self, score: float, price: float, sample: Sample, held: int, now_s: float) -> Candidate:
        """The whole input in the cloud. held: the level that has answered, 0 for none."""
        if self._cloud is None:
            return Candidate(self._away, score, Cost(), price, Reason.NO_CLOUD)
        cost = self._sending(self._cloud.predict_s(now_s), self._cloud.request_bytes)
        blocked = self._cloud.blocked(now_s, sample.lot)
        toll = self._toll(price, held, self._cloud.request_bytes, now_s)
        return Candidate(self._away, score, cost, price, blocked, toll)

    def _sending(self, latency_s: float, size: float) -> Cost:
        takes = self._purse.tariff.offload(size)
        return Cost(latency_s, energy_j=takes["joules"], sent_bytes=size, offloads=1, money=takes["money"])

    def _toll(self, price: float, held: int, size: float, now_s: float) -> float:
        toll = self._purse.toll(size, now_s)
        if held and self._fully:
            toll -= max(0.0, price)  # the toll alone is the price, but what is certified to be sent is still sent
        return toll
