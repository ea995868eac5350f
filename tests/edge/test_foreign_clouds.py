"""Clouds of other make, which answer on the wire as Triton and MLServer do: no digest, no checksum, no times."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
import numpy as np
import pytest
from numpy.typing import NDArray

from edgemux.edge import Answer
from edgemux.edge.breaker import State
from edgemux.edge.peer import softmax
from edgemux.multiplexer.domain import Placement, Reason
from edgemux.wire import oip_pb2 as oip

Pictures = Callable[[int, int], tuple[NDArray[np.uint8], NDArray[np.int64]]]
PATIENT_S = 20.0


async def answer_all(agent: Any, images: NDArray[np.uint8]) -> list[Answer]:
    return [(await agent.infer({"image": images[i : i + 1]}, PATIENT_S))[0] for i in range(len(images))]


def from_cloud(answers: list[Answer]) -> list[Answer]:
    return [answer for answer in answers if answer.prediction.route.placement is Placement.CLOUD]


class Foreign:
    """The simulated cloud's model behind another server's manners; what it was sent is kept."""

    def __init__(self, cloud: Any, dress: Callable[[Any, NDArray[Any]], Any]) -> None:
        self._well, self._dress = cloud.well, dress
        self.asked: list[Any] = []

    async def answer(self, request: Any, context: Any) -> Any:
        self.asked.append(request)
        plain = await self._well(request, context)
        rows = np.frombuffer(plain.raw_output_contents[0], np.float32).reshape(tuple(plain.outputs[0].shape))
        return self._dress(request, rows)


def as_triton(request: Any, rows: NDArray[Any]) -> Any:
    """Raw contents, the version, the id."""
    response = oip.ModelInferResponse(model_name=request.model_name, model_version="1", id=request.id)
    response.outputs.add(name=request.outputs[0].name, datatype="FP32", shape=rows.shape)
    response.raw_output_contents.append(rows.tobytes())
    return response


def as_mlserver(request: Any, rows: NDArray[Any]) -> Any:
    """Raw contents, an empty ``contents`` beside them, parameters of its own; every output, whichever was wanted."""
    response = oip.ModelInferResponse(model_name=request.model_name, model_version="1", id=request.id)
    for name, array in (("features", rows * 0), (request.outputs[0].name, rows)):
        output = response.outputs.add(name=name, datatype="FP32", shape=array.shape)
        output.parameters["content_type"].string_param = "np"
        output.contents.SetInParent()
        response.raw_output_contents.append(array.tobytes())
    return response


def as_logits(request: Any, rows: NDArray[Any]) -> Any:
    """Triton in front of a model that ends before the softmax."""
    return as_triton(request, np.asarray(np.log(np.maximum(rows, 1e-30)) + 3.0, np.float32))


def typed(request: Any, rows: NDArray[Any]) -> Any:
    """Contents alone, as the protocol allows."""
    response = oip.ModelInferResponse(model_name=request.model_name, id=request.id)
    response.outputs.add(name=request.outputs[0].name, datatype="FP32", shape=rows.shape)
    response.outputs[0].contents.fp32_contents.extend(rows.ravel().tolist())
    return response


@pytest.mark.parametrize("dress", [as_triton, as_mlserver, typed])
async def test_its_answers_count_as_the_cloud_s(cloud: Any, agent_of: Any, pictures: Pictures, dress: Any) -> None:
    foreign = Foreign(cloud, dress)
    cloud.answer = foreign.answer
    images, _ = pictures(10, 4)
    async with agent_of(cloud.address, policy="cloud-only") as agent:
        answers = await answer_all(agent, images)
        assert len(from_cloud(answers)) == 10
        assert not agent.cloud.foreign
        assert agent.cloud.link.rtt_s(0.0) is not None
        assert not agent.cloud._secured._ours, "it is not looked at more often than it may allow"
    assert [(t.name, t.datatype, tuple(t.shape)) for t in foreign.asked[0].inputs] == [("image", "UINT8", (1, 28, 28))]


async def test_our_own_server_is_known_by_its_answers(cloud: Any, agent_of: Any, pictures: Pictures) -> None:
    images, _ = pictures(4, 4)
    async with agent_of(cloud.address, policy="cloud-only") as agent:
        await answer_all(agent, images)
        while agent.cloud._secured._becoming is not None:
            await agent.cloud._secured._becoming
        assert agent.cloud._secured._ours
        assert len(from_cloud(await answer_all(agent, images))) == 4, "the new connection serves as the old one did"


async def test_its_output_may_have_another_name(cloud: Any, agent_of: Any, pictures: Pictures) -> None:
    foreign = Foreign(cloud, as_mlserver)
    cloud.answer = foreign.answer
    images, _ = pictures(10, 4)
    there = {"output": "output-0", "model": "resnet"}
    async with agent_of(cloud.address, policy="cloud-only", there=there) as agent:
        assert len(from_cloud(await answer_all(agent, images))) == 10
    assert foreign.asked[0].outputs[0].name == "output-0"
    assert foreign.asked[0].model_name == "resnet"


async def test_of_logits_the_agent_makes_probabilities(cloud: Any, agent_of: Any, pictures: Pictures) -> None:
    images, _ = pictures(10, 4)
    async with agent_of(cloud.address, policy="cloud-only") as agent:
        expected = from_cloud(await answer_all(agent, images))
    cloud.answer = Foreign(cloud, as_logits).answer
    async with agent_of(cloud.address, policy="cloud-only", there={"output_kind": "logits"}) as agent:
        found = from_cloud(await answer_all(agent, images))
    for one, other in zip(expected, found, strict=True):
        assert one.prediction.label == other.prediction.label
        assert one.prediction.probabilities == pytest.approx(other.prediction.probabilities, abs=1e-5)


async def test_logits_that_were_not_announced_are_no_distribution(
    cloud: Any, agent_of: Any, pictures: Pictures
) -> None:
    cloud.answer = Foreign(cloud, as_logits).answer
    images, _ = pictures(2, 4)
    async with agent_of(cloud.address, policy="cloud-only") as agent:
        answers = await answer_all(agent, images)
    assert {answer.reason for answer in answers} == {Reason.CLOUD_BAD_ANSWER}


@pytest.mark.parametrize("size", [1.0, 1e4])
def test_a_softmax_is_a_distribution_however_large_the_logits(size: float) -> None:
    logits = np.array([[0.0, 1.0, -1.0], [1.0, 1.0, 1.0]], np.float32) * np.float32(size)
    rows = softmax(logits)
    assert rows.dtype == np.float32
    assert rows.sum(axis=1) == pytest.approx([1, 1])
    assert rows.argmax(axis=1)[0] == 1


@pytest.mark.parametrize(
    "text",
    [
        "[request id: 7] Exceeds maximum queue size",
        "Request timeout expired",
    ],
)
async def test_a_triton_that_is_full_or_too_slow_is_busy_and_not_gone(
    cloud: Any, agent_of: Any, pictures: Pictures, text: str
) -> None:
    cloud.answer = cloud.refusing(grpc.StatusCode.UNAVAILABLE, text)
    images, _ = pictures(8, 4)
    async with agent_of(cloud.address, policy="cloud-only") as agent:
        answers = await answer_all(agent, images)
        assert {answer.reason for answer in answers} == {Reason.CLOUD_OVERLOADED}
        assert agent.cloud.breaker.state(0.0) is State.CLOSED
        assert agent.cloud.lost.share(agent.cloud._clock()) == 0.0
        assert agent.cloud.refused_until_s > 0
        assert cloud.seen < 8, "it is left alone for a moment"


async def test_a_model_that_mlserver_does_not_have_is_not_asked_for_again(
    cloud: Any, agent_of: Any, pictures: Pictures
) -> None:
    cloud.answer = cloud.refusing(grpc.StatusCode.NOT_FOUND, "Model fashion-mnist not found")
    images, _ = pictures(8, 4)
    async with agent_of(cloud.address, policy="cloud-only") as agent:
        answers = await answer_all(agent, images)
        assert agent.cloud.incompatible
    assert cloud.seen == 2
    assert answers[-1].reason is Reason.CLOUD_INCOMPATIBLE
