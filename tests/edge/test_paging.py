"""Levels come and go while inputs are answered: only deltas are read, the memory bound holds, all are answered."""

from __future__ import annotations

import asyncio
import gc
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgemux.edge import ApplicationSettings, EdgeConfig, open_agents
from edgemux.edge.budget import CRUSHED, Readings
from edgemux.edge.config import LimitSettings
from edgemux.edge.pager import RETRY_S, Pager
from edgemux.edge.scheduler import SchedulerSettings
from edgemux.edge.variants import Family
from edgemux.edge.watch import sense
from edgemux.multiplexer.bundle import Bundle
from edgemux.multiplexer.chain import Activations, Golden
from edgemux.multiplexer.errors import ArtifactError

PATIENT_S = 20.0
OFF = SchedulerSettings(scheme="off")


@pytest.fixture
def bundle(tiny_bundle: Path) -> Bundle:
    return Bundle.open(tiny_bundle)


def image_of(bundle: Bundle) -> dict[str, Any]:
    return {"image": bundle.arrays("samples.npz")["images"][:1]}


def test_raising_reads_only_the_deltas_and_answers_as_before(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    family = Family(bundle)
    before = family.run(4, Activations(image_of(bundle)))
    family.lower_to(2)
    assert family.resident == 2
    read: list[str] = []
    inner = bundle.read

    def reading(path: str) -> bytes:
        read.append(path)
        return inner(path)

    monkeypatch.setattr(bundle, "read", reading)
    loads = family.raise_to(4)
    assert read == ["level-3.onnx", "level-4.onnx"]
    assert [(load.level, load.bytes) for load in loads] == [
        (3, bundle.file("level-3.onnx").bytes),
        (4, bundle.file("level-4.onnx").bytes),
    ]
    assert all(load.seconds > 0 for load in loads)
    np.testing.assert_array_equal(family.run(4, Activations(image_of(bundle))), before)


def test_lowering_frees_what_it_drops_and_never_the_first_level(bundle: Bundle) -> None:
    family = Family(bundle)
    dropped = family.lower_to(0)
    assert family.resident == 1
    assert len(dropped) == 3
    gc.collect()
    assert all(delta() is None for delta in dropped)
    assert family.lower_to(1) == []


def test_an_input_in_flight_goes_on_with_a_level_that_is_dropped_under_it(bundle: Bundle) -> None:
    family = Family(bundle)
    whole = family.run(4, Activations(image_of(bundle)))
    activations = Activations(image_of(bundle))
    activations.chain = family.chain
    family.run(2, activations)
    dropped = family.lower_to(1)
    np.testing.assert_array_equal(family.run(4, activations), whole)
    assert dropped[-1]() is not None
    activations.chain = None
    gc.collect()
    assert dropped[-1]() is None


def test_a_delta_that_was_changed_on_the_disk_is_not_loaded(tiny_bundle: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    family = Family(Bundle.open(copy))
    family.lower_to(2)
    damaged = bytearray((copy / "level-3.onnx").read_bytes())
    damaged[-20] ^= 1
    (copy / "level-3.onnx").write_bytes(damaged)
    with pytest.raises(ArtifactError, match=r"^level-3\.onnx"):
        family.raise_to(4)
    assert family.resident == 2


def test_levels_that_could_never_fit_are_not_even_loaded(bundle: Bundle) -> None:
    sizes = Family(bundle).bytes_of
    small = Family(bundle, sizes[2] + 1)
    assert (small.resident, small.highest) == (2, 2)
    small.check(Golden(bundle), bundle.manifest)
    assert Family(bundle, 0.0).resident == 1


def two(bundle: Bundle, **settings: Any) -> EdgeConfig:
    return EdgeConfig(
        applications=tuple(ApplicationSettings(bundle.folder, name=name) for name in ("door", "till")),
        audit_share=0.0,
        sensors=(),
        **settings,
    )


def pager_of(config: EdgeConfig, agents: dict[str, Any], **settings: Any) -> Pager:
    """A pager beside the agents' own, which is off."""
    return Pager(
        list(agents.values()),
        config.every_application(),
        config.limits,
        SchedulerSettings(settle_s=0.0, **settings),
    )


def resident(agents: dict[str, Any]) -> list[int]:
    return [agent.family.resident for agent in agents.values()]


def resident_bytes(agents: dict[str, Any]) -> int:
    return sum(agent.family.bytes_of[agent.family.resident] for agent in agents.values())


async def settled(pager: Pager) -> None:
    if pager._raising is not None:
        await pager._raising


async def test_the_memory_bound_holds_for_all_applications_together(bundle: Bundle) -> None:
    sizes = Family(bundle).bytes_of
    for memory in (2.0 * sizes[4], float(sizes[4] + sizes[2]), float(sizes[2] + sizes[1]), 1.0):
        config = two(bundle, limits=LimitSettings(memory_bytes=memory))
        async with open_agents(config) as agents:
            assert resident_bytes(agents) <= max(memory, 2 * sizes[1])
            if memory == 2.0 * sizes[4]:
                assert resident(agents) == [4, 4]
            if memory == 1.0:
                assert resident(agents) == [1, 1]


async def test_a_bound_that_comes_down_lowers_at_once_and_one_that_goes_up_raises(bundle: Bundle) -> None:
    config = two(bundle, scheduler=OFF)
    async with open_agents(config) as agents:
        sizes = agents["door"].family.bytes_of
        pager = pager_of(config, agents)
        now = time.monotonic()
        pager.tick(now)
        assert resident(agents) == [4, 4]
        pager.memory_bytes = sizes[4] + sizes[1]
        pager.tick(now + 1)
        assert resident_bytes(agents) <= pager.memory_bytes
        pager.memory_bytes = 2 * sizes[4]
        for second in range(2, 5):
            pager.tick(now + second)
            await settled(pager)
        assert resident(agents) == [4, 4]
        registry = agents["door"].metrics.registry
        paged = registry.get_sample_value("edgemux_paged_bytes_total", {"model": "door"})
        sense(list(agents.values()), now)
        assert paged >= sizes[4]
        assert registry.get_sample_value("edgemux_plan_level", {"model": "door"}) == 4
        assert registry.get_sample_value("edgemux_plan_share", {"model": "till"}) == pytest.approx(0.5)
        assert registry.get_sample_value("edgemux_resident_bytes", {"model": "till"}) == sizes[4]


async def test_under_memory_pressure_the_smallest_levels_stay_and_answer(bundle: Bundle, pictures: Any) -> None:
    images, _ = pictures(20, 3)
    config = two(bundle, scheduler=OFF)
    async with open_agents(config) as agents:
        pager = pager_of(config, agents)
        pager.tick(time.monotonic())
        agents["door"].sampler.refresh = lambda _: agents["door"].sampler.latest
        agents["door"].sampler.latest = Readings(memory_pressure=CRUSHED)
        pager.tick(time.monotonic())
        assert resident(agents) == [1, 1]
        for agent in agents.values():
            for image in images:
                (answer,) = await agent.infer({"image": image[None]}, PATIENT_S)
                assert answer.prediction.route.level == 1


async def test_inputs_are_answered_while_levels_come_and_go(bundle: Bundle, pictures: Any) -> None:
    images, _ = pictures(200, 3)
    config = two(bundle, scheduler=OFF)
    async with open_agents(config) as agents:
        family = agents["door"].family

        async def flap() -> None:
            while True:
                family.lower_to(1)
                await asyncio.sleep(0)
                await asyncio.to_thread(family.raise_to, 4)

        flapping = asyncio.create_task(flap())
        answers = []
        for _ in range(3):
            asked = [agents["door"].infer({"image": image[None]}, PATIENT_S) for image in images]
            answers += [answer for (answer,) in await asyncio.gather(*asked)]
            await asyncio.sleep(0.01)
        flapping.cancel()
        await asyncio.gather(flapping, return_exceptions=True)
    assert len(answers) == 3 * len(images)


async def test_a_level_that_cannot_be_loaded_leaves_the_others_and_is_tried_again(
    tiny_bundle: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    copy = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    config = two(Bundle.open(copy), scheduler=OFF)
    async with open_agents(config) as agents:
        sizes = agents["door"].family.bytes_of
        pager = pager_of(config, agents)
        now = time.monotonic()
        pager.memory_bytes = 2 * sizes[1]
        pager.tick(now)
        assert resident(agents) == [1, 1]
        (copy / "level-2.onnx").rename(copy / "gone")
        pager.memory_bytes = 1e9
        for second in range(1, 5):
            pager.tick(now + second)
            await settled(pager)
        assert resident(agents) == [1, 1]
        assert caplog.records
        said = len(caplog.records)
        (copy / "gone").rename(copy / "level-2.onnx")
        for second in range(3):
            pager.tick(now + 2 * RETRY_S + second)
            await settled(pager)
        assert resident(agents) == [4, 4]
        assert len(caplog.records) == said


async def test_with_the_scheduler_off_everybody_has_a_share_by_weight_and_keeps_the_first_plan(
    bundle: Bundle,
) -> None:
    light, heavy = two(bundle).applications
    config = EdgeConfig(
        applications=(light, ApplicationSettings(heavy.bundle, name="till", weight=3.0)), scheduler=OFF, sensors=()
    )
    async with open_agents(config) as agents:
        assert [agent.share for agent in agents.values()] == [0.25, 0.75]
        assert resident(agents) == [4, 4]


async def test_the_level_follows_the_cpu_that_is_there(bundle: Bundle) -> None:
    config = two(bundle, scheduler=OFF)
    async with open_agents(config) as agents:
        for agent in agents.values():
            for number, estimate in enumerate(agent.device.compute):
                estimate.mean_s = 0.01 * 4**number
        pager = pager_of(config, agents)
        now = time.monotonic()
        for agent in agents.values():
            agent.rate.observe(now, 4)  # 2 a second
        pager.tick(now)
        first = resident(agents)
        agents["door"].sampler.latest = Readings(cpu_quota=0.1, cpu_count=1.0)
        pager.tick(now + 0.1)
        assert sum(resident(agents)) < sum(first)
        assert pager.plan is not None
        assert sum(allotment.share for allotment in pager.plan.allotments) == pytest.approx(1)


async def test_a_plan_that_fails_leaves_the_one_before_and_is_said_once(
    bundle: Bundle, pictures: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, _ = pictures(5, 3)
    config = two(bundle, scheduler=OFF)
    async with open_agents(config) as agents:
        pager = pager_of(config, agents)
        pager.tick(time.monotonic())
        before = pager.plan

        def broken(*_: Any) -> Any:
            raise ZeroDivisionError

        monkeypatch.setattr(pager._planner, "consider", broken)
        for memory in (1.0, 2.0, 3.0):
            pager.memory_bytes = memory
            pager.tick(time.monotonic())
        assert pager.plan is before
        assert len(caplog.records) == 1
        assert len([await agents["door"].infer({"image": image[None]}, PATIENT_S) for image in images]) == 5


async def test_the_watchdog_s_check_goes_on_when_a_level_is_dropped_under_it(bundle: Bundle) -> None:
    config = two(bundle, scheduler=OFF)
    async with open_agents(config) as agents:
        agent = agents["door"]
        assert agent.self_check is not None
        assert await agent.self_check.well(4)
        agent.family.lower_to(2)
        assert await agent.self_check.well(4)
