"""What the agent itself sees of the link and the cloud: calls that nobody answered, and the cloud's queue."""

from __future__ import annotations

import time
from typing import Any

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgemux.edge.status import device_status
from edgemux.edge.watch import sense
from edgemux.multiplexer.estimate import RecentShare


@given(st.lists(st.booleans(), min_size=1, max_size=200))
def test_a_recent_share_is_that_of_the_last_times_and_unknown_when_they_are_old(outcomes: list[bool]) -> None:
    recent = RecentShare(window=64, stale_s=30.0)
    for at, so in enumerate(outcomes):
        recent.observe(so, at / 1000)
    last = outcomes[-64:]
    assert recent.share(1.0) == pytest.approx(sum(last) / len(last))
    assert recent.share(100.0) is None


async def ask(agent: Any, images: Any) -> None:
    for i in range(len(images)):
        await agent.infer({"image": images[i : i + 1]}, 20.0)


async def test_the_link_s_losses_and_the_cloud_s_queue_are_seen_from_offloads(
    cloud: Any, agent_of: Any, pictures: Any
) -> None:
    images, _ = pictures(60, 1)
    async with agent_of(cloud.address) as agent:
        await ask(agent, images)
        now = time.monotonic()
        sense([agent], now)
        sensed = agent.metrics.registry.get_sample_value
        assert sensed("edgemux_resource", {"sensor": "link_lost_share"}) == 0.0
        assert sensed("edgemux_resource", {"sensor": "cloud_queue_seconds"}) == pytest.approx(1e-4)
        assert device_status(agent)["cloud"]["lost_share"] == 0.0
        cloud.answer = cloud.refusing(grpc.StatusCode.UNAVAILABLE)
        await ask(agent, images)
        assert 0 < agent.cloud.lost.share(time.monotonic()) < 1


async def test_a_cloud_that_answers_nonsense_or_is_full_loses_nothing(cloud: Any, agent_of: Any, pictures: Any) -> None:
    cloud.answer = cloud.refusing(grpc.StatusCode.RESOURCE_EXHAUSTED)
    async with agent_of(cloud.address) as agent:
        await ask(agent, pictures(60, 1)[0])
        assert cloud.seen > 0
        assert agent.cloud.lost.share(time.monotonic()) == 0.0


async def test_every_configured_sensor_shows_its_age(agent_of: Any) -> None:
    async with agent_of(None, sensors=("cpu", "memory")) as agent:
        sense([agent], time.monotonic())
        ages = agent.metrics.registry.get_sample_value
        assert ages("edgemux_sensor_age_seconds", {"sensor": "cpu"}) >= 0
        assert ages("edgemux_sensor_age_seconds", {"sensor": "memory"}) >= 0
        assert ages("edgemux_sensor_age_seconds", {"sensor": "heat"}) is None
        assert set(device_status(agent)["reading_ages_seconds"]) == {"cpu", "memory"}
