"""Several clouds behind one agent: turns, one more attempt, push-back and refusal by each for itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from numpy.typing import NDArray

from edgemux.edge import Answer
from edgemux.edge.breaker import BreakerSettings, State
from edgemux.edge.config import LimitSettings, load
from edgemux.edge.sample import Sample
from edgemux.edge.service import said
from edgemux.edge.status import device_status
from edgemux.multiplexer.bundle import Bundle
from edgemux.multiplexer.domain import Placement, Reason, Route
from edgemux.multiplexer.errors import BadAnswer, ConfigError
from tests.simulated_cloud import SimulatedCloud, listening

Pictures = Callable[[int, int], tuple[NDArray[np.uint8], NDArray[np.int64]]]
PATIENT_S = 20.0
LONG_OPEN = BreakerSettings(open_s=1e6, max_open_s=1e6)


@pytest.fixture
async def second(tiny_bundle: Path) -> AsyncIterator[SimulatedCloud]:
    async with listening(SimulatedCloud(Bundle.open(tiny_bundle))) as simulated:
        yield simulated


def both(cloud: Any, second: Any) -> dict[str, Any]:
    return {"addresses": (cloud.address, second.address)}


async def answer_all(agent: Any, images: NDArray[np.uint8]) -> list[Answer]:
    return [(await agent.infer({"image": images[i : i + 1]}, PATIENT_S))[0] for i in range(len(images))]


def from_cloud(answers: list[Answer]) -> list[int | None]:
    return [a.prediction.peer for a in answers if a.prediction.route.placement is Placement.CLOUD]


async def test_inputs_go_to_both_in_turn_and_the_reply_says_to_which(
    cloud: Any, second: Any, agent_of: Any, pictures: Pictures
) -> None:
    images, _ = pictures(20, 4)
    async with agent_of(None, policy="cloud-only", there=both(cloud, second)) as agent:
        answers = await answer_all(agent, images)
        assert from_cloud(answers) == [0, 1] * 10
        assert said(answers[:1])["edgemux_peer"] == 0
        assert said(answers[:3])["edgemux_peer"] == "0,1,0"
        value = agent.metrics.registry.get_sample_value
        for peer in "01":
            assert value("edgemux_cloud_calls_total", {"peer": peer, "outcome": "answered"}) == 10
        peers = device_status(agent)["cloud"]["peers"]
        assert [peer["breaker"] for peer in peers] == ["closed", "closed"]


@pytest.mark.parametrize(
    "code",
    [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAUTHENTICATED],
)
async def test_what_one_does_not_answer_is_answered_by_the_other_and_paid_for_twice(
    cloud: Any, second: Any, agent_of: Any, pictures: Pictures, code: grpc.StatusCode
) -> None:
    cloud.answer = cloud.refusing(code)
    images, _ = pictures(10, 4)
    limits = LimitSettings(offloads_per_s=1e-6, burst_s=1e9)
    there = both(cloud, second)
    async with agent_of(None, policy="cloud-only", there=there, breaker=LONG_OPEN, limits=limits) as agent:
        answers = await answer_all(agent, images)
        assert from_cloud(answers) == [1] * 10
        assert cloud.seen in (1, 2, 3), "until its breaker is open, or it asks for a pause"
        left = agent.purse.left(asyncio.get_running_loop().time())["offloads"]
        assert left == pytest.approx(1000 - 10 - cloud.seen, abs=0.1)
        assert agent.cloud.state(0.0) is State.CLOSED


async def test_push_back_is_of_the_one_that_asks_for_it(
    cloud: Any, second: Any, agent_of: Any, pictures: Pictures
) -> None:
    cloud.answer = cloud.refusing(grpc.StatusCode.RESOURCE_EXHAUSTED)
    images, _ = pictures(6, 4)
    async with agent_of(None, policy="cloud-only", there=both(cloud, second)) as agent:
        await answer_all(agent, images)
        first, other = agent.cloud.peers
        assert first.refused_until_s > float("-inf") == other.refused_until_s


async def test_nobody_is_asked_again_where_the_budget_is_for_one(
    cloud: Any, second: Any, agent_of: Any, pictures: Pictures
) -> None:
    cloud.answer = cloud.refusing(grpc.StatusCode.UNAVAILABLE)
    limits = LimitSettings(offloads_per_s=1e-6, burst_s=1e6)
    images, _ = pictures(1, 4)
    async with agent_of(None, policy="cloud-only", there=both(cloud, second), limits=limits) as agent:
        answers = await answer_all(agent, images)
    assert [answer.reason for answer in answers] == [Reason.CLOUD_UNREACHABLE]
    assert (cloud.seen, second.seen) == (1, 0)


async def test_a_wrong_answer_is_not_asked_for_again(
    cloud: Any, second: Any, agent_of: Any, pictures: Pictures
) -> None:
    cloud.answer = cloud.refusing(grpc.StatusCode.INTERNAL)
    images, _ = pictures(1, 4)
    async with agent_of(None, policy="cloud-only", there=both(cloud, second)) as agent:
        sample = Sample({"image": images}, np.zeros((1, 3), np.float32), float("inf"))
        with pytest.raises(BadAnswer):
            await agent.cloud.run(Route("cloud", Placement.CLOUD), sample, PATIENT_S)
    assert (cloud.seen, second.seen) == (1, 0)


async def test_a_cloud_that_comes_back_is_found_by_a_shadow_though_the_other_answers_everything(
    cloud: Any, second: Any, agent_of: Any, pictures: Pictures
) -> None:
    cloud.answer = cloud.refusing(grpc.StatusCode.UNAVAILABLE)
    images, _ = pictures(10, 4)
    breaker = BreakerSettings(open_s=0.05, max_open_s=0.05, ramp_s=0.0)
    async with agent_of(None, policy="cloud-only", there=both(cloud, second), breaker=breaker) as agent:
        await answer_all(agent, images)
        cloud.answer = cloud.well
        for _ in range(400):
            if 0 in from_cloud(await answer_all(agent, images)):
                return
            await asyncio.sleep(0.02)
    pytest.fail("it was not asked any more")


async def test_none_is_asked_where_neither_may_be(cloud: Any, second: Any, agent_of: Any, pictures: Pictures) -> None:
    cloud.answer = cloud.refusing(grpc.StatusCode.UNIMPLEMENTED)
    second.answer = second.refusing(grpc.StatusCode.UNIMPLEMENTED)
    images, _ = pictures(8, 4)
    async with agent_of(None, policy="cloud-only", there=both(cloud, second)) as agent:
        answers = await answer_all(agent, images)
        assert agent.cloud.incompatible
        assert agent.cloud.blocked(0.0, 0.0) is Reason.CLOUD_INCOMPATIBLE
    assert cloud.seen == second.seen == 2
    assert answers[-1].prediction.route.placement is Placement.EDGE


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"cloud.addresses": ["a:1", "a:1"]}, "addresses must be at most"),
        ({"cloud.addresses": ["a:1", "b"]}, "addresses must each be"),
        ({"cloud.addresses": ["a:1"], "cloud.address": "b:1"}, "address must be one of"),
        ({"cloud.keepalive_s": 0}, "keepalive_s"),
        ({"cloud.output": ""}, "output must not be empty"),
        ({"cloud.output_kind": "scores"}, "output_kind"),
    ],
)
def test_what_cannot_be_is_refused_and_named(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        load(None, {"bundle": "b"} | settings)


def test_the_only_address_and_several_are_asked_alike() -> None:
    assert load(None, {"bundle": "b"}).cloud.every_address() == ()
    assert load(None, {"bundle": "b", "cloud.address": "a:1"}).cloud.every_address() == ("a:1",)
    several = load(None, {"bundle": "b", "cloud.address": "b:1", "cloud.addresses": ["a:1", "b:1"]})
    assert several.cloud.every_address() == ("a:1", "b:1")
