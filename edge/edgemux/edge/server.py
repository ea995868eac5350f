"""The agent as a process, and as an object for use in somebody else's."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any

from edgemux.edge.agent import Agent
from edgemux.edge.breaker import Breaker
from edgemux.edge.config import EdgeConfig
from edgemux.edge.executors import CloudExecutor, DeviceExecutor, Peer
from edgemux.edge.metrics import EdgeMetrics
from edgemux.edge.request_log import RequestLog
from edgemux.edge.sensors import Sampler
from edgemux.edge.service import EdgeService
from edgemux.edge.variants import Family
from edgemux.edge.vigil import Vigil
from edgemux.edge.watch import export, watch
from edgemux.multiplexer import plugins
from edgemux.multiplexer.baselines import Learned
from edgemux.multiplexer.bundle import Bundle
from edgemux.multiplexer.chain import Golden
from edgemux.multiplexer.gates import Gates
from edgemux.multiplexer.toll import TolledBudget
from edgemux.wire.channel import open_channel
from edgemux.wire.process import Serving, run

# An answer is a few hundred bytes; what is far larger is not one.
MAX_ANSWER_BYTES = 2**20


@contextlib.asynccontextmanager
async def open_agent(config: EdgeConfig) -> AsyncIterator[Agent]:
    """A running agent without any server: verified bundle, sensors, link to the cloud.

    Raises ArtifactError naming a bad file, ConfigError naming a bad setting.
    """
    policy = plugins.make("edgemux.policies", config.policy, "policy")
    bundle = Bundle.open(config.bundle)
    manifest = bundle.manifest
    if isinstance(policy, Learned):
        policy.check(len(manifest.classes))
    family = Family(bundle)
    gates = Gates(bundle)
    golden = Golden(bundle)
    family.check(golden, manifest)
    gates.check(golden, manifest)
    metrics = EdgeMetrics(manifest.name, manifest.multiplexer.routes, config.energy)
    for seconds in family.load_s:
        metrics.level_switch.observe(seconds)
    device = DeviceExecutor(family, tuple(level.median_ms / 1000 for level in manifest.levels), metrics)
    sampler = Sampler([plugins.load("edgemux.sensors", name)() for name in config.sensors], config.sensor_interval_s)
    channel = open_channel(config.cloud.address, MAX_ANSWER_BYTES) if config.cloud.address else None
    cloud = _cloud(config, bundle, channel, metrics) if channel is not None else None
    vigil = Vigil(manifest, config.drift, config.audit_share)
    agent = Agent(manifest, config, family, gates, policy, device, cloud, sampler, metrics, vigil)
    device.warm_up({name: array[:1] for name, array in golden.inputs.items()})
    sampler.start()
    export(agent, time.monotonic())
    watching = asyncio.create_task(watch(agent, config.cloud.probe_interval_s))
    try:
        yield agent
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        await agent.close()
        if channel is not None:
            await channel.close()


def _cloud(config: EdgeConfig, bundle: Bundle, channel: Any, metrics: EdgeMetrics) -> CloudExecutor:
    limits = config.limits
    digest = bundle.sha256(bundle.manifest.cloud.files[0])
    peer = Peer.of(bundle.manifest, digest, config.cloud.model, config.cloud.accept_other_models)
    return CloudExecutor(
        channel,
        peer,
        Breaker(config.breaker),
        TolledBudget(limits.bucket(limits.offloads_per_s, least=1.0)),
        # Twice what a call is estimated to take: names can be longer, and it must fit whole.
        TolledBudget(limits.bucket(limits.bytes_per_s, least=2.0 * peer.call_bytes), unit=peer.call_bytes),
        metrics,
        time.monotonic,
    )


def _request_log(config: EdgeConfig, metrics: EdgeMetrics) -> RequestLog | None:
    path = config.log.requests
    return None if path is None else RequestLog(path, config.log.most_waiting, metrics.log_dropped.inc)


def serve(config: EdgeConfig) -> None:
    """Run the agent until SIGTERM. Raises ConfigError or ArtifactError when it cannot start."""
    stack = contextlib.AsyncExitStack()

    async def make() -> Serving:
        agent = await stack.enter_async_context(open_agent(config))
        log = _request_log(config, agent.metrics)
        service = EdgeService(agent, config.request.max_batch, log)

        def drain() -> None:
            service.draining = True

        async def closed() -> None:
            service.close()
            await stack.aclose()
            if log is not None:
                await asyncio.to_thread(log.close)

        return Serving(
            name="edge",
            model=agent.manifest.name,
            servicer=service,
            registry=agent.metrics.registry,
            pages=service.pages(),
            drain=drain,
            closed=closed,
        )

    run(config.listen, make)
