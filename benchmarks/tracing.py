"""What traces cost the agent: CPU time per request with tracing off, on but not recorded, and recorded.

    python benchmarks/tracing.py [--bundle DIR] [--requests N] [--json]

All in one process and in turn, a few requests of each, so that what else the machine does falls on all of them alike:
the ratios mean something, the times less. What a request costs is CPU time of the thread that answers, models
included; the CPU time of the whole process beside it has the thread that sends the spans, to a collector in a process
of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from edgemux.compression.hardware import hardware
from edgemux.edge import EdgeConfig, open_agent
from edgemux.edge.config import RequestSettings
from edgemux.edge.service import EdgeService
from edgemux.multiplexer.bundle import Bundle
from edgemux.wire.codec import make_request
from edgemux.wire.tracing import OFF, Tracer, TracingSettings, open_tracer

BUNDLE = Path(__file__).parents[1] / "deploy" / "bundles" / "fashion-mnist"
# However busy the machine is, each request is answered.
PATIENT = RequestSettings(default_timeout_s=60.0)
# Requests of one mode before it is the next one's turn.
TURN = 20
SAMPLES = {"off": None, "on, none recorded": 0.0, "on, 1 % recorded": 0.01, "on, all recorded": 1.0}


class Patient:
    """A call context without a deadline, and with the metadata that a Python client sends."""

    def time_remaining(self) -> None:
        return None

    def peer(self) -> str:
        return "ipv4:127.0.0.1:1"

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return (("user-agent", "grpc-python/1.85.0 grpc-c/1.85.0 (linux; chttp2)"),)


def collect() -> None:
    """A collector that takes everything and keeps nothing; says its port, and ends when nobody listens any more."""
    import grpc
    from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as wire
    from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as service

    class Sink(service.TraceServiceServicer):  # type: ignore[misc]
        def Export(self, request: Any, context: Any) -> Any:  # noqa: N802
            return wire.ExportTraceServiceResponse()

    server = grpc.server(ThreadPoolExecutor(1))
    service.add_TraceServiceServicer_to_server(Sink(), server)
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    server.start()
    sys.stdin.read()


@contextlib.contextmanager
def collector() -> Iterator[str]:
    """The address of a collector."""
    command = [sys.executable, __file__, "--collect"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
        finally:
            process.kill()


def tracer_of(endpoint: str, sample: float | None) -> Tracer:
    if sample is None:
        return OFF
    return open_tracer(TracingSettings(endpoint=endpoint, sample=sample, most_per_s=1e6), "edgemux-edge")


async def measure(bundle: Path, images: Any, requests: int, endpoint: str) -> dict[str, dict[str, float]]:
    """For each mode microseconds of CPU a request: the answering thread's median, and the whole process's mean."""
    async with open_agent(EdgeConfig(bundle=bundle, request=PATIENT)) as agent:
        name = agent.manifest.name
        messages = [make_request(name, {"image": images[i : i + 1]}) for i in range(len(images))]
        tracers = {mode: tracer_of(endpoint, sample) for mode, sample in SAMPLES.items()}
        services = {mode: EdgeService({name: agent}, 256, tracer=tracer) for mode, tracer in tracers.items()}
        took: dict[str, list[float]] = {mode: [] for mode in SAMPLES}
        cpu = dict.fromkeys(SAMPLES, 0.0)
        asked = 0
        for turn in range(2 + requests // TURN):
            for mode, service in services.items():
                before = time.process_time()
                for _ in range(TURN):
                    asked += 1
                    began = time.thread_time()
                    await service.ModelInfer(messages[asked % len(messages)], Patient())
                    took[mode].append((time.thread_time() - began) * 1e6)
                if turn >= 2:
                    cpu[mode] += time.process_time() - before
        for service, tracer in zip(services.values(), tracers.values(), strict=True):
            service.close()
            tracer.close()
    rounds = requests // TURN * TURN
    turns = {mode: np.median(np.reshape(times[2 * TURN :], (-1, TURN)), axis=1) for mode, times in took.items()}
    return {
        mode: {
            "p50_us": float(np.median(own)),
            # Of the same turn, so that what else the machine did then is in both.
            "ratio": float(np.median(own / turns["off"])),
            "cpu_us": cpu[mode] / rounds * 1e6,
        }
        for mode, own in turns.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--bundle", type=Path, default=BUNDLE)
    parser.add_argument("--requests", type=int, default=4000)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--collect", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.collect:
        collect()
        return
    bundle = Bundle.open(options.bundle)
    assert bundle.manifest.samples is not None
    images = bundle.arrays(bundle.manifest.samples)["images"]
    with collector() as endpoint:
        figures = asyncio.run(measure(options.bundle, images, options.requests, endpoint))
    if options.json:
        print(json.dumps({"hardware": hardware(), **figures}))
        return
    print(f"hardware: {hardware()}")
    print(f"{'tracing':<20}{'answering, p50':>16}{'ratio':>8}{'all, mean':>14}")
    for mode, row in figures.items():
        print(f"{mode:<20}{row['p50_us']:>13.0f} us{row['ratio']:>8.3f}{row['cpu_us']:>11.0f} us")


if __name__ == "__main__":
    main()
