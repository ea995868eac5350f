"""The buckets that an agent starts with."""

from __future__ import annotations

import math
import time
from typing import Any

from edgemux.edge.config import LimitSettings


async def test_a_low_rate_still_lets_one_call_through(cloud: Any, agent_of: Any) -> None:
    async with agent_of(cloud.address, limits=LimitSettings(offloads_per_s=1e-3, bytes_per_s=1e-3)) as agent:
        allowance = agent.allowance(time.monotonic())
        assert allowance.offloads >= 1
        assert agent.cloud.request_bytes <= allowance.sent_bytes < math.inf


async def test_a_rate_of_nothing_lets_nothing_through(cloud: Any, agent_of: Any) -> None:
    async with agent_of(cloud.address, limits=LimitSettings(offloads_per_s=0.0, bytes_per_s=0.0)) as agent:
        allowance = agent.allowance(time.monotonic())
        assert (allowance.offloads, allowance.sent_bytes) == (0.0, 0.0)
