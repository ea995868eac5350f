"""Which level each application gets, and which share of the CPU. Pure: values in, a plan out, time passed in.

After NestDNN (Fang, Zeng and Zhang 2018, "NestDNN: Resource-aware multi-tenant on-device deep learning for continuous
mobile vision"): every application has a level of its nested family and a share of the CPU; what it falls short of in
accuracy and in processing time is its cost, and the sum of costs (MinTotalCost) or the largest of them (MinMaxCost) is
made as small as the CPU and the memory allow. NestDNN searches greedily; here a plan is the best there is on a grid of
shares. Ours, too: inputs come at a rate, and a level runs only where its share does the work of all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Scheme = Literal["total", "max", "off"]

# The CPU is handed out in so many steps, or two for each application where there are many.
STEPS = 32
# An input that takes ten times the wanted time is as bad as one that takes longer.
MOST_LATE = 10.0
# Different sums of memory that are told apart; beyond, sums are rounded up to as many.
MOST_SUMS = 32
_ROUNDING = 1e-9
# A change that gains less than this is none. Chosen: a fifth of a point of accuracy of one application of weight 1.
LEAST_GAIN = 0.002
# Rates are estimates: a level is raised only if there would still be room for a tenth more inputs.
HEADROOM = 1.1


class SchedulerSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """scheme: "total" makes the sum of what applications fall short of small, "max" the largest; "off" plans once.

    alpha: what a processing time of twice the wanted one costs, in accuracy. settle_s: for how long a raise has to
    gain, without a break, until it is made; lowering is not waited for.
    """

    scheme: Scheme = "total"
    alpha: float = 0.1
    settle_s: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.alpha < math.inf:
            raise ValueError("alpha must be finite and not negative")
        if not 0 <= self.settle_s <= 3600:
            raise ValueError("settle_s must be from 0 to 3600")


class Level(msgspec.Struct, frozen=True):
    """accuracy: share of right answers. compute_s: CPU seconds an input. bytes: of its weights and those below it.

    load_s: what paging in its delta takes.
    """

    accuracy: float
    compute_s: float
    bytes: float
    load_s: float = 0.0


class Application(msgspec.Struct, frozen=True):
    """Levels by rising number; inputs a second; the accuracy and processing time that are wanted; its weight."""

    levels: tuple[Level, ...]
    rate_per_s: float = 0.0
    accuracy: float = 1.0
    latency_s: float = 0.1
    weight: float = 1.0


class Device(msgspec.Struct, frozen=True):
    """What there is for all: CPU as a share of one core, and bytes for the weights of all resident levels."""

    cpu: float
    memory_bytes: float = math.inf


class Allotment(msgspec.Struct, frozen=True):
    """What one application gets: the highest level that it may run, from 1, and its share of the device's CPU, of 1."""

    level: int
    share: float


class Plan(msgspec.Struct, frozen=True):
    """An allotment for each application, and what it costs: the total, or the largest."""

    allotments: tuple[Allotment, ...]
    cost: float

    @property
    def levels(self) -> tuple[int, ...]:
        """The level of each application."""
        return tuple(allotment.level for allotment in self.allotments)


Range = tuple[int, int]


def cost(application: Application, number: int, cpu: float | Floats, alpha: float) -> Any:
    """What an application falls short of at a level on ``cpu`` of a core: weight * (accuracy + alpha * lateness).

    What cannot be computed is not right: more inputs than the share does the work of lower the accuracy. Lateness is
    by how much the processing time, compute over share, exceeds the wanted one, relative to that.
    """
    level = application.levels[number - 1]
    with np.errstate(divide="ignore", invalid="ignore"):
        served = np.minimum(1.0, np.divide(cpu, max(level.compute_s * application.rate_per_s, 1e-12)))
        time_s = np.divide(max(level.compute_s, 1e-12), cpu)
    short = np.maximum(0.0, application.accuracy - level.accuracy * served)
    late = np.clip(time_s / application.latency_s - 1.0, 0.0, MOST_LATE)
    return application.weight * (short + alpha * late)


def memory_of(applications: Sequence[Application], levels: Sequence[int]) -> float:
    """Bytes of all levels that are resident under a plan."""
    return sum(application.levels[level - 1].bytes for application, level in zip(applications, levels, strict=True))


def fits(applications: Sequence[Application], device: Device, plan: Plan) -> bool:
    """Whether a plan holds the memory, and each level above the first does the work of all of its inputs.

    The smallest level of an application is exempt: the device always has an answer.
    """
    if any(level > 1 for level in plan.levels) and memory_of(applications, plan.levels) > device.memory_bytes:
        return False
    return all(
        allotment.level == 1
        or _work(application, allotment.level) <= allotment.share * device.cpu * (1 + 1e-6) + _ROUNDING
        for application, allotment in zip(applications, plan.allotments, strict=True)
    )


def _work(application: Application, level: int) -> float:
    return application.levels[level - 1].compute_s * application.rate_per_s


def plan_for(
    applications: Sequence[Application],
    device: Device,
    scheme: Scheme,
    alpha: float,
    ranges: Sequence[Range] | None = None,
    strict: bool = True,
    steps: int = STEPS,
) -> Plan:
    """The cheapest plan on the grid of shares, levels within ``ranges`` (lowest and highest; default: all of them).

    strict: levels above the first run only where their share does the work of all inputs; otherwise what is not
    computed is a matter of cost. Where not even the smallest levels fit the memory, they are the plan.
    """
    steps = max(steps, 2 * len(applications))
    spans = list(ranges or [(1, len(application.levels)) for application in applications])
    smallest = [low for low, _ in spans]
    if memory_of(applications, smallest) > device.memory_bytes:
        spans = [(low, low) for low in smallest]
        device = Device(device.cpu)
    grid = np.arange(steps + 1) / steps * device.cpu
    costs = [_costs(app, span, grid, alpha, strict) for app, span in zip(applications, spans, strict=True)]
    if scheme == "max":
        fairest = _search(applications, spans, costs, device, np.maximum)
        largest = fairest.cost
        # Nobody gets worse than the worst has to be; among such plans the cheapest in total.
        costs = [np.where(rows > largest + _ROUNDING, math.inf, rows) for rows in costs]
        cheapest = _search(applications, spans, costs, device, np.add)
        if cheapest.cost < math.inf:  # sums of memory may have been rounded in another way
            return msgspec.structs.replace(cheapest, cost=largest)
        return fairest
    return _search(applications, spans, costs, device, np.add)


def _costs(application: Application, span: Range, grid: Floats, alpha: float, strict: bool) -> Floats:
    """[L, S + 1]: what each level of the span costs with 0, 1, ... steps of the CPU; infinite where it must not run."""
    rows = []
    for number in range(span[0], span[1] + 1):
        row = np.asarray(cost(application, number, grid, alpha), dtype=np.float64).copy()
        row[0] = math.inf
        if strict and number > 1:
            row[_work(application, number) > grid + _ROUNDING] = math.inf
        rows.append(row)
    return np.stack(rows)


class _Front(msgspec.Struct):
    """The best so far: for each sum of memory [R] and steps used at most [S + 1], the cost and how it came about."""

    sums: Floats
    best: Floats
    came: NDArray[np.int32]  # [R, S + 1, 3]: row of the front before, level as an index into its span, steps


def _search(
    applications: Sequence[Application],
    spans: Sequence[Range],
    costs: Sequence[Floats],
    device: Device,
    join: Callable[..., Any],
) -> Plan:
    """Dynamic programming over applications; a state is the memory and the steps used so far."""
    size = len(costs[0][0])
    bounded = memory_of(applications, [high for _, high in spans]) > device.memory_bytes
    taken = [
        np.array([level.bytes if bounded else 0.0 for level in application.levels[low - 1 : high]])
        for application, (low, high) in zip(applications, spans, strict=True)
    ]
    front = _Front(np.zeros(1), np.zeros((1, size)), np.zeros((1, size, 3), np.int32))
    fronts = [front]
    for at, rows in enumerate(costs):
        room = device.memory_bytes - sum(own[0] for own in taken[at + 1 :])
        front = _merged(_extended(front, rows, taken[at], room, join), room)
        fronts.append(front)
    return _traced(fronts, spans)


def _extended(front: _Front, costs: Floats, taken: Floats, room: float, join: Callable[..., Any]) -> _Front:
    """The front with one more application at each of its levels: for every number of steps, the best split of them.

    ``costs`` [L, S + 1] by level and steps of the application; ``taken`` [L] bytes by level. Rows by rising level.
    """
    # More steps than it takes to reach the lowest cost of any level are never better.
    useful = int(costs.argmin(axis=1).max()) + 1
    used, own = np.mgrid[: costs.shape[1], :useful]
    padded = np.concatenate([front.best, np.full((len(front.best), 1), math.inf)], axis=1)
    before = padded[:, np.where(used >= own, used - own, -1)]
    joined = join(before[None], costs[:, None, None, :useful])  # [L, R, S + 1, useful]
    steps = joined.argmin(axis=3)
    best = np.take_along_axis(joined, steps[..., None], axis=3)[..., 0]
    came = np.empty((*best.shape, 3), np.int32)
    came[..., 0] = np.arange(len(front.best))[None, :, None]
    came[..., 1] = np.arange(len(costs))[:, None, None]
    came[..., 2] = steps
    sums = front.sums[None] + taken[:, None]
    keep = sums <= room
    return _Front(sums[keep], best[keep], came[keep])


def _merged(found: _Front, room: float) -> _Front:
    """One row a sum of memory, none that costs as much as one of less memory, and not too many of them."""
    sums = found.sums
    if len(sums) > MOST_SUMS and len(np.unique(sums)) > MOST_SUMS:
        unit = room / MOST_SUMS
        sums = np.minimum(np.ceil(sums / unit) * unit, room)
    # Stable: of equal sums those of lower levels are first, and win where the cost is the same.
    order = np.argsort(sums, kind="stable")
    sums, best, came = sums[order], found.best[order], found.came[order]
    starts = np.flatnonzero(np.concatenate([[True], sums[1:] > sums[:-1]]))
    if len(starts) < len(sums):
        ends = np.append(starts[1:], len(sums))
        which = np.stack([a + best[a:b].argmin(axis=0) for a, b in zip(starts, ends, strict=True)])
        sums, best, came = sums[starts], np.take_along_axis(best, which, 0), came[which, np.arange(best.shape[1])]
    lowest = np.minimum.accumulate(best, axis=0)
    keep = np.concatenate([[True], (best[1:] < lowest[:-1] - _ROUNDING).any(axis=1)])
    return _Front(sums[keep], best[keep], came[keep])


def _traced(fronts: Sequence[_Front], spans: Sequence[Range]) -> Plan:
    """The cheapest end, and from there back how it came about; what is left of the CPU is handed out in proportion."""
    last = fronts[-1]
    at, used = (int(index) for index in np.unravel_index(np.argmin(last.best), last.best.shape))
    total = float(last.best[at, used])
    found: list[tuple[int, int]] = []
    for front, (low, _) in zip(reversed(fronts[1:]), reversed(spans), strict=True):
        before, index, steps = (int(value) for value in front.came[at, used])
        found.append((low + index, steps))
        at, used = before, used - steps
    found.reverse()
    whole = sum(steps for _, steps in found) or 1
    return Plan(tuple(Allotment(level, steps / whole) for level, steps in found), total)


class Planner:
    """The plan in force, and when another replaces it. Time is passed in, monotonic, in seconds.

    Shares follow the readings at once: they cost nothing. What no longer fits is lowered at once, and so is what gains
    by it. A raise is made when it would have gained all the time for ``settle_s``, and more than it costs: what comes
    while deltas are paged in may be late, the more likely the longer that takes beside the wanted latency.
    """

    def __init__(self, settings: SchedulerSettings) -> None:
        self.plan: Plan | None = None
        self._settings = settings
        self._raise: Plan | None = None  # what might be raised to, since when, what it would have gained until when
        self._since_s = self._gained = self._seen_s = 0.0
        # Solved before, for the same applications and device: most of the time nothing changes but the time.
        self._problem: tuple[Sequence[Application], Device] | None = None
        self._solved: dict[tuple[Any, ...], Plan] = {}

    @property
    def weighing(self) -> bool:
        """Whether time alone may change the plan: a raise is being weighed."""
        return self._raise is not None

    def consider(self, applications: Sequence[Application], device: Device, now_s: float) -> Plan:
        """The plan from now on."""
        if (applications, device) != self._problem:
            self._problem = (applications, device)
            self._solved.clear()
        held = self.plan
        if held is None or len(held.allotments) != len(applications):
            self.plan = self._best(applications, device)
            return self.plan
        # A level that could not be loaded is no longer among those that there are.
        levels = [min(old, len(each.levels)) for old, each in zip(held.levels, applications, strict=True)]
        kept = self._kept(applications, device, levels)
        least = LEAST_GAIN * sum(application.weight for application in applications)
        lower = self._best(applications, device, [(1, level) for level in levels])
        if not fits(applications, device, kept) or kept.cost - lower.cost > least:
            kept, self._raise = lower, None
        self.plan = kept
        if self._rises(applications, device, kept, least, now_s):
            assert self._raise is not None
            self.plan, self._raise = self._kept(applications, device, self._raise.levels), None
        return self.plan

    def _rises(
        self, applications: Sequence[Application], device: Device, kept: Plan, least: float, now_s: float
    ) -> bool:
        """Whether what might be raised to has gained enough by now; what does not gain any more is forgotten."""
        busier = [msgspec.structs.replace(each, rate_per_s=each.rate_per_s * HEADROOM) for each in applications]
        if self._raise is not None and any(
            level > len(each.levels) for level, each in zip(self._raise.levels, applications, strict=True)
        ):
            self._raise = None
        if self._raise is not None:
            would = self._kept(busier, device, self._raise.levels)
            if not fits(busier, device, would) or kept.cost - would.cost <= least:
                self._raise = None
            else:
                self._gained += (kept.cost - would.cost) * max(0.0, now_s - self._seen_s)
        if self._raise is None:
            best = self._best(busier, device)
            if not any(new > old for new, old in zip(best.levels, kept.levels, strict=True)):
                return False
            if not fits(busier, device, best) or kept.cost - best.cost <= least:
                return False
            self._raise, self._since_s, self._gained = best, now_s, 0.0
        self._seen_s = now_s
        load_s = sum(
            level.load_s
            for each, old, new in zip(applications, kept.levels, self._raise.levels, strict=True)
            for level in each.levels[old:new]
        )
        price = sum(each.weight * load_s * min(1.0, load_s / each.latency_s) for each in applications)
        return now_s - self._since_s >= self._settings.settle_s and self._gained >= price

    def _best(self, applications: Sequence[Application], device: Device, ranges: Sequence[Range] | None = None) -> Plan:
        return self._solution(applications, device, ranges, True)

    def _kept(self, applications: Sequence[Application], device: Device, levels: Sequence[int]) -> Plan:
        """The levels as they are, with the shares that are best for them now."""
        return self._solution(applications, device, [(level, level) for level in levels], False)

    def _solution(
        self, applications: Sequence[Application], device: Device, ranges: Sequence[Range] | None, strict: bool
    ) -> Plan:
        rates = tuple(each.rate_per_s for each in applications)
        key = (rates, None if ranges is None else tuple(ranges), strict)
        if key not in self._solved:
            settings = self._settings
            self._solved[key] = plan_for(applications, device, settings.scheme, settings.alpha, ranges, strict)
        return self._solved[key]
