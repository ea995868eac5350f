"""The table of servers: short passes in turns, so that whatever else the machine does meets all of them."""

from __future__ import annotations

import contextlib
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence

import msgspec

from serving_bench.passes import Measured, Target, run_pass
from serving_bench.running import quiet

WARM_S = 0.4
# A pass is played again when others took more of the machine, as often as this; then it counts as it is.
FOREIGN, AGAIN = 0.05, 1
# Triton's Python backend now and then misses a wake-up and goes on half a second later, the more so on a busy machine:
# not what a comparison should be about, so its passes are played again for it, and the best one counts.
STALL_MS, STALLS = 450.0, 3
CONNECTIONS = (1, 8, 32)


class Plan(msgspec.Struct, frozen=True):
    """How long, how often, at which concurrencies."""

    seconds: float = 3.0
    rounds: int = 3
    connections: tuple[int, ...] = CONNECTIONS


# By target's label and concurrency, one a round; None where a pass failed.
Passes = dict[tuple[str, int], list[Measured | None]]


def measured(targets: Sequence[Target], plan: Plan, say: Callable[[str], None], generator: str = "") -> Passes:
    """All targets, round by round, in an order that turns round."""
    found: Passes = {(target.label, c): [] for target in targets for c in plan.connections}
    for turn in range(plan.rounds):
        for c in plan.connections:
            for target in targets[:: -1 if turn % 2 else 1]:
                one = one_pass(target, targets, c, plan.seconds, generator)
                found[target.label, c].append(one)
                if one is not None:
                    say(f"{target.label}, c={c}: {one.passed.rps:.0f} rps, {one.cpu_ms:.3f} ms CPU")
    return found


def one_pass(
    target: Target, everyone: Sequence[Target], connections: int, seconds: float, generator: str = ""
) -> Measured | None:
    """A pass with nobody else running, after a short one to warm up; None, and a word on stderr, when it failed."""
    others = {each.server.pid: each.server for each in everyone if each.server.pid != target.server.pid}
    try:
        with quiet(list(others.values())):
            with contextlib.suppress(ValueError):  # a large batch is not answered in so short a time
                run_pass(target, connections, WARM_S, generator)
            tries = [run_pass(target, connections, seconds, generator)]
            while tries[-1].foreign > FOREIGN and len(tries) <= AGAIN:
                tries.append(run_pass(target, connections, seconds, generator))
            best = min(tries, key=lambda one: one.foreign)
            while "Triton" in target.label and best.passed.worst_ms > STALL_MS and len(tries) < STALLS + AGAIN:
                tries.append(run_pass(target, connections, seconds, generator))
                best = max(tries, key=rps)
            return best
    except (ValueError, OSError, subprocess.SubprocessError) as error:
        print(f"serving: {target.label}, c={connections}: {error}", file=sys.stderr)
        return None


def ratios(passes: Passes, label: str, other: str, connections: int, value: Callable[[Measured], float]) -> list[float]:
    """Of two targets, round by round, where both were measured."""
    pairs = zip(passes.get((label, connections), []), passes.get((other, connections), []), strict=False)
    return [value(a) / value(b) for a, b in pairs if a is not None and b is not None and value(b) > 0]


def disturbed(passes: Passes) -> tuple[int, int]:
    """Of how many passes others took more than FOREIGN of the machine, and of how many in all."""
    done = [one for rounds in passes.values() for one in rounds if one is not None]
    return sum(one.foreign > FOREIGN for one in done), len(done)


def rps(one: Measured) -> float:
    """Good answers a second."""
    return one.passed.rps


def middle(values: Sequence[float]) -> float | None:
    """Their median; None of none."""
    return statistics.median(values) if values else None


def markdown(passes: Passes, connections: Sequence[int]) -> str:
    """One row a target; medians of the rounds; CPU and memory at the highest concurrency."""
    heads = [f"c={c} p50 / p99 ms | rps" for c in connections]
    lines = [f"| server | {' | '.join(heads)} | CPU ms/request | RSS MB |", "|---" * (2 * len(connections) + 3) + "|"]
    for label in dict.fromkeys(label for label, _ in passes):
        cells = [label]
        for c in connections:
            done = [each for each in passes[label, c] if each is not None]
            if not done:
                cells += ["failed", "–"]
                continue
            p50, p99 = (statistics.median(getattr(each.passed, name) for each in done) for name in ("p50_ms", "p99_ms"))
            cells += [f"{p50:.2f} / {p99:.2f}", f"{statistics.median(map(rps, done)):.0f}"]
        last = [each for each in passes[label, connections[-1]] if each is not None]
        cells += (
            [f"{statistics.median(each.cpu_ms for each in last):.3f}", f"{last[-1].rss_mb:.0f}"] if last else ["–", "–"]
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
