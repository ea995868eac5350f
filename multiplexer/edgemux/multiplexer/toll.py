"""What a unit of a long-run budget is worth now: a dual price, so that tokens go to the inputs that gain the most.

A token bucket is hard, and alone it serves whoever comes first. The toll is the Lagrange multiplier of the long-run
budget, learned on line by projected dual subgradient steps (Balseiro, Lu and Mirrokni 2023, "The best of many worlds:
dual mirror descent for online allocation problems"): it rises with every unit that is wanted at today's toll, and falls
with what the rate allows meanwhile.
"""

from __future__ import annotations

from edgemux.multiplexer.limits import TokenBucket

# Gains are differences of probabilities: at a toll of 1 nothing is worth its price.
MOST = 1.0
# A step per unit. Fewer tokens in a burst than 50 do not make it coarser; more make it finer, so that one burst of
# inputs does not take the toll from one end to the other.
STEP = 0.01
BURST_SHARE = 0.5
# Tokens that ran over are lost for good: they lower the toll as if twenty times as many had been allowed, but one input
# by at most SPILL_MOST units' worth. Simulated: without it a burst of 5 tokens spends 92 % of its rate, with it 98 %.
SPILL_WEIGHT = 20.0
SPILL_MOST = 2.0
# The toll is due in full once a third of the bucket is gone.
RELIEF = 3.0


class Toll:
    """The price of one unit, in P(correct): 0 at first, within [0, MOST]. No clock and no chance in it."""

    def __init__(self, burst: float) -> None:
        """``burst``: units that the bucket holds; infinite or not positive is as good as one."""
        self.price = 0.0
        self._step = min(STEP, BURST_SHARE / burst) if burst > 0 else STEP

    def settle(self, wanted: float, allowed: float, spilled: float = 0.0) -> None:
        """One input is done with: units it wanted at this price, units allowed and units lost since the last one."""
        step = wanted - allowed - min(SPILL_WEIGHT * spilled, SPILL_MOST)
        self.price = min(MOST, max(0.0, self.price + self._step * step))


class TolledBudget:
    """A long-run budget: a bucket that is never overdrawn, and the toll that spends it well.

    ``available`` and ``take`` are the bucket's. A unit of the toll is one offload, which takes ``unit`` tokens.
    """

    def __init__(self, bucket: TokenBucket, unit: float = 1.0) -> None:
        self._bucket = bucket
        self._unit = unit
        self._toll = Toll(bucket.burst / unit)
        self._seen = (0.0, 0.0, 0.0)
        self.available = bucket.available
        self.take = bucket.take

    def price(self, now_s: float) -> float:
        """What an offload must bring beside its own price, in P(correct); 0 where there is no limit.

        The toll, or the less of it the fuller the bucket would still be afterwards: nothing is saved for others that
        the bucket could give them all the same.
        """
        if self._bucket.unlimited or self._toll.price == 0.0:
            return 0.0
        burst = self._bucket.burst
        emptiness = 1.0 - (self._bucket.available(now_s) - self._unit) / burst if burst > 0 else 1.0
        return self._toll.price * min(1.0, RELIEF * emptiness)

    def settle(self, lacked: float, now_s: float) -> None:
        """One input is done with. ``lacked``: units that it was worth at this price, and that were not there.

        Whoever took tokens meanwhile (an audit, a probe of the link) counts as having wanted them.
        """
        if self._bucket.unlimited:
            return
        self._bucket.available(now_s)
        now = (self._bucket.taken, self._bucket.accrued, self._bucket.spilled)
        taken, accrued, spilled = ((new - old) / self._unit for new, old in zip(now, self._seen, strict=True))
        self._seen = now
        # What a bucket cannot hold was never there to be spent.
        allowed = min(accrued, self._bucket.burst / self._unit)
        self._toll.settle(taken + lacked, allowed, spilled)
