"""How many cloud replicas a fleet of 1,000 devices needs, with the multiplexer and without, and what that saves.

    python benchmarks/fleet.py [--edges N] [--rate INPUTS_PER_S] [--agents N] [--seconds S] [--out SVG] [--json]

Measured first: batches of the starter bundle's cloud model and of a ResNet-18 (3 x 224 x 224, random weights) on one
thread, as a * rows + b; what a request costs the server beside its model (closed loops against a real `edgemux cloud`);
the bundle's device levels. Then real agents, as many as fit, against the real cloud, at several rates; the simulation
(`edgemux.cloud.fleet`) is told the rates, not what came out, and must predict it. Last, the simulation of the fleet:
the fewest replicas of one core with which the 99th percentile of offloads is within 100 ms (ResNet: 200) and less than
0.1 % of them are refused, for arrivals that are independent, follow a day, or half of which come to all devices
at once.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import math
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc.aio
import msgspec
import numpy as np
import psutil
from numpy.typing import NDArray

from edgemux.cloud.fleet import Figures, Fleet, Link, Service, bursts, day, needed, poisson, simulate
from edgemux.compression.hardware import hardware
from edgemux.edge import Agent, EdgeConfig, open_agents
from edgemux.edge.config import load
from edgemux.multiplexer.bundle import Bundle
from edgemux.multiplexer.chain import PROBABILITIES
from edgemux.multiplexer.domain import Placement
from edgemux.multiplexer.errors import ExecutionError
from edgemux.multiplexer.onnx_model import OnnxModel
from edgemux.wire import oip_pb2 as oip
from edgemux.wire.codec import make_request
from edgemux.wire.service import Stub

BUNDLE = Path(__file__).parents[1] / "deploy" / "bundles" / "fashion-mnist"
ROWS = (1, 2, 4, 8, 16, 32)
# Within which 99 % of offloads must be answered. A ResNet-18 takes half of 100 ms on one core here, before any network.
P99_S = {"starter": 0.1, "resnet-18": 0.2}
REFUSED = 0.001
LEVEL = 3  # of the bundle's four: what a small device runs
# What the network is like: 10 ms and some each way, 20 Mbit/s up.
LINK = Link(delay_s=0.01, jitter_s=0.003, uplink_bytes_s=2.5e6)


# --- what is measured -----------------------------------------------------------------------------------------------
def fit(run: Callable[[int], None], rows: Sequence[int] = ROWS, repeats: int = 7) -> tuple[float, float]:
    """(fixed_s, per_row_s) of batches: a straight line through the medians, weighted by 1 / time."""
    medians = []
    for count in rows:
        run(count)
        took = []
        for _ in range(repeats):
            began = time.thread_time()  # of this thread, which does all the work: what else runs here does not count
            run(count)
            took.append(time.thread_time() - began)
        medians.append(statistics.median(took))
    weights = 1 / np.asarray(medians)
    per_row_s, fixed_s = np.polyfit(rows, medians, 1, w=weights)
    return max(0.0, float(fixed_s)), float(per_row_s)


def fit_bundle(bundle: Bundle, images: NDArray[Any]) -> tuple[float, float]:
    path = bundle.manifest.cloud.files[0]
    model = OnnxModel(bundle.read(path), path)
    return fit(lambda rows: void(model.run({"image": images[:rows]}, [PROBABILITIES])))


def void(_: Any) -> None:
    """An answer that only had to be waited for."""


def resnet18(folder: Path) -> Path:
    """A ResNet-18's shape (He et al. 2016) with random weights, as ONNX, 11.7 million parameters."""
    import torch
    from torch import nn

    class Block(nn.Module):
        def __init__(self, into: int, out: int, stride: int) -> None:
            super().__init__()
            self.way = nn.Sequential(
                nn.Conv2d(into, out, 3, stride, 1, bias=False),
                nn.BatchNorm2d(out),
                nn.ReLU(),
                nn.Conv2d(out, out, 3, 1, 1, bias=False),
                nn.BatchNorm2d(out),
            )
            plain = into == out and stride == 1
            self.short = nn.Identity() if plain else nn.Sequential(nn.Conv2d(into, out, 1, stride), nn.BatchNorm2d(out))

        def forward(self, x: Any) -> Any:
            return torch.relu(self.way(x) + self.short(x))

    widths = ((64, 64, 1), (64, 64, 1), (64, 128, 2), (128, 128, 1), (128, 256, 2), (256, 256, 1), (256, 512, 2))
    stem = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    blocks = [Block(*each) for each in (*widths, (512, 512, 1))]
    net = nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 1000)).eval()
    path = folder / "resnet18.onnx"
    one = torch.zeros(1, 3, 224, 224)
    axes = {"image": {0: "n"}, "logits": {0: "n"}}
    torch.onnx.export(
        net, (one,), str(path), dynamo=False, input_names=["image"], output_names=["logits"], dynamic_axes=axes
    )
    return path


def fit_resnet18() -> tuple[float, float]:
    with tempfile.TemporaryDirectory() as folder:
        model = OnnxModel.read(resnet18(Path(folder)))
    images = np.random.default_rng(0).standard_normal((max(ROWS), 3, 224, 224), np.float32)
    return fit(lambda rows: void(model.run({"image": images[:rows]})), rows=(1, 2, 4, 8), repeats=3)


@contextlib.contextmanager
def cloud_process(core: int | None) -> Iterator[tuple[str, psutil.Process]]:
    """`edgemux cloud` with the starter bundle, on a core of its own where there are several; its gRPC address."""
    command = [sys.executable, "-m", "edgemux.cli.main", "cloud", "--bundle", str(BUNDLE)]
    command += ["--grpc-port", "0", "--http-port", "0", "--metrics-port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            if core is not None:
                os.sched_setaffinity(process.pid, {core})
            assert process.stdout is not None
            found = re.search(r"grpc=(\S+)", process.stdout.readline())
            assert found is not None, "the cloud did not start"
            yield found[1], psutil.Process(process.pid)
        finally:
            process.terminate()
            process.wait()


class Calls(msgspec.Struct, frozen=True):
    """Closed loops against the real cloud: an empty call and a lone inference, the quickest tenth of them; and CPU
    seconds of the server for one of many inferences at once, in batches of ``mean_batch``."""

    empty_s: float
    lone_s: float
    cpu_s: float
    mean_batch: float


def quick(took: Sequence[float]) -> float:
    return float(np.percentile(took, 10))


async def call_cloud(address: str, server: psutil.Process, image: NDArray[Any], seconds: float) -> Calls:
    async with grpc.aio.insecure_channel(address) as channel:
        stub = Stub(channel)
        message = make_request("fashion-mnist", {"image": image})

        async def loop(ask: Callable[[], Any], until_s: float) -> list[float]:
            took = []
            while time.perf_counter() < until_s:
                began = time.perf_counter()
                await ask()
                took.append(time.perf_counter() - began)
            return took

        async def crowd(clients: int) -> tuple[float, float]:
            until_s = time.perf_counter() + seconds
            before, batches = server.cpu_times(), []

            async def ask() -> None:
                answer = await stub.ModelInfer(message, timeout=10)
                batches.append(answer.parameters["edgemux_batch_size"].int64_param)

            await asyncio.gather(*(loop(ask, until_s) for _ in range(clients)))
            after = server.cpu_times()
            used_s = after.user + after.system - before.user - before.system
            # Each batch was told once for each of its rows.
            return used_s / len(batches), len(batches) / sum(1 / rows for rows in batches)

        await loop(lambda: stub.ModelInfer(message, timeout=10), time.perf_counter() + 0.5)
        empty = await loop(lambda: stub.ServerLive(oip.ServerLiveRequest()), time.perf_counter() + seconds / 2)
        lone = await loop(lambda: stub.ModelInfer(message, timeout=10), time.perf_counter() + seconds / 2)
        return Calls(quick(empty), quick(lone), *await crowd(32))


# --- real agents ----------------------------------------------------------------------------------------------------
class Played(msgspec.Struct, frozen=True):
    """What real agents saw, and what was predicted of it. Durations in seconds, rates per second."""

    policy: str
    agents: int
    inputs_per_s: float
    offloads_per_s: float
    share: float
    p50_s: float
    p99_s: float
    predicted_p50_s: float
    predicted_p99_s: float
    predicted_offloads_per_s: float
    degraded: int
    lost: int
    loop_lag_p99_s: float


async def play(address: str, policy: str, agents: int, rate: float, seconds: float, images: NDArray[Any]) -> Any:
    """Poisson inputs at ``agents`` agents in this process, ``rate`` a second each: latencies of cloud answers, of
    device answers, how many were degraded or lost, and how late this event loop was."""
    random = np.random.default_rng(5)
    in_cloud: list[float] = []
    on_device: list[float] = []
    lags: list[float] = []
    degraded, lost = [0], [0]

    async def one(agent: Agent, at: int, due_s: float) -> None:
        lags.append(time.perf_counter() - due_s)
        try:
            answer = (await agent.infer({"image": images[at : at + 1]}, 1.0))[0]
        except ExecutionError:
            lost[0] += 1
            return
        took = answer.elapsed_s
        degraded[0] += answer.degraded
        (in_cloud if answer.prediction.route.placement is Placement.CLOUD else on_device).append(took)

    async def device(agent: Agent, begin_s: float) -> None:
        due_s = begin_s
        pending = []
        while True:
            due_s += random.exponential(1 / rate)
            if due_s >= begin_s + seconds:
                break
            await asyncio.sleep(due_s - time.perf_counter())
            pending.append(asyncio.ensure_future(one(agent, int(random.integers(len(images))), due_s)))
        await asyncio.gather(*pending)

    async with contextlib.AsyncExitStack() as stack:
        opened = []
        for _ in range(agents):
            made = await stack.enter_async_context(open_agents(config(address, policy)))
            opened.append(next(iter(made.values())))
        for agent in opened:  # channels, estimates
            for at in range(20):
                with contextlib.suppress(ExecutionError):
                    await agent.infer({"image": images[at : at + 1]}, 5.0)
        begin_s = time.perf_counter()
        await asyncio.gather(*(device(agent, begin_s) for agent in opened))
    return in_cloud, on_device, degraded[0], lost[0], lags


def config(address: str, policy: str) -> EdgeConfig:
    given = {"bundle": str(BUNDLE), "cloud.address": address, "policy": policy, "sensors": [], "audit_share": 0.0}
    return load(None, given)


def predict(fleet: Fleet, service: Service, link: Link, seconds: float) -> Figures:
    duration_s = max(60.0, seconds)
    return simulate(fleet, service, link, 1, poisson(fleet, duration_s, np.random.default_rng(1)), duration_s)


def compare(address: str, service: Service, calls: Calls, options: Any, images: NDArray[Any]) -> list[Played]:
    """Real agents at several rates, and the simulation told the same rates and shares."""
    found = []
    link = Link(delay_s=calls.empty_s / 2, jitter_s=0.0)
    plans = [("expected-gain", 10.0), ("cloud-only", 5.0), ("cloud-only", 10.0), ("cloud-only", 20.0)]
    for policy, rate in plans:
        in_cloud, on_device, degraded, lost, lags = asyncio.run(
            play(address, policy, options.agents, rate, options.seconds, images)
        )
        inputs = len(in_cloud) + len(on_device)
        share = len(in_cloud) / max(1, inputs)
        # With the multiplexer an offload follows the device's own answer; alone it is sent at once.
        device_s = statistics.median(on_device) if on_device and policy == "expected-gain" else 0.0
        fleet = Fleet(options.agents, rate, share, device_s, 900, 1.0)
        predicted = predict(fleet, service, link, options.seconds)
        p50_s, p99_s = np.percentile(in_cloud, [50, 99])
        found.append(
            Played(
                policy=policy,
                agents=options.agents,
                inputs_per_s=inputs / options.seconds,
                offloads_per_s=len(in_cloud) / options.seconds,
                share=share,
                p50_s=float(p50_s),
                p99_s=float(p99_s),
                predicted_p50_s=predicted.p50_s,
                predicted_p99_s=predicted.p99_s,
                predicted_offloads_per_s=(predicted.offloads - predicted.refused - predicted.late)
                / predicted.duration_s,
                degraded=degraded,
                lost=lost,
                loop_lag_p99_s=float(np.percentile(lags, 99)),
            )
        )
    return found


# --- the fleet ------------------------------------------------------------------------------------------------------
class Row(msgspec.Struct, frozen=True):
    """A fleet with some service and arrivals: replicas for the goal, and what a day of it takes."""

    model: str
    arrivals: str
    sends: str
    replicas: int | None
    p99_s: float
    refused_share: float
    busy_share: float
    core_hours_a_day: float
    uplink_gb_a_day: float
    money_a_day: float


def fewest(fleet: Fleet, service: Service, make: Any, duration_s: float, p99_s: float) -> tuple[int | None, Figures]:
    inputs = make(fleet, duration_s, np.random.default_rng(11))
    seen: dict[int, Figures] = {}

    def meets(replicas: int) -> bool:
        seen[replicas] = simulate(fleet, service, LINK, replicas, inputs, duration_s)
        return seen[replicas].meets(p99_s, REFUSED)

    least = max(1, int(fleet.edges * fleet.inputs_per_s * fleet.offload_share * service.per_row_s))
    found = needed(meets, least, most=2048)
    return found, seen[found if found is not None else max(seen)]


def rows(model: str, service: Service, fleets: dict[str, Fleet], duration_s: float, options: Any) -> Iterator[Row]:
    for (sends, fleet), arrivals in itertools.product(fleets.items(), ("poisson", "a day", "bursts")):
        replicas, figures = fewest(
            fleet, service, bursts if arrivals == "bursts" else poisson, duration_s, P99_S[model]
        )
        hours = math.nan if replicas is None else 24.0 * replicas
        mean = 1.0
        if arrivals == "a day":
            hours, mean = follow_day(fleet, service, duration_s, P99_S[model]), float(np.mean(day()))
        offloads = fleet.edges * fleet.inputs_per_s * fleet.offload_share * mean * 86_400
        uplink_gb = offloads * fleet.request_bytes / 1e9
        money = hours * options.core_hour + uplink_gb * options.gigabyte
        yield Row(
            model,
            arrivals,
            sends,
            replicas,
            figures.p99_s,
            figures.refused_share,
            figures.busy_share,
            hours,
            uplink_gb,
            money,
        )


def follow_day(fleet: Fleet, service: Service, duration_s: float, p99_s: float) -> float:
    """Core-hours of a day in which the number of replicas follows the hour's rate, as an autoscaler that is never late
    would have it; between five rates it is interpolated."""
    rates = sorted({round(rate, 6) for rate in day()})[::3]
    rates = sorted({*rates, 1.0})
    counts = []
    for rate in rates:
        hour = msgspec.structs.replace(fleet, inputs_per_s=fleet.inputs_per_s * rate)
        counts.append(fewest(hour, service, poisson, duration_s, p99_s)[0] or 0)
    return float(sum(np.ceil(np.interp(rate, rates, counts) - 1e-9) for rate in day()))


# --- what is shown --------------------------------------------------------------------------------------------------
def plot(found: Sequence[Row], path: Path) -> None:
    """Bars: replicas with the multiplexer beside replicas without, for every model and kind of arrivals."""
    groups = [(model, arrivals) for model, arrivals in dict.fromkeys((row.model, row.arrivals) for row in found)]
    most = max(row.replicas or 0 for row in found)
    wide, high, left, base = 96, 220, 46, 250
    colours = {"hard inputs": "#2b6cb0", "everything": "#a0aec0"}
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + wide * len(groups) + 20}" height="330" '
        'font-family="sans-serif" font-size="11">',
        f'<text x="{left}" y="16">Replicas of one core, 1,000 devices</text>',
    ]
    for index, (model, arrivals) in enumerate(groups):
        for place, (sends, colour) in enumerate(colours.items()):
            row = next(each for each in found if (each.model, each.arrivals, each.sends) == (model, arrivals, sends))
            count = row.replicas or most
            tall = max(1.0, high * np.log10(1 + count) / np.log10(1 + most))
            x = left + index * wide + 12 + place * 34
            parts.append(f'<rect x="{x}" y="{base - tall:.1f}" width="30" height="{tall:.1f}" fill="{colour}"/>')
            label = "none" if row.replicas is None else str(row.replicas)
            parts.append(f'<text x="{x + 15}" y="{base - tall - 4:.1f}" text-anchor="middle">{label}</text>')
        centre = left + index * wide + 44
        parts.append(f'<text x="{centre}" y="{base + 16}" text-anchor="middle">{arrivals}</text>')
        parts.append(f'<text x="{centre}" y="{base + 30}" text-anchor="middle">{model}</text>')
    for place, (sends, colour) in enumerate(colours.items()):
        x = left + place * 150
        parts.append(f'<rect x="{x}" y="300" width="12" height="12" fill="{colour}"/>')
        parts.append(f'<text x="{x + 18}" y="310">{sends} sent (log scale)</text>')
    path.write_text("\n".join([*parts, "</svg>", ""]))


def show(result: dict[str, Any]) -> None:
    print(result["hardware"])
    print("measured:", json.dumps(result["measured"], indent=1))
    print(
        "\n| policy | agents | inputs/s | offloads/s, predicted | p50 ms, predicted | p99 ms, predicted | lost |\n"
        "|---|---|---|---|---|---|---|"
    )
    for row in result["played"]:
        p50, p99 = row["predicted_p50_s"] / row["p50_s"] - 1, row["predicted_p99_s"] / row["p99_s"] - 1
        print(
            f"| {row['policy']} | {row['agents']} | {row['inputs_per_s']:.0f} | {row['offloads_per_s']:.1f}, "
            f"{row['predicted_offloads_per_s']:.1f} | {row['p50_s'] * 1e3:.2f}, {row['predicted_p50_s'] * 1e3:.2f} "
            f"({p50:+.0%}) | {row['p99_s'] * 1e3:.2f}, {row['predicted_p99_s'] * 1e3:.2f} ({p99:+.0%}) | "
            f"{row['lost']} |"
        )
    print(
        "\n| model | arrivals | sent | replicas | p99 ms | refused | busy | core-hours/day | GB up/day | money/day |\n"
        "|---|---|---|---|---|---|---|---|---|---|"
    )
    for row in result["fleet"]:
        print(
            f"| {row['model']} | {row['arrivals']} | {row['sends']} | {row['replicas']} | {row['p99_s'] * 1e3:.0f} | "
            f"{row['refused_share']:.3%} | {row['busy_share']:.0%} | {row['core_hours_a_day']:.0f} | "
            f"{row['uplink_gb_a_day']:.1f} | {row['money_a_day']:.2f} |"
        )


def measure(options: Any) -> tuple[dict[str, Any], list[Played], dict[str, Service]]:
    bundle = Bundle.open(BUNDLE)
    images = bundle.arrays("samples.npz")["images"]
    cores = sorted(os.sched_getaffinity(0))
    fixed_s, per_row_s = fit_bundle(bundle, images)
    with cloud_process(cores[-1] if len(cores) > 1 else None) as (address, server):
        calls = asyncio.run(call_cloud(address, server, images[:1], 3.0))
        # A request costs the server its share of a full batch and what gRPC takes; both hold the interpreter's lock.
        own_s = max(0.0, calls.cpu_s - per_row_s - fixed_s / calls.mean_batch)
        # What a lone call takes beyond that is paid once a batch: the way into the worker and back.
        once_s = max(0.0, calls.lone_s - calls.empty_s - per_row_s - own_s)
        service = Service(max(fixed_s, once_s), per_row_s + own_s, spread=0.15)
        played = compare(address, service, calls, options, images)
    big_fixed_s, big_per_row_s = fit_resnet18()
    big = Service(big_fixed_s + once_s, big_per_row_s + own_s, spread=0.15, max_batch=8)
    measured = {
        "starter": {"fixed_ms": fixed_s * 1e3, "per_row_ms": per_row_s * 1e3},
        "resnet-18": {"fixed_ms": big_fixed_s * 1e3, "per_row_ms": big_per_row_s * 1e3},
        "request_ms": {"own": own_s * 1e3, "once_a_batch": once_s * 1e3},
        "calls": msgspec.to_builtins(calls),
        "level_ms": bundle.manifest.levels[LEVEL - 1].median_ms,
    }
    return measured, played, {"starter": service, "resnet-18": big}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--edges", type=int, default=1000)
    parser.add_argument("--rate", type=float, default=2.0, help="inputs a second of each device")
    parser.add_argument("--agents", type=int, default=8, help="real agents in the comparison")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each comparison")
    parser.add_argument("--duration", type=float, default=10.0, help="simulated seconds")
    parser.add_argument("--core-hour", type=float, default=0.04, help="price of a core for an hour")
    parser.add_argument("--gigabyte", type=float, default=0.0, help="price of a gigabyte from device to cloud")
    parser.add_argument("--out", type=Path, help="an SVG of the replicas")
    parser.add_argument("--fast", action="store_true", help="the real agents only")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()

    measured, played, services = measure(options)
    manifest = Bundle.open(BUNDLE).manifest
    kept = manifest.provenance.measured[f"level{LEVEL}_kept"]
    found = []
    for model, service in ({} if options.fast else services).items():
        request_bytes = 900 if model == "starter" else 19_200  # a raw 28 x 28 picture; a JPEG of 224 x 224
        each = Fleet(options.edges, options.rate, 1.0, 0.0, request_bytes)
        level_s = 20 * (manifest.levels[LEVEL - 1].median_ms or 0.0) / 1e3  # a device is slower than this machine
        hard = msgspec.structs.replace(each, offload_share=1 - kept, device_s=level_s)
        found += list(rows(model, service, {"hard inputs": hard, "everything": each}, options.duration, options))
    result = {
        "hardware": hardware(),
        "measured": measured,
        "played": msgspec.to_builtins(played),
        "fleet": msgspec.to_builtins(found),
    }
    print(json.dumps(result, indent=1)) if options.json else show(result)
    if options.out is not None:
        plot(found, options.out)


if __name__ == "__main__":
    main()
