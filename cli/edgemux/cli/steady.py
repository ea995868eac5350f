"""`edgemux traffic`: a bundle's sample images to a server at a steady rate, until it is told to stop.

Requests leave on schedule, whether or not the earlier ones have been answered, as devices' inputs do; what cannot leave
because too many are on their way is skipped and counted, never queued.
"""

from __future__ import annotations

import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from time import monotonic, sleep
from typing import Any

from edgemux.multiplexer.errors import EdgemuxError

# Requests on their way at once, a thread each.
MOST_UNDER_WAY = 32
REPORT_S = 60.0
# How often a wait looks whether to stop.
LOOK_S = 0.1


class Tally:
    """What became of the requests so far; added to from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        # Why the latest request that got no answer got none, empty before the first of them.
        self.last_error = ""

    def add(self, what: str) -> None:
        with self._lock:
            self._counts[what] += 1

    def counts(self) -> dict[str, int]:
        """By "edge", "cloud", ... (the route of an answer), "unanswered" and "skipped"."""
        with self._lock:
            return dict(self._counts)

    def answered(self) -> int:
        return sum(number for what, number in self.counts().items() if what not in ("unanswered", "skipped"))


def in_words(tally: Tally) -> str:
    """One line for people."""
    counts = sorted(tally.counts().items())
    return f"{tally.answered()} answered; " + (", ".join(f"{what} {number}" for what, number in counts) or "none sent")


class Stop:
    """Whether to stop. A plain flag: an event set in a signal handler can wait for the very thread that it stopped."""

    told = False

    def on_signal(self, number: int, frame: Any) -> None:
        self.told = True


def stopped_by_signals() -> Stop:
    """A flag that SIGTERM and SIGINT set; whoever is the first process of a container has no other handling."""
    stop = Stop()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop.on_signal)
    return stop


def schedule(rate_per_s: float, requests: int, stop: Stop) -> Iterator[int]:
    """0, 1, ... each when its request is due: ``requests`` of them, or, for 0, until ``stop``."""
    start_s = monotonic()
    for index in range(requests) if requests else count():
        while (left_s := start_s + index / rate_per_s - monotonic()) > 0 and not stop.told:
            sleep(min(left_s, LOOK_S))
        if stop.told:
            return
        yield index


def send(
    ask: Callable[[int], str], indices: Iterator[int], tally: Tally, report: Callable[[], None] = lambda: None
) -> None:
    """Ask about each index as it comes, in threads; returns when all that were sent have ended.

    ``ask`` returns the route of the answer, or raises EdgemuxError. ``report`` is called now and then.
    """
    free = threading.Semaphore(MOST_UNDER_WAY)

    def one(index: int) -> None:
        try:
            tally.add(ask(index))
        except EdgemuxError as error:
            tally.last_error = str(error)
            tally.add("unanswered")
        finally:
            free.release()

    reported_s = monotonic()
    with ThreadPoolExecutor(MOST_UNDER_WAY, thread_name_prefix="edgemux-traffic") as threads:
        for index in indices:
            if free.acquire(blocking=False):
                threads.submit(one, index)
            else:
                tally.add("skipped")
            if monotonic() - reported_s >= REPORT_S:
                reported_s = monotonic()
                report()
