"""Which requests run together, and when: a pure state machine, time passed in (seconds, monotonic).

    add(item) ─▶ queue ─poll(now)─▶ Batch    the worker is free: run these, then call finished()
                                  ─▶ Expired  their deadlines have passed: refuse these, now
                                  ─▶ Wait     nothing to do before ``until_s``, unless something is added

Nothing here sleeps, locks or knows of a model. Whoever drives it calls ``poll`` until it says Wait.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Any, Protocol

import msgspec


class Timing(Protocol):
    """Predicts how long a batch runs."""

    def expected_s(self, rows: int) -> float: ...


class Item(msgspec.Struct, eq=False):
    """A request in the queue: ``rows`` rows of work, an absolute deadline, and whatever its owner keeps with it."""

    rows: int
    deadline_s: float
    payload: Any = None
    arrived_s: float = 0.0


class Batch(msgspec.Struct, frozen=True):
    """Run these together now; together they have ``rows`` rows."""

    items: tuple[Item, ...]
    rows: int


class Expired(msgspec.Struct, frozen=True):
    """Refuse these: their deadlines have passed while they were queued."""

    items: tuple[Item, ...]


class Wait(msgspec.Struct, frozen=True):
    """Nothing to do before ``until_s`` (infinite: before the next ``add`` or ``finished``)."""

    until_s: float


class BatchingSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """max_batch: rows that run together. linger_s: the longest wait of a batch's first item for company."""

    max_batch: int = 32
    linger_s: float = 0.0

    def __post_init__(self) -> None:
        if not 1 <= self.max_batch <= 1024:
            raise ValueError("max_batch must be between 1 and 1024")
        if not 0 <= self.linger_s <= 1:
            raise ValueError("linger_s must be between 0 and 1")


class Batcher:
    """A first-in first-out queue in front of one worker.

    A free worker gets work at once when ``linger_s`` is 0; what arrives while it is busy becomes the next batch. With
    a linger, the first item of an incomplete batch waits that long for company, but never past its own slack: its
    deadline less the time that the batch is expected to run.
    """

    def __init__(self, max_batch: int, linger_s: float, timing: Timing) -> None:
        """``max_batch`` counts rows."""
        self.max_batch = max_batch
        self.linger_s = linger_s
        self.busy = False
        self.queued_rows = 0
        self._timing = timing
        self._queue: deque[Item] = deque()
        # A lower bound of the queued deadlines, so that a poll need not look at every item.
        self._earliest_s = math.inf

    def __len__(self) -> int:
        return len(self._queue)

    def add(self, item: Item, now_s: float) -> None:
        """Queue an item of 1 to ``max_batch`` rows."""
        if not 1 <= item.rows <= self.max_batch:
            raise ValueError("an item must fit a batch")
        item.arrived_s = now_s
        self._queue.append(item)
        self.queued_rows += item.rows
        self._earliest_s = min(self._earliest_s, item.deadline_s)

    def discard(self, item: Item) -> bool:
        """Forget an item that nobody waits for any more; False when it is not queued (it runs, or is done)."""
        try:
            self._queue.remove(item)
        except ValueError:
            return False
        self.queued_rows -= item.rows
        return True

    def poll(self, now_s: float) -> Batch | Expired | Wait:
        """The next step. After a Batch the worker counts as busy until ``finished``."""
        if now_s >= self._earliest_s:
            expired = self._take_expired(now_s)
            if expired:
                return Expired(expired)
        if not self._queue:
            return Wait(math.inf)
        if self.busy:
            return Wait(self._earliest_s)
        due_s = self._due_s()
        if now_s < due_s:
            return Wait(due_s)
        return self._take_batch()

    def finished(self) -> None:
        """The worker is free again."""
        self.busy = False

    def _due_s(self) -> float:
        """When the queue must be run at the latest: full, lingered enough, or out of slack."""
        if self.linger_s == 0 or self.queued_rows >= self.max_batch:
            return -math.inf
        slack_ends_s = self._earliest_s - self._timing.expected_s(self.queued_rows)
        return min(self._queue[0].arrived_s + self.linger_s, slack_ends_s)

    def _take_batch(self) -> Batch:
        """The longest prefix of the queue that fits, at least one item."""
        items: list[Item] = []
        rows = 0
        while self._queue and rows + self._queue[0].rows <= self.max_batch:
            item = self._queue.popleft()
            items.append(item)
            rows += item.rows
        self.queued_rows -= rows
        self._renew_earliest()
        self.busy = True
        return Batch(tuple(items), rows)

    def _take_expired(self, now_s: float) -> tuple[Item, ...]:
        expired = tuple(item for item in self._queue if item.deadline_s <= now_s)
        if expired:
            self._queue = deque(item for item in self._queue if item.deadline_s > now_s)
            self.queued_rows -= sum(item.rows for item in expired)
        self._renew_earliest()
        return expired

    def _renew_earliest(self) -> None:
        self._earliest_s = min((item.deadline_s for item in self._queue), default=math.inf)
