"""The agent in process against a simulated cloud: it always has an answer, and says where it came from."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Any

import grpc
import numpy as np
import pytest
from numpy.typing import NDArray

from edgemux.edge import Answer
from edgemux.edge.breaker import BreakerSettings, State
from edgemux.edge.config import LimitSettings, RequestSettings
from edgemux.multiplexer.domain import Placement, Reason
from edgemux.multiplexer.errors import DeadlineExceeded, ExecutionError

Pictures = Callable[[int, int], tuple[NDArray[np.uint8], NDArray[np.int64]]]

# Long enough for the busiest machine; no test waits for all of it unless it must see a deadline being kept.
PATIENT_S = 20.0
# The breaker must not open by itself where a test looks at every single failure.
NEVER_OPENS = BreakerSettings(failures=10**6, window=10**6)


async def answer_all(agent: Any, images: NDArray[np.uint8], timeout_s: float = PATIENT_S) -> list[Answer]:
    return [(await agent.infer({"image": images[i : i + 1]}, timeout_s))[0] for i in range(len(images))]


def places(answers: list[Answer]) -> set[Placement]:
    return {answer.prediction.route.placement for answer in answers}


async def test_hard_inputs_go_to_the_cloud_and_easy_ones_stay(cloud: Any, agent_of: Any, pictures: Pictures) -> None:
    images, labels = pictures(150, 1)
    async with agent_of(cloud.address) as agent:
        answers = await answer_all(agent, images)
    assert places(answers) == {Placement.EDGE, Placement.CLOUD}
    by_place = {
        place: [
            a.prediction.label == y
            for a, y in zip(answers, labels, strict=True)
            if a.prediction.route.placement is place
        ]
        for place in Placement
    }
    assert cloud.seen == len(by_place[Placement.CLOUD])
    assert {a.reason for a in answers} <= {Reason.CONFIDENT, Reason.OFFLOADED, Reason.DEFERRED}
    assert not any(a.degraded for a in answers)
    assert np.mean(by_place[Placement.CLOUD]) > 0.9


async def test_the_level_follows_the_device_and_not_the_input(agent_of: Any, pictures: Pictures) -> None:
    """The certificate is per level: it would not hold for levels that are picked by what the input looks like."""
    images, _ = pictures(100, 17)
    async with agent_of(None) as agent:
        assert {a.prediction.route.level for a in await answer_all(agent, images)} == {4}
        for estimate, seconds in zip(agent._device.compute, (0.0, 0.0, 9.0, 9.0), strict=True):
            estimate.observe = lambda _: None
            estimate.mean_s = seconds
        assert {a.prediction.route.level for a in await answer_all(agent, images)} == {2}


async def test_each_input_of_a_batch_is_routed_on_its_own(cloud: Any, agent_of: Any, pictures: Pictures) -> None:
    images, _ = pictures(64, 2)
    async with agent_of(cloud.address) as agent:
        together = await agent.infer({"image": images}, PATIENT_S)
        alone = await answer_all(agent, images)
    assert [a.prediction.label for a in together] == [a.prediction.label for a in alone]
    assert [a.prediction.route.placement for a in together] == [a.prediction.route.placement for a in alone]
    assert places(together) == {Placement.EDGE, Placement.CLOUD}


async def test_without_a_cloud_the_device_answers_everything(agent_of: Any, pictures: Pictures) -> None:
    images, _ = pictures(60, 3)
    async with agent_of(None) as agent:
        answers = await answer_all(agent, images)
    assert places(answers) == {Placement.EDGE}
    assert {a.reason for a in answers} == {Reason.CONFIDENT, Reason.NO_CLOUD}
    assert all(a.degraded == (a.reason is Reason.NO_CLOUD) for a in answers)


def wrong_id(response: Any) -> None:
    response.id = "somebody else's"


def wrong_shape(response: Any) -> None:
    response.outputs[0].shape[1] = 11


def wrong_dtype(response: Any) -> None:
    response.outputs[0].datatype = "FP64"


def short_payload(response: Any) -> None:
    response.raw_output_contents[0] = response.raw_output_contents[0][:-4]


def not_a_number(response: Any) -> None:
    response.raw_output_contents[0] = np.full(10, np.nan, dtype=np.float32).tobytes()


def no_distribution(response: Any) -> None:
    response.raw_output_contents[0] = np.full(10, 7.0, dtype=np.float32).tobytes()


def other_output(response: Any) -> None:
    response.outputs[0].name = "embedding"


def nothing(response: Any) -> None:
    response.Clear()


def flipped_bit(response: Any) -> None:
    """As damaged on the way: still a distribution, and of the right size, but for the checksum."""
    row = np.frombuffer(response.raw_output_contents[0], dtype=np.float32)
    response.raw_output_contents[0] = np.roll(row, 1).tobytes()


SPOILS = [
    wrong_id,
    wrong_shape,
    wrong_dtype,
    short_payload,
    not_a_number,
    no_distribution,
    other_output,
    nothing,
    flipped_bit,
]


@pytest.mark.parametrize("spoil", SPOILS)
async def test_a_wrong_answer_from_the_cloud_is_not_believed(
    cloud: Any, agent_of: Any, pictures: Pictures, spoil: Callable[[Any], None]
) -> None:
    cloud.answer = cloud.bending(spoil)
    images, _ = pictures(60, 4)
    async with agent_of(cloud.address, breaker=NEVER_OPENS) as agent:
        answers = await answer_all(agent, images)
    assert cloud.seen > 0
    assert places(answers) == {Placement.EDGE}
    assert {a.reason for a in answers} == {Reason.CONFIDENT, Reason.CLOUD_BAD_ANSWER}


STATUSES = {
    grpc.StatusCode.UNAVAILABLE: Reason.CLOUD_UNREACHABLE,
    grpc.StatusCode.CANCELLED: Reason.CLOUD_UNREACHABLE,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Reason.CLOUD_OVERLOADED,
    grpc.StatusCode.INTERNAL: Reason.CLOUD_BAD_ANSWER,
    grpc.StatusCode.UNKNOWN: Reason.CLOUD_BAD_ANSWER,
    grpc.StatusCode.UNIMPLEMENTED: Reason.CLOUD_INCOMPATIBLE,
    grpc.StatusCode.NOT_FOUND: Reason.CLOUD_INCOMPATIBLE,
    grpc.StatusCode.FAILED_PRECONDITION: Reason.CLOUD_INCOMPATIBLE,
    grpc.StatusCode.DEADLINE_EXCEEDED: Reason.CLOUD_TIMEOUT,
}


@pytest.mark.parametrize("code", STATUSES)
async def test_whatever_status_the_cloud_answers_the_device_has_an_answer(
    cloud: Any, agent_of: Any, pictures: Pictures, code: grpc.StatusCode
) -> None:
    cloud.answer = cloud.refusing(code)
    images, _ = pictures(40, 5)
    async with agent_of(cloud.address, breaker=NEVER_OPENS) as agent:
        answers = await answer_all(agent, images)
    assert places(answers) == {Placement.EDGE}
    assert {a.reason for a in answers} == {Reason.CONFIDENT, STATUSES[code]}


async def test_a_cloud_that_has_failed_an_input_is_not_asked_again_after_the_device_has_answered(
    cloud: Any, agent_of: Any, pictures: Pictures
) -> None:
    cloud.answer = cloud.refusing(grpc.StatusCode.INTERNAL)
    images, _ = pictures(20, 5)
    async with agent_of(cloud.address, breaker=NEVER_OPENS, policy="cloud-only") as agent:
        answers = await answer_all(agent, images)
    assert places(answers) == {Placement.EDGE}
    assert {a.reason for a in answers} == {Reason.CLOUD_BAD_ANSWER}
    assert cloud.seen == len(images)


async def test_a_refusal_with_pushback_is_respected_and_does_not_open_the_breaker(
    cloud: Any, agent_of: Any, pictures: Pictures
) -> None:
    async def full(request: Any, context: Any) -> None:
        context.set_trailing_metadata((("grpc-retry-pushback-ms", "60000"),))
        await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "full")

    cloud.answer = full
    images, _ = pictures(60, 6)
    async with agent_of(cloud.address) as agent:
        answers = await answer_all(agent, images)
        assert agent.cloud.breaker.state(1e12) is State.CLOSED
    assert cloud.seen == 1
    assert sum(a.reason is Reason.CLOUD_OVERLOADED for a in answers) > 1


async def test_a_silent_cloud_is_hedged_before_the_deadline_and_then_left_alone(
    cloud: Any, agent_of: Any, pictures: Pictures
) -> None:
    cloud.answer = cloud.silent
    images, _ = pictures(80, 7)
    async with agent_of(cloud.address, breaker=BreakerSettings(open_s=1e6, max_open_s=1e6)) as agent:
        answers = await answer_all(agent, images, timeout_s=0.5)
    assert places(answers) == {Placement.EDGE}
    # At most three waited: then the breaker was open, or the link was known to be too slow.
    assert 1 <= sum(a.reason is Reason.CLOUD_TIMEOUT for a in answers) <= 3
    assert cloud.seen <= 3
    assert {a.reason for a in answers} <= {Reason.CONFIDENT, Reason.CLOUD_TIMEOUT, Reason.LINK, Reason.BREAKER}


async def asks_the_cloud_again(agent: Any, images: NDArray[np.uint8], timeout_s: float = PATIENT_S) -> bool:
    """Whether the cloud answers something before the patience of a busy machine ends."""
    for _ in range(400):
        if Placement.CLOUD in places(await answer_all(agent, images, timeout_s)):
            return True
        await asyncio.sleep(0.02)
    return False


async def test_a_cloud_that_comes_back_is_used_again(cloud: Any, agent_of: Any, pictures: Pictures) -> None:
    images, _ = pictures(60, 8)
    well, cloud.answer = cloud.answer, cloud.refusing(grpc.StatusCode.UNAVAILABLE)
    async with agent_of(cloud.address, breaker=BreakerSettings(open_s=0.05, max_open_s=0.05)) as agent:
        during = await answer_all(agent, images)
        cloud.answer = well
        assert await asks_the_cloud_again(agent, images)
    assert places(during) == {Placement.EDGE}


async def test_a_cloud_that_was_slow_for_a_while_is_used_again(cloud: Any, agent_of: Any, pictures: Pictures) -> None:
    images, _ = pictures(60, 8)

    async def slow(request: Any, context: Any) -> Any:
        await asyncio.sleep(0.8)
        response = await cloud.well(request, context)
        response.parameters["edgemux_compute_ms"].double_param = 800.0
        return response

    cloud.answer = slow
    async with agent_of(cloud.address) as agent:
        assert Placement.CLOUD in places(await answer_all(agent, images[:20], timeout_s=5.0)) or cloud.seen == 0
        cloud.answer = cloud.well
        assert await asks_the_cloud_again(agent, images, timeout_s=0.3)


async def test_a_half_open_breaker_is_probed_by_one_shadow_that_nobody_waits_for(
    cloud: Any, agent_of: Any, pictures: Pictures
) -> None:
    cloud.answer = cloud.silent
    images, _ = pictures(30, 14)
    async with agent_of(cloud.address, policy="cloud-only") as agent:
        breaker = agent.cloud.breaker
        for _ in range(3):
            breaker.failed(breaker.begin(0.0), 0.0)
        answers = await answer_all(agent, images)
        assert {a.reason for a in answers} <= {Reason.BREAKER, Reason.CONFIDENT}
        await cloud.reached.wait()
        assert cloud.seen == 1
        assert not breaker.allows(1e12)
    assert breaker.allows(1e12), "the agent was closed, and the probe is free"


async def test_ids_of_clients_stay_on_the_device(cloud: Any, agent_of: Any, pictures: Pictures) -> None:
    ids: list[str] = []
    well = cloud.answer

    async def listen(request: Any, context: Any) -> Any:
        ids.append(request.id)
        return await well(request, context)

    cloud.answer = listen
    images, _ = pictures(20, 3)
    async with agent_of(cloud.address, policy="cloud-only") as agent:
        await agent.infer({"image": images}, PATIENT_S)
    assert len(set(ids)) == 20


async def test_offloads_never_exceed_their_budget(cloud: Any, agent_of: Any, pictures: Pictures) -> None:
    images, _ = pictures(120, 9)
    async with agent_of(cloud.address, limits=LimitSettings(offloads_per_s=1e-6, burst_s=2e6)) as agent:
        answers = await answer_all(agent, images)
    assert cloud.seen == 2
    assert sum(a.prediction.route.placement is Placement.CLOUD for a in answers) == 2
    assert any(a.reason is Reason.BUDGET and a.degraded for a in answers)


async def test_bytes_sent_never_exceed_their_budget(cloud: Any, agent_of: Any, pictures: Pictures) -> None:
    images, _ = pictures(120, 10)
    async with agent_of(cloud.address, limits=LimitSettings(bytes_per_s=1e-6, burst_s=2.5e9)) as agent:
        await answer_all(agent, images)
        sent = agent.metrics.registry.get_sample_value("edgemux_offload_bytes_total")
    assert 0 < sent <= 2500


async def test_an_expired_request_is_refused_and_nothing_runs(cloud: Any, agent_of: Any, pictures: Pictures) -> None:
    images, _ = pictures(1, 11)
    async with agent_of(cloud.address) as agent:
        with pytest.raises(DeadlineExceeded):
            await agent.infer({"image": images}, timeout_s=1e-9)
        assert len(await agent.infer({"image": images}, PATIENT_S)) == 1
    assert cloud.seen <= 1


async def test_a_failing_device_model_leaves_the_cloud(cloud: Any, agent_of: Any, pictures: Pictures) -> None:
    images, _ = pictures(10, 12)
    async with agent_of(cloud.address) as agent:
        agent._device._timed = lambda *_: 1 / 0
        answers = await answer_all(agent, images)
    assert places(answers) == {Placement.CLOUD}
    assert {a.reason for a in answers} <= {Reason.DEVICE_FAILED, Reason.OFFLOADED}


async def test_a_broken_device_does_not_keep_a_cloud_that_is_back_from_being_asked(
    cloud: Any, agent_of: Any, pictures: Pictures
) -> None:
    images, _ = pictures(10, 12)
    well, cloud.answer = cloud.answer, cloud.refusing(grpc.StatusCode.UNAVAILABLE)
    async with agent_of(cloud.address, breaker=BreakerSettings(open_s=0.05, max_open_s=0.05)) as agent:
        agent._device._timed = lambda *_: 1 / 0
        for i in range(10):
            with pytest.raises(ExecutionError):
                await agent.infer({"image": images[i : i + 1]}, PATIENT_S)
        cloud.answer = well
        for _ in range(400):
            with contextlib.suppress(ExecutionError):
                assert places(await agent.infer({"image": images[:1]}, PATIENT_S)) == {Placement.CLOUD}
                return
            await asyncio.sleep(0.02)
    pytest.fail("the cloud was never asked again")


async def test_a_cloud_that_hangs_is_noticed_before_patient_clients_give_up(
    cloud: Any, agent_of: Any, pictures: Pictures
) -> None:
    cloud.answer = cloud.silent
    images, _ = pictures(8, 14)
    async with agent_of(cloud.address, policy="cloud-only", breaker=BreakerSettings(slow_s=0.1)) as agent:
        tasks = [asyncio.create_task(agent.infer({"image": images[i : i + 1]}, PATIENT_S)) for i in range(8)]
        for _ in range(500):
            if agent.cloud.breaker.state(0.0) is not State.CLOSED:
                break
            await asyncio.sleep(0.02)
        assert agent.cloud.breaker.state(0.0) is not State.CLOSED
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_with_neither_device_nor_cloud_the_refusal_is_typed(agent_of: Any, pictures: Pictures) -> None:
    images, _ = pictures(1, 13)
    async with agent_of(None) as agent:
        agent._device._timed = lambda *_: 1 / 0
        with pytest.raises(ExecutionError, match="no route"):
            await agent.infer({"image": images}, PATIENT_S)


async def test_a_cancelled_caller_leaves_the_breaker_as_it_was(cloud: Any, agent_of: Any, pictures: Pictures) -> None:
    cloud.answer = cloud.silent
    images, _ = pictures(30, 14)
    async with agent_of(cloud.address, policy="cloud-only") as agent:
        tasks = [asyncio.create_task(agent.infer({"image": images[i : i + 1]}, PATIENT_S)) for i in range(30)]
        await cloud.reached.wait()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert agent.cloud.breaker.state(0.0) is State.CLOSED


async def test_a_short_deadline_is_enough_for_the_device(cloud: Any, agent_of: Any, pictures: Pictures) -> None:
    """Less time than the margin for the way home: the cloud is out of the question, the device is not."""
    images, _ = pictures(1, 2)
    async with agent_of(
        cloud.address, request=RequestSettings(default_timeout_s=PATIENT_S, margin_s=PATIENT_S / 2)
    ) as agent:
        (answer,) = await agent.infer({"image": images}, PATIENT_S / 2)
    assert answer.prediction.route.placement is Placement.EDGE


async def test_a_model_too_slow_for_the_loop_gives_up_at_the_deadline(agent_of: Any, pictures: Pictures) -> None:
    images, _ = pictures(1, 2)
    release = threading.Event()
    async with agent_of(None) as agent:
        for estimate in agent._device.latency:
            estimate.mean_s = 1.0  # not on the event loop
        agent._device._timed = lambda *_: release.wait()
        with pytest.raises(DeadlineExceeded):
            await agent.infer({"image": images}, timeout_s=1.5)
        release.set()


async def test_audits_compare_kept_answers_with_the_cloud(cloud: Any, agent_of: Any, pictures: Pictures) -> None:
    images, _ = pictures(60, 15)
    async with agent_of(cloud.address, audit_share=1.0) as agent:
        await answer_all(agent, images)
        await asyncio.gather(*agent._background)
        value = agent.metrics.registry.get_sample_value
        labels = {"model": "fashion-mnist"}
        audited = sum(value("edgemux_audit_total", labels | {"outcome": o}) for o in ("agree", "differ"))
    assert audited > 0


async def test_metric_labels_come_from_closed_sets(cloud: Any, agent_of: Any, pictures: Pictures) -> None:
    images, _ = pictures(40, 16)
    async with agent_of(cloud.address) as agent:
        await answer_all(agent, images)
        samples = [s for family in agent.metrics.registry.collect() for s in family.samples]
    allowed = {
        "model": {"fashion-mnist"},
        "route": {p.value for p in Placement},
        "variant": {"level-1", "level-2", "level-3", "level-4", "cloud"},
    }
    for sample in samples:
        for label, values in allowed.items():
            assert sample.labels.get(label, next(iter(values))) in values
    reasons = {s.labels["reason"] for s in samples if s.name == "edgemux_requests_total"}
    assert reasons <= {reason.value for reason in Reason}
