"""What the device's levels are taken to cost, before any input has come."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgemux.edge.device_executor import DeviceExecutor


async def test_a_stall_while_levels_are_measured_makes_none_of_them_dear(agent_of: Any) -> None:
    async with agent_of(None) as agent:
        priors_s = tuple(1.0 for _ in agent.family.routes)
        device = DeviceExecutor(agent.family, priors_s, agent.metrics, lambda seconds: None)
        runs = 0

        def timed(level: int, *_: Any) -> tuple[Any, float, float]:
            nonlocal runs
            runs += 1
            return np.zeros((1, 10), np.float32), 0.002 * level, level * (0.001 if runs % 5 else 0.006)

        device._timed = timed  # type: ignore[method-assign]
        device.warm_up({name: array[:1] for name, array in agent.self_check.inputs.items()})
        device.close()
    assert [each.mean_s for each in device.compute] == pytest.approx([0.001, 0.002, 0.003, 0.004])
    assert [each.mean_s for each in device.latency] == pytest.approx([0.002, 0.004, 0.006, 0.008])
