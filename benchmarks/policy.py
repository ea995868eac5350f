"""What a decision costs, and what the toll makes of a budget.

    python benchmarks/policy.py [--repeats N] [--inputs N] [--json]

Decisions: microseconds of one call, over five routes, before and after a device answer, with open and spent budgets.
Streams: inputs at random times whose cloud gains a random amount, 100 a second, 5 offloads a second allowed: share of
the budget spent, and what was gained, with the toll, first come first served, and by the best choice in hindsight.
Bundle: the same with the starter bundle's 1,000 test images, its gates and its certified price at the highest level;
accuracy is by their labels, over many shuffled passes.
"""

from __future__ import annotations

import argparse
import heapq
import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from edgemux.compression.hardware import hardware
from edgemux.edge.variants import Family
from edgemux.multiplexer import plugins
from edgemux.multiplexer.bundle import Bundle
from edgemux.multiplexer.chain import Activations
from edgemux.multiplexer.domain import Budget, Candidate, Case, Cost, Placement, Prediction, Reason, Route
from edgemux.multiplexer.gates import Gates
from edgemux.multiplexer.limits import TokenBucket
from edgemux.multiplexer.onnx_model import OnnxModel
from edgemux.multiplexer.toll import TolledBudget

BUNDLE = Path(__file__).parents[1] / "deploy" / "bundles" / "fashion-mnist"
GOAL_US = 50
LEVELS = tuple(
    Candidate(Route(f"level-{n}", Placement.EDGE, n), 0.5 + n / 10, Cost(0.001, 0.001 * n, 1e5 * n))
    for n in range(1, 5)
)
SURE = tuple(Candidate(c.route, c.score, c.cost, 0.02, sure=0.97) for c in LEVELS)
CLOUD = Candidate(Route("cloud", Placement.CLOUD), 0.95, Cost(0.05, sent_bytes=900, offloads=1), 0.1, toll=0.02)
POLICIES = (
    "expected-gain",
    "max-softmax(0.9)",
    "entropy(0.3)",
    "temperature(0.8, 2.0)",
    "fixed-level(2)",
    "random(0.2)",
)
Gain = Callable[[random.Random], float]
GAINS: dict[str, Gain] = {"skewed": lambda r: r.betavariate(0.4, 4) - 0.03, "even": lambda r: r.random() - 0.3}


def cases() -> dict[str, Case]:
    """Realistic cases by name."""
    probabilities = np.array([0.6, 0.2, 0.1, 0.05, 0.05, 0, 0, 0, 0, 0], dtype=np.float32)
    held = Prediction(LEVELS[1].route, 0, probabilities, 0.7)
    wide = Budget(0.2, 0.01, 1e9, reserve_s=0.002, margin_s=0.02, offloads=40.0, sent_bytes=1e5)
    spent = Budget(0.2, 0.0025, 2.5e5, reserve_s=0.002, margin_s=0.02, offloads=0.3, sent_bytes=1e5)
    return {
        "before an answer": Case(wide, (*LEVELS, CLOUD)),
        "before an answer, budgets spent": Case(spent, (*LEVELS, CLOUD)),
        "before an answer, with second looks": Case(wide, (*SURE, CLOUD)),
        "after an answer": Case(wide, (*LEVELS[2:], CLOUD), held, Reason.CONFIDENT),
        "after an answer, budgets spent": Case(spent, (*LEVELS[2:], CLOUD), held, Reason.CONFIDENT),
        "after the cloud failed": Case(wide, LEVELS[2:], held, Reason.CONFIDENT, Reason.CLOUD_TIMEOUT),
    }


def decisions(repeats: int) -> list[dict[str, Any]]:
    """Microseconds by policy and case: p50 and p99."""
    rows = []
    for text in POLICIES:
        policy = plugins.make("edgemux.policies", text, "policy")
        for name, case in cases().items():
            taken = []
            for _ in range(repeats + 200):
                began = time.perf_counter()
                policy(case)
                taken.append((time.perf_counter() - began) * 1e6)
            p50, p99 = np.percentile(taken[200:], [50, 99])
            rows.append({"policy": text, "case": name, "p50_us": float(p50), "p99_us": float(p99)})
    return rows


def streams(inputs: int, rate: float = 5.0, per_s: float = 100.0) -> list[dict[str, Any]]:
    """What a rate of offloads was spent on; gains in points of accuracy."""
    rows = []
    for name, gain in GAINS.items():
        for burst_s in (1.0, 10.0, 60.0):
            r = random.Random(3)
            stream = [(r.expovariate(per_s), gain(r)) for _ in range(inputs)]
            allowed = rate * sum(pause for pause, _ in stream) + rate * burst_s
            best = sum(heapq.nlargest(int(allowed), (g for _, g in stream if g > 0)))
            row: dict[str, Any] = {"gains": name, "burst_s": burst_s, "best_points": 100 * best / inputs}
            for label, tolled in (("toll", True), ("first_come", False)):
                offloads, gained = spend(stream, TolledBudget(TokenBucket(rate, rate * burst_s)), tolled)
                row |= {f"{label}_spent": offloads / allowed, f"{label}_points": 100 * gained / inputs}
            rows.append(row)
    return rows


def spend(stream: list[tuple[float, float]], budget: TolledBudget, tolled: bool) -> tuple[int, float]:
    """Offloads made and gain had."""
    budget.available(0.0)
    now, offloads, gained = 0.0, 0, 0.0
    for pause, gain in stream:
        now += pause
        worth = gain > (budget.price(now) if tolled else 0.0)
        took = worth and budget.take(1.0, now)
        if took:
            offloads, gained = offloads + 1, gained + gain
        budget.settle(worth and not took, now)
    return offloads, gained


def bundle_accuracy(passes: int = 30, per_s: float = 100.0, burst_s: float = 10.0) -> list[dict[str, Any]]:
    """Accuracy and share of inputs offloaded by allowed share, for each way to spend it."""
    gains, device, cloud, price = answers()
    order = np.concatenate([np.random.default_rng(seed).permutation(len(gains)) for seed in range(passes)])
    rows: list[dict[str, Any]] = []
    ways = {"first come, needed": (price, False), "toll, needed": (price, True), "toll, fully": (0.0, True)}
    for share in (0.01, 0.02, 0.05, 0.1, 0.2):
        row: dict[str, Any] = {"allowed": share}
        for way, (least, tolled) in ways.items():
            r, now = random.Random(1), 0.0
            budget = TolledBudget(TokenBucket(share * per_s, share * per_s * burst_s))
            budget.available(0.0)
            right = offloads = 0
            for i in order:
                now += r.expovariate(per_s)
                worth = gains[i] > least + (budget.price(now) if tolled else 0.0)
                took = worth and budget.take(1.0, now)
                offloads += took
                right += cloud[i] if took else device[i]
                budget.settle(worth and not took, now)
            row[way] = {"accuracy": right / len(order), "offloaded": offloads / len(order)}
        rows.append(row)
    return rows


def answers() -> tuple[Any, Any, Any, float]:
    """Of the starter bundle's samples: gains, whether the highest level and the cloud are right; its price."""
    bundle = Bundle.open(BUNDLE)
    manifest = bundle.manifest
    assert manifest.samples is not None
    samples, gates, family = bundle.arrays(manifest.samples), Gates(bundle), Family(bundle)
    top = len(manifest.levels)
    model = OnnxModel(bundle.read(manifest.cloud.files[0]), "cloud")
    gains, device, cloud = [], [], []
    for image, label in zip(samples["images"][:, None], samples["labels"], strict=True):
        answer = family.run(top, Activations({"image": image}))
        after = gates.after(answer, top, gates.before({"image": image}))
        gains.append(float(after[0, -1] - after[0, top - 1]))
        device.append(bool(answer.argmax() == label))
        cloud.append(bool(model.run({"image": image}, ["probabilities"])[0].argmax() == label))
    return gains, device, cloud, manifest.multiplexer.defer[top - 1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--repeats", type=int, default=20_000)
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    timed, spent, on_bundle = decisions(options.repeats), streams(options.inputs), bundle_accuracy()
    if options.json:
        print(json.dumps({"hardware": hardware(), "decisions": timed, "streams": spent, "bundle": on_bundle}))
        return
    print(f"hardware: {hardware()}")
    print(f"{'policy':<24}{'case':<38}{'p50 us':>8}{'p99 us':>8}")
    for row in timed:
        print(f"{row['policy']:<24}{row['case']:<38}{row['p50_us']:>8.1f}{row['p99_us']:>8.1f}")
    ours = max(row["p99_us"] for row in timed if row["policy"] == "expected-gain")
    print(f"the policy's worst p99: {ours:.1f} us, goal {GOAL_US}: {'met' if ours <= GOAL_US else 'MISSED'}")
    print(f"{'gains':<10}{'burst':>7}{'spent':>9}{'first come':>12}{'gained':>9}{'first come':>12}{'hindsight':>11}")
    for row in spent:
        print(
            f"{row['gains']:<10}{row['burst_s']:>5.0f} s{row['toll_spent']:>9.1%}{row['first_come_spent']:>12.1%}"
            f"{row['toll_points']:>9.2f}{row['first_come_points']:>12.2f}{row['best_points']:>11.2f}"
        )
    print(f"{'allowed':<10}" + "".join(f"{way:>26}" for way in on_bundle[0] if way != "allowed"))
    for row in on_bundle:
        cells = [f"{v['accuracy']:.2%} at {v['offloaded']:.1%}" for k, v in row.items() if k != "allowed"]
        print(f"{row['allowed']:<10.0%}" + "".join(f"{cell:>26}" for cell in cells))


if __name__ == "__main__":
    main()
