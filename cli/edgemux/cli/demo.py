"""`edgemux demo`: a cloud, an agent, a link between them, and traffic through the phases of a bad day."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic

import msgspec
import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from edgemux.cli.children import Child, Layout, Ready, allowed_cpus, confined_to, lay_out
from edgemux.cli.link import Conditions, Link
from edgemux.cli.live import Lines, LiveTable, Silent, Watch
from edgemux.cli.part_ways import PartWays, part_ways
from edgemux.cli.phases import PHASES, Phase, kill_after, sizes
from edgemux.cli.reference import labels_of
from edgemux.cli.report import Known, Report, whole_run
from edgemux.cli.scrape import LINK_MEASURED, Sent, scrape, sent_in
from edgemux.cli.tables import print_report
from edgemux.cli.traffic import Caller, Outcome, open_loop, sequence
from edgemux.multiplexer.bundle import Bundle
from edgemux.multiplexer.errors import ArtifactError, ConfigError
from edgemux.wire.channel import open_channel

STARTER_BUNDLE = Path("deploy/bundles/fashion-mnist")
# Processes that compete with the agent for its one CPU in the busy phase.
SPINNERS = 2
# The device has other work to do: its models may use a fifth of the CPU that is free.
SHARES_ITS_CPU = ("--compute-share", "0.2")
# Before anything is counted the agent gets to know its link, from calls of two sizes: the smallest there are and
# inputs, so many requests and offloads at least, or this long.
WARM_REQUESTS, WARM_OFFLOADS = 25, 5
WARM_UP_S = 2.0


class Plan(msgspec.Struct, frozen=True):
    """What the user asked for. The rate is that of an open loop; the timeout is on every call."""

    requests: int
    rate_per_s: float
    link: Conditions
    timeout_s: float
    seed: int


class Samples(msgspec.Struct, frozen=True):
    """The bundle's sample images: UINT8 [n, ...] and INT64 [n]."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]


def starter_bundle() -> Path:
    """The repository's bundle: from the working directory, or from where this package stands. Raises ConfigError."""
    for root in (Path.cwd(), Path(__file__).resolve().parents[3]):
        if (root / STARTER_BUNDLE).is_dir():
            return root / STARTER_BUNDLE
    raise ConfigError(f"there is no {STARTER_BUNDLE} here: run this in edgemux's repository, or give --bundle DIR")


def samples_of(bundle: Bundle) -> Samples:
    """The bundle's sample images. Raises ArtifactError when it has none."""
    path = bundle.manifest.samples
    if path is None:
        raise ArtifactError(f"{bundle.manifest.name}: the bundle holds no sample images to send")
    arrays = bundle.arrays(path)
    images, labels = arrays.get("images"), arrays.get("labels")
    if images is None or labels is None or len(images) == 0 or len(images) != len(labels):
        raise ArtifactError(f"{path}: needs as many images as labels, and at least one")
    return Samples(images, labels)


class Stage:
    """Cloud, link and agent as they stand, and what a phase does to them."""

    def __init__(
        self, bundle: Path, ways: PartWays | None, link: Link, layout: Layout, stack: contextlib.AsyncExitStack
    ) -> None:
        self._bundle = bundle
        self._ways = ways
        self._link = link
        self._layout = layout
        self._stack = stack
        self._cloud: Child | None = None
        self._cloud_port = "0"

    async def open(self) -> Ready:
        """Start both servers at once; returns the agent's addresses."""
        more = ["--cloud", self._link.address, *SHARES_ITS_CPU]
        if self._ways is not None:
            settings = Path(self._stack.enter_context(TemporaryDirectory(prefix="edgemux-demo-"))) / "edge.toml"
            settings.write_text(self._ways.settings())
            more += ["--config", str(settings)]
        agent = await self._start("edge", self._layout.device, "0", *more)
        _, ready = await asyncio.gather(self.start_cloud(), agent.ready())
        return ready

    async def start_cloud(self) -> None:
        """Start the cloud, on the port that it had before if it had one."""
        if self._cloud is not None:
            await self._cloud.gone()
        self._cloud = await self._start("cloud", self._layout.others, self._cloud_port)
        ready = await self._cloud.ready()
        self._cloud_port = ready.grpc.rpartition(":")[2]
        self._link.lead_to(ready.grpc)

    async def _start(self, name: str, cpus: frozenset[int], grpc_port: str, *more: str) -> Child:
        ports = ["--grpc-port", grpc_port, "--http-port", "0", "--metrics-port", "0"]
        return await self._stack.enter_async_context(
            Child([name, "--bundle", str(self._bundle), "--host", "127.0.0.1", *ports, *more], cpus)
        )

    @contextlib.asynccontextmanager
    async def prepared_for(self, phase: Phase, usual: Conditions) -> AsyncIterator[None]:
        """Within the block the world is as the phase wants it at its start."""
        self._link.set(phase.link or usual)
        if phase.cloud == "comes_back":
            await self.start_cloud()
        async with contextlib.AsyncExitStack() as load:
            if phase.busy:
                for _ in range(SPINNERS):
                    await load.enter_async_context(Child(["spin"], self._layout.device))
            yield

    def sent(self, phase: Phase, count: int, sent: int) -> None:
        """``sent`` of the ``count`` requests of the phase have been sent: kill the cloud when it is time."""
        if phase.cloud == "is_killed" and sent == kill_after(count):
            assert self._cloud is not None
            self._cloud.kill()


class Run:
    """One run of the demo, from empty ports to a report."""

    def __init__(self, bundle: Bundle, plan: Plan, watch: Watch) -> None:
        self._bundle = bundle
        self._plan = plan
        self._watch = watch
        self._samples = samples_of(bundle)
        self._outcomes: dict[str, list[Outcome]] = {}
        self._sent: dict[str, Sent | None] = {}
        self._ways = part_ways(bundle.manifest)
        self._start_up_s = 0.0

    async def report(self) -> Report:
        """Run it. Raises ConfigError when a server does not start."""
        started_s = monotonic()
        layout = lay_out(allowed_cpus())
        with confined_to(layout.others):
            async with contextlib.AsyncExitStack() as stack:
                if self._ways is not None:
                    self._watch.note(self._ways.told())
                self._watch.say("starting cloud and agent")
                link = await stack.enter_async_context(Link(self._plan.link))
                stage = Stage(self._bundle.folder, self._ways, link, layout, stack)
                agent = await stage.open()
                channel = await stack.enter_async_context(open_channel(agent.grpc))
                caller = Caller(channel, self._bundle.manifest, self._samples.images, self._plan.timeout_s)
                await self._warm_up(caller, agent.metrics)
                self._start_up_s = round(monotonic() - started_s, 3)
                await self._traffic(stage, caller, agent.metrics)
        self._watch.say("asking the device's and the cloud's model alone")
        return self._report(await asyncio.to_thread(self._known))

    async def _warm_up(self, caller: Caller, metrics: str) -> None:
        """Requests that are not counted, one after the other, until the agent has an idea of its link."""
        self._watch.say("warming up")
        images = sequence(WARM_REQUESTS, len(self._samples.images), self._plan.seed + 1)
        end_s = monotonic() + WARM_UP_S
        while monotonic() < end_s:
            for image in images:
                await caller.ask(image)
            text = await asyncio.to_thread(scrape, metrics)
            sent = sent_in(text)
            if LINK_MEASURED in text and sent is not None and sent.inputs >= WARM_OFFLOADS:
                return

    async def _traffic(self, stage: Stage, caller: Caller, metrics: str) -> None:
        images = sequence(self._plan.requests, len(self._samples.images), self._plan.seed)
        for phase, count in zip(PHASES, sizes(self._plan.requests), strict=True):
            now, images = images[:count], images[count:]
            outcomes = self._outcomes[phase.name] = []
            async with stage.prepared_for(phase, self._plan.link):
                self._watch.begin(phase, count, outcomes)
                before = await _sent(metrics)
                sent = partial(stage.sent, phase, count)
                await open_loop(now, self._plan.rate_per_s, caller.ask, outcomes, sent)
                after = await _sent(metrics)
                self._sent[phase.name] = None if before is None or after is None else after.since(before)
                self._watch.end()

    def _known(self) -> Known:
        """Really run both models on the images that were sent, and on no others."""
        sent = sorted({outcome.image for phase in self._outcomes.values() for outcome in phase})
        images = self._samples.images[sent]
        manifest = self._bundle.manifest
        return Known(
            truth=dict(zip(sent, self._samples.labels[sent].tolist(), strict=True)),
            edge=dict(zip(sent, labels_of(self._bundle, manifest.levels[-1].files, images), strict=True)),
            cloud=dict(zip(sent, labels_of(self._bundle, manifest.cloud.files, images), strict=True)),
        )

    def _report(self, known: Known) -> Report:
        totals, phases = whole_run(self._outcomes, self._sent, known)
        return Report(
            **msgspec.structs.asdict(totals),
            phases=phases,
            bundle=self._bundle.manifest.name,
            bundle_digest=self._bundle.manifest.digest,
            link=str(self._plan.link),
            rate_per_s=self._plan.rate_per_s,
            timeout_s=self._plan.timeout_s,
            seed=self._plan.seed,
            start_up_s=self._start_up_s,
        )


async def _sent(metrics: str) -> Sent | None:
    """What the agent has sent to the cloud so far."""
    return sent_in(await asyncio.to_thread(scrape, metrics))


def run(bundle: Bundle, plan: Plan, console: Console | None) -> Report:
    """Run the demo and show it on ``console``: live on a terminal. None: show nothing."""
    watch: Watch = Silent()
    if console is not None:
        watch = LiveTable(console) if console.is_terminal else Lines(console)
    try:
        report = asyncio.run(Run(bundle, plan, watch).report())
    finally:
        watch.close()
    if console is not None:
        print_report(report, console)
    return report
