"""The agent under more than it can do: refusals at once, fair shares, room kept for hedges."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgemux.multiplexer.errors import ExecutionError

Pictures = Callable[[int, int], tuple[NDArray[np.uint8], NDArray[np.int64]]]

# Long enough for the busiest machine.
PATIENT_S = 20.0


class Slow:
    """Makes every level take ``seconds``, in the thread, and counts how many runs were begun."""

    def __init__(self, agent: Any, seconds: float) -> None:
        self.begun = 0
        self._agent = agent
        self._seconds = seconds
        self._timed = agent._device._timed
        agent._device._timed = self
        for estimates in (agent._device.latency, agent._device.compute):
            for estimate in estimates:
                estimate.mean_s = estimate.upper_s = seconds

    def __call__(self, level: int, activations: Any, stop: Any = None) -> Any:
        self.begun += 1
        time.sleep(self._seconds)
        probabilities, _, _ = self._timed(level, activations)
        return probabilities, self._seconds, self._seconds


async def outcomes(agent: Any, images: NDArray[np.uint8], timeout_s: float, client: str = "") -> list[str]:
    async def one(image: NDArray[np.uint8]) -> str:
        try:
            (answer,) = await agent.infer({"image": image[None]}, timeout_s, client)
        except ExecutionError as error:
            return type(error).__name__
        return answer.prediction.route.placement.value

    return list(await asyncio.gather(*(one(image) for image in images)))


async def test_what_would_only_wait_is_refused_at_once_and_never_run(agent_of: Any, pictures: Pictures) -> None:
    images, _ = pictures(60, 2)
    async with agent_of(None) as agent:
        slow = Slow(agent, 0.2)
        seen = await outcomes(agent, images, timeout_s=2.0)
        assert agent._device.backlog.wait_s == 0.0
    assert set(seen) == {"edge", "Overloaded"}
    assert 4 <= seen.count("edge") <= 2.0 / 0.2
    assert slow.begun == seen.count("edge")


async def test_a_busy_device_leaves_more_to_the_cloud(cloud: Any, agent_of: Any, pictures: Pictures) -> None:
    images, _ = pictures(60, 2)
    async with agent_of(cloud.address) as agent:
        Slow(agent, 0.2)
        seen = await outcomes(agent, images, timeout_s=2.0)
    assert set(seen) <= {"edge", "cloud"}
    assert seen.count("cloud") > 30


async def test_room_is_kept_on_the_device_while_the_cloud_is_asked_first(
    cloud: Any, agent_of: Any, pictures: Pictures
) -> None:
    images, _ = pictures(1, 2)
    cloud.answer = cloud.silent
    async with agent_of(cloud.address, policy="cloud-only") as agent:
        for estimate in agent._device.latency:
            estimate.mean_s = 0.2
        asking = asyncio.create_task(agent.infer({"image": images}, PATIENT_S))
        await cloud.reached.wait()
        assert agent._device.backlog.wait_s == pytest.approx(0.2)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        assert agent._device.backlog.wait_s == 0.0


async def test_a_model_that_nobody_waits_for_any_more_is_stopped(agent_of: Any, pictures: Pictures) -> None:
    images, _ = pictures(1, 2)
    stopped = threading.Event()
    began = threading.Event()
    async with agent_of(None) as agent:
        for estimate in agent._device.latency:
            estimate.mean_s = 1.0

        def run(level: int, activations: Any, stop: Any) -> Any:
            began.set()
            while not stop.options.terminate:
                time.sleep(0.01)
            stopped.set()
            raise RuntimeError

        agent._device._timed = run
        asking = asyncio.create_task(agent.infer({"image": images}, PATIENT_S))
        await asyncio.to_thread(began.wait)
        asking.cancel()
        assert await asyncio.to_thread(stopped.wait, PATIENT_S)
        await asyncio.gather(asking, return_exceptions=True)
        assert agent._device.backlog.wait_s == 0.0
