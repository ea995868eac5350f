"""The agent as a process, and as an object for use in somebody else's."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import AsyncIterator, Sequence

import msgspec

from edgemux.edge.agent import Agent
from edgemux.edge.breaker import Breaker
from edgemux.edge.cloud_executor import CloudExecutor
from edgemux.edge.clouds import Cloud, Clouds
from edgemux.edge.config import ApplicationSettings, CloudSettings, EdgeConfig
from edgemux.edge.device_executor import DeviceExecutor
from edgemux.edge.events import NothingMayBeSent
from edgemux.edge.gallery import Gallery
from edgemux.edge.gauges import export_settings
from edgemux.edge.heads import load_fitting
from edgemux.edge.loading import Loaded, load
from edgemux.edge.metrics import EdgeMetrics
from edgemux.edge.pager import Pager
from edgemux.edge.peer import Peer
from edgemux.edge.purse import Kind, Purse, Tariff, fill
from edgemux.edge.request_log import RequestLog
from edgemux.edge.sampler import Sampler
from edgemux.edge.self_check import SelfCheck
from edgemux.edge.service import EdgeService
from edgemux.edge.split_executor import Half, SplitExecutor
from edgemux.edge.split_planning import SplitChoice, whole_ways
from edgemux.edge.store import Store
from edgemux.edge.variants import give_back
from edgemux.edge.vigil import Vigil
from edgemux.edge.watch import sense, watch
from edgemux.multiplexer import plugins
from edgemux.multiplexer.baselines import Learned
from edgemux.multiplexer.domain import Placement
from edgemux.multiplexer.errors import ConfigError
from edgemux.multiplexer.policy import Policy
from edgemux.wire.channel import open_renewed_channel
from edgemux.wire.events import Name, tell
from edgemux.wire.process import Serving, run
from edgemux.wire.renewed import RenewedChannel
from edgemux.wire.tracing import open_tracer

_log = logging.getLogger("edgemux.edge")

# An answer is a few hundred bytes; what is far larger is not one.
MAX_ANSWER_BYTES = 2**20


@contextlib.asynccontextmanager
async def open_agent(config: EdgeConfig) -> AsyncIterator[Agent]:
    """A running agent of one application, without any server: verified bundle, sensors, link to the cloud.

    Raises ArtifactError naming a bad file, ConfigError naming a bad setting.
    """
    if len(config.every_application()) != 1:
        raise ConfigError("applications: there are several; open_agents opens them")
    async with open_agents(config) as agents:
        for agent in agents.values():
            yield agent


@contextlib.asynccontextmanager
async def open_agents(config: EdgeConfig) -> AsyncIterator[dict[str, Agent]]:
    """Running agents of all applications by their names on the wire, without any server. Raises like ``open_agent``.

    They share the sensors, the cloud with its breaker, link and budgets, and one registry of metrics.
    """
    applications = config.every_application()
    policies = [plugins.make("edgemux.policies", each.policy or config.policy, "policy") for each in applications]
    loaded = _loaded(config)
    names = [each.bundle.manifest.name for each in loaded]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"applications: several are named {name}; give each a name of its own")
    sampler = Sampler(
        {name: plugins.load("edgemux.sensors", name)() for name in config.sensors}, config.sensor_interval_s
    )
    channels = _channels(config.cloud)
    store = Store(config.state_dir)
    call_bytes = max(_call_bytes(each, config.split.never_send_raw) for each in loaded)
    purse = _purse(config, call_bytes, store.begin() if config.budgets else None)
    forgetful = bool(config.budgets) and not store.works
    agents: dict[str, Agent] = {}
    try:
        for application, policy, each in zip(applications, policies, loaded, strict=True):
            first = next(iter(agents.values()), None)
            agent = _agent(config, application, policy, each, sampler, channels, purse, first)
            agents[each.bundle.manifest.name] = agent
            agent.metrics.forgets(forgetful)
            if _is_tight(config):
                each.shrink()
        sampler.start()
        pager = Pager(list(agents.values()), applications, config.limits, config.scheduler)
        async with _watched(list(agents.values()), pager, config.cloud.probe_interval_s):
            yield agents
    finally:
        for agent in agents.values():
            await agent.close()
        if config.budgets:
            store.end(purse.tokens(time.monotonic()))
        sampler.stop()
        for channel in channels:
            await channel.close()


@contextlib.asynccontextmanager
async def _watched(agents: Sequence[Agent], pager: Pager, probe_interval_s: float) -> AsyncIterator[None]:
    """Somebody looks after the agents meanwhile."""
    await pager.start()
    await asyncio.to_thread(give_back)  # loading has taken twice what is loaded
    sense(agents, time.monotonic())
    watching = asyncio.create_task(watch(agents, pager, probe_interval_s))
    try:
        yield
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        await pager.stop()


def _is_tight(config: EdgeConfig) -> bool:
    """Whether several applications have to share a bound: until they are planned each has its first level alone."""
    return math.isfinite(config.limits.memory_bytes) and len(config.every_application()) > 1


def _loaded(config: EdgeConfig) -> list[Loaded]:
    """All applications' bundles, checked; never more of them in memory at once than is allowed."""
    memory_bytes = config.limits.memory_bytes
    loaded: list[Loaded] = []
    for each in config.every_application():
        room = memory_bytes - sum(other.resident_bytes for other in loaded)
        has_cloud = bool(config.cloud.every_address())
        answers = has_cloud and not config.split.never_send_raw
        split = config.split if has_cloud else None
        loaded.append(load(each.bundle, each.previous_bundle, each.name, answers, room, split))
        if _is_tight(config):
            loaded[-1].shrink()
    smallest = [each.family.bytes_of.get(1, 0) for each in loaded]
    for one, own in zip(loaded, smallest, strict=True):
        one.family.cap(memory_bytes - (sum(smallest) - own))
    return loaded


def _agent(
    config: EdgeConfig,
    application: ApplicationSettings,
    policy: Policy,
    loaded: Loaded,
    sampler: Sampler,
    channels: Sequence[RenewedChannel],
    purse: Purse,
    first: Agent | None,
) -> Agent:
    """One application, measured; it shares what ``first`` has of the cloud and the metrics."""
    bundle, family = loaded.bundle, loaded.family
    manifest = bundle.manifest
    if isinstance(policy, Learned):
        policy.check(len(manifest.classes))
    routes, splits = manifest.multiplexer.routes, tuple(head.split.name for head in loaded.heads)
    if first is None:
        metrics = EdgeMetrics(manifest.name, routes, config.energy, splits=splits)
        metrics.asks(len(channels))
        export_settings(metrics, config)
    else:
        metrics = first.metrics.of_another(manifest.name, routes, splits)
    for delta in family.loads:
        metrics.paged(delta.seconds, delta.bytes)

    def spent(cpu_s: float) -> None:
        metrics.spent_cpu(Placement.EDGE, cpu_s)
        if purse.counts_joules:
            purse.used(cpu_s * config.energy.active_watts, time.monotonic())

    priors_s = tuple(manifest.levels[route.level - 1].median_ms / 1000 for route in family.routes)
    device = DeviceExecutor(family, priors_s, metrics, spent)
    digest = bundle.sha256(manifest.cloud.files[0])
    there = config.cloud
    model = application.cloud_model or bundle.own_name
    about = there.accept_other_models, there.output, there.output_kind, there.payload_max_loss
    peer = Peer.of(manifest, digest, model, *about)
    if first is not None and first.cloud is not None:
        cloud: Cloud | None = first.cloud.beside(peer, metrics)
    else:
        cloud = _cloud(config, peer, channels, purse, metrics) if channels else None
    # Where no level runs there is nothing to keep, and nothing to watch over.
    drift = config.drift if family.routes else msgspec.structs.replace(config.drift, enabled=False)
    vigil = Vigil(manifest, drift, config.audit_share if family.routes else 0.0)
    family.raise_to(family.highest)
    load_fitting(loaded.heads, family)
    metrics.degraded(loaded.fallback)
    halves = None if cloud is None else _splits(config, loaded, peer, cloud, device, metrics)
    gates, fallback = loaded.gates, loaded.fallback
    agent = Agent(
        manifest, config, family, gates, policy, device, cloud, purse, sampler, metrics, vigil, fallback, halves
    )
    agent.alone = loaded.alone
    if loaded.golden is not None:
        one = {name: array[:1] for name, array in loaded.golden.inputs.items()}
        device.warm_up(one)
        if halves is not None:
            halves.warm_up(one)
        agent.self_check = SelfCheck(loaded.golden, manifest, device.answer)
    return agent


def _splits(
    config: EdgeConfig, loaded: Loaded, peer: Peer, cloud: Cloud, device: DeviceExecutor, metrics: EdgeMetrics
) -> SplitExecutor | None:
    """The splits of a bundle that may be used, None without any; said where nothing may be sent for lack of one."""
    settings, bundle = config.split, loaded.bundle
    manifest = bundle.manifest
    if not loaded.heads:
        if settings.never_send_raw:
            tell(_log, NothingMayBeSent(model=Name(manifest.name)))
        return None
    halves = [
        Half(
            head,
            cloud.beside(Peer.of_tail(manifest, head.split, bundle.sha256(head.split.tail), peer.model), metrics),
        )
        for head in loaded.heads
    ]
    splits = [head.split for head in loaded.heads]
    whole = settings.use == "auto" and not settings.never_send_raw
    choice = SplitChoice(manifest, splits, whole_ways(manifest, peer.payloads, peer.call_bytes) if whole else ())
    return SplitExecutor(halves, choice, cloud, device, loaded.family, metrics, settings.never_send_raw)


def _call_bytes(loaded: Loaded, never_send_raw: bool) -> float:
    """What an offload takes at most, as far as is known: a whole input, where that may be sent."""
    manifest = loaded.bundle.manifest
    cut = [Peer.of_tail(manifest, head.split, "", manifest.name).call_bytes for head in loaded.heads]
    return max(cut) if cut and never_send_raw else Peer.of(manifest, None).call_bytes


def _purse(config: EdgeConfig, call_bytes: float, kept: dict[str, float] | None) -> Purse:
    """The limits as rates, which start full, and the budgets of periods, which go on where they were."""
    limits, prices = config.limits, config.prices
    tariff = Tariff(config.energy.joules_per_byte, prices.money_per_offload, prices.money_per_byte)
    purse = Purse(tariff, call_bytes)
    # Twice what a call is estimated to take: names can be longer, and it must fit whole.
    rates: tuple[tuple[Kind, float, float], ...] = (
        ("offloads", limits.offloads_per_s, 1.0),
        ("bytes", limits.bytes_per_s, 2.0 * call_bytes),
    )
    for kind, rate, least in rates:
        if not math.isinf(rate):
            purse.limit(kind, limits.bucket(rate, least))
    fill(purse, config.budgets, kept)
    return purse


def _channels(cloud: CloudSettings) -> list[RenewedChannel]:
    return [
        open_renewed_channel(address, MAX_ANSWER_BYTES, cloud.tls, cloud.token_file, keepalive_s=cloud.keepalive_s)
        for address in cloud.every_address()
    ]


def _cloud(
    config: EdgeConfig, peer: Peer, channels: Sequence[RenewedChannel], purse: Purse, metrics: EdgeMetrics
) -> Cloud:
    several = len(channels) > 1
    peers = [
        CloudExecutor(
            channel,
            peer,
            Breaker(config.breaker),
            purse,
            metrics,
            time.monotonic,
            index if several else None,
            config.cloud.most_together,
        )
        for index, channel in enumerate(channels)
    ]
    return Clouds(peers, time.monotonic) if several else peers[0]


def _request_log(config: EdgeConfig, metrics: EdgeMetrics) -> RequestLog | None:
    path = config.log.requests
    return None if path is None else RequestLog(path, config.log.most_waiting, metrics.log_dropped.inc)


def serve(config: EdgeConfig) -> None:
    """Run the agent until SIGTERM. Raises ConfigError or ArtifactError when it cannot start."""
    stack = contextlib.AsyncExitStack()

    async def make() -> Serving:
        tracer = open_tracer(config.tracing, "edgemux-edge")
        stack.push_async_callback(asyncio.to_thread, tracer.close)
        agents = await stack.enter_async_context(open_agents(config))
        metrics = next(iter(agents.values())).metrics
        log = _request_log(config, metrics)
        gallery = Gallery(config.page.shown(config.listen))
        service = EdgeService(agents, config.request.max_batch, log, gallery, tracer)

        def drain() -> None:
            service.draining = True

        async def well() -> bool:
            return all([await agent.well() for agent in agents.values()])

        async def closed() -> None:
            service.close()
            await stack.aclose()
            if log is not None:
                await asyncio.to_thread(log.close)

        return Serving(
            name="edge",
            models=tuple(agents),
            servicer=service,
            registry=metrics.registry,
            pages=service.pages(),
            drain=drain,
            closed=closed,
            well=well,
            live=service.live,
        )

    run(config.listen, make, log=config.log)
