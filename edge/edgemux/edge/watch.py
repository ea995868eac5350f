"""What the agent does beside answering: keep the link measured, the loop's lag known and the gauges true."""

from __future__ import annotations

import asyncio
import logging
import time

from edgemux.edge.agent import Agent
from edgemux.edge.budget import Readings
from edgemux.edge.vigil import Vigil, Withdrawal

LOG = logging.getLogger(__name__)

TICK_S = 0.1
# The worst lag seen fades by this factor a tick: half of it is forgotten after about 0.7 s.
LAG_FADE = 0.9
# Nobody's link is measured while nobody asks anything.
QUIET_INPUTS_PER_S = 0.05


async def watch(agent: Agent, probe_interval_s: float) -> None:
    """Run until cancelled."""
    probe: asyncio.Task[None] | None = None
    step: asyncio.Task[None] | None = None
    try:
        while True:
            began = time.monotonic()
            await asyncio.sleep(TICK_S)
            now = time.monotonic()
            agent.loop_lag_s = max(now - began - TICK_S, agent.loop_lag_s * LAG_FADE)
            export(agent, now)
            if (probe is None or probe.done()) and _due(agent, probe_interval_s, now):
                probe = asyncio.create_task(_probe(agent))
            if (step is None or step.done()) and agent.vigil.due:
                step = asyncio.create_task(_step(agent.vigil))
    finally:
        for task in (probe, step):
            if task is not None:
                task.cancel()


async def _step(vigil: Vigil) -> None:
    """The vigil's own work, in a thread. A certificate that nobody watches any more must not go on as if."""
    try:
        await asyncio.to_thread(vigil.step)
    except Exception:
        LOG.exception("the watch for drift has ended")
        vigil.withdraw(Withdrawal.WATCH_FAILED)


def _due(agent: Agent, interval_s: float, now_s: float) -> bool:
    cloud = agent.cloud
    return cloud is not None and agent.rate.per_s(now_s) > QUIET_INPUTS_PER_S and cloud.link.age_s(now_s) >= interval_s


async def _probe(agent: Agent) -> None:
    if agent.cloud is not None:
        await agent.cloud.ping(timeout_s=1.0)
        await asyncio.sleep(TICK_S)


def export(agent: Agent, now_s: float) -> None:
    """Bring every gauge up to date; what is unknown is absent."""
    readings = agent.sampler.refresh(now_s)
    values: dict[str, float | None] = {name: getattr(readings, name) for name in Readings.__struct_fields__}
    values["loop_lag_seconds"] = agent.loop_lag_s
    values["inputs_per_second"] = agent.rate.per_s(now_s)
    metrics = agent.metrics
    if agent.cloud is not None:
        values["link_rtt_seconds"] = agent.cloud.link.rtt_s(now_s)
        values["link_bytes_per_second"] = agent.cloud.link.bytes_per_s(now_s)
        values["link_lost_share"] = agent.cloud.lost.share(now_s)
        values["cloud_queue_seconds"] = agent.cloud.queue.mean(now_s)
        metrics.breaker.set(agent.cloud.breaker.state(now_s))
    metrics.sensed(values)
    metrics.aged(agent.sampler.ages_s(now_s))
    for kind, left in agent.purse.left(now_s).items():
        metrics.budget.labels(kind).set(left)
    for kind, price in agent.purse.prices(now_s).items():
        metrics.toll.labels(kind).set(price)
    metrics.bound.set(agent.vigil.state.bound)
    metrics.drift.set(agent.vigil.state.alarmed)
    metrics.level.set(agent.affordable_level(readings))
