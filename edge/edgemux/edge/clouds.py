"""Several clouds that serve the same, as one: asked in turn, each with its own channel, breaker, link and push-back."""

from __future__ import annotations

from collections.abc import Sequence

from edgemux.edge.breaker import State
from edgemux.edge.cloud_executor import Clock, CloudExecutor
from edgemux.edge.metrics import EdgeMetrics
from edgemux.edge.peer import Peer
from edgemux.edge.rotation import Attempts, Standing, Turns
from edgemux.edge.sample import Sample
from edgemux.multiplexer.domain import Prediction, Reason, Route
from edgemux.multiplexer.errors import ExecutionError, Unreachable

# Of several causes the one that passes first is told.
_SOONEST = (Reason.CLOUD_OVERLOADED, Reason.BREAKER)


class Clouds:
    """What the agent knows of a CloudExecutor, of several of them. Not thread-safe.

    An input that one cloud leaves unanswered is sent to another once, within the same time and paid for again.
    """

    def __init__(self, peers: Sequence[CloudExecutor], clock: Clock) -> None:
        """``peers``: two or more, by their places in the configuration; they share the budgets."""
        self.peers = tuple(peers)
        self.purse = self.peers[0].purse
        self._clock = clock
        self._turns = Turns()
        self._latest = self.peers[0]

    def beside(self, peer: Peer, metrics: EdgeMetrics) -> Clouds:
        """The same clouds for another model."""
        return Clouds([each.beside(peer, metrics) for each in self.peers], self._clock)

    @property
    def foreign(self) -> bool:
        """Whether the latest answer came from another model than the bundle's."""
        return self._latest.foreign

    @property
    def request_bytes(self) -> int:
        """Bytes that an offload takes."""
        return self._latest.request_bytes

    @property
    def slow_s(self) -> float:
        """From when on a call that is not answered yet has failed."""
        return self._latest.slow_s

    @property
    def incompatible(self) -> bool:
        """Whether none of the clouds serves what is wanted."""
        return all(peer.incompatible for peer in self.peers)

    def failing(self, now_s: float) -> bool:
        """Whether this is the tail of a split, and every cloud has failed at it that serves it."""
        return all(peer.failing(now_s) for peer in self.peers if not peer.incompatible)

    def state(self, now_s: float) -> State:
        """The best breaker's."""
        return min(peer.state(now_s) for peer in self.peers)

    def readings(self, now_s: float) -> dict[str, float | None]:
        """Of each reading the best one: of the cloud that is nearest, quickest, idlest, most reliable."""
        best: dict[str, float | None] = {}
        for peer in self.peers:
            for name, value in peer.readings(now_s).items():
                known = best.get(name)
                pick = max if name == "link_bytes_per_second" else min
                best[name] = known if value is None else value if known is None else pick(known, value)
        return best

    @property
    def asked_s(self) -> float:
        """When the latest input was sent to any of them."""
        return max(peer.asked_s for peer in self.peers)

    def offload_age_s(self, now_s: float) -> float:
        """Seconds since the newest sample of an offload to any of them."""
        return min(peer.offload_age_s(now_s) for peer in self.peers)

    def offload_seen(self, now_s: float) -> tuple[float, float] | None:
        """Of the cloud that was sent an offload last: its bytes, and the seconds that such take on the link."""
        return min(self.peers, key=lambda peer: peer.offload_age_s(now_s)).offload_seen(now_s)

    def small_s(self, now_s: float) -> float | None:
        """Of the cloud that was sent an offload last: seconds of a call that carries next to nothing."""
        return min(self.peers, key=lambda peer: peer.offload_age_s(now_s)).small_s(now_s)

    def blocked(self, now_s: float, lot: float) -> Reason | None:
        """Why the input that drew ``lot`` must not be sent to any cloud, None when it may be to one."""
        causes = [peer.blocked(now_s, lot) for peer in self.peers]
        if None in causes:
            return None
        return next((cause for cause in _SOONEST if cause in causes), causes[0])

    def predict_s(self, now_s: float) -> float:
        """Seconds an offload is expected to take at the quickest cloud that may be asked; 0 when nothing is known."""
        ready = [peer for peer in self.peers if peer.blocked(now_s, 0.0) is None]
        return min(peer.predict_s(now_s) for peer in ready or self.peers)

    def wants_shadow(self, now_s: float, kept_for: Reason) -> bool:
        """Whether an answered input should be sent to one of the clouds, with nobody waiting."""
        return any(peer.wants_shadow(now_s, kept_for) for peer in self.peers)

    async def shadow(self, route: Route, sample: Sample, timeout_s: float, kept_for: Reason) -> Prediction:
        """Send what ``wants_shadow`` wants to whoever wants it. Raises ExecutionError."""
        now_s = self._clock()
        for peer in self.peers:
            if peer.wants_shadow(now_s, kept_for):
                return await peer.run(route, sample, timeout_s)
        raise Unreachable("no cloud wants it any more")

    async def run(self, route: Route, sample: Sample, timeout_s: float, exact: bool = False) -> Prediction:
        """Answer in one of the clouds; ``exact``: from what loses nothing of the input.

        Raises the ExecutionError of the latest attempt.
        """
        now_s = self._clock()
        attempts = Attempts(self._turns, now_s + timeout_s)
        error: ExecutionError | None = None
        while (turn := attempts.next(self._standings(now_s, sample.lot), now_s)) is not None:
            peer = self.peers[turn]
            if error is not None and not self._affords(peer, now_s):
                break
            try:
                prediction = await peer.run(route, sample, attempts.left_s(now_s), exact)
            except ExecutionError as failure:
                attempts.failed(failure)
                error, now_s = failure, self._clock()
            else:
                self._latest = peer
                return prediction
        raise error or Unreachable("no cloud is being asked")

    def _standings(self, now_s: float, lot: float) -> list[Standing]:
        return [Standing(peer.blocked(now_s, lot) is None, peer.predict_s(now_s)) for peer in self.peers]

    def _affords(self, peer: CloudExecutor, now_s: float) -> bool:
        return self.purse.affords(self.purse.tariff.offload(peer.request_bytes), now_s)


Cloud = CloudExecutor | Clouds
