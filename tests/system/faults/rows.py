"""A row of the matrix as a value, and how every row on the shared stage is played."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Generic, TypeVar

import msgspec
from msgspec.structs import replace

from edgemux.edge.request_log import Line
from tests.system.faults.ledgers import ANSWERED, Entry, Verdict, percentile, waited_after
from tests.system.faults.load import Load
from tests.system.faults.stage import Scene, found_by
from tests.system.faults.table import Found

# Reasons of a device answer that was held up by the cloud until it was clear that the cloud would not answer.
WAITED = frozenset({"cloud_timeout", "cloud_unreachable", "cloud_bad_answer", "cloud_incompatible"})
# What may be said of any request while the cloud is not well: it was not asked, or did answer.
USUAL = frozenset({"confident", "breaker", "link", "deferred", "offloaded", "device_busy", "expired"})
# How often a row may be played on a machine that is too busy for it.
TRIES = 3
# The share of requests that may still be sent over a link on which they turn out to be too slow.
MISJUDGED = 0.1
# The promises, and what a busy test machine may add to each; the true figures are in the table.
FAILURES = 3
RECOVERY_S, BUSY_RECOVERY_S = 2.0, 1.0
# (A request that waited for a dead cloud would be 0.3 s over.)
OVER_DEVICE_S, BUSY_DEVICE_S = 0.002, 0.15

S = TypeVar("S", bound=Scene)


class Row(msgspec.Struct, Generic[S], frozen=True):
    """A fault between the agent and a cloud, made while a load goes on, and repaired.

    causes: of these reasons at least one must be seen while the fault lasts, and beside USUAL no other may. during:
    what happens while it lasts, None for ``requests`` requests. opens: whether the breaker must open. repair: what it
    takes beside healing the proxy. recovery_s: the longest from the repair to a cloud answer. gated: the agent must
    know the link so well after half of the fault that it sends hardly anything more that is not answered in time.
    """

    number: int
    fault: str
    begin: Callable[[S], None]
    causes: frozenset[str]
    during: Callable[[S, Load], None] | None = None
    repair: Callable[[S], None] | None = None
    requests: int = 120
    opens: bool = True
    recovery_s: float = RECOVERY_S
    gated: bool = False
    timeout_s: float = 0.4
    rate_per_s: float = 80.0

    def __str__(self) -> str:
        return f"{self.number}-{self.fault}".replace(" ", "-")


class Played(msgspec.Struct):
    """What became of a row's load, and the answers that the agent's metrics have of that time."""

    load: Load
    began_s: float
    repaired_s: float
    recovery_s: float
    opened: bool
    counted: Counter[tuple[str, str, str]]

    @property
    def during(self) -> list[Entry]:
        """Requests that met the fault: under way when it began, or sent while it lasted."""
        return [e for e in self.load.entries if e.ended_s > self.began_s and e.sent_s < self.repaired_s]


def play(row: Row[S], stage: S) -> Played:
    """Half a second of normality, the fault, the repair, the first cloud answer and half a second more."""
    opened, before = False, stage.agent.counted()
    with stage.load(timeout_s=row.timeout_s, rate_per_s=row.rate_per_s) as load:
        load.more(40)
        began_s = time.monotonic()
        row.begin(stage)
        if row.during is not None:
            row.during(stage, load)
        else:
            load.more(row.requests // 2)
            opened = stage.agent.breaker() != 0
            load.more(row.requests // 2)
        opened = opened or stage.agent.breaker() != 0
        if row.repair is not None:
            row.repair(stage)
        repaired_s = stage.heal()
        recovery_s = stage.recovery_s(load, repaired_s, max(30.0, 2 * row.recovery_s))
        load.more(20)
    stage.agent.ledger(load.entries)
    return Played(load, began_s, repaired_s, recovery_s, opened, stage.agent.counted() - before)


def check(row: Row[S], stage: S, report: Callable[[Found], None]) -> None:
    """Play a row and ask for every promise that holds for all rows.

    A row that fails is played again if the kernel says that it kept the agent from running for long meanwhile: then it
    says nothing about the agent. The last try counts, however it was.
    """
    for tries_left in reversed(range(TRIES)):
        played = play(row, stage)
        verdict = stage.judge(played.load)
        over_s = over_device_s(played, {line.id: line for line in stage.agent.ledger(played.load.entries).lines})
        again = TRIES - 1 - tries_left
        note = f"played again {again} times on a busy machine" if again else ""
        found = found_by(verdict, row.number, row.fault, played.load, played.recovery_s, note)
        found = replace(found, open_ms=None if over_s is None else over_s * 1000)
        try:
            assert_promises(row, played, verdict, over_s)
        except AssertionError:
            if not tries_left or not disturbed(row, played):
                report(found)
                raise
            stage.well()
        else:
            report(found)
            return


def disturbed(row: Row[S], played: Played) -> bool:
    """Whether some request could not have been in time because the agent was kept from running."""
    return max(entry.starved_s for entry in played.load.entries) >= row.timeout_s / 2


def assert_promises(row: Row[S], played: Played, verdict: Verdict, over_s: float | None) -> None:
    """Raises AssertionError naming what is broken."""
    assert verdict.faults == (), verdict.faults
    assert verdict.refused == (), verdict.refused
    during = played.during
    if not verdict.starved:
        answered = Counter((e.route, e.variant, e.reason) for e in played.load.entries if e.outcome == ANSWERED)
        assert played.counted == answered, "the metrics have it otherwise than the client"
    reasons = {entry.reason for entry in during if entry.outcome == ANSWERED}
    assert reasons & row.causes, reasons
    assert reasons <= row.causes | USUAL, reasons
    assert played.recovery_s <= row.recovery_s + BUSY_RECOVERY_S, played.recovery_s
    if row.opens:
        assert played.opened, "the breaker has not opened"
        in_vain = waited_after(during, FAILURES, WAITED, played.began_s)
        assert in_vain == [], f"{len(in_vain)} requests waited for a cloud that was known to be dead"
    if row.gated:
        later = during[len(during) // 2 :]
        assert sum(entry.reason in WAITED for entry in later) <= MISJUDGED * len(later)
    if over_s is not None:
        assert over_s <= OVER_DEVICE_S + BUSY_DEVICE_S, over_s


def over_device_s(played: Played, lines: dict[str, Line]) -> float | None:
    """By how much the 99th percentile of requests kept from a dead cloud exceeds that of the device's own answers.

    By the agent's clock, over the same load; None while there are too few of either for a percentile to mean anything.
    """
    own = [lines[e.id].elapsed_s for e in played.load.entries if e.reason == "confident" and e.id in lines]
    kept = [lines[e.id].elapsed_s for e in played.during if e.reason == "breaker" and e.id in lines]
    if min(len(own), len(kept)) < 20:
        return None
    return percentile(kept, 0.99) - percentile(own, 0.99)
