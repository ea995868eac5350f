"""Heads count in the memory that models may have: they come and go with what the levels leave."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgemux.edge import EdgeConfig
from edgemux.edge.budget import CRUSHED, Readings
from edgemux.edge.config import ApplicationSettings, CloudSettings, LimitSettings
from edgemux.edge.heads import Alone, fitting
from edgemux.edge.notices import Notices
from edgemux.edge.pager import Pager
from edgemux.edge.scheduler import SchedulerSettings
from edgemux.edge.server import open_agents
from edgemux.edge.split_planning import SplitSettings
from edgemux.edge.status import status_of
from edgemux.edge.watch import sense
from edgemux.multiplexer.bundle import Bundle
from edgemux.multiplexer.domain import Placement, Reason
from tests.simulated_cloud import listening
from tests.split_stand import GOING_ON, PLAIN, SplitCloud, with_splits

PATIENT_S = 20.0
NOBODY = "127.0.0.1:9"
ALWAYS = SplitSettings(use="always")


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_splits(tiny_bundle, tmp_path_factory.mktemp("splits") / "bundle", golden=True)


def config_of(bundle: Path, address: str = NOBODY, names: tuple[str, ...] = ("door",), **settings: Any) -> EdgeConfig:
    return EdgeConfig(
        applications=tuple(ApplicationSettings(bundle, name=name, cloud_model="fashion-mnist") for name in names),
        cloud=CloudSettings(address=address),
        audit_share=0.0,
        sensors=(),
        split=ALWAYS,
        **{"scheduler": SchedulerSettings(scheme="off")} | settings,
    )


def pager_of(config: EdgeConfig, agents: dict[str, Any]) -> Pager:
    """A pager beside the agents' own, which is off."""
    every = config.every_application()
    return Pager(list(agents.values()), every, config.limits, SchedulerSettings(settle_s=0.0))


def sizes(bundle: Path, agent: Any) -> tuple[dict[int, int], int, int]:
    """Bytes of levels with those below, of the plain head and of the one that goes on."""
    opened = Bundle.open(bundle)
    return agent.family.bytes_of, *(opened.file(f"{name}-head.onnx").bytes for name in (PLAIN, GOING_ON))


def loaded(agent: Any) -> list[str]:
    return [head.split.name for head in agent.splits.heads if head.loaded]


async def ticked(pager: Pager, now_s: float) -> None:
    """Long enough for a raise to be made."""
    for step in range(4):
        pager.tick(now_s + step)
        if pager._raising is not None:
            await pager._raising


class Fake:
    def __init__(self, level: int, size: int, unfit: Alone | None) -> None:
        self.split, self.bytes, self.unfit = self, size, unfit
        self.level = level


fakes = st.builds(Fake, st.integers(0, 4), st.integers(1, 100), st.sampled_from([None, None, Alone.HEAD_WRONG]))


@given(st.lists(fakes, max_size=6), st.integers(1, 4), st.integers(-50, 400))
def test_heads_that_fit_are_on_levels_that_there_are_and_leave_no_room_for_another(
    heads: list[Any], level: int, room: int
) -> None:
    fit = fitting(heads, level, room)
    left = room - sum(head.bytes for head in fit)
    assert not fit or left >= 0
    for head in heads:
        usable = head.unfit is None and head.level <= level
        assert usable if head in fit else not usable or head.bytes > left


async def test_heads_leave_when_levels_need_the_room_and_come_back(bundle: Path) -> None:
    config = config_of(bundle)
    async with open_agents(config) as agents:
        (agent,) = agents.values()
        level_bytes, plain, going_on = sizes(bundle, agent)
        pager, notices, now = pager_of(config, agents), Notices([agent]), time.monotonic()
        await ticked(pager, now)
        value = agent.metrics.registry.get_sample_value
        told: list[str] = []
        for memory, expected in (
            (level_bytes[4] + plain + going_on, [PLAIN, GOING_ON]),
            (level_bytes[4] + plain, [PLAIN]),
            (level_bytes[4], []),
            (level_bytes[4] + going_on, [GOING_ON] if going_on < plain else [PLAIN]),
            (1e9, [PLAIN, GOING_ON]),
            (level_bytes[1], []),
            (1e9, [PLAIN, GOING_ON]),
        ):
            now += 10.0
            pager.memory_bytes = memory
            await ticked(pager, now)
            assert loaded(agent) == expected
            alone = {name for name, why in agent.left_alone(now).items() if why is Alone.MEMORY}
            at_first = {GOING_ON} if agent.family.resident < 2 else set()
            assert alone == {PLAIN, GOING_ON} - set(expected) - at_first
            assert agent.resident_bytes <= memory
            sense([agent], now)
            assert value("edgemux_resident_bytes", {"model": "door"}) == agent.resident_bytes
            told += [f"{event.name} {event.split}" for event in notices.look(now) if hasattr(event, "split")]
        assert told[:2] == [f"split_left_alone {GOING_ON}", f"split_left_alone {PLAIN}"]
        assert told.count(f"split_usable {PLAIN}") == told.count(f"split_left_alone {PLAIN}") >= 1
        assert (value("edgemux_paged_bytes_total", {"model": "door"}) or 0) >= 2 * plain


async def test_under_memory_pressure_heads_go_with_the_levels_and_inputs_are_answered(
    bundle: Path, pictures: Any
) -> None:
    images, _ = pictures(10, 3)
    async with listening(SplitCloud(Bundle.open(bundle))) as cloud:
        config = config_of(bundle, cloud.address)
        async with open_agents(config) as agents:
            (agent,) = agents.values()
            pager = pager_of(config, agents)
            agent.sampler.refresh = lambda _: agent.sampler.latest
            agent.sampler.latest = Readings(memory_pressure=CRUSHED)
            await ticked(pager, time.monotonic())
            assert loaded(agent) == [] and agent.family.resident == 1
            answers = [(await agent.infer({"image": image[None]}, PATIENT_S))[0] for image in images]
            assert Placement.SPLIT not in {answer.prediction.route.placement for answer in answers}
            agent.sampler.latest = Readings()
            await ticked(pager, time.monotonic() + 10)
            assert loaded(agent) == [PLAIN, GOING_ON]


async def test_the_limit_holds_for_levels_and_heads_of_all_applications_together(bundle: Path) -> None:
    async with open_agents(config_of(bundle)) as agents:
        level_bytes, plain, going_on = sizes(bundle, next(iter(agents.values())))
    for memory in (
        2.0 * level_bytes[4] + plain,
        2.0 * (level_bytes[4] + plain + going_on),
        level_bytes[4] + level_bytes[2] + plain + 1.0,
        2.0 * level_bytes[1] + plain,
    ):
        config = config_of(bundle, names=("door", "till"), limits=LimitSettings(memory_bytes=memory))
        async with open_agents(config) as agents:
            both = sum(agent.resident_bytes for agent in agents.values())
            assert level_bytes[4] < both <= memory or memory < level_bytes[4] + level_bytes[1]
            if memory == 2.0 * (level_bytes[4] + plain + going_on):
                assert [loaded(agent) for agent in agents.values()] == [[PLAIN, GOING_ON]] * 2


async def test_a_head_that_never_fits_is_said_in_the_status_and_the_device_goes_on(bundle: Path, pictures: Any) -> None:
    images, _ = pictures(10, 3)
    async with open_agents(config_of(bundle)) as agents:
        level_bytes = next(iter(agents.values())).family.bytes_of
    config = config_of(bundle, limits=LimitSettings(memory_bytes=float(level_bytes[1])))
    async with open_agents(config) as agents:
        (agent,) = agents.values()
        assert status_of(agent)["split"]["left_alone"] == dict.fromkeys((PLAIN, GOING_ON), "memory")
        answers = [(await agent.infer({"image": image[None]}, PATIENT_S))[0] for image in images]
        assert {answer.prediction.route.placement for answer in answers} == {Placement.EDGE}


async def test_a_head_whose_file_has_changed_is_wrong_when_it_is_to_be_loaded_again(
    bundle: Path, tiny_bundle: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = with_splits(tiny_bundle, tmp_path / "bundle")
    config = config_of(folder)
    async with open_agents(config) as agents:
        (agent,) = agents.values()
        pager, now = pager_of(config, agents), time.monotonic()
        pager.memory_bytes = agent.family.bytes_of[4]
        await ticked(pager, now)
        assert loaded(agent) == []
        (folder / f"{PLAIN}-head.onnx").write_bytes(b"changed")
        pager.memory_bytes = 1e9
        await ticked(pager, now + 10)
        assert loaded(agent) == [GOING_ON]
        assert agent.left_alone(now + 10) == {PLAIN: Alone.HEAD_WRONG}
        assert any(f"{PLAIN}-head.onnx" in said for said in caplog.messages)


async def test_inputs_are_answered_while_heads_come_and_go(bundle: Path, pictures: Any) -> None:
    images, _ = pictures(200, 3)
    there = SplitCloud(Bundle.open(bundle))
    async with listening(there) as cloud, open_agents(config_of(bundle, cloud.address)) as agents:
        (agent,) = agents.values()

        async def flap() -> None:
            while True:
                for head in agent.splits.heads:
                    head.drop()
                await asyncio.sleep(0)
                for head in agent.splits.heads:
                    await asyncio.to_thread(head.load, agent.family.chain)

        flapping = asyncio.create_task(flap())
        answers = []
        for _ in range(3):
            asked = [agent.infer({"image": image[None]}, PATIENT_S) for image in images]
            answers += [answer for (answer,) in await asyncio.gather(*asked)]
        flapping.cancel()
        await asyncio.gather(flapping, return_exceptions=True)
    assert len(answers) == 3 * len(images)
    fine = {Reason.CONFIDENT, Reason.OFFLOADED, Reason.DEFERRED, Reason.DEVICE_FAILED, Reason.DEVICE_BUSY}
    assert {answer.reason for answer in answers} <= fine | {Reason.BREAKER, Reason.CLOUD_OVERLOADED, Reason.LINK}
