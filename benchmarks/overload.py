"""The agent under ten times the load that it can carry: goodput, refusals, deadlines, recovery, fairness.

    python benchmarks/overload.py [--times 10] [--seconds 8] [--bundle DIR] [--json]

A real `edgemux edge` process with a real bundle whose first level was made to take some 20 ms of CPU, on one core; the
client, an open loop over gRPC, on another where there is one. Refusing costs the agent a quarter of a millisecond
of Python, so at ten times the load of a model of one millisecond refusing alone would take more than a core: what
is measured here is admission, not gRPC. Capacity is what a closed loop of eight clients gets answered, in the same run.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
import onnx
from onnx import helper, numpy_helper

from edgemux.compression.hardware import hardware
from edgemux.multiplexer.bundle import Bundle, seal
from edgemux.multiplexer.onnx_model import OnnxModel
from edgemux.wire.channel import open_channel
from edgemux.wire.codec import make_request
from edgemux.wire.service import Stub

BUNDLE = Path(__file__).parents[1] / "deploy" / "bundles" / "fashion-mnist"
WORK_S = 0.02
DEADLINE_S = 0.5
CLOSED_CLIENTS = 8
POLITE = 0.3  # of the capacity, beside a client that asks for ten times the capacity
Outcome = tuple[float, float, str]  # sent at, took, code


def burden(model: onnx.ModelProto, times: int) -> onnx.ModelProto:
    """The same answers, and ``times`` multiplications by a matrix of zeros on the way."""
    graph = model.graph
    size = 28 * 28
    output = next(value.name for value in graph.output if value.name == "probabilities")
    for node in graph.node:
        node.output[:] = ["light" if name == output else name for name in node.output]
        node.input[:] = ["light" if name == output else name for name in node.input]
    graph.initializer.append(numpy_helper.from_array(np.zeros((size, size), np.float32), "burden_zeros"))
    graph.initializer.append(numpy_helper.from_array(np.array([-1, size], np.int64), "burden_shape"))
    graph.initializer.append(numpy_helper.from_array(np.array([1], np.int64), "burden_axis"))
    image = graph.input[0].name
    nodes = [
        helper.make_node("Cast", [image], ["burden_float"], to=1),
        helper.make_node("Reshape", ["burden_float", "burden_shape"], ["burden_0"]),
    ]
    for step in range(times):
        nodes.append(helper.make_node("MatMul", [f"burden_{step}", "burden_zeros"], [f"burden_{step + 1}"]))
    nodes.append(helper.make_node("ReduceSum", [f"burden_{times}", "burden_axis"], ["burden_sum"], keepdims=1))
    nodes.append(helper.make_node("Add", ["light", "burden_sum"], [output]))
    graph.node.extend(nodes)
    return model


def heavy_bundle(source: Path, target: Path) -> None:
    """A copy of a bundle whose first level, and so every level, takes WORK_S more."""
    shutil.copytree(source, target)
    manifest = Bundle.open(target).manifest
    first = target / manifest.levels[0].files[-1]
    light = first.read_bytes()
    picture = {manifest.inputs[0].name: np.zeros((1, 28, 28), np.uint8)}
    times = 100
    for _ in range(2):
        onnx.save(burden(onnx.load_from_string(light), times), str(first))
        model = OnnxModel(first.read_bytes(), first.name)
        times = max(1, round(times * WORK_S / _median_s(model, picture)))
    seal(target, manifest)


def _median_s(model: OnnxModel, picture: dict[str, Any]) -> float:
    taken = []
    for _ in range(30):
        began = time.thread_time()
        model.run(picture)
        taken.append(time.thread_time() - began)
    return statistics.median(taken)


@contextlib.contextmanager
def agent(bundle: Path, cpus: set[int]) -> Iterator[str]:
    """An agent on ``cpus``; yields its gRPC address."""
    ports = ["--grpc-port", "0", "--http-port", "0", "--metrics-port", "0"]
    command = [sys.executable, "-m", "edgemux.cli.main", "edge", "--bundle", str(bundle), *ports]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        os.sched_setaffinity(process.pid, cpus)  # before it has any threads
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            yield next(word.partition("=")[2] for word in line.split() if word.startswith("grpc="))
        finally:
            process.terminate()


class Client:
    """One connection that asks, and keeps what became of it."""

    def __init__(self, address: str, model: str, images: Any) -> None:
        self._channel = open_channel(address)
        self._stub = Stub(self._channel)
        self._requests = [make_request(model, {"image": images[i : i + 1]}) for i in range(len(images))]
        self.outcomes: list[Outcome] = []

    async def ask(self, number: int, timeout_s: float = DEADLINE_S) -> str:
        sent = time.perf_counter()
        try:
            # Longer than the deadline itself, which is a parameter: a late answer must be seen to be late.
            request = self._requests[number % len(self._requests)]
            request.parameters["timeout"].int64_param = round(timeout_s * 1e6)
            await self._stub.ModelInfer(request, timeout=10 * timeout_s)
            code = "OK"
        except grpc.aio.AioRpcError as error:
            code = error.code().name
        self.outcomes.append((sent, time.perf_counter() - sent, code))
        return code

    async def open_loop(self, rate_per_s: float, seconds: float) -> None:
        """Ask at a rate, whatever comes back."""
        began, number = time.perf_counter(), 0
        tasks = set()
        while (now := time.perf_counter() - began) < seconds:
            while number < now * rate_per_s:
                tasks.add(asyncio.create_task(self.ask(number)))
                number += 1
            await asyncio.sleep(0.001)
        await asyncio.gather(*tasks)

    async def closed_loop(self, clients: int, seconds: float) -> float:
        """Answers a second."""
        until = time.perf_counter() + seconds

        async def one(number: int) -> int:
            answered = 0
            while time.perf_counter() < until:
                answered += await self.ask(number, 10 * DEADLINE_S) == "OK"
            return answered

        return sum(await asyncio.gather(*(one(number) for number in range(clients)))) / seconds

    async def close(self) -> None:
        await self._channel.close()


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, math.ceil(share * len(values)) - 1)] if values else math.nan


async def measure(address: str, model: str, images: Any, times: float, seconds: float) -> dict[str, float]:
    client = Client(address, model, images)
    await client.closed_loop(CLOSED_CLIENTS, 1.0)
    capacity = await client.closed_loop(CLOSED_CLIENTS, seconds)
    client.outcomes.clear()
    began = time.perf_counter()
    await client.open_loop(times * capacity, seconds)
    over = time.perf_counter()
    row = _under(client.outcomes, capacity, seconds)
    client.outcomes.clear()
    fell = began + seconds
    await client.open_loop(0.5 * capacity, 3.0)
    row["recovery_s"] = _recovery_s(client.outcomes, fell)
    row["drained_s"] = over - fell
    polite, greedy = Client(address, model, images), Client(address, model, images)
    await asyncio.gather(polite.open_loop(POLITE * capacity, seconds), greedy.open_loop(times * capacity, seconds))
    answered = [code == "OK" for _, _, code in polite.outcomes]
    row["polite_answered"] = sum(answered) / len(answered)
    for each in (client, polite, greedy):
        await each.close()
    return row


def _under(outcomes: list[Outcome], capacity: float, seconds: float) -> dict[str, float]:
    """What came of the overload."""
    good = [took for _, took, code in outcomes if code == "OK" and took <= DEADLINE_S]
    refused = [took for _, took, code in outcomes if code == "RESOURCE_EXHAUSTED"]
    return {
        "capacity_per_s": capacity,
        "offered_per_s": len(outcomes) / seconds,
        "goodput": len(good) / seconds / capacity,
        "late": sum(code == "OK" and took > DEADLINE_S for _, took, code in outcomes),
        "timed_out": sum(code == "DEADLINE_EXCEEDED" for _, _, code in outcomes),
        "other": sum(code not in ("OK", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED") for _, _, code in outcomes),
        "refused_p50_ms": 1e3 * percentile(refused, 0.5),
        "refused_p99_ms": 1e3 * percentile(refused, 0.99),
        "accepted_p99_ms": 1e3 * percentile([took for _, took, code in outcomes if code == "OK"], 0.99),
    }


def _recovery_s(outcomes: list[Outcome], fell: float) -> float:
    """From the fall of the load until twenty in a row were answered; the first of them counts."""
    row = 0
    for sent, took, code in sorted(outcomes):
        row = row + 1 if code == "OK" else 0
        if row == 1:
            first = sent + took
        if row == 20:
            return first - fell
    return math.inf


TARGETS = (
    ("goodput", "goodput, share of the capacity", ">=", 0.9),
    ("refused_p99_ms", "refusals, p99 (ms)", "<=", 20.0),
    ("late", "accepted and answered late", "<=", 0),
    ("recovery_s", "recovery after the load falls (s)", "<=", 1.0),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, default=BUNDLE)
    parser.add_argument("--times", type=float, default=10.0)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    cpus = sorted(os.sched_getaffinity(0))
    device, others = {cpus[-1]}, set(cpus[:-1]) or set(cpus)
    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(folder) / "heavy"
        heavy_bundle(options.bundle, bundle)
        manifest = Bundle.open(bundle).manifest
        images = np.random.default_rng(0).integers(0, 255, (64, 28, 28), dtype=np.uint8)
        with agent(bundle, device) as address:
            os.sched_setaffinity(0, others)
            row = asyncio.run(measure(address, manifest.name, images, options.times, options.seconds))
    if options.json:
        print(json.dumps(row))
        return 0
    print(f"hardware: {hardware()}, agent on one core")
    print(f"{options.times:g} times the load, deadline {DEADLINE_S * 1000:g} ms")
    for key, text, sign, must in TARGETS:
        met = row[key] >= must if sign == ">=" else row[key] <= must
        print(f"{text:42}{row[key]:10.3f}   {sign} {must:g}   {'met' if met else 'MISSED'}")
    for key, value in row.items():
        print(f"{key:42}{value:10.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
