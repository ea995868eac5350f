"""A run of the real agent and cloud through an outage, a squeeze, an overload and a drift, watched by a Prometheus.

Two agents of one cloud, an emulated link in front of the first; the second sends inputs cut in two. Nothing is
simulated but that link and the files that the sensors read. It takes about a minute.
"""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import grpc
import grpc.aio
import msgspec
import numpy as np
from numpy.typing import NDArray

from edgemux.cli.link import Conditions, Link
from edgemux.multiplexer.bundle import Bundle
from edgemux.wire.codec import make_request
from edgemux.wire.service import Stub
from tests.authority import DAY, Authority
from tests.deploy.dashboards.cut import with_cuts
from tests.deploy.dashboards.device import FINE, PROGRAM, SQUEEZED, Device
from tests.deploy.dashboards.server import Prometheus, free_port, prometheus
from tests.deploy.dashboards.variables import Span

BUNDLE = Path(__file__).parents[3] / "deploy" / "bundles" / "fashion-mnist"
SCRAPE_S = 1.0
# How much longer an act may take until what it is for has been scraped.
PATIENCE_S = 60.0
CLEAR = Conditions(round_trip_s=0.02, bits_per_s=20e6)
SLOW = Conditions(round_trip_s=0.3, bits_per_s=0.2e6)
# The names that Prometheus gives them: with dots, as the names of hosts have.
EDGES = ("edge-1.site-a:9002", "edge-2.site-b:9002")
CLOUD = "cloud-1.site-c:8002"
# Everything happens to it; the second sees the outage and the overload of the cloud only.
FIRST = f'instance="{EDGES[0]}"'

_LISTEN = """[listen]
grpc_port = {grpc}
http_port = 0
metrics_port = {metrics}
[listen.tls]
cert = "{cert}"
key = "{key}"
"""
_EDGE = """
bundle = "{bundle}"
state_dir = "{state}"
audit_share = 0.2
[split]
use = "{split}"
[cloud]
address = "{cloud}"
probe_interval_s = 0.3
[cloud.tls]
ca = "{ca}"
{listen}[limits]
offloads_per_s = 6.0
[request]
default_timeout_s = 0.5
[admission]
max_inflight = 8
[breaker]
ramp_s = 2.0
[drift]
run_length = 2000.0
[log]
requests = "{state}/requests.jsonl"
[[budgets]]
of = "offloads"
amount = 30000
per = "hour"
[[budgets]]
of = "bytes"
amount = 40_000_000
per = "hour"
[[budgets]]
of = "joules"
amount = 40_000
per = "day"
[[budgets]]
of = "money"
amount = 50.0
per = "month"
[prices]
money_per_offload = 0.000001
"""
_CLOUD = """
bundle = "{bundle}"
{listen}[batching]
max_batch = 4
[admission]
max_queue = 4
"""


class Act(msgspec.Struct, frozen=True):
    """What happened when: seconds of Unix time."""

    name: str
    start_s: float
    end_s: float


class Run(msgspec.Struct, frozen=True):
    """A run that is over. Prometheus and the processes are still there while the block lasts."""

    server: Prometheus
    span: Span
    acts: Sequence[Act]


class _Processes:
    """The agents and the cloud, on ports that stay theirs."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        authority = Authority(folder)
        self.ca = authority.ca
        # The authority itself lasts 30 days; two weeks are when the alert is due.
        self._issued = authority.issue("server", last=25 * DAY)
        self._running: dict[str, subprocess.Popen[str]] = {}
        self._bundle = with_cuts(BUNDLE, folder / "bundle")
        self.ports = {name: {"grpc": free_port(), "metrics": free_port()} for name in ("cloud", *EDGES)}
        self.devices = {name: Device(folder / f"device-{number}") for number, name in enumerate(EDGES)}

    def address(self, name: str, port: str) -> str:
        return f"127.0.0.1:{self.ports[name][port]}"

    def start(self, name: str, cloud: str = "") -> None:
        """Start one, and wait until it says that it is ready."""
        state = self._folder / name
        state.mkdir(exist_ok=True)
        text = _EDGE if name in EDGES else _CLOUD
        config = self._folder / f"{name}.toml"
        listen = _LISTEN.format(cert=self._issued.cert, key=self._issued.key, **self.ports[name])
        # One agent sends what a head makes whatever the link is like, the other what is answered soonest.
        split = "always" if name == EDGES[1] else "auto"
        said = {"bundle": self._bundle, "state": state, "cloud": cloud, "ca": self.ca, "listen": listen}
        config.write_text(text.format(split=split, **said))
        command = [sys.executable, "-m", "edgemux.cli.main", "cloud", "--config", str(config)]
        if name in EDGES:
            device = str(self.devices[name].folder)
            command = [sys.executable, "-c", PROGRAM, device, "edge", "--config", str(config)]
        log = (self._folder / f"{name}.log").open("a")
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        log.close()
        self._running[name] = process
        assert process.stdout is not None
        line = process.stdout.readline()
        if " ready " not in line:
            raise RuntimeError(f"{name} does not become ready: {(self._folder / f'{name}.log').read_text()[-2000:]}")

    def kill(self, name: str) -> None:
        process = self._running.pop(name)
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()

    def end(self) -> None:
        for name in list(self._running):
            self.kill(name)


class _Traffic:
    """Requests to one server, open-loop; what becomes of them is for the metrics to say."""

    def __init__(self, channel: grpc.aio.Channel, model: str, tensor: str, images: NDArray[np.uint8]) -> None:
        self._infer = Stub(channel).ModelInfer
        self._model, self._tensor, self._images = model, tensor, images
        self._next = 0
        self.inverted = False

    async def ask(self, timeout_s: float = 0.5) -> None:
        """One request; an error is an outcome too."""
        self._next = (self._next + 1) % len(self._images)
        pixels = self._images[self._next : self._next + 1]
        request = make_request(self._model, {self._tensor: 255 - pixels if self.inverted else pixels})
        with contextlib.suppress(grpc.aio.AioRpcError):
            await self._infer(request, timeout=timeout_s)

    async def flow(self, rate_per_s: float) -> None:
        """Until cancelled."""
        now = asyncio.get_running_loop().time
        due_s = now()
        async with asyncio.TaskGroup() as requests:
            while True:
                due_s = max(due_s + 1 / rate_per_s, now())
                await asyncio.sleep(due_s - now())
                requests.create_task(self.ask())

    async def flood(self, at_once: int, seconds: float) -> None:
        """So many at any time: each that ends is followed by another, after a breath."""
        end_s = time.monotonic() + seconds

        async def one() -> None:
            while time.monotonic() < end_s:
                await self.ask(timeout_s=0.1)
                await asyncio.sleep(0.02)

        async with asyncio.TaskGroup() as callers:
            for _ in range(at_once):
                callers.create_task(one())


class _Play:
    """The acts, one after the other, with traffic all the while."""

    def __init__(
        self, processes: _Processes, link: Link, traffic: Mapping[str, _Traffic], server: Prometheus, stretch: float
    ) -> None:
        """``stretch``: how many times as long each act is."""
        self._server = server
        self._stretch = stretch
        self._processes = processes
        self._link = link
        self._traffic = traffic
        self.acts: list[Act] = []

    @contextlib.contextmanager
    def _act(self, name: str) -> Iterator[None]:
        start_s = time.time()
        yield
        self.acts.append(Act(name, start_s, time.time()))

    async def _pass(self, seconds: float, until: str = "") -> None:
        """So long, and longer on a busy machine: until Prometheus has series for ``until``. Raises TimeoutError."""
        await asyncio.sleep(seconds * self._stretch)
        if until:
            await asyncio.to_thread(self._await, until)

    def _await(self, expression: str) -> None:
        end_s = time.monotonic() + PATIENCE_S
        while not self._server.at(expression, time.time()):
            if time.monotonic() > end_s:
                raise TimeoutError(f"it does not come to {expression}")
            time.sleep(SCRAPE_S / 2)

    async def all(self) -> None:
        with self._act("calm"):
            await self._pass(10.0, f'edgemux_budget_price{{{FIRST},budget="offloads"}} > 0')
        with self._act("outage"):
            self._processes.kill("cloud")
            await self._pass(6.0, f"edgemux_breaker_state{{{FIRST}}} == 2")
            await asyncio.to_thread(self._await, 'ALERTS{alertname="EdgemuxCloudDown",alertstate="firing"}')
            await asyncio.to_thread(self._processes.start, "cloud")
        with self._act("recovery"):
            await self._pass(5.0, f"edgemux_breaker_state{{{FIRST}}} == 0")
        with self._act("squeeze"):
            self._processes.devices[EDGES[0]].be(SQUEEZED)
            await self._pass(7.0, f"edgemux_plan_level{{{FIRST}}} == 1")
            self._processes.devices[EDGES[0]].be(FINE)
        with self._act("slow link"):
            self._link.set(SLOW)
            await self._pass(5.0)
            self._link.set(CLEAR)
        with self._act("overload"):
            long_s = 5.0 * self._stretch
            floods = self._traffic["cloud"].flood(48, long_s), self._traffic[EDGES[0]].flood(32, long_s)
            await asyncio.gather(*floods)
        with self._act("drift"):
            self._traffic[EDGES[0]].inverted = True
            await self._pass(8.0, f"edgemux_drift{{{FIRST}}} == 1")


@contextlib.contextmanager
def driven(folder: Path, stretch: float = 1.0) -> Iterator[Run]:
    """Play it in ``folder``, which is empty; the block finds Prometheus and the processes still running.

    stretch: how many times as long as usual everything takes.
    """
    processes = _Processes(folder)
    jobs = {
        "edgemux-edge": {name: processes.address(name, "metrics") for name in EDGES},
        "edgemux-cloud": {CLOUD: processes.address("cloud", "metrics")},
    }
    (folder / "prometheus").mkdir()
    with contextlib.ExitStack() as ending, prometheus(folder / "prometheus", jobs, processes.ca, SCRAPE_S) as server:
        ending.callback(processes.end)
        start_s = time.time()
        acts = asyncio.run(_played(processes, server, stretch))
        # The last scrape has to be over, and the rules evaluated.
        time.sleep(2 * SCRAPE_S)
        yield Run(server, Span(start_s, time.time(), SCRAPE_S), acts)


async def _played(processes: _Processes, server: Prometheus, stretch: float) -> Sequence[Act]:
    bundle = Bundle.open(BUNDLE)
    images = bundle.arrays("samples.npz")["images"]
    async with Link(CLEAR) as link, contextlib.AsyncExitStack() as channels:
        link.lead_to(processes.address("cloud", "grpc"))
        await asyncio.to_thread(processes.start, "cloud")
        for name, cloud in zip(EDGES, (link.address, processes.address("cloud", "grpc")), strict=True):
            await asyncio.to_thread(processes.start, name, cloud)
        trusted = grpc.ssl_channel_credentials(processes.ca.read_bytes())
        traffic: dict[str, _Traffic] = {}
        for name in processes.ports:
            made = grpc.aio.secure_channel(processes.address(name, "grpc"), trusted)
            channel = await channels.enter_async_context(made)
            traffic[name] = _Traffic(channel, bundle.manifest.name, bundle.manifest.inputs[0].name, images)
        flows = [asyncio.create_task(traffic[name].flow(rate)) for name, rate in zip(EDGES, (60.0, 15.0), strict=True)]
        play = _Play(processes, link, traffic, server, stretch)
        try:
            await play.all()
        finally:
            for flow in flows:
                flow.cancel()
            await asyncio.gather(*flows, return_exceptions=True)
    return play.acts
