"""Several applications under a CPU quota and a memory bound that change: the scheduler, and what it is compared with.

    python benchmarks/dynamic_resources.py [--applications 2 4] [--step SECONDS] [--json]

Each application is the starter bundle's family, every channel eight times over (Net2Net: Chen, Goodfellow and
Shlens 2016): the same answers at 64 times the work and bytes, so that the CPU is scarce. Inputs are the bundle's test
images, in an open loop with Poisson arrivals: whoever is slow gets them all the same. An input is answered in time
within the latency that its application wants, from its arrival on. A trace sets the CPU quota of the process (cgroup
v1, 10 ms period; where that is not permitted, competing load on the same core) and the bound for the weights of all
loaded levels. Rates are set so that the top levels of all would just keep the largest quota busy.

Compared: the agent with MinTotalCost and with MinMaxCost; and, resource-agnostic, one fixed level each, fixed before:
the plan for the mean quota and mean bound (which no such system knows), and the largest; the levels in turn; and the
largest that fits an equal share of CPU and memory, each application for itself. Energy is a proxy: 1 W for each CPU
second of the process, the load generator's included.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from edgemux.edge import Agent, ApplicationSettings, EdgeConfig, open_agents
from edgemux.edge.budget import Readings
from edgemux.edge.config import LimitSettings
from edgemux.edge.pager import Pager
from edgemux.edge.scheduler import Application, Device, Level, SchedulerSettings, plan_for
from edgemux.edge.variants import give_back
from edgemux.multiplexer.bundle import Bundle, seal
from edgemux.multiplexer.domain import Accept, Case, Decision, Placement, Reason, Run, Shed
from edgemux.multiplexer.errors import EdgemuxError

BUNDLE = Path(__file__).parents[1] / "deploy" / "bundles" / "fashion-mnist"
FACTOR = 8
CORE = min(os.sched_getaffinity(0))
# (CPU quota as a share of a core, memory bound as a share of all levels of all applications), a step each.
TRACE = ((0.9, 1.0), (0.35, 1.0), (0.6, 0.45), (0.25, 1.0), (0.9, 0.2), (0.5, 0.7))
# Wanted latency in seconds, rate and weight relative to the others'.
WANTED = {
    2: ((0.15, 2.0, 1.0), (0.5, 1.0, 1.0)),
    4: ((0.15, 2.0, 1.0), (0.5, 1.0, 1.0), (0.3, 1.0, 2.0), (0.8, 0.5, 0.5)),
}
COMPUTE_SHARE = 0.75
# CPU seconds of an input beside its model's: gates, policy, metrics, hand-over to the thread, load generator.
OWN_S = 0.004
SCHEMES = {
    "total": "scheduler, MinTotalCost",
    "max": "scheduler, MinMaxCost",
    "fixed-mean": "fixed, planned for the means",
    "fixed-largest": "fixed, the largest",
    "round-robin": "levels in turn",
    "largest-fitting": "largest that fits, equal shares",
}
TICK_S = 0.1


# --- the heavier family -------------------------------------------------------------------------------------------
def widened(content: bytes, factor: int) -> bytes:
    """A delta of the starter bundle with every channel ``factor`` times over: the same answers, more work."""
    import onnx
    from onnx import numpy_helper

    model = onnx.load_from_string(content)
    graph = model.graph
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    made_by = {node.output[0]: node for node in graph.node}

    def stored(name: str) -> tuple[str, str]:
        """The int8 weights and the scales that are multiplied to make a tensor."""
        integers, scales = made_by[name].input
        return made_by[integers].input[0], scales

    for node in graph.node:
        if node.op_type not in ("Conv", "Gemm"):
            continue
        integers, scales = stored(node.input[1])
        from_image = made_by[node.input[0]].op_type == "Unsqueeze" if node.input[0] in made_by else False
        if node.op_type == "Conv":
            for name in (integers, scales, node.input[2]):
                weights[name] = np.repeat(weights[name], factor, axis=0)
        if not from_image:
            weights[integers] = np.repeat(weights[integers], factor, axis=1)
            weights[scales] = weights[scales] / np.float32(factor)
    for tensor in graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(weights[tensor.name], tensor.name))
    for value in (*graph.input, *graph.output):
        if value.name not in ("image", "probabilities"):
            value.type.tensor_type.shape.dim[1].dim_value *= factor
    del graph.value_info[:]
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


def write_bundle(folder: Path) -> None:
    """The starter bundle with a widened family; its own golden answers check it when it is opened."""
    bundle = Bundle.open(BUNDLE)
    manifest = bundle.manifest
    deltas = {level.files[-1] for level in manifest.levels}
    for file in manifest.files:
        content = bundle.read(file.path)
        (folder / file.path).write_bytes(widened(content, FACTOR) if file.path in deltas else content)
    seal(folder, manifest)


# --- what limits the process --------------------------------------------------------------------------------------
class Quota:
    """The CPU quota of a process: a control group of version 1 where that is permitted, else competing load."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._group = Path("/sys/fs/cgroup/cpu") / f"edgemux-{os.getpid()}"
        self._burners: list[subprocess.Popen[bytes]] = []
        try:
            self._group.mkdir()
            (self._group / "cpu.cfs_period_us").write_text("10000")
            # Whatever else runs on this machine must not decide who wins: the quota is to be had.
            (self._group / "cpu.shares").write_text("262144")
            (self._group / "cgroup.procs").write_text(str(pid))
            self.how = "cgroup quota, 10 ms period"
        except OSError:
            self.how = "competing load on the same core"
            for task in os.listdir(f"/proc/{pid}/task"):
                os.sched_setaffinity(int(task), {CORE})

    def set(self, share: float) -> None:
        """From now on."""
        if self.how.startswith("cgroup"):
            (self._group / "cpu.cfs_quota_us").write_text(str(round(share * 10_000)))
            return
        wanted = max(0, round(1 / share) - 1)
        while len(self._burners) > wanted:
            self._end(self._burners.pop())
        while len(self._burners) < wanted:
            self._burners.append(
                subprocess.Popen(["taskset", "-c", str(CORE), sys.executable, "-c", "while True: pass"])
            )

    @staticmethod
    def _end(burner: subprocess.Popen[bytes]) -> None:
        burner.kill()
        burner.wait()

    def close(self) -> None:
        """Take it off again."""
        for burner in self._burners:
            self._end(burner)
        if self.how.startswith("cgroup"):
            with contextlib.suppress(OSError):
                self._group.rmdir()


# --- the baselines, which look at nothing -------------------------------------------------------------------------
class Dictated:
    """A policy that runs the level it is told, whatever there is: no look at budgets, deadlines or what waits."""

    def __init__(self, level: Callable[[], int]) -> None:
        self._level = level

    def __call__(self, case: Case) -> Decision:
        """Decide."""
        if case.held is not None:
            return Accept(case.held, Reason.CONFIDENT)
        if case.failure is not None or case.budget.latency_s <= 0:
            return Shed(case.failure or Reason.EXPIRED)
        level = self._level()
        device = [each.route for each in case.candidates if each.route.placement is Placement.EDGE]
        return Run(device[level - 1], case.budget.latency_s, Reason.CONFIDENT)


def taking_turns(levels: int) -> Callable[[], int]:
    """The levels in turn, one input each."""
    turn = iter(range(10**9))
    return lambda: next(turn) % levels + 1


# --- one run, in a process of its own -----------------------------------------------------------------------------
class Course(msgspec.Struct):
    """What one application saw: (scheduled arrival, elapsed or None, right) an input."""

    seen: list[tuple[float, float | None, bool]] = []


async def measured(folder: Path, count: int, scheme: str, step_s: float, top_s: float) -> dict[str, Any]:
    """Serve the trace; the parent sets the quota when it reads "begin"."""
    wanted = WANTED[count]
    settings = tuple(
        ApplicationSettings(folder, name=f"app-{n}", latency_s=latency, weight=weight)
        for n, (latency, _, weight) in enumerate(wanted, start=1)
    )
    limits = LimitSettings(compute_share=COMPUTE_SHARE)
    config = EdgeConfig(
        applications=settings, limits=limits, scheduler=SchedulerSettings(scheme="off"), audit_share=0.0
    )
    async with open_agents(config) as opened:
        agents = list(opened.values())
        costs = [estimate.mean_s for estimate in agents[0].device.compute]
        rate = TRACE[0][0] * COMPUTE_SHARE / (top_s + OWN_S) / sum(rate for _, rate, _ in wanted)
        rates = [rate * share for _, share, _ in wanted]
        sizes = agents[0].family.bytes_of
        bounds = [share * count * sizes[len(sizes)] for _, share in TRACE]
        alone(agents[0])
        control = controlled(scheme, agents, settings, rates, costs, bounds)
        print("begin", flush=True)
        sys.stdin.readline()
        began = time.monotonic()
        cpu = cpu_seconds()
        runs = [Course([]) for _ in agents]
        over: list[bool] = []
        ticking = asyncio.create_task(ticked(control, agents, bounds, began, step_s, over))
        until_s = step_s * len(TRACE)
        latencies = [latency for latency, _, _ in wanted]
        offers = zip(agents, runs, rates, latencies, range(count), strict=True)
        await asyncio.gather(
            *(offered(agent, run, rate, latency, began, until_s, seed) for agent, run, rate, latency, seed in offers)
        )
        ticking.cancel()
        await asyncio.gather(ticking, return_exceptions=True)
        used = cpu_seconds() - cpu
        value = agents[0].metrics.registry.get_sample_value
        starting = sum(load.bytes for agent in agents for load in agent.family.loads)
        paged = sum(value("edgemux_paged_bytes_total", {"model": agent.manifest.name}) or 0 for agent in agents)
        return summary(runs, latencies, [weight for _, _, weight in wanted], step_s) | {
            "cpu_s": used,
            "levels": levels_used(agents),
            "paged_bytes": paged - starting,
            "switches": (value("edgemux_level_switch_seconds_count") or 0) - len(sizes) * count,
            "switch_s": (value("edgemux_level_switch_seconds_sum") or 0)
            - sum(load.seconds for agent in agents for load in agent.family.loads),
            "over_bound": sum(over) / max(1, len(over)),
            "own_ms": 1e3 * (used - sum(agent.device.spent_s for agent in agents)) / sum(len(run.seen) for run in runs),
            "costs_ms": [1e3 * cost for cost in costs],
            "rates": rates,
        }


def alone(agent: Agent) -> None:
    """Have the sensors say nothing of what else runs on this machine, before which the process comes by its shares."""
    inner = agent.sampler.refresh

    def refreshed(now_s: float) -> Readings:
        seen = inner(now_s)
        if seen.cpu_quota is not None:
            seen = msgspec.structs.replace(seen, cpu_others=0.0)
        agent.sampler.latest = seen
        return seen

    agent.sampler.refresh = refreshed  # type: ignore[method-assign]


def controlled(
    scheme: str,
    agents: Sequence[Agent],
    settings: Sequence[ApplicationSettings],
    rates: Sequence[float],
    costs: Sequence[float],
    bounds: Sequence[float],
) -> Callable[[float, float], Any]:
    """Put a scheme in charge; returns what is called ten times a second with the time and the memory bound."""
    if scheme in ("total", "max"):
        pager = Pager(agents, settings, LimitSettings(compute_share=COMPUTE_SHARE), SchedulerSettings(scheme=scheme))  # type: ignore[arg-type]

        async def planned(now_s: float, bound: float) -> None:
            pager.memory_bytes = bound
            pager.tick(now_s)

        return planned
    sizes, levels = agents[0].family.bytes_of, len(costs)
    chosen = [levels] * len(agents)
    if scheme == "fixed-mean":
        mean = Device(COMPUTE_SHARE * sum(q for q, _ in TRACE) / len(TRACE), sum(bounds) / len(bounds))
        family = tuple(
            Level(level.accuracy, cost, sizes[level.level])
            for level, cost in zip(agents[0].manifest.levels, costs, strict=True)
        )
        asked = [
            Application(family, rate, 1.0, each.latency_s, each.weight)
            for rate, each in zip(rates, settings, strict=True)
        ]
        chosen = list(plan_for(asked, mean, "total", SchedulerSettings().alpha).levels)
    for number, agent in enumerate(agents):
        policy = Dictated(taking_turns(levels) if scheme == "round-robin" else lambda n=number: chosen[n])  # type: ignore[misc]
        agent._policy = policy
        agent.slack = float("inf")
        if scheme == "fixed-mean":
            agent.family.lower_to(chosen[number])

    async def fitted(now_s: float, bound: float) -> None:
        quota = agents[0].sampler.latest
        share = min(1.0, quota.cpu_quota or 1.0, 1.0 - (quota.cpu_others or 0.0)) * COMPUTE_SHARE / len(agents)
        for number, agent in enumerate(agents):
            fits = [
                level
                for level, cost in enumerate(costs, start=1)
                if cost * agent.rate.per_s(now_s) <= share and sizes[level] <= bound / len(agents)
            ]
            chosen[number] = max(fits, default=1)
            agent.family.lower_to(chosen[number])
            for load in await asyncio.to_thread(agent.family.raise_to, chosen[number]):
                agent.metrics.paged(load.seconds, load.bytes)

    async def idle(now_s: float, bound: float) -> None:
        return

    return fitted if scheme == "largest-fitting" else idle


async def ticked(
    control: Callable[[float, float], Any],
    agents: Sequence[Agent],
    bounds: Sequence[float],
    began_s: float,
    step_s: float,
    over: list[bool],
) -> None:
    """Call the scheme's control, and look whether what is loaded is within the bound, once it had time to react."""
    while True:
        now = time.monotonic()
        at = min(len(bounds) - 1, int((now - began_s) / step_s))
        over.append(sum(agent.family.bytes_of[agent.family.resident] for agent in agents) > bounds[at])
        await control(now, bounds[at])
        await asyncio.sleep(TICK_S)


async def offered(
    agent: Agent, run: Course, rate: float, latency_s: float, began_s: float, until_s: float, seed: int
) -> None:
    """Poisson arrivals of test images; each is asked when its time has come, whatever became of those before."""
    bundle = Bundle.open(BUNDLE)
    assert bundle.manifest.samples is not None
    samples = bundle.arrays(bundle.manifest.samples)
    images, labels = samples["images"], samples["labels"]
    chance = random.Random(seed)
    waiting = set()
    at = 0.0

    async def ask(arrival_s: float, which: int) -> None:
        left_s = latency_s - (time.monotonic() - arrival_s)
        elapsed, right = None, False
        if left_s > 0:
            with contextlib.suppress(EdgemuxError):
                (answer,) = await agent.infer({"image": images[which : which + 1]}, left_s)
                elapsed = time.monotonic() - arrival_s
                right = bool(answer.prediction.label == labels[which])
        run.seen.append((arrival_s - began_s, elapsed, right))

    while True:
        at += chance.expovariate(rate)
        if at >= until_s:
            break
        pause = began_s + at - time.monotonic()
        if pause > 0:
            await asyncio.sleep(pause)
        task = asyncio.create_task(ask(began_s + at, chance.randrange(len(images))))
        waiting.add(task)
        task.add_done_callback(waiting.discard)
    await asyncio.gather(*waiting)


def summary(
    runs: Sequence[Course], latencies: Sequence[float], weights: Sequence[float], step_s: float
) -> dict[str, Any]:
    """Means over applications by weight, and what all together answered in time; also by step of the trace."""
    shares, rights, answered = [], [], 0
    steps = np.zeros((len(TRACE), 2))
    for run, latency in zip(runs, latencies, strict=True):
        for arrival, elapsed, _ in run.seen:
            steps[int(arrival / step_s)] += (1, elapsed is None or elapsed > latency)
        timely = [right for _, elapsed, right in run.seen if elapsed is not None and elapsed <= latency]
        answered += len(timely)
        shares.append(len(timely) / len(run.seen))
        rights.append(sum(timely) / len(run.seen))
    inputs = sum(len(run.seen) for run in runs)
    total = sum(weights)
    in_time = sum(weight * share for weight, share in zip(weights, shares, strict=True)) / total
    right = sum(weight * share for weight, share in zip(weights, rights, strict=True)) / total
    return {
        "inputs": inputs,
        "answered_per_s": answered / (step_s * len(TRACE)),
        "missed": 1 - answered / inputs,
        "accuracy_of_answers": right / in_time if in_time else 0.0,
        "right_in_time": right,
        "right_in_time_worst": min(rights),
        "answered": answered,
        "missed_by_step": (steps[:, 1] / np.maximum(1, steps[:, 0])).round(4).tolist(),
    }


def levels_used(agents: Sequence[Agent]) -> list[float]:
    """The mean level that answered, of each application."""
    found = []
    for agent in agents:
        counts = np.zeros(len(agent.family.routes))
        for family in agent.metrics.registry.collect():
            if family.name != "edgemux_requests":
                continue
            for sample in family.samples:
                names = [route.variant for route in agent.family.routes]
                if sample.name.endswith("_total") and sample.labels["model"] == agent.manifest.name:
                    counts[names.index(sample.labels["variant"])] += sample.value
        found.append(float(counts @ np.arange(1, len(counts) + 1) / max(1, counts.sum())))
    return found


def cpu_seconds() -> float:
    """CPU time of this process."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


# --- what memory does ---------------------------------------------------------------------------------------------
def private_bytes() -> int:
    """Private_Dirty of this process."""
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith("Private_Dirty:"):
            return 1024 * int(line.split()[1])
    return 0


async def memory(folder: Path) -> dict[str, Any]:
    """Private memory with all levels, with the first alone, and after many changes."""
    config = EdgeConfig(
        applications=(ApplicationSettings(folder, name="app"),),
        scheduler=SchedulerSettings(scheme="off"),
        sensors=(),
        audit_share=0.0,
    )
    image = Bundle.open(BUNDLE).arrays("samples.npz")["images"][:1]
    async with open_agents(config) as opened:
        family = opened["app"].family
        top = family.resident

        async def at(level: int) -> int:
            family.lower_to(level)
            give_back()
            family.raise_to(level)
            give_back()
            for _ in range(3):
                await opened["app"].infer({"image": image}, 10.0)
            gc.collect()
            return private_bytes()

        whole, first, again = await at(top), await at(1), await at(top)
        for _ in range(20):
            await at(1), await at(top)
        return {
            "files": family.bytes_of[top],
            "files_first": family.bytes_of[1],
            "whole": whole,
            "first": first,
            "again": again,
            "after_20_changes": await at(top),
        }


# --- the parent ---------------------------------------------------------------------------------------------------
async def calibrated(folder: Path) -> float:
    """CPU seconds of the top level, measured once: all schemes get the same inputs at the same times."""
    config = EdgeConfig(bundle=folder, scheduler=SchedulerSettings(scheme="off"), sensors=(), audit_share=0.0)
    async with open_agents(config) as opened:
        return next(iter(opened.values())).device.compute[-1].mean_s


def served(folder: Path, count: int, scheme: str, step_s: float, top_s: float) -> dict[str, Any]:
    """One run in a process of its own, under the trace's quotas."""
    command = [sys.executable, __file__, "--worker", str(folder), str(count), scheme]
    command += [str(step_s), str(top_s)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        try:
            if process.stdout.readline().strip() != "begin":
                raise RuntimeError("the worker did not start")
            quota = Quota(process.pid)
            try:
                process.stdin.write("\n")
                process.stdin.flush()
                began = time.monotonic()
                for number, (share, _) in enumerate(TRACE):
                    quota.set(share)
                    time.sleep(max(0.0, began + (number + 1) * step_s - time.monotonic()))
                quota.set(1.0)
                line = process.stdout.readline()
                process.wait()
            finally:
                quota.close()
            return json.loads(line) | {"how": quota.how}
        finally:
            process.kill()


def shown(count: int, found: dict[str, dict[str, Any]], step_s: float) -> Iterator[str]:
    """The table of one number of applications, and the claims beside it."""
    first = next(iter(found.values()))
    yield (
        f"{count} applications, {first['inputs'] / (step_s * len(TRACE)):.0f} inputs a second; "
        f"levels take {' / '.join(f'{ms:.1f}' for ms in first['costs_ms'])} ms of CPU"
    )
    yield (
        f"{'':<34}{'right in time':>14}{'worst app':>11}{'of answers':>11}{'in time/s':>11}{'missed':>8}"
        f"{'mJ/answer':>11}{'levels':>20}{'over bound':>12}{'paged':>24}"
    )
    for scheme, row in found.items():
        levels = "/".join(f"{level:.1f}" for level in row["levels"])
        paged = f"{row['switches']:.0f}x {1e3 * row['switch_s']:.0f} ms {row['paged_bytes'] / 1e6:.1f} MB"
        yield (
            f"{SCHEMES[scheme]:<34}{row['right_in_time']:>13.1%} {row['right_in_time_worst']:>10.1%}"
            f"{row['accuracy_of_answers']:>11.1%}{row['answered_per_s']:>11.1f}{row['missed']:>8.1%}"
            f"{1e3 * row['cpu_s'] / max(1, row['answered']):>11.1f}{levels:>20}{row['over_bound']:>12.0%}{paged:>24}"
        )
    ours = found.get("total")
    for scheme in ("fixed-mean", "fixed-largest"):
        fixed = found.get(scheme)
        if ours is None or fixed is None:
            continue
        per_answer = [row["cpu_s"] / max(1, row["answered"]) for row in (fixed, ours)]
        yield (
            f"MinTotalCost against {SCHEMES[scheme]}: accuracy of answers "
            f"{100 * (ours['accuracy_of_answers'] - fixed['accuracy_of_answers']):+.1f} points, right in time "
            f"{100 * (ours['right_in_time'] - fixed['right_in_time']):+.1f} points, frame rate "
            f"{ours['answered_per_s'] / max(1e-9, fixed['answered_per_s']):.2f}x, energy an answer "
            f"{per_answer[0] / per_answer[1]:.2f}x less (NestDNN: +4.2 %, 2.0x, 1.7x)"
        )


def main() -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--applications", type=int, nargs="+", default=[2, 4], choices=sorted(WANTED))
    parser.add_argument("--schemes", nargs="+", default=list(SCHEMES), choices=list(SCHEMES))
    parser.add_argument("--step", type=float, default=2.0, help="seconds of each step of the trace")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--worker", nargs=5, help=argparse.SUPPRESS)
    parser.add_argument("--memory", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        folder, count, scheme, step, top = options.worker
        print(json.dumps(asyncio.run(measured(Path(folder), int(count), scheme, float(step), float(top)))))
        return
    if options.memory:
        print(json.dumps(asyncio.run(memory(Path(options.memory)))))
        return
    from edgemux.compression.hardware import hardware

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_bundle(folder)
        top_s = asyncio.run(calibrated(folder))
        found = {
            count: {scheme: served(folder, count, scheme, options.step, top_s) for scheme in options.schemes}
            for count in options.applications
        }
        command = [sys.executable, __file__, "--memory", place]
        kept = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    how = next(iter(next(iter(found.values())).values()))["how"]
    where = f"CPU-limited x86: {hardware()}; {how}"
    if options.json:
        print(json.dumps({"hardware": where, "runs": found, "memory": kept}))
        return
    print(f"hardware: {where}")
    for count, rows in found.items():
        print(*shown(count, rows, options.step), sep="\n")
    print(
        f"private memory of one application: {kept['whole'] / 1e6:.1f} MB with all levels "
        f"({kept['files'] / 1e6:.2f} MB of files), {kept['first'] / 1e6:.1f} with the first alone "
        f"({kept['files_first'] / 1e6:.2f}), {kept['again'] / 1e6:.1f} with all again, "
        f"{kept['after_20_changes'] / 1e6:.1f} after 20 changes"
    )


if __name__ == "__main__":
    main()
