"""Inputs that want the cloud at the same moment: rows of one call, each with its own deadline and answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any

import grpc
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgemux.edge.breaker import BreakerSettings
from edgemux.edge.together import Row, Together, groups, merged
from edgemux.multiplexer.bundle import Preprocessing, Tensor
from edgemux.multiplexer.domain import Placement
from edgemux.wire.codec import add_checksum, check_inputs, decode_inputs, intact, make_request
from edgemux.wire.payload import encode, mark

Pictures = Callable[[int, int], tuple[NDArray[np.uint8], NDArray[np.int64]]]
PATIENT_S = 20.0
HOW = Preprocessing("L", 4, 4)
PICTURE = Tensor("x", "UINT8", (-1, 4, 4))
VECTOR = Tensor("x", "FP32", (-1, 16))


def row_of(value: Any, encoding: str = "raw", deadline_s: float = 1e9) -> Row:
    request = make_request("m", {"x": encode(encoding, value, HOW)}, request_id="i")
    mark(request.inputs[0], encoding)
    add_checksum(request)
    return Row(request, deadline_s)


@given(st.lists(st.sampled_from(["raw", "png"]), max_size=30), st.integers(1, 8))
def test_every_row_is_in_one_group_of_its_like_and_none_is_too_large(forms: list[str], most: int) -> None:
    rows = [row_of(np.zeros((1, 4, 4), np.uint8), form) for form in forms]
    made = groups(rows, most)
    assert sorted(at for group in made for at in group) == list(range(len(rows)))
    for group in made:
        assert len(group) <= most
        assert len({forms[at] for at in group}) == 1
        assert group == sorted(group)
    for form in set(forms):
        assert sum(forms[group[0]] == form for group in made) == -(-forms.count(form) // most)


@pytest.mark.parametrize("encoding", ["raw", "png", "webp-lossless", "fp16", "u8"])
def test_rows_of_one_message_are_those_that_were_merged(encoding: str) -> None:
    rng = np.random.default_rng(1)
    tensor = VECTOR if encoding in ("fp16", "u8") else PICTURE
    values = rng.integers(0, 255, (5, *tensor.shape[1:])).astype(np.float32 if tensor is VECTOR else np.uint8)
    request = merged([row_of(values[i : i + 1], encoding) for i in range(5)])
    assert intact(request)
    found = decode_inputs(check_inputs(request, [tensor], HOW), HOW)["x"]
    assert found.shape == values.shape
    assert np.abs(found.astype(float) - values).max() <= (1.0 if tensor is VECTOR else 0.0)


class Calls:
    """What is called; answers with the number of rows, when it is let."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.let = asyncio.Event()
        self.error: Exception | None = None
        self.cancelled = 0

    async def __call__(self, rows: Sequence[Row]) -> list[int]:
        self.sizes.append(len(rows))
        try:
            await self.let.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.error is not None:
            raise self.error
        return list(range(len(rows)))


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_the_first_goes_at_once_and_those_that_come_meanwhile_go_together() -> None:
    calls = Calls()
    together = Together(calls, lambda: 4)
    tasks = [asyncio.create_task(together.ask(row_of(np.zeros((1, 4, 4), np.uint8)))) for _ in range(7)]
    await settle()
    assert calls.sizes == [1, 4, 2]
    calls.let.set()
    assert await asyncio.gather(*tasks) == [0, 0, 1, 2, 3, 0, 1]


async def test_a_row_that_is_too_late_does_not_keep_the_others_and_an_error_is_everybody_s() -> None:
    calls = Calls()
    together = Together(calls, lambda: 4)
    rows = [row_of(np.zeros((1, 4, 4), np.uint8), deadline_s=s) for s in (1e9, time.monotonic() + 0.05, 1e9)]
    tasks = [asyncio.create_task(together.ask(row)) for row in rows]
    with pytest.raises(TimeoutError):
        await tasks[1]
    calls.error = ValueError("no")
    calls.let.set()
    for task in (tasks[0], tasks[2]):
        with pytest.raises(ValueError, match="no"):
            await task
    assert calls.sizes == [1, 2]


async def test_a_call_that_nobody_waits_for_any_more_is_given_up() -> None:
    calls = Calls()
    together = Together(calls, lambda: 4)
    tasks = [asyncio.create_task(together.ask(row_of(np.zeros((1, 4, 4), np.uint8)))) for _ in range(3)]
    await settle()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await settle()
    assert calls.cancelled == 2


async def test_with_one_at_a_time_each_has_its_own_call() -> None:
    calls = Calls()
    calls.let.set()
    together = Together(calls, lambda: 1)
    await asyncio.gather(*(together.ask(row_of(np.zeros((1, 4, 4), np.uint8))) for _ in range(5)))
    assert calls.sizes == [1] * 5


async def answers_of(agent: Any, images: NDArray[np.uint8]) -> list[Any]:
    return list(await agent.infer({"image": images}, PATIENT_S))


async def test_an_agent_s_inputs_share_calls_and_are_answered_as_alone(
    cloud: Any, agent_of: Any, pictures: Pictures
) -> None:
    images, _ = pictures(32, 4)
    async with agent_of(cloud.address, policy="cloud-only") as agent:
        alone = await answers_of(agent, images)
    assert cloud.seen == 32
    async with agent_of(cloud.address, policy="cloud-only", there={"most_together": 16}) as agent:
        await answers_of(agent, images[:1])  # which tells that the cloud is ours
        cloud.seen = 0
        found = await answers_of(agent, images)
        paid = agent.metrics.registry.get_sample_value("edgemux_offload_attempts_total")
    assert paid == 33
    assert cloud.seen < 20
    for one, other in zip(alone, found, strict=True):
        assert one.prediction.label == other.prediction.label
        assert one.prediction.probabilities == pytest.approx(other.prediction.probabilities, abs=1e-5)


async def test_a_call_that_fails_fails_every_row_and_the_device_answers_each(
    cloud: Any, agent_of: Any, pictures: Pictures
) -> None:
    images, _ = pictures(16, 4)
    breaker = BreakerSettings(failures=1000, window=1000)
    async with agent_of(cloud.address, policy="cloud-only", there={"most_together": 16}, breaker=breaker) as agent:
        await answers_of(agent, images[:1])
        cloud.answer = cloud.refusing(grpc.StatusCode.UNAVAILABLE)
        found = await answers_of(agent, images)
    assert {answer.prediction.route.placement for answer in found} == {Placement.EDGE}
