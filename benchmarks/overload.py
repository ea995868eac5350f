"""An agent at ten times what it can do: is the excess refused at once, and the rest answered in time?

    python benchmarks/overload.py [SECONDS]

The tests' bundle, whose first level is made to take some 50 and some 150 ms of a core. A refusal costs gRPC in Python
half a millisecond to one of the agent's core, nine of them an answer: with one core for both that is what the quicker
model's goodput lacks. Agent and client are processes with a core each, where there are two. Capacity is measured
first, with a closed loop of four clients.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import runpy
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import msgspec
import numpy as np

from edgemux.compression.hardware import hardware
from edgemux.multiplexer.bundle import Bundle, seal
from edgemux.wire.channel import client_options
from edgemux.wire.codec import make_request
from edgemux.wire.service import SERVICE

ROOT = Path(__file__).resolve().parents[1]
TIMES = 10
TIMEOUT_S = 1.0
CLIENTS = 4
WIDTH, LAYERS, MORE_LAYERS = 2048, 40, 120


class Outcome(msgspec.Struct, frozen=True):
    """A request: when it was sent, how long it took, and the status it ended with."""

    sent_s: float
    elapsed_s: float
    code: str

    @property
    def good(self) -> bool:
        return self.code == "OK" and self.elapsed_s <= TIMEOUT_S


class Figures(msgspec.Struct, frozen=True):
    """What came out. Rates per second, durations in seconds. late: taken, and not answered in time."""

    capacity: float
    offered: float
    goodput: float
    refused: int
    refusal_p50_s: float
    refusal_p99_s: float
    late: int
    answered_p99_s: float
    recovery_s: float
    codes: dict[str, int]


def build(folder: Path, layers: int = LAYERS) -> Path:
    """The tests' bundle with a slow first level, of so many large products."""
    import onnx
    from onnx import helper, numpy_helper

    sys.path.insert(0, str(ROOT))  # the tests import each other from there
    made = runpy.run_path(str(ROOT / "tests" / "conftest.py"))["build_tiny_bundle"](folder)
    path = folder / "level-1.onnx"
    model = onnx.load(str(path))
    graph, rng = model.graph, np.random.default_rng(1)
    weights = {
        "into": rng.normal(0, 0.01, (784, WIDTH)).astype(np.float32),
        "on": rng.normal(0, 0.02, (WIDTH, WIDTH)).astype(np.float32),
        "nothing": np.array(0, np.float32),
    }
    graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in weights.items())
    own = [helper.make_node("MatMul", ["flat", "into"], ["wide_0"])]
    own += [helper.make_node("MatMul", [f"wide_{n}", "on"], [f"wide_{n + 1}"]) for n in range(layers)]
    own += [
        helper.make_node("ReduceMean", [f"wide_{layers}"], ["mean_of_wide"], axes=[1], keepdims=1),
        helper.make_node("Mul", ["mean_of_wide", "nothing"], ["no_change"]),
        helper.make_node("Add", ["state_1", "no_change"], ["slow_state"]),
    ]
    for node in graph.node:
        node.input[:] = ["slow_state" if name == "state_1" else name for name in node.input]
    at = next(i for i, node in enumerate(graph.node) if "state_1" in node.output) + 1
    nodes = [*graph.node[:at], *own, *graph.node[at:]]
    del graph.node[:]
    graph.node.extend(nodes)
    path.write_bytes(model.SerializeToString())
    seal(folder, Bundle.open(folder).manifest)
    return Path(made)


@contextlib.contextmanager
def agent(bundle: Path, core: int | None) -> Iterator[str]:
    """An agent on a core of its own; its gRPC address."""
    command = [sys.executable, "-m", "edgemux.cli.main", "edge", "--bundle", str(bundle)]
    command += ["--grpc-port", "0", "--http-port", "0", "--metrics-port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            if core is not None:
                os.sched_setaffinity(process.pid, {core})
            assert process.stdout is not None
            found = re.search(r"grpc=(\S+)", process.stdout.readline())
            assert found is not None, "the agent did not start"
            yield found[1]
        finally:
            process.terminate()
            process.wait()


class Client:
    """Asks, and remembers what became of it."""

    def __init__(self, channel: grpc.aio.Channel, picture: Any) -> None:
        self._infer = channel.unary_unary(f"/{SERVICE}/ModelInfer")
        self._request = make_request("fashion-mnist", {"image": picture}).SerializeToString()

    async def ask(self) -> Outcome:
        sent_s = time.monotonic()
        try:
            await self._infer(self._request, timeout=TIMEOUT_S)
            code = "OK"
        except grpc.aio.AioRpcError as error:
            code = error.code().name
        return Outcome(sent_s, time.monotonic() - sent_s, code)

    async def closed(self, seconds: float) -> list[Outcome]:
        """CLIENTS at once, one request after the other each."""
        over_s = time.monotonic() + seconds
        outcomes: list[Outcome] = []

        async def one() -> None:
            while time.monotonic() < over_s:
                outcomes.append(await self.ask())

        await asyncio.gather(*(one() for _ in range(CLIENTS)))
        return outcomes

    async def open(self, rate_per_s: float, seconds: float) -> list[Outcome]:
        """Requests at a rate, however many are under way."""
        start_s = time.monotonic()
        tasks = []
        for number in range(int(rate_per_s * seconds)):
            await asyncio.sleep(max(0.0, start_s + number / rate_per_s - time.monotonic()))
            tasks.append(asyncio.create_task(self.ask()))
        return list(await asyncio.gather(*tasks))


async def measure(address: str, picture: Any, seconds: float) -> Figures:
    """Capacity, then ten times that, then what happens when it is over."""
    async with grpc.aio.insecure_channel(address, options=client_options()) as channel:
        client = Client(channel, picture)
        await client.closed(1.0)
        began_s = time.monotonic()
        done = await client.closed(seconds)
        capacity = sum(outcome.code == "OK" for outcome in done) / (time.monotonic() - began_s)
        storm = asyncio.create_task(client.open(TIMES * capacity, seconds))
        await asyncio.sleep(seconds)
        over_s = time.monotonic()
        while not (await client.ask()).good:  # noqa: ASYNC110 - each asks
            await asyncio.sleep(0.01)
        recovery_s = time.monotonic() - over_s
        outcomes = await storm
    return judged(capacity, outcomes, seconds, recovery_s)


def judged(capacity: float, outcomes: list[Outcome], seconds: float, recovery_s: float) -> Figures:
    """The figures of a storm; its first second, in which the agent learns of it, counts too."""
    refusals = sorted(o.elapsed_s for o in outcomes if o.code not in ("OK", "DEADLINE_EXCEEDED"))
    answers = sorted(o.elapsed_s for o in outcomes if o.code == "OK")
    codes = {code: sum(o.code == code for o in outcomes) for code in sorted({o.code for o in outcomes})}
    return Figures(
        capacity=capacity,
        offered=len(outcomes) / seconds,
        goodput=sum(o.good for o in outcomes) / seconds,
        refused=len(refusals),
        refusal_p50_s=share(refusals, 0.5),
        refusal_p99_s=share(refusals, 0.99),
        late=sum(o.code in ("OK", "DEADLINE_EXCEEDED") and not o.good for o in outcomes),
        answered_p99_s=share(answers, 0.99),
        recovery_s=recovery_s,
        codes=codes,
    )


def share(values: list[float], part: float) -> float:
    """The value below which that part of ``values``, sorted, lies; 0 for none."""
    return values[min(len(values) - 1, int(len(values) * part))] if values else 0.0


def run(seconds: float, layers: int) -> Figures:
    """Everything, in a folder of its own."""
    cores = sorted(os.sched_getaffinity(0))
    mine, theirs = (cores[1], cores[0]) if len(cores) > 1 else (None, None)
    with tempfile.TemporaryDirectory() as folder:
        bundle = build(Path(folder) / "bundle", layers)
        picture = Bundle.open(bundle).arrays("samples.npz")["images"][:1]
        with agent(bundle, theirs) as address:
            if mine is not None:
                os.sched_setaffinity(0, {mine})
            try:
                return asyncio.run(measure(address, picture, seconds))
            finally:
                os.sched_setaffinity(0, cores)


TARGETS = (
    ("goodput, share of the capacity", lambda f: f.goodput / f.capacity, ">= 0.9"),
    ("refusals, p99 (ms)", lambda f: 1e3 * f.refusal_p99_s, "<= 20"),
    ("accepted, and not answered in time", lambda f: f.late, "<= 0"),
    ("first answer after the storm (s)", lambda f: f.recovery_s, "<= 1"),
)


def main(seconds: float = 10.0) -> None:
    """Print the figures and the hardware, for two models."""
    print(f"hardware: {hardware()}, load {os.getloadavg()[0]:.1f} before; agent and client have a core each")
    for layers in (LAYERS, MORE_LAYERS):
        found = run(seconds, layers)
        print(f"\na model of {1000 / found.capacity:.0f} ms, by {found.capacity:.1f} answers a second in a closed loop")
        print(f"offered {found.offered:.1f} a second for {seconds:g} s, deadline {TIMEOUT_S:g} s: {found.codes}")
        for text, figure, must in TARGETS:
            value, (sign, limit) = figure(found), must.split()
            met = value >= float(limit) if sign == ">=" else value <= float(limit)
            print(f"{text:38}{value:10.3f}   {must:8}{'met' if met else 'MISSED'}")
        print(f"{'refusals, p50 (ms)':38}{1e3 * found.refusal_p50_s:10.3f}")
        print(f"{'answers, p99 (ms)':38}{1e3 * found.answered_p99_s:10.3f}")


if __name__ == "__main__":
    main(*map(float, sys.argv[1:]))
