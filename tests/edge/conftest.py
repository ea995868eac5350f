"""An agent in this process, and a simulated cloud in front of it."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from edgemux.edge import Agent, EdgeConfig, open_agent
from edgemux.edge.config import CloudSettings
from edgemux.edge.scheduler import SchedulerSettings
from edgemux.multiplexer.bundle import Bundle
from tests.simulated_cloud import SimulatedCloud, listening


@pytest.fixture
async def cloud(tiny_bundle: Path) -> AsyncIterator[SimulatedCloud]:
    async with listening(SimulatedCloud(Bundle.open(tiny_bundle))) as simulated:
        yield simulated


AgentFactory = Callable[..., contextlib.AbstractAsyncContextManager[Agent]]


@pytest.fixture
def agent_of(tiny_bundle: Path) -> AgentFactory:
    """``agent_of(address, **settings)``: a running agent on the tiny bundle; ``there``: more of the cloud."""

    def make(address: str | None, **settings: Any) -> contextlib.AbstractAsyncContextManager[Agent]:
        settings.setdefault("audit_share", 0.0)
        # How busy the machine is that runs the tests must not choose their levels.
        settings.setdefault("scheduler", SchedulerSettings(scheme="off"))
        there = {"accept_other_models": settings.pop("accept_other_models", False)} | settings.pop("there", {})
        cloud = CloudSettings(address=address, **there)
        config = EdgeConfig(bundle=settings.pop("bundle", tiny_bundle), cloud=cloud, **settings)
        return open_agent(config)

    return make
