"""Moves the applications from plan to plan: drops levels at once, pages levels in beside the event loop."""

from __future__ import annotations

import asyncio
import logging
import math
import time
import weakref
from collections.abc import Callable, Sequence

from edgemux.edge.agent import Agent
from edgemux.edge.budget import Readings, cpu_share, memory_for
from edgemux.edge.config import ApplicationSettings, LimitSettings
from edgemux.edge.events import LevelNotLoaded, PlanFailed
from edgemux.edge.heads import Head, drop_others, fitting
from edgemux.edge.scheduler import Application, Device, Level, Plan, Planner, SchedulerSettings, memory_of, plan_for
from edgemux.edge.variants import give_back
from edgemux.multiplexer.onnx_model import OnnxModel
from edgemux.wire.events import Name, kind, places, tell

_log = logging.getLogger("edgemux.edge")

# Bursts may take this much more CPU than is planned for; what takes more runs a lower level until the next plan.
SLACK = 1.5
# What changes by less than this share does not make a new plan: estimates of rates are never still.
STEP = 0.1
# A request in flight holds what is dropped until it is answered; nothing waits longer for it than this.
DROPPED_S = 1.0
# A delta that cannot be loaded (its file has gone or changed) is tried again after this.
RETRY_S = 60.0
# The agent's own CPU time per input: before anything is known, and no more than this is believed.
OWN_S = 0.0003
MOST_OWN_S = 0.01
# Of what is free, no more than this is planned to be busy, the agent's own work included: what comes by chance has to
# wait, on average rho / (2 (1 - rho)) times what an input takes (M/D/1), which is twice that at 0.8.
MOST_BUSY = 0.8
# Where the agent's own work takes everything, lower levels do not help much: models keep this much of their share.
LEAST_SHARE = 0.25


class Pager:
    """Owns the plan of one device. Lives in one event loop; ``memory_bytes`` bounds all levels together."""

    def __init__(
        self,
        agents: Sequence[Agent],
        applications: Sequence[ApplicationSettings],
        limits: LimitSettings,
        settings: SchedulerSettings,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``agents`` and what their ``applications`` want, in the same order. Only lowers; ``start`` raises."""
        self.memory_bytes = limits.memory_bytes
        self.plan: Plan | None = None
        self.own_s = OWN_S
        # Where no level runs at all there is nothing to plan.
        planned = [pair for pair in zip(agents, applications, strict=True) if pair[0].family.routes]
        self._agents = [agent for agent, _ in planned]
        self._applications = [application for _, application in planned]
        self._limits = limits
        self._settings = settings
        self._planner = Planner(settings)
        self._clock = clock
        # What a level took when all were measured in turn: by how much the one in use has changed, the others have too.
        self._measured_s = [[estimate.mean_s for estimate in agent.device.compute] for agent in self._agents]
        self._highest = [agent.family.highest for agent in self._agents]
        self._retry_s = math.inf
        self._complained = False
        self._raising: asyncio.Task[None] | None = None
        self._dropping: asyncio.Task[None] | None = None
        self._seen: tuple[object, ...] = ()
        self._held: dict[object, float] = {}
        self._used = self._usage()

    async def start(self) -> None:
        """The first plan, in force when this returns."""
        if not self._agents:
            return
        if self._settings.scheme == "off":
            weights = sum(application.weight for application in self._applications)
            wanted, device = self._wanted(0.0), Device(1.0, self.memory_bytes)
            self._move(plan_for(wanted, device, "total", self._settings.alpha), wanted, device)
            for agent, application in zip(self._agents, self._applications, strict=True):
                agent.share, agent.slack = application.weight / weights, 1.0
        else:
            self.tick(self._clock())
        if self._raising is not None:
            await self._raising

    async def stop(self) -> None:
        """Nothing is being loaded any more when this returns."""
        tasks = [task for task in (self._raising, self._dropping) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def tick(self, now_s: float) -> None:
        """Plan again if what is known has changed, or a raise is being weighed. Called about ten times a second.

        Whatever is wrong with a plan, inputs are answered by the one before.
        """
        if not self._agents:
            return
        try:
            self._plan(now_s)
        except Exception as error:
            if not self._complained:
                self._complained = True
                tell(_log, PlanFailed(error=kind(error), at=places(error)))

    def _plan(self, now_s: float) -> None:
        self._learn_own()
        if self._settings.scheme == "off" or (self._raising is not None and not self._raising.done()):
            return
        if now_s >= self._retry_s:
            self._retry_s = math.inf
            self._highest = [agent.family.highest for agent in self._agents]
        readings = self._agents[0].sampler.latest
        resident = sum(agent.resident_bytes for agent in self._agents)
        memory = memory_for(readings, self.memory_bytes, resident)
        if memory != self.memory_bytes:  # the limit is exact; how much happens to be there is not
            memory = min(memory, self._steady("memory", memory))
        device = Device(self._steady("cpu", self._cpu(readings, now_s)), memory)
        wanted = self._wanted(now_s)
        if (device, wanted) != self._seen or self._planner.weighing:
            self._seen = (device, wanted)
            self._move(self._planner.consider(wanted, device, now_s), wanted, device)

    def _cpu(self, readings: Readings, now_s: float) -> float:
        """The share of a core that models may have: of what is free, and beside the agent's own work for the inputs."""
        free = cpu_share(readings)
        own = self.own_s * sum(agent.rate.per_s(now_s) for agent in self._agents)
        share = free * self._limits.compute_share
        if free >= 1.0:
            # A whole core: what is busy then is a client that asks again as soon as it is answered, and nobody waits.
            return share
        return max(LEAST_SHARE * share, min(share, free * MOST_BUSY - own))

    def _wanted(self, now_s: float) -> tuple[Application, ...]:
        """What the applications are and want, as the scheduler sees it."""
        return tuple(
            Application(
                tuple(self._levels(number)),
                self._steady(("rate", number), agent.rate.per_s(now_s)),
                application.accuracy,
                application.latency_s,
                application.weight,
            )
            for number, (agent, application) in enumerate(zip(self._agents, self._applications, strict=True))
        )

    def _levels(self, number: int) -> list[Level]:
        agent, measured_s = self._agents[number], self._measured_s[number]
        family = agent.family
        change = self._steady(("change", number), self._changed(number))
        return [
            Level(level.accuracy, change * measured_s[at], family.bytes_of[level.level], family.load_s[at])
            for at, level in enumerate(agent.manifest.levels[: self._highest[number]])
        ]

    def _changed(self, number: int) -> float:
        """By how much the level in use takes longer than when all were measured."""
        agent, measured_s = self._agents[number], self._measured_s[number]
        current = agent.family.resident - 1
        return agent.device.compute[current].mean_s / measured_s[current] if measured_s[current] > 0 else 1.0

    def _steady(self, name: object, value: float) -> float:
        """The value of ``name`` as last said, unless it has changed by more than STEP since."""
        held = self._held.get(name)
        if held is None or not held * (1 - STEP) <= value <= held * (1 + STEP):
            held = self._held[name] = value
        return held

    def _usage(self) -> tuple[float, float, int]:
        return (
            time.process_time(),
            sum(agent.device.spent_s for agent in self._agents),
            sum(agent.arrived for agent in self._agents),
        )

    def _learn_own(self) -> None:
        """The CPU time of this process that is no level's, for each input: gates, messages, everything."""
        now, before = self._usage(), self._used
        inputs = now[2] - before[2]
        if not inputs:
            self._used = now
        elif inputs >= 10:
            own_s = (now[0] - before[0] - (now[1] - before[1])) / inputs
            self.own_s += (min(max(0.0, own_s), MOST_OWN_S) - self.own_s) / 3
            self._used = now

    def _move(self, plan: Plan, wanted: Sequence[Application], device: Device) -> None:
        """Put a plan in force: shares and lower levels at once, higher ones when loaded. Heads have the rest."""
        self.plan = plan
        dropped: list[weakref.ref[OnnxModel]] = []
        rising, heads = [], []
        room = device.memory_bytes - memory_of(wanted, plan.levels)
        for agent, allotment in zip(self._agents, plan.allotments, strict=True):
            agent.planned, agent.share, agent.slack = allotment.level, allotment.share, SLACK
            if allotment.level < agent.family.resident:
                dropped += agent.family.lower_to(allotment.level)
            elif allotment.level > agent.family.resident:
                rising.append((agent, allotment.level))
            own = () if agent.splits is None else agent.splits.heads
            fit = fitting(own, allotment.level, room)
            room -= sum(head.bytes for head in fit)
            dropped += drop_others(own, fit)
            heads += [(agent, head) for head in fit if not head.loaded]
        if rising or heads:
            self._raising = asyncio.create_task(self._raise(rising, heads, dropped))
        elif dropped:
            self._dropping = asyncio.create_task(self._drop(dropped))

    async def _drop(self, dropped: Sequence[weakref.ref[OnnxModel]]) -> None:
        """Wait until nobody is answered with what was dropped any more, and give its memory back."""
        until_s = self._clock() + DROPPED_S
        while any(delta() is not None for delta in dropped) and self._clock() < until_s:  # noqa: ASYNC110
            await asyncio.sleep(0.002)
        if dropped:
            await asyncio.to_thread(give_back)

    async def _raise(
        self,
        rising: Sequence[tuple[Agent, int]],
        heads: Sequence[tuple[Agent, Head]],
        dropped: Sequence[weakref.ref[OnnxModel]],
    ) -> None:
        """Load what the plan says, once what it drops is gone: together they might not fit the memory."""
        await self._drop(dropped)
        for agent, level in rising:
            try:
                loads = await asyncio.to_thread(agent.family.raise_to, level)
            except Exception as error:
                model = Name(agent.manifest.name)
                tell(_log, LevelNotLoaded(model=model, error=kind(error), at=places(error)))
                self._highest[self._agents.index(agent)] = agent.family.resident
                self._retry_s = self._clock() + RETRY_S
                continue
            for load in loads:
                agent.metrics.paged(load.seconds, load.bytes)
        for agent, head in heads:
            if head.split.level <= agent.family.resident and await asyncio.to_thread(head.load, agent.family.chain):
                agent.metrics.paged_head(head.bytes)
        # Loading takes twice what is loaded, and most of it is free again.
        await asyncio.to_thread(give_back)
