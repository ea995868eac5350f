"""A cloud that is there and serves something else: it is asked no more, until it serves what is wanted."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import grpc
import numpy as np
import pytest
from numpy.typing import NDArray

from edgemux.edge import Answer
from edgemux.edge.breaker import State
from edgemux.edge.vigil import Standing, Withdrawal
from edgemux.multiplexer.domain import Placement, Reason
from edgemux.wire.codec import add_checksum

Pictures = Callable[[int, int], tuple[NDArray[np.uint8], NDArray[np.int64]]]

PATIENT_S = 20.0


async def answer_all(agent: Any, images: NDArray[np.uint8]) -> list[Answer]:
    return [(await agent.infer({"image": images[i : i + 1]}, PATIENT_S))[0] for i in range(len(images))]


def places(answers: list[Answer]) -> set[Placement]:
    return {answer.prediction.route.placement for answer in answers}


def other_model(response: Any) -> None:
    response.parameters["edgemux_model_digest"].string_param = "f" * 64
    add_checksum(response)


async def test_a_cloud_with_another_model_is_not_asked_a_third_time_and_is_no_outage(
    cloud: Any, agent_of: Any, pictures: Pictures, caplog: pytest.LogCaptureFixture
) -> None:
    cloud.answer = cloud.bending(other_model)
    images, _ = pictures(60, 4)
    async with agent_of(cloud.address) as agent:
        answers = await answer_all(agent, images)
        counted = agent.metrics.registry.get_sample_value("edgemux_other_model_total")
        assert agent.cloud.breaker.state(0.0) is State.CLOSED
    assert cloud.seen == counted == 2
    assert places(answers) == {Placement.EDGE}
    assert {a.reason for a in answers} == {Reason.CONFIDENT, Reason.CLOUD_INCOMPATIBLE}
    assert len([said for said in caplog.messages if said.startswith("cloud unserved peer=0")]) == 1


async def test_another_model_may_be_accepted_but_then_there_is_no_certificate(
    cloud: Any, agent_of: Any, pictures: Pictures
) -> None:
    cloud.answer = cloud.bending(other_model)
    images, _ = pictures(60, 4)
    async with agent_of(cloud.address, accept_other_models=True) as agent:
        assert agent.vigil.state.standing is Standing.IN_FORCE
        assert places(await answer_all(agent, images)) == {Placement.EDGE, Placement.CLOUD}
        assert agent.vigil.due
        agent.vigil.step()
        assert agent.vigil.state.reason is Withdrawal.OTHER_MODEL
        assert agent.vigil.state.standing is Standing.WITHDRAWN


async def test_a_cloud_that_serves_the_model_by_now_is_asked_again_after_a_handshake(
    cloud: Any, agent_of: Any, pictures: Pictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgemux.edge.agreement.RECHECK_S", 0.0)
    cloud.answer = cloud.refusing(grpc.StatusCode.UNIMPLEMENTED)
    images, _ = pictures(60, 4)
    async with agent_of(cloud.address) as agent:
        await answer_all(agent, images)
        assert agent.cloud.incompatible
        await agent.cloud.ping(PATIENT_S)
        assert agent.cloud.incompatible, "it does not even say that it is ready"
        cloud.answer, cloud.ready = cloud.well, True
        assert await asked_again(agent, images)


async def asked_again(agent: Any, images: NDArray[np.uint8]) -> bool:
    for _ in range(400):
        if Placement.CLOUD in places(await answer_all(agent, images)):
            return True
        await asyncio.sleep(0.02)
    return False
