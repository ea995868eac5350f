"""Whether the models still answer as they should, asked for a watchdog; and that nobody pays for it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest


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
