"""A thread beside the event loop, for work that would keep the loop from reading and writing."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")


class Worker:
    """One thread that does jobs in the order given. Lives with one event loop.

    Not an executor: that one is waited for when the interpreter exits, however long its last job takes.
    """

    def __init__(self, name: str, loop: asyncio.AbstractEventLoop) -> None:
        """``name`` is the thread's, for those who look at the process."""
        self._loop = loop
        self._jobs: SimpleQueue[tuple[Callable[[], Any], Callable[[Any], None]] | None] = SimpleQueue()
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def submit(self, work: Callable[[], T], done: Callable[[T], None]) -> None:
        """Do ``work`` in the thread, it must not raise; ``done(result)`` is called in the event loop."""
        self._jobs.put((work, done))

    async def result(self, work: Callable[[], T]) -> T:
        """What ``work`` gives, done in the thread; raises what it raises. A caller who is cancelled waits no longer."""
        given: asyncio.Future[T] = self._loop.create_future()

        def attempt() -> tuple[T | None, Exception | None]:
            try:
                return work(), None
            except Exception as error:
                return None, error

        def done(outcome: tuple[Any, Exception | None]) -> None:
            value, error = outcome
            if given.done():
                return
            if error is not None:
                given.set_exception(error)
            else:
                given.set_result(value)

        self.submit(attempt, done)
        return await given

    def stop(self) -> None:
        """End the thread after the jobs it has; nobody waits for it."""
        self._jobs.put(None)

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            work, done = job
            result = work()
            try:
                self._loop.call_soon_threadsafe(done, result)
            except RuntimeError:  # the loop was closed meanwhile: nobody waits for this result
                return
            # An idle thread holds on to nothing of the last job.
            del job, work, done, result
