"""Whether the models still answer as they should, asked for a watchdog; and that nobody pays for it."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgemux.edge.events import SplitLeftAlone, SplitUsable
from edgemux.edge.heads import Alone
from edgemux.edge.notices import Notices
from edgemux.edge.status import status_of
from edgemux.wire.events import Name
from tests.split_stand import PLAIN, with_splits


def counted(agent: Any) -> dict[tuple[str, Any], float]:
    """Every series that counts requests, CPU or energy."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in agent.metrics.registry.collect()
        for sample in family.samples
        if sample.name.endswith(("_total", "_count", "_sum")) and not sample.name.startswith("process_")
    }


async def test_models_that_give_their_golden_answers_are_well_and_nothing_is_counted(agent_of: Any) -> None:
    async with agent_of(None) as agent:
        before = counted(agent)
        for _ in range(3):
            assert await agent.well()
        assert counted(agent) == before


@pytest.mark.parametrize("inline", [True, False])
@pytest.mark.parametrize("worst", [1, 2, 3, 4])
async def test_a_level_that_answers_otherwise_is_not_well(
    agent_of: Any, monkeypatch: pytest.MonkeyPatch, worst: int, inline: bool
) -> None:
    async with agent_of(None) as agent:
        run = agent.family.run

        def spoilt(level: int, *more: Any) -> Any:
            probabilities = run(level, *more)
            return np.roll(probabilities, 1, axis=1) if level == worst else probabilities

        monkeypatch.setattr(agent.family, "run", spoilt)
        monkeypatch.setattr(agent._device, "inline", lambda level: inline)
        assert not await agent.self_check.well(4)
        assert worst == 1 or await agent.self_check.well(worst - 1)


async def test_the_smallest_level_is_checked_whatever_the_device_affords(
    agent_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with agent_of(None) as agent:
        monkeypatch.setattr(agent.family, "run", lambda level, *more: np.zeros((1, 10), np.float32))
        assert not await agent.self_check.well(0)


async def test_a_head_that_makes_other_codes_is_left_alone_until_it_makes_its_own_and_the_agent_is_well(
    agent_of: Any, tiny_bundle: Path, tmp_path: Path
) -> None:
    folder = with_splits(tiny_bundle, tmp_path / "bundle", golden=True)
    async with agent_of("127.0.0.1:9", bundle=folder) as agent:
        notices, began = Notices([agent]), time.monotonic()
        before = counted(agent)
        assert await agent.well() and agent.left_alone(began) == {}
        assert counted(agent) == before
        model = agent.splits.halves[PLAIN].head.held()
        run = model.run
        for spoilt in (lambda *given: [run(*given)[0] ^ 2], lambda *given: 1 / 0):
            model.run = spoilt
            assert await agent.well()
            assert agent.left_alone(began) == {PLAIN: Alone.HEAD_WRONG}
            assert status_of(agent)["split"]["left_alone"] == {PLAIN: "head_wrong"}
            assert [type(event) for event in notices.look(began) if hasattr(event, "split")] == [SplitLeftAlone]
            model.run = run
            assert await agent.well() and agent.left_alone(began) == {}
            (back,) = (event for event in notices.look(began + 5.0) if hasattr(event, "split"))
            assert back == SplitUsable(model=Name(agent.manifest.name), split=Name(PLAIN), seconds=5.0)


async def test_slow_heads_are_looked_at_in_the_device_s_thread(
    agent_of: Any, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = with_splits(tiny_bundle, tmp_path / "bundle", golden=True)
    monkeypatch.setattr("edgemux.edge.split_executor.INLINE_S", 0.0)
    async with agent_of("127.0.0.1:9", bundle=folder) as agent:
        names: list[str] = []
        for half in agent.splits.halves.values():
            half.head.look = lambda *given: names.append(threading.current_thread().name)
        assert await agent.well()
    assert len(names) == 2 and all(name.startswith("edgemux-device") for name in names)
