"""What an offload costs the agent: unary calls, one stream, rows together in a call; and the form of large pictures.

    python benchmarks/offload.py calls [ROUNDS]      against our cloud server, the starter bundle
    python benchmarks/offload.py agent [ROUNDS]      the agent itself, with most_together 1 and 16
    python benchmarks/offload.py payloads            pictures of 96 x 96 in colour over emulated links; needs torch

Every comparison alternates its ways in one run: only the ratios hold on a machine that others use too.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import grpc.aio
import msgspec

from edgemux.cli.link import Conditions, Link
from edgemux.compression.hardware import hardware
from edgemux.edge import Agent, EdgeConfig, open_agent
from edgemux.edge.config import CloudSettings, RequestSettings
from edgemux.edge.packing import Packing
from edgemux.multiplexer.bundle import Bundle
from edgemux.wire import oip_pb2 as oip
from edgemux.wire.channel import client_options
from edgemux.wire.codec import add_checksum, make_request, read_outputs
from edgemux.wire.service import SERVICE, STREAM, Stub

ROOT = Path(__file__).resolve().parents[1]
STARTER = ROOT / "deploy" / "bundles" / "fashion-mnist"
CALLS = 320
INFLIGHT = (1, 16)


class Cost(msgspec.Struct, frozen=True):
    """Of one input: median seconds to its answer, CPU seconds of the client, seconds of all by their number."""

    p50_s: float
    cpu_s: float
    each_s: float


@contextlib.contextmanager
def cloud(bundle: Path) -> Iterator[str]:
    """A cloud server as a process of its own: its address."""
    ports = ["--grpc-port", "0", "--http-port", "0", "--metrics-port", "0"]
    command = [sys.executable, "-m", "edgemux.cli.main", "cloud", "--bundle", str(bundle), *ports]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as popen:
        try:
            assert popen.stdout is not None
            found = re.search(r"grpc=(\S+)", popen.stdout.readline())
            assert found is not None
            yield found[1]
        finally:
            popen.terminate()


# --- ways to ask ----------------------------------------------------------------------------------------------------
class Stream:
    """One ModelStreamInfer: answers come in the order of the requests."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        call = channel.stream_stream(
            f"/{SERVICE}/{STREAM}",
            request_serializer=oip.ModelInferRequest.SerializeToString,
            response_deserializer=oip.ModelStreamInferResponse.FromString,
        )
        self._call = call()
        self._waiting: deque[asyncio.Future[Any]] = deque()
        self._reading: asyncio.Task[None] | None = None
        self._turn = asyncio.Lock()  # the library takes one message at a time

    async def ask(self, request: Any) -> Any:
        """One answer."""
        if self._reading is None:
            self._reading = asyncio.create_task(self._read())
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        async with self._turn:
            self._waiting.append(future)
            await self._call.write(request)
        return await future

    async def _read(self) -> None:
        async for response in self._call:
            self._waiting.popleft().set_result(response.infer_response)

    async def close(self) -> None:
        """End it."""
        await self._call.done_writing()
        if self._reading is not None:
            await self._reading


Ask = Callable[[Any], Awaitable[Any]]


async def cost_of(ask: Ask, model: str, images: Any, inflight: int, rows: int) -> Cost:
    """``inflight`` inputs at any time, sent ``rows`` at a time."""
    tensor = next(t for t in Bundle.open(STARTER).manifest.outputs if t.name == "probabilities")
    taken: list[float] = []
    numbers = iter(range(CALLS // rows))

    async def worker() -> None:
        for number in numbers:
            at = number * rows % (len(images) - rows)
            began = time.perf_counter()
            request = make_request(model, {"image": images[at : at + rows]}, request_id=str(number))
            request.outputs.add(name="probabilities")
            add_checksum(request)
            read_outputs(await ask(request), (tensor,), rows)
            taken.append(time.perf_counter() - began)

    began, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(worker() for _ in range(max(1, inflight // rows))))
    cpu_s, all_s = time.process_time() - cpu, time.perf_counter() - began
    inputs = len(taken) * rows
    return Cost(statistics.median(taken), cpu_s / inputs, all_s / inputs)


@contextlib.asynccontextmanager
async def ways(address: str) -> AsyncIterator[dict[str, tuple[Ask, int]]]:
    """By name: how to ask, and with how many rows of the inputs in flight in a call (0: all of them)."""
    async with grpc.aio.insecure_channel(address, options=client_options()) as channel:
        stream = Stream(channel)
        unary = Stub(channel).ModelInfer
        yield {"unary": (unary, 1), "stream": (stream.ask, 1), "together": (unary, 0)}
        await stream.close()


async def calls(rounds: int) -> None:
    """The table: medians over rounds, each of which has every way, and their ratios to unary calls."""
    images = Bundle.open(STARTER).arrays("samples.npz")["images"]
    with cloud(STARTER) as address:
        async with ways(address) as asked:
            costs: dict[tuple[str, int], list[Cost]] = {}
            for number in range(rounds + 1):
                for inflight in INFLIGHT:
                    for name, (ask, rows) in asked.items():
                        cost = await cost_of(ask, "fashion-mnist", images, inflight, rows or inflight)
                        if number:  # the first round warms up
                            costs.setdefault((name, inflight), []).append(cost)
    print(f"{'way':10} {'in flight':>9} {'p50 ms':>8} {'cpu ms':>8} {'all ms':>8}   ratios to unary, same round")
    for (name, inflight), each in costs.items():
        told(f"{name:10} {inflight:9}", each, costs["unary", inflight])


# --- the agent ------------------------------------------------------------------------------------------------------
async def agent_cost(agent: Agent, images: Any, clients: int, rows: int) -> Cost:
    """So many clients, each with requests of so many rows, everything sent to the cloud."""
    taken: list[float] = []
    numbers = iter(range(CALLS // rows))

    async def client() -> None:
        for number in numbers:
            at = number * rows % (len(images) - rows)
            began = time.perf_counter()
            await agent.infer({"image": images[at : at + rows]}, 30.0)
            taken.append(time.perf_counter() - began)

    began, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(client() for _ in range(clients)))
    cpu_s, all_s = time.process_time() - cpu, time.perf_counter() - began
    return Cost(statistics.median(taken), cpu_s / (len(taken) * rows), all_s / (len(taken) * rows))


async def agents(rounds: int) -> None:
    """One input in a call against up to 16, for a lone client, 16 clients, and a client with batches of 16."""
    images = Bundle.open(STARTER).arrays("samples.npz")["images"]
    loads = {"1 client": (1, 1), "16 clients": (16, 1), "batches of 16": (1, 16)}
    costs: dict[tuple[str, int], list[Cost]] = {}
    with cloud(STARTER) as address:
        async with contextlib.AsyncExitStack() as stack:
            opened = {}
            for most in (1, 16):
                there = CloudSettings(address=address, most_together=most)
                config = EdgeConfig(bundle=STARTER, cloud=there, policy="cloud-only", audit_share=0.0)
                opened[most] = await stack.enter_async_context(open_agent(config))
            for number in range(rounds + 1):
                for load, (clients, rows) in loads.items():
                    for most, agent in opened.items():
                        cost = await agent_cost(agent, images, clients, rows)
                        if number:
                            costs.setdefault((load, most), []).append(cost)
            registry = opened[16].metrics.registry
            calls_made = registry.get_sample_value("edgemux_offload_rows_count")
            print(
                f"inputs a call, on average: {registry.get_sample_value('edgemux_offload_rows_sum') / calls_made:.1f}"
            )
    print(f"{'load':14} {'most':>4} {'p50 ms':>8} {'cpu ms':>8} {'all ms':>8}   ratios to 1, same round")
    for (load, most), each in costs.items():
        told(f"{load:14} {most:4}", each, costs[load, 1])


# --- the form of large pictures -------------------------------------------------------------------------------------
LINKS = (Conditions(0.04, 1e6), Conditions(0.04, 5e6), Conditions(0.02, 20e6), Conditions(0.005, 100e6))
PICTURES = 30


async def payloads() -> None:
    """What the build measured, and what an input takes over each link: the tensor, and what the agent chooses."""
    sys.path.insert(0, str(ROOT))  # the tests import each other from there
    from tests import large_pictures

    with tempfile.TemporaryDirectory() as folder:
        bundle = large_pictures.build(Path(folder))
        manifest = Bundle.open(bundle).manifest
        assert manifest.payloads is not msgspec.UNSET
        print(f"{'form':14} {'bytes':>8} {'accuracy':>8} {'changed':>8} {'encode ms':>9} {'decode ms':>9}   n")
        for each in manifest.payloads:
            shares = f"{each.accuracy:8.4f} {each.changed:8.4f}"
            times = f"{each.encode_ms:9.3f} {each.decode_ms:9.3f}"
            print(f"{each.encoding:14} {each.bytes:8.0f} {shares} {times}   {each.n}")
        images, _ = large_pictures.pictures(PICTURES, seed=9)
        with cloud(bundle) as address:
            for conditions in LINKS:
                await over_link(conditions, bundle, address, images)


async def over_link(conditions: Conditions, bundle: Path, address: str, images: Any) -> None:
    """A line: median ms an input with the tensor alone, with what loses nothing, with the default."""
    taken: dict[str, list[float]] = {}
    chosen: dict[str, str] = {}
    async with contextlib.AsyncExitStack() as stack:
        link = await stack.enter_async_context(Link(conditions))
        link.lead_to(address)
        opened: dict[str, Agent] = {}
        for name, loss in (("tensor", None), ("lossless", 0.0), ("default", 0.002)):
            there = CloudSettings(address=link.address, payload_max_loss=loss or 0.0, probe_interval_s=0.2)
            request = RequestSettings(default_timeout_s=20.0)
            config = EdgeConfig(bundle=bundle, cloud=there, policy="cloud-only", audit_share=0.0, request=request)
            opened[name] = await stack.enter_async_context(open_agent(config))
        assert opened["tensor"].cloud is not None
        opened["tensor"].cloud.peers[0]._packing = Packing(())
        for at, image in enumerate(images):
            for name, agent in opened.items():
                began = time.perf_counter()
                await agent.infer({"image": image[None]}, 20.0)
                if at >= PICTURES // 3:  # the first ones measure the link
                    taken.setdefault(name, []).append(time.perf_counter() - began)
                assert agent.cloud is not None
                chosen[name] = agent.cloud.peers[0].encoding
    medians = {name: 1000 * statistics.median(each) for name, each in taken.items()}
    figures = ", ".join(
        f"{name} {ms:.1f} ms ({chosen[name]}, x{ms / medians['tensor']:.2f})" for name, ms in medians.items()
    )
    print(f"{conditions}: {figures}")


def told(name: str, each: list[Cost], plain: list[Cost]) -> None:
    """A line: medians over rounds, and the medians of the ratios within each round."""
    fields = Cost.__struct_fields__
    figures = " ".join(f"{1000 * statistics.median(getattr(c, field) for c in each):8.3f}" for field in fields)
    ratios = [
        statistics.median(getattr(a, field) / getattr(b, field) for a, b in zip(each, plain, strict=True))
        for field in fields
    ]
    print(f"{name} {figures}   " + " ".join(f"{ratio:.2f}" for ratio in ratios))


def main() -> None:
    """The command."""
    what = sys.argv[1] if len(sys.argv) > 1 else "calls"
    print(hardware())
    if what == "calls":
        asyncio.run(calls(int(sys.argv[2]) if len(sys.argv) > 2 else 7))
    elif what == "agent":
        asyncio.run(agents(int(sys.argv[2]) if len(sys.argv) > 2 else 5))
    else:
        asyncio.run(payloads())


if __name__ == "__main__":
    main()
