"""Every long-run budget of the agent: offloads, bytes, joules and money, a second, an hour, a day or a month.

Each is a token bucket, and one that is for a period holds a tenth of its amount: what the rate adds in a period and
what the bucket held at its start are together the amount. So it is spent smoothly, and no period anywhere sees more.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import msgspec

from edgemux.edge.budget import Allowance
from edgemux.multiplexer.domain import Cost
from edgemux.multiplexer.limits import TokenBucket
from edgemux.multiplexer.toll import TolledBudget

Kind = Literal["offloads", "bytes", "joules", "money"]
KINDS: tuple[Kind, ...] = ("offloads", "bytes", "joules", "money")
# Thirty days: a month that is longer gets no more.
PERIOD_S = {"hour": 3600.0, "day": 86400.0, "month": 30 * 86400.0}
BURST_SHARE = 0.1
UNLIMITED = Allowance()


class BudgetSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """At most ``amount`` ``of`` something in any period: offloads, bytes to the cloud, joules by the proxy, money."""

    of: Kind
    amount: float
    per: Literal["hour", "day", "month"]

    def __post_init__(self) -> None:
        if not 0 <= self.amount < math.inf:
            raise ValueError("amount must be finite and not negative")

    @property
    def name(self) -> str:
        """What it is called in the state on disk."""
        return f"{self.of}/{self.per}"

    def bucket(self, one_offload: float, tokens: float | None = None) -> TokenBucket:
        """A bucket with ``tokens`` in it, full for None; it holds one offload's worth or more where the amount does."""
        burst = min(self.amount, max(BURST_SHARE * self.amount, one_offload))
        return TokenBucket((self.amount - burst) / PERIOD_S[self.per], burst, tokens)


class PriceSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the cloud and the link cost, in the currency of the money budgets."""

    money_per_offload: float = 0.0
    money_per_byte: float = 0.0

    def __post_init__(self) -> None:
        for name in ("money_per_offload", "money_per_byte"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be finite and not negative")


class Tariff(msgspec.Struct, frozen=True):
    """What sending bytes takes of each kind of budget, beside one offload."""

    joules_per_byte: float = 0.0
    money_per_offload: float = 0.0
    money_per_byte: float = 0.0

    def offload(self, size: float) -> dict[Kind, float]:
        """Of an input of ``size`` bytes."""
        sending = self.sending(size)
        return {**sending, "offloads": 1.0, "money": sending["money"] + self.money_per_offload}

    def sending(self, size: float) -> dict[Kind, float]:
        """Of ``size`` bytes that are no input's."""
        return {"bytes": size, "joules": size * self.joules_per_byte, "money": size * self.money_per_byte}


class Held(msgspec.Struct, frozen=True):
    """One budget now: what is ``left`` of what it ``holds`` when full, and its price in P(correct).

    per: its period, "rate" for one of the limits.
    """

    of: Kind
    per: str
    left: float
    holds: float
    price: float


class Limit(msgspec.Struct, frozen=True):
    """How the budgets of a kind stand: tokens a second, the share of what they can hold, tokens taken in all."""

    rate_per_s: float
    left_share: float
    spent: float


class Purse:
    """The budgets, and what is taken from them. Not thread-safe: one event loop owns it.

    What leaves the device is paid before it is sent, or not sent. Joules that the device's own models have used are
    charged afterwards, into debt if need be: the smallest level is never refused, and nothing else runs until the debt
    is paid. So only offloads, bytes and money have tolls; joules keep larger levels from running.
    """

    def __init__(self, tariff: Tariff, call_bytes: float) -> None:
        """``call_bytes``: what an offload is expected to take on the wire."""
        self.tariff = tariff
        self.one_offload = tariff.offload(call_bytes)
        self._budgets: list[tuple[Kind, TokenBucket | TolledBudget]] = []
        self._tolled: list[tuple[Kind, TolledBudget]] = []
        self._joules: list[TokenBucket] = []
        self._limited: list[tuple[Kind, TokenBucket]] = []
        self._buckets: dict[str, TokenBucket] = {}
        self._shown: list[tuple[Kind, str, TokenBucket, TolledBudget | None]] = []

    def limit(self, kind: Kind, bucket: TokenBucket, name: str | None = None) -> None:
        """Add a budget; one with a ``name`` is in ``tokens``."""
        if name is not None:
            self._buckets[name] = bucket
        if not bucket.unlimited:
            self._limited.append((kind, bucket))
        tolled: TolledBudget | None = None
        if kind == "joules":
            self._joules.append(bucket)
        else:
            tolled = TolledBudget(bucket, self._unit(kind))
            self._tolled.append((kind, tolled))
        self._budgets.append((kind, tolled or bucket))
        self._shown.append((kind, "rate" if name is None else name.partition("/")[2], bucket, tolled))

    def left(self, now_s: float) -> dict[Kind, float]:
        """What can still be spent now, by kind; infinite where nothing is limited, below 0 for a debt of joules."""
        left = dict.fromkeys(KINDS, math.inf)
        for kind, budget in self._budgets:
            left[kind] = min(left[kind], budget.available(now_s))
        return left

    def limits(self, now_s: float) -> dict[Kind, Limit]:
        """How what is limited stands: of several budgets of a kind the one that is tightest, in each respect."""
        found: dict[Kind, Limit] = {}
        for kind, bucket in self._limited:
            share = bucket.available(now_s) / bucket.burst if bucket.burst > 0 else 0.0
            mine = Limit(bucket.rate_per_s, share, bucket.taken)
            known = found.get(kind, mine)
            found[kind] = Limit(
                min(known.rate_per_s, mine.rate_per_s), min(known.left_share, mine.left_share), mine.spent
            )
        return found

    def allowance(self, now_s: float) -> Allowance:
        """``left`` as the policy's budget takes it."""
        if not self._budgets:
            return UNLIMITED
        left = self.left(now_s)
        return Allowance(left["offloads"], left["bytes"], left["joules"], left["money"])

    def affords(self, costs: Mapping[Kind, float], now_s: float) -> bool:
        """Whether ``pay`` would; changes nothing. A kind that costs nothing is not asked for, not even in debt."""
        return all(
            (cost := costs.get(kind, 0.0)) <= 0 or budget.available(now_s) >= cost for kind, budget in self._budgets
        )

    def pay(self, costs: Mapping[Kind, float], now_s: float) -> bool:
        """Take all of it, or nothing and say False."""
        if not self.affords(costs, now_s):
            return False
        for kind, budget in self._budgets:
            if (cost := costs.get(kind, 0.0)) > 0:
                budget.take(cost, now_s)
        return True

    @property
    def counts_joules(self) -> bool:
        """Whether any budget is in joules."""
        return bool(self._joules)

    def used(self, joules: float, now_s: float) -> None:
        """The device's models have used energy."""
        for bucket in self._joules:
            bucket.charge(joules, now_s)

    def prices(self, now_s: float) -> dict[Kind, float]:
        """What an offload must gain for each kind of budget while it is scarce, in P(correct)."""
        prices = dict.fromkeys(KINDS, 0.0)
        for kind, budget in self._tolled:
            prices[kind] += budget.price(now_s)
        return prices

    def held(self, now_s: float) -> list[Held]:
        """Every budget by itself."""
        return [
            Held(kind, per, bucket.available(now_s), bucket.burst, 0.0 if tolled is None else tolled.price(now_s))
            for kind, per, bucket, tolled in self._shown
        ]

    def dear(self, now_s: float) -> bool:
        """Whether the bytes of an offload have a price now: of two ways the smaller one is cheaper."""
        return any(kind != "offloads" and budget.price(now_s) > 0 for kind, budget in self._tolled)

    def toll(self, size: float, now_s: float) -> float:
        """What an offload of ``size`` bytes must gain beside its own price, in P(correct)."""
        if not self._tolled:
            return 0.0
        costs = self.tariff.offload(size)
        return sum(budget.price(now_s) * costs[kind] / self._unit(kind) for kind, budget in self._tolled)

    def settle(self, lacked: Cost | None, now_s: float) -> None:
        """An input is done with; ``lacked``: what it would have taken, where only tokens kept it from being sent. The
        tolls learn from every input.
        """
        for kind, budget in self._tolled:
            cost = 0.0 if lacked is None else _of(lacked, kind)
            budget.settle(cost / self._unit(kind) if budget.available(now_s) < cost else 0.0, now_s)

    def _unit(self, kind: Kind) -> float:
        return self.one_offload[kind] or 1.0

    def tokens(self, now_s: float) -> dict[str, float]:
        """What the named budgets hold, for the state on disk."""
        return {name: bucket.available(now_s) for name, bucket in self._buckets.items()}


def _of(cost: Cost, kind: Kind) -> float:
    return {"offloads": cost.offloads, "bytes": cost.sent_bytes, "joules": cost.energy_j, "money": cost.money}[kind]


def fill(purse: Purse, budgets: Sequence[BudgetSettings], kept: Mapping[str, float] | None) -> None:
    """Add the budgets of a configuration. ``kept``: what they held when the agent last stopped, None: they are full.

    One that is not among what was kept starts empty: what was spent of it is not known.
    """
    for budget in budgets:
        tokens = None if kept is None else kept.get(budget.name, 0.0)
        purse.limit(budget.of, budget.bucket(purse.one_offload[budget.of], tokens), budget.name)
