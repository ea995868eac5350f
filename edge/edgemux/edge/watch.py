"""What the agent does beside answering: keep the link measured, the loop's lag known and the gauges true."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence

from edgemux.edge.agent import Agent
from edgemux.edge.budget import Readings
from edgemux.edge.cloud_executor import CloudExecutor
from edgemux.edge.events import WatchFailed
from edgemux.edge.gauges import export
from edgemux.edge.notices import Notices
from edgemux.edge.pager import Pager
from edgemux.edge.vigil import Withdrawal
from edgemux.wire.events import InternalError, Name, kind, places, tell

_log = logging.getLogger("edgemux.edge")

TICK_S = 0.1
# The worst lag seen fades by this factor a tick: half of it is forgotten after about 0.7 s.
LAG_FADE = 0.9
# Nobody's link is measured while nobody asks anything.
QUIET_INPUTS_PER_S = 0.05


async def watch(agents: Sequence[Agent], pager: Pager, probe_interval_s: float) -> None:
    """Look after the agents of one device, until cancelled."""
    probe: asyncio.Task[None] | None = None
    step: asyncio.Task[None] | None = None
    lag_s = 0.0
    notices = Notices(agents)
    try:
        while True:
            began = time.monotonic()
            await asyncio.sleep(TICK_S)
            now = time.monotonic()
            lag_s = max(now - began - TICK_S, lag_s * LAG_FADE)
            for agent in agents:
                agent.loop_lag_s = lag_s
            attend(agents, pager, notices, now)
            if (probe is None or probe.done()) and _due(agents, probe_interval_s, now):
                probe = asyncio.create_task(_probe(agents, probe_interval_s))
            if (step is None or step.done()) and any(agent.vigil.due for agent in agents):
                step = asyncio.create_task(_step([agent for agent in agents if agent.vigil.due]))
    finally:
        for task in (probe, step):
            if task is not None:
                task.cancel()


async def _step(agents: Sequence[Agent]) -> None:
    """The vigils' own work, in a thread. A certificate that nobody watches any more must not go on as if."""
    for agent in agents:
        try:
            await asyncio.to_thread(agent.vigil.step)
        except Exception as error:
            tell(_log, WatchFailed(model=Name(agent.manifest.name), error=kind(error), at=places(error)))
            agent.vigil.withdraw(Withdrawal.WATCH_FAILED)


def _due(agents: Sequence[Agent], interval_s: float, now_s: float) -> bool:
    cloud = agents[0].cloud
    if cloud is None or all(_link_age_s(agents[0], peer, now_s) < interval_s for peer in cloud.peers):
        return False
    return sum(agent.rate.per_s(now_s) for agent in agents) > QUIET_INPUTS_PER_S


def _link_age_s(agent: Agent, peer: CloudExecutor, now_s: float) -> float:
    """Since the link was measured: any call does, but the choice among splits is between calls of different sizes."""
    return peer.link.age_s(now_s) if agent.splits is None else peer.link.small_age_s(now_s)


async def _probe(agents: Sequence[Agent], interval_s: float) -> None:
    """Measure the links, and ask about every model that a cloud did not serve as it should."""
    now_s = time.monotonic()
    for agent in agents:
        asked = [
            peer
            for peer in (() if agent.cloud is None else agent.cloud.peers)
            if peer.incompatible or (agent is agents[0] and _link_age_s(agent, peer, now_s) >= interval_s)
        ]
        asked += [] if agent.splits is None else agent.splits.unserved
        await asyncio.gather(*(peer.ping(timeout_s=1.0) for peer in asked))
    await asyncio.sleep(TICK_S)


def attend(agents: Sequence[Agent], pager: Pager, notices: Notices, now_s: float) -> None:
    """One round. A defect in it is said, and the next round is as ever: nobody else would look after the agents."""
    try:
        sense(agents, now_s)
        pager.tick(now_s)
        for event in notices.look(now_s):
            tell(_log, event)
    except Exception as error:
        tell(_log, InternalError(error=kind(error), at=places(error)))


def sense(agents: Sequence[Agent], now_s: float) -> None:
    """Take the readings as of now, and bring every gauge up to date; what is unknown is absent."""
    first = agents[0]
    readings = first.sampler.refresh(now_s)
    values: dict[str, float | None] = {name: getattr(readings, name) for name in Readings.__struct_fields__}
    values["loop_lag_seconds"] = first.loop_lag_s
    values["inputs_per_second"] = sum(agent.rate.per_s(now_s) for agent in agents)
    if first.cloud is not None:
        values |= first.cloud.readings(now_s)
        link = None if first.splits is None else first.splits.link(now_s)
        if link is not None and link[1] < float("inf"):  # also while only splits are sent
            values["link_bytes_per_second"] = link[1]
    first.metrics.sensed(values)
    first.metrics.aged(first.sampler.ages_s(now_s))
    for agent in agents:
        export(agent, now_s)
