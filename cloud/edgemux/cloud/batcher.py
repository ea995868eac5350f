"""Which requests run together, and when: a pure state machine, time passed in (seconds, monotonic).

    add(item) ─▶ queue ─poll(now)─▶ Batch    the worker is free: run these, then call finished()
                                  ─▶ Expired  their deadlines have passed: refuse these, now
                                  ─▶ Wait     nothing to do before ``until_s``, unless something is added

Nothing here sleeps, locks or knows of a model. Whoever drives it calls ``poll`` until it says Wait.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Hashable, Iterable
from typing import Any, Protocol

import msgspec

MAX_LEVELS = 16


class Timing(Protocol):
    """Predicts how long a batch runs. best_rows: the batch whose rows are cheapest; fixed_s: what any batch costs."""

    @property
    def best_rows(self) -> int: ...

    @property
    def fixed_s(self) -> float: ...

    def expected_s(self, rows: int) -> float: ...


class Item(msgspec.Struct, eq=False):
    """A request in the queue: ``rows`` rows of work, an absolute deadline, and whatever its owner keeps with it.

    key: only items of the same key run together. priority: 1 is the highest.
    """

    rows: int
    deadline_s: float
    payload: Any = None
    key: Hashable = None
    priority: int = 1
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
    """max_batch: rows that run together. linger_s: the longest wait of a batch's first item for company.

    priority_levels: 1 is the highest; default_priority: of requests that ask for none.
    """

    max_batch: int = 32
    linger_s: float = 0.0
    priority_levels: int = 3
    default_priority: int = 2

    def __post_init__(self) -> None:
        if not 1 <= self.max_batch <= 1024:
            raise ValueError("max_batch must be between 1 and 1024")
        if not 0 <= self.linger_s <= 1:
            raise ValueError("linger_s must be between 0 and 1")
        if not 1 <= self.priority_levels <= MAX_LEVELS:
            raise ValueError(f"priority_levels must be between 1 and {MAX_LEVELS}")
        if not 1 <= self.default_priority <= self.priority_levels:
            raise ValueError("default_priority must be between 1 and priority_levels")


class Batcher:
    """A queue in front of one worker: first come, first served within a priority.

    A free worker gets work at once when ``linger_s`` is 0; what arrives while it is busy becomes the next batch. With
    a linger, the first item of an incomplete batch waits that long for company, but never past its own slack: its
    deadline less the time that the batch is expected to run. An item that the next batch would be too late for goes
    first, whatever its priority: what was taken in is not starved.

    Without a linger a worker that has just served a crowd waits a little for it to come back, where a batch has a large
    fixed cost: else the first who returns would run alone, and all the others wait for that.
    """

    # A prediction is too low half of the time.
    HEADROOM = 1.25
    # A crowd is waited for until three quarters of it are there, for at most half of what a batch of its own costs.
    CROWD_SHARE = 0.75
    CROWD_FADE = 0.7
    HELD_SHARE = 0.5
    LEAST_HELD_S = 0.5e-3

    def __init__(self, max_batch: int, linger_s: float, timing: Timing) -> None:
        """``max_batch`` counts rows."""
        self.max_batch = max_batch
        self.linger_s = linger_s
        self.busy = False
        self.queued_rows = 0
        self._timing = timing
        self._queue: deque[Item] = deque()
        # Queued rows by priority, without those that have none.
        self._levels: dict[int, int] = {}
        # A lower bound of the queued deadlines, so that a poll need not look at every item.
        self._earliest_s = math.inf
        self._running_rows = 0
        self._crowd = 0.0
        self._free_since_s = -math.inf

    def __len__(self) -> int:
        return len(self._queue)

    def rows_before(self, priority: int) -> int:
        """Queued rows that go before a new item of that priority."""
        if len(self._levels) <= 1 and priority >= next(iter(self._levels), 0):
            return self.queued_rows
        return sum(rows for level, rows in self._levels.items() if level <= priority)

    def add(self, item: Item, now_s: float) -> None:
        """Queue an item of 1 to ``max_batch`` rows."""
        if not 1 <= item.rows <= self.max_batch:
            raise ValueError("an item must fit a batch")
        item.arrived_s = now_s
        self._queue.append(item)
        self.queued_rows += item.rows
        self._levels[item.priority] = self._levels.get(item.priority, 0) + item.rows
        self._earliest_s = min(self._earliest_s, item.deadline_s)

    def discard(self, item: Item) -> bool:
        """Forget an item that nobody waits for any more; False when it is not queued (it runs, or is done)."""
        try:
            self._queue.remove(item)
        except ValueError:
            return False
        self._forget((item,))
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
        return self._take_batch(now_s)

    def finished(self, now_s: float = -math.inf) -> None:
        """The worker is free again."""
        self.busy = False
        self._free_since_s = now_s
        self._crowd = max(self._running_rows + self.queued_rows, self._crowd * self.CROWD_FADE)

    def _due_s(self) -> float:
        """When the queue must be run at the latest: full, waited enough, or out of slack."""
        if self.queued_rows >= min(self.max_batch, self._timing.best_rows):
            return -math.inf
        if self.linger_s > 0:
            until_s = self._queue[0].arrived_s + self.linger_s
        else:
            until_s = self._crowd_until_s()
            if until_s == -math.inf:
                return until_s
        slack_ends_s = self._earliest_s - self._timing.expected_s(self.queued_rows)
        return min(until_s, slack_ends_s)

    def _crowd_until_s(self) -> float:
        """How long those who were served just now are waited for."""
        held_s = self._timing.fixed_s * self.HELD_SHARE
        if held_s < self.LEAST_HELD_S or self.queued_rows >= self.CROWD_SHARE * min(self._crowd, self.max_batch):
            return -math.inf
        return self._free_since_s + held_s

    def _take_batch(self, now_s: float) -> Batch:
        """Items of the first one's key, in the order in which they go, as long as they fit; at least one."""
        order = self._ordered(now_s)
        first = order[0]
        items, rows, deadline_s = [first], first.rows, first.deadline_s
        most = max(first.rows, min(self.max_batch, self._timing.best_rows))
        # Smaller batches for the sake of one deadline would make others late where more wait than one batch holds.
        relaxed = self.queued_rows <= most
        for index in range(1, len(order)):
            item = order[index]
            if item.key != first.key:
                continue
            if rows + item.rows > most:
                break
            if relaxed and self._would_be_late(rows, item.rows, deadline_s - now_s):
                break
            items.append(item)
            rows += item.rows
            deadline_s = min(deadline_s, item.deadline_s)
        self._remove(items)
        self.busy = True
        self._running_rows = rows
        return Batch(tuple(items), rows)

    def _would_be_late(self, rows: int, more: int, left_s: float) -> bool:
        """Whether what is in time with ``rows`` rows is so no more with ``more``."""
        return self._timing.expected_s(rows) <= left_s < self._timing.expected_s(rows + more)

    def _ordered(self, now_s: float) -> list[Item] | deque[Item]:
        """The queue in the order in which it is to be run."""
        if len(self._levels) == 1:
            return self._queue
        wait_s = self._timing.expected_s(min(self.max_batch, self.queued_rows))

        def rank(item: Item) -> tuple[int, float]:
            finished_s = now_s + self.HEADROOM * (wait_s + self._timing.expected_s(item.rows))
            return (0, item.deadline_s) if item.deadline_s < finished_s else (item.priority, 0.0)

        return sorted(self._queue, key=rank)  # stable: by arrival within a priority

    def _remove(self, items: list[Item]) -> None:
        queue = self._queue
        if len(items) == len(queue):
            queue.clear()
        elif all(item is waiting for item, waiting in zip(items, queue, strict=False)):
            for _ in items:
                queue.popleft()
        else:
            taken = set(map(id, items))
            self._queue = deque(item for item in queue if id(item) not in taken)
        self._forget(items)
        self._renew_earliest()

    def _take_expired(self, now_s: float) -> tuple[Item, ...]:
        expired = tuple(item for item in self._queue if item.deadline_s <= now_s)
        if expired:
            self._queue = deque(item for item in self._queue if item.deadline_s > now_s)
            self._forget(expired)
        self._renew_earliest()
        return expired

    def _forget(self, items: Iterable[Item]) -> None:
        for item in items:
            self.queued_rows -= item.rows
            left = self._levels[item.priority] - item.rows
            if left:
                self._levels[item.priority] = left
            else:
                del self._levels[item.priority]

    def _renew_earliest(self) -> None:
        self._earliest_s = min((item.deadline_s for item in self._queue), default=math.inf)
