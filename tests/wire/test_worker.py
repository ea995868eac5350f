"""The thread beside the loop."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading

import pytest

from edgemux.wire.worker import Worker

PATIENCE_S = 30.0


async def test_jobs_are_done_in_order_in_one_other_thread_and_told_in_the_loop() -> None:
    worker = Worker("a-name", asyncio.get_running_loop())
    told: list[tuple[int, str, str]] = []
    all_done = asyncio.Event()

    def done(result: tuple[int, str]) -> None:
        told.append((*result, threading.current_thread().name))
        if len(told) == 3:
            all_done.set()

    for number in range(3):
        worker.submit(lambda number=number: (number, threading.current_thread().name), done)
    await asyncio.wait_for(all_done.wait(), PATIENCE_S)
    here = threading.current_thread().name
    assert told == [(number, "a-name", here) for number in range(3)]
    worker.stop()


ENDLESS = """
import asyncio, threading, time
from edgemux.wire.worker import Worker

async def main():
    began = threading.Event()
    worker = Worker("endless", asyncio.get_running_loop())
    worker.submit(lambda: (began.set(), time.sleep(1000)), print)
    began.wait()

asyncio.run(main())
print("over")
"""


def test_a_job_without_end_does_not_keep_the_process() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", ENDLESS], capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert (ended.returncode, ended.stdout) == (0, "over\n"), ended.stderr


async def test_a_result_is_waited_for_and_what_was_raised_is_raised() -> None:
    worker = Worker("test", asyncio.get_running_loop())

    def fail() -> int:
        raise ValueError("no")

    try:
        assert await worker.result(lambda: 7) == 7
        with pytest.raises(ValueError, match="no"):
            await worker.result(fail)
        over = threading.Event()
        waiting = asyncio.ensure_future(worker.result(over.wait))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        over.set()
        assert await worker.result(lambda: 8) == 8
    finally:
        worker.stop()
