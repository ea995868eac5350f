"""What the agent itself costs: its own work per request, its decisions, its memory while serving.

    python benchmarks/agent.py [--bundle DIR] [--requests N] [--json]

Own work is everything between the request message and the reply message but the time inside ONNX Runtime, in
process: decoding, validation, scoring, budgets, policy, metrics, encoding. Memory is that of a real `edgemux edge`
process that answers over gRPC, in the environment that this script runs in.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from edgemux.compression.hardware import hardware
from edgemux.edge import EdgeConfig, open_agent
from edgemux.edge.service import EdgeService
from edgemux.multiplexer import policy
from edgemux.multiplexer.bundle import Bundle
from edgemux.multiplexer.domain import Budget, Candidate, Case, Cost, Placement, Route
from edgemux.multiplexer.onnx_model import OnnxModel
from edgemux.wire import Client
from edgemux.wire.codec import make_request

BUNDLE = Path(__file__).parents[1] / "deploy" / "bundles" / "fashion-mnist"


class Patient:
    """A call context without a deadline."""

    def time_remaining(self) -> None:
        return None

    def peer(self) -> str:
        return "ipv4:127.0.0.1:1"


class ModelTime:
    """Adds up the time inside ONNX Runtime."""

    def __init__(self) -> None:
        self.spent_s = 0.0
        self._run = OnnxModel.run

    def __enter__(self) -> ModelTime:
        inner = self._run

        def timed(model: OnnxModel, *arguments: Any) -> Any:
            began = time.perf_counter()
            try:
                return inner(model, *arguments)
            finally:
                self.spent_s += time.perf_counter() - began

        OnnxModel.run = timed  # type: ignore[method-assign]
        return self

    def __exit__(self, *_: object) -> None:
        OnnxModel.run = self._run  # type: ignore[method-assign]


async def own_work(bundle: Path, images: Any, requests: int) -> dict[str, float]:
    """Microseconds of the agent's own work per request: p50 and p99; and the models' p50 beside."""
    async with open_agent(EdgeConfig(bundle=bundle)) as agent:
        servicer = EdgeService({agent.manifest.name: agent}, max_batch=256)
        messages = [make_request(agent.manifest.name, {"image": images[i : i + 1]}) for i in range(len(images))]
        own, models = [], []
        with ModelTime() as inside:
            for i in range(requests + 200):
                inside.spent_s = 0.0
                began = time.perf_counter()
                await servicer.ModelInfer(messages[i % len(messages)], Patient())
                elapsed = time.perf_counter() - began
                own.append((elapsed - inside.spent_s) * 1e6)
                models.append(inside.spent_s * 1e6)
    own, models = own[200:], models[200:]
    return {
        "own_work_p50_us": float(np.percentile(own, 50)),
        "own_work_p99_us": float(np.percentile(own, 99)),
        "models_p50_us": float(np.percentile(models, 50)),
    }


def decision_us(repeats: int = 20_000) -> dict[str, float]:
    """Microseconds of one decision of the policy over five candidates."""
    levels = [
        Candidate(Route(f"level-{n}", Placement.EDGE, n), 0.5 + n / 10, Cost(0.001, 0.001, 1e5)) for n in range(1, 5)
    ]
    cloud = Candidate(Route("cloud", Placement.CLOUD), 0.95, Cost(0.05, sent_bytes=900, offloads=1), 0.1)
    case = Case(Budget(0.2, 0.01, 1e9, reserve_s=0.002), (*levels, cloud))
    taken = []
    for _ in range(repeats):
        began = time.perf_counter()
        policy.decide(case)
        taken.append((time.perf_counter() - began) * 1e6)
    return {"decision_p50_us": float(np.percentile(taken, 50)), "decision_p99_us": float(np.percentile(taken, 99))}


def resident_mb(bundle: Path, images: Any, requests: int) -> float:
    """Resident memory in MB (10**6 bytes) of an agent process after it answered ``requests`` requests."""
    command = [sys.executable, "-m", "edgemux.cli.main", "edge", "--bundle", str(bundle)]
    command += ["--grpc-port", "0", "--http-port", "0", "--metrics-port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        words = dict(word.split("=", 1) for word in process.stdout.readline().split() if "=" in word)
        with Client(words["grpc"]) as client:
            for i in range(requests):
                client.infer(words["model"], {"image": images[i % len(images)][None]})
        for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS"):
                return int(line.split()[1]) * 1024 / 1e6
        raise RuntimeError("this system does not tell a process's resident memory")
    finally:
        process.kill()
        process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--bundle", type=Path, default=BUNDLE)
    parser.add_argument("--requests", type=int, default=3000)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    bundle = Bundle.open(options.bundle)
    assert bundle.manifest.samples is not None
    images = bundle.arrays(bundle.manifest.samples)["images"]
    figures = asyncio.run(own_work(options.bundle, images, options.requests)) | decision_us()
    figures["resident_mb"] = resident_mb(options.bundle, images, min(options.requests, 2000))
    if options.json:
        print(json.dumps({"hardware": hardware(), **figures}))
        return
    print(f"hardware: {hardware()}")
    rows = [
        ("agent's own work per request, p50", figures["own_work_p50_us"], "us", 300, 100),
        ("agent resident memory while serving", figures["resident_mb"], "MB", 150, 90),
        ("one decision, p99", figures["decision_p99_us"], "us", 50, 50),
    ]
    print(f"{'what':<40}{'measured':>12}{'must':>10}{'goal':>10}  verdict")
    for what, value, unit, must, goal in rows:
        verdict = "goal met" if value <= goal else "must met" if value <= must else "MISSED"
        print(f"{what:<40}{value:>9.1f} {unit}{must:>10}{goal:>10}  {verdict}")
    print(f"models per request, p50: {figures['models_p50_us']:.0f} us")
    print(f"own work per request, p99: {figures['own_work_p99_us']:.0f} us")


if __name__ == "__main__":
    main()
