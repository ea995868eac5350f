"""Some points of the grid for real: processes of agent and cloud, and between them the link of the demo.

The agent sends everything in one way: the whole input, or one split. The device is this machine as it is.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgemux.cli.children import Child, allowed_cpus
from edgemux.cli.link import Conditions
from edgemux.cli.link import Link as Shaper
from edgemux.compression.split.pack import add_split, without_splits
from edgemux.multiplexer.bundle import Bundle
from edgemux.multiplexer.domain import Placement
from edgemux.multiplexer.errors import ExecutionError
from edgemux.wire import Client

from .grid import RAW, Energy, Link, Option, taken
from .ways import Half, Seen, Sender, manifest_split

POINTS = (Link(0.5, 20), Link(2, 50), Link(10, 20), Link(5, 200), Link(100, 5))
# Before any is counted: connections, and what the runtime does at first. A split that was found missing is asked for
# again only after half a minute.
WARM_UP = 4
TIMEOUT_S = 20.0
PORTS = ["--grpc-port", "0", "--http-port", "0", "--metrics-port", "0"]


class Run(msgspec.Struct, frozen=True):
    """One way over one link: what the sum says, and what clients saw: medians in ms, of n requests."""

    way: str
    mbit: float
    rtt_ms: float
    expected_ms: float
    measured_ms: float
    n: int
    expected_bytes: float
    sent_bytes: float
    answer_bytes: float

    @property
    def ratio(self) -> float:
        """Measured over expected."""
        return self.measured_ms / self.expected_ms


class Counting(Shaper):
    """A link that counts bytes, towards the cloud and back."""

    def __init__(self) -> None:
        super().__init__(Conditions())
        self.seen = [0, 0]

    def passing(self, way: int, chunk: bytes) -> bytes:
        """As it is."""
        self.seen[way] += len(chunk)
        return chunk


def with_one(bundle: Path, folder: Path, half: Half, option: Option, seen: Seen) -> Path:
    """A copy of the bundle in ``folder``, whose only split is made of these halves: the agent has no other to take."""
    without_splits(Bundle.open(bundle), folder)
    sender = Sender(half, seen)
    shape = sender.head_of(seen.images[:1]).shape[1:]
    split = manifest_split(half, option, {"name": sender.tail.inputs[0], "shape": shape}, len(seen.images))
    add_split(folder, folder, split, half.head, half.tail)
    return folder


def runs(bundle: Path, config: Path, option: Option, points: Sequence[Link], requests: int) -> tuple[list[Run], str]:
    """One way over every point, and what was found wrong, empty when nothing was. option: the raw input, or the only
    split that the bundle has. config: where the agent's goes.
    """
    return asyncio.run(_runs(bundle, config, option, points, requests))


async def _runs(
    bundle: Path, config: Path, option: Option, points: Sequence[Link], requests: int
) -> tuple[list[Run], str]:
    images = Bundle.open(bundle).arrays("samples.npz")["images"]
    async with Counting() as link, Child(["cloud", "--bundle", str(bundle), *PORTS], allowed_cpus()) as cloud:
        link.lead_to((await cloud.ready()).grpc)
        await asyncio.to_thread(config.write_text, edge_config(bundle, link.address, option))
        link.set(Conditions(0.001, 1e9))
        async with Child(["edge", "--config", str(config)], allowed_cpus()) as edge:
            ready = await edge.ready()
            try:
                return await _over(ready.grpc, ready.model, option, link, images, points, requests), ""
            except ExecutionError as error:
                return [], f"{option.name}: {error}"


async def _over(
    address: str,
    model: str,
    option: Option,
    link: Counting,
    images: NDArray[np.uint8],
    points: Sequence[Link],
    requests: int,
) -> list[Run]:
    found = []
    with Client(address) as client:
        await asyncio.to_thread(_ask, client, model, option, images, WARM_UP, False)
        for point in points:
            link.set(Conditions(point.rtt_ms / 1000, point.mbit * 1e6))
            await asyncio.to_thread(_ask, client, model, option, images, WARM_UP, False)
            link.seen = [0, 0]
            times = await asyncio.to_thread(_ask, client, model, option, images, requests, True)
            there, back = (count / requests for count in link.seen)
            expected = taken(option, option.way(1.0), point, Energy()).latency_ms
            median = statistics.median(times)
            sizes = option.sent_bytes, there, back
            found.append(Run(option.name, point.mbit, point.rtt_ms, expected, median, len(times), *sizes))
    return found


def _ask(
    client: Client, model: str, option: Option, images: NDArray[np.uint8], count: int, counts: bool
) -> list[float]:
    """ms of each request, one after the other. Raises ExecutionError when one that counts went another way."""
    place = Placement.CLOUD if option.kind == RAW else Placement.SPLIT
    times = []
    for at in range(count):
        began = time.perf_counter()
        reply = client.infer(model, {"image": images[at : at + 1]}, timeout_s=TIMEOUT_S)
        times.append(1e3 * (time.perf_counter() - began))
        route, variant = reply.parameters["edgemux_route"], reply.parameters["edgemux_variant"]
        if counts and (route != place.value or (place is Placement.SPLIT and variant != option.name)):
            why = reply.parameters.get("edgemux_reason")
            raise ExecutionError(f"an input was answered by {route} {variant}, for {why}")
    return times


def edge_config(bundle: Path, cloud: str, option: Option) -> str:
    """Everything is sent, in this way; nothing else uses the link but the agent's own looks at it. The same few inputs
    again and again would be drift, and what is drift is sent whole.
    """
    use = "off" if option.kind == RAW else "always"
    return f"""bundle = "{bundle}"
policy = "cloud-only"
audit_share = 0.0
[cloud]
address = "{cloud}"
payload_max_loss = 0.0
[split]
use = "{use}"
max_loss = 1.0
[listen]
grpc_port = 0
http_port = 0
metrics_port = 0
[request]
default_timeout_s = {TIMEOUT_S}
[breaker]
slow_s = {TIMEOUT_S}
[scheduler]
scheme = "off"
[drift]
enabled = false
"""
