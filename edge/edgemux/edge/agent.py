"""The one data path: score, decide, execute, look again."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from numpy.typing import NDArray

from edgemux.edge.budget import Allowance, Demand, Readings, budget_for
from edgemux.edge.candidates import Candidates
from edgemux.edge.causes import cause_of, refusal
from edgemux.edge.cloud_executor import Clock
from edgemux.edge.clouds import Cloud
from edgemux.edge.config import DriftSettings, EdgeConfig, RequestSettings
from edgemux.edge.device_executor import DeviceExecutor
from edgemux.edge.gallery import Gallery
from edgemux.edge.heads import Alone
from edgemux.edge.loading import CloudGates, Fallback
from edgemux.edge.metrics import EdgeMetrics
from edgemux.edge.purse import Purse
from edgemux.edge.sample import Sample
from edgemux.edge.sampler import Sampler
from edgemux.edge.self_check import SelfCheck
from edgemux.edge.spans import aside, of_rows
from edgemux.edge.split_executor import Half, SplitExecutor
from edgemux.edge.variants import Family
from edgemux.edge.vigil import Standing, Vigil
from edgemux.multiplexer.bundle import Manifest
from edgemux.multiplexer.domain import (
    Accept,
    Budget,
    Candidate,
    Case,
    Placement,
    Prediction,
    Reason,
    Route,
    Run,
    Shed,
)
from edgemux.multiplexer.errors import ExecutionError
from edgemux.multiplexer.estimate import RateEstimate
from edgemux.multiplexer.gates import Gates
from edgemux.multiplexer.policy import Policy, lacking
from edgemux.wire.forks import Home
from edgemux.wire.tracing import Attribute, Stage, Trace

# Why a split fails that says nothing against sending the whole input.
SPLIT_UNFIT = frozenset({Reason.CLOUD_INCOMPATIBLE, Reason.DEVICE_FAILED})
# Rows of a batch that run before others get a turn: about two milliseconds of small models.
ROWS_A_TURN = 4


class Answer(msgspec.Struct, frozen=True):
    """What the agent says about one input. ``degraded``: a better route was wanted and could not be had."""

    prediction: Prediction
    reason: Reason
    degraded: bool
    elapsed_s: float


class Agent:
    """Answers inputs. One event loop owns it; nothing in it blocks longer than a small model runs."""

    def __init__(
        self,
        manifest: Manifest,
        config: EdgeConfig,
        family: Family,
        gates: Gates | CloudGates,
        policy: Policy,
        device: DeviceExecutor,
        cloud: Cloud | None,
        purse: Purse,
        sampler: Sampler,
        metrics: EdgeMetrics,
        vigil: Vigil,
        fallback: Fallback | None = None,
        splits: SplitExecutor | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        """``fallback``: what this is instead of the bundle that was asked for, None for that bundle.

        ``splits``: None where the bundle has none that may be used.
        """
        self.fallback = fallback
        self.manifest = manifest
        self.metrics = metrics
        self.vigil = vigil
        self.cloud = cloud
        self.purse = purse
        self.sampler = sampler
        self._home = Home()
        self.self_check: SelfCheck | None = None
        # Of a server with a live page; keeps something only while somebody looks.
        self.gallery = Gallery("none")
        self.loop_lag_s = 0.0
        self.rate = RateEstimate()
        self.family = family
        self._device = device
        # What the scheduler says: a level, a share of the CPU, and what a burst may exceed it by until it plans again.
        self.planned = family.resident
        self.share = 1.0
        self.slack = 1.0
        self.arrived = 0
        self._config = config
        self._gates = gates
        self._policy = policy
        self._clock = clock
        self._cloud_route = Route(manifest.cloud.name, Placement.CLOUD)
        self.splits = splits
        # Why other splits of the bundle are not among them, by name.
        self.alone: Mapping[str, Alone] = {}
        # What may be sent whole inputs.
        self._open = None if config.split.never_send_raw else cloud
        self._offers = Candidates(config, family, device, self._open, splits, purse, self._cloud_route)
        self._executors: dict[Placement, Any] = {
            Placement.EDGE: device,
            Placement.CLOUD: self._open,
            Placement.SPLIT: splits,
        }
        self._random = random.Random()
        self._background: set[asyncio.Task[None]] = set()

    @property
    def device(self) -> DeviceExecutor:
        """What runs the levels, and what it has learned of them."""
        return self._device

    @property
    def request(self) -> RequestSettings:
        """Deadlines and sizes of requests."""
        return self._config.request

    async def well(self) -> bool:
        """Whether the levels that the device affords still give their golden answers; a head that does not is no longer
        used, which leaves the agent well.
        """
        if self.self_check is None:
            return True
        if not await self.self_check.well(self.affordable_level(self.sampler.latest)):
            return False
        if self.splits is not None:
            await self.splits.look(self.self_check.inputs)
        return True

    @property
    def resident_bytes(self) -> int:
        """Bytes of the files of all levels and heads that are loaded."""
        return self.family.resident_bytes + (0 if self.splits is None else self.splits.resident_bytes)

    def left_alone(self, now_s: float) -> dict[str, Alone]:
        """By name, why splits of the bundle are not used."""
        return {**self.alone, **({} if self.splits is None else self.splits.left_alone(now_s))}

    @property
    def never_send_raw(self) -> bool:
        """Whether whole inputs never leave the device."""
        return self._config.split.never_send_raw

    @property
    def silent(self) -> bool:
        """Whether nothing may leave the device at all: no whole input, and there is no split."""
        return self.never_send_raw and self.splits is None

    @property
    def max_inflight(self) -> int:
        """Requests that may be inside at once."""
        return self._config.admission.max_inflight

    @property
    def drift(self) -> DriftSettings:
        """How rarely the watch for drift may be wrong."""
        return self._config.drift

    async def infer(
        self,
        tensors: Mapping[str, NDArray[Any]],
        timeout_s: float | None = None,
        client: str = "",
        trace: Trace | None = None,
    ) -> list[Answer]:
        """Answer each row of ``tensors`` (by input name, [N, ...]) on its own; ``client`` is for its fair share.

        Raises Overloaded when it would only wait past its deadline, DeadlineExceeded or another ExecutionError when a
        row could not be answered at all; ConfigError in a process that was forked since the agent was made.
        """
        self._home.check()
        arrived = self._clock()
        rows = len(next(iter(tensors.values())))
        self.rate.observe(arrived, rows)
        self.arrived += rows
        began = time.perf_counter()
        scores = self._gates.before(tensors)
        elapsed = time.perf_counter() - began
        self.metrics.stage("pre_gate", elapsed)
        if trace is not None:
            trace.took(Stage.PRE_GATE, elapsed)
        self.vigil.saw(tensors, scores)
        deadline = arrived + self._config.request.allowed_s(timeout_s)
        if rows == 1:
            return [await self._answer(Sample(dict(tensors), scores, deadline, client, trace), arrived)]
        return await self._each(
            [
                Sample({name: t[i : i + 1] for name, t in tensors.items()}, scores[i : i + 1], deadline, client, span)
                for i, span in enumerate(of_rows(trace, rows))
            ],
            arrived,
        )

    def check_room(self, client: str, left_s: float) -> None:
        """Raises Overloaded where neither the device nor the cloud could answer in time; before anything was done."""
        now = self._clock()
        if self._device.fits(1, client, left_s, now):
            return
        if self.cloud is None or self.silent or self.cloud.blocked(now, 1.0) is not None:
            raise refusal(Reason.OVERLOADED, self._device.backlog.wait_s)

    async def _each(self, samples: Sequence[Sample], arrived: float) -> list[Answer]:
        """Answer many at once; every few rows others get a turn, and so do the answers that have come back."""
        tasks: list[asyncio.Task[Answer]] = []
        try:
            for sample in samples:
                tasks.append(asyncio.create_task(self._answer(sample, arrived)))
                if len(tasks) % ROWS_A_TURN == 0:
                    await asyncio.sleep(0)
            return list(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()

    async def _answer(self, sample: Sample, arrived: float) -> Answer:
        sample.activations.chain = self.family.chain
        # What the cloud answers then goes into a new certificate, which is about inputs as they are.
        sample.exact = self.vigil.state.standing in (Standing.WITHDRAWN, Standing.RE_CERTIFIED)
        budget = self._budget(sample)
        first = self._offers.above(None, self.vigil.terms.offload_first, sample, sample.scores, budget, self._clock())
        case = Case(budget, first, failure=None if self.family.routes else Reason.NO_MODEL)
        while True:
            decision = self._policy(case)
            match decision:
                case Run():
                    case = await self._attempt(case, decision, sample)
                case Accept(prediction, reason, degraded):
                    sample.activations.chain = None
                    now = self._clock()
                    elapsed = now - arrived
                    route = prediction.route
                    if self.cloud is not None:
                        self.purse.settle(lacking(case), now)
                    self.metrics.answered(route.placement, route.variant, reason, prediction.confidence, elapsed)
                    if self.gallery.open:
                        self._show(sample, reason, prediction, degraded, elapsed)
                    drawn = self._draws()
                    if route.placement is Placement.EDGE:
                        self._ask_again(sample, reason, prediction if drawn else None, degraded)
                    elif route.placement is Placement.SPLIT:  # it is not the cloud's word on the input itself
                        self.vigil.passed(drawn=drawn)
                    elif self.cloud is not None and self.cloud.foreign:
                        self.vigil.met_another_model()
                    else:
                        self.vigil.compared(sample, prediction, kept=False, drawn=drawn)
                    if prediction.peer is not None or (self.splits and route.placement is Placement.CLOUD):
                        self._ask_again(sample, reason)  # another cloud, or a tail, may wait to be found well again
                    return Answer(prediction, reason, degraded, elapsed)
                case Shed(reason):
                    if self.gallery.open:
                        self._show(sample, reason, None, False, self._clock() - arrived)
                    self._ask_again(sample, reason)
                    raise refusal(reason, self._device.backlog.wait_s)

    def _show(
        self, sample: Sample, reason: Reason, prediction: Prediction | None, degraded: bool, elapsed_s: float
    ) -> None:
        """To whoever looks at the live page."""
        manifest = self.manifest
        self.gallery.add(manifest.name, manifest.classes, self.planned, sample, reason, prediction, degraded, elapsed_s)

    async def _attempt(self, case: Case, decision: Run, sample: Sample) -> Case:
        """Run the chosen route and return the case as it stands afterwards."""
        route = decision.route
        run = self._executors[route.placement].run
        try:
            if route.placement is Placement.EDGE or case.held is not None or case.budget.reserve_s == 0:
                prediction = await run(route, sample, decision.timeout_s)
            else:  # the device must still be able to answer when this fails
                with self._device.room_for(1, sample.client):
                    prediction = await run(route, sample, decision.timeout_s)
        except ExecutionError as error:
            case = self._without(case, route, cause_of(route, error), sample)
        else:
            if route.placement is Placement.EDGE:
                prediction, again = self._look_again(prediction, sample, case.budget)
                case = case.answered(prediction, decision.reason, _untried(again, case))
            else:
                case = case.answered(prediction, decision.reason, ())
        return case.within(self._budget(sample))

    def _without(self, case: Case, route: Route, cause: Reason, sample: Sample) -> Case:
        """The case after a route failed. A split that cannot be had is no reason not to send the whole input."""
        failed = case.failed(route, cause)
        if route.placement is not Placement.SPLIT or cause not in SPLIT_UNFIT or self._open is None:
            return failed
        split = next(each for each in case.candidates if each.route == route)
        held = 0 if case.held is None else case.held.route.level
        return failed.joined(self._offers.whole(split.score, split.price, sample, held, self._clock()))

    def _look_again(
        self, prediction: Prediction, sample: Sample, budget: Budget
    ) -> tuple[Prediction, tuple[Candidate, ...]]:
        """The post-gate: confidence in the device's answer, and what the routes above it would bring now."""
        began = time.perf_counter()
        level, terms = prediction.route.level, self.vigil.terms
        if terms.calibrations:
            scores: NDArray[Any] = terms.scores(prediction)
        else:
            scores = self._gates.after(prediction.probabilities[None, :], level, sample.scores)
        self.vigil.answered(prediction, sample, scores, terms)
        elapsed = time.perf_counter() - began
        self.metrics.stage("post_gate", elapsed)
        if sample.trace is not None:
            sample.trace.took(Stage.POST_GATE, elapsed, {Attribute.LEVEL: level})
        confident = Prediction(
            prediction.route, prediction.label, prediction.probabilities, float(scores[0, level - 1])
        )
        price = terms.defer[level - 1]
        return confident, self._offers.above(confident, price, sample, scores, budget, self._clock())

    def _budget(self, sample: Sample) -> Budget:
        now = self._clock()
        limits = self._config.limits
        return budget_for(
            self.sampler.latest,
            Demand(self.rate.per_s(now), self.loop_lag_s),
            self.allowance(now),
            left_s=sample.deadline_s - now,
            reserve_s=self._device.reserve_s(sample.client, sample.deadline_s - now, now),
            margin_s=self._config.request.margin_s,
            compute_share=limits.compute_share * self.share * self.slack,
            memory_limit_bytes=limits.memory_bytes,
            resident_bytes=self.resident_bytes,
        )

    def allowance(self, now_s: float) -> Allowance:
        """What the long-run budgets still hold."""
        return self.purse.allowance(now_s)

    def affordable_level(self, readings: Readings) -> int:
        """The highest loaded level whose CPU time and memory fit the device as it is now; at least 1."""
        limits = self._config.limits
        budget = budget_for(
            readings,
            Demand(self.rate.per_s(self._clock())),
            Allowance(),
            left_s=0.0,
            reserve_s=0.0,
            margin_s=0.0,
            compute_share=limits.compute_share * self.share * self.slack,
            memory_limit_bytes=limits.memory_bytes,
            resident_bytes=self.resident_bytes,
        )
        loaded = self.family.routes[: self.family.resident]
        fitting = [
            route.level
            for route, compute in zip(loaded, self._device.compute, strict=False)
            if compute.mean_s <= budget.compute_s and self.family.bytes_of[route.level] <= budget.memory_bytes
        ]
        return max(fitting, default=min(1, len(self.family.routes)))

    def _draws(self) -> bool:
        """Whether an input is drawn for an audit: by chance alone, wherever it was answered, while one is possible."""
        if self._open is None or self._background:
            return False
        # Chance first: few are drawn, and whether the cloud may be asked costs more to find out.
        if self._random.random() >= self.vigil.audit_share:
            return False
        return self._open.blocked(self._clock(), self._random.random()) is None

    def _ask_again(
        self, sample: Sample, reason: Reason, audited: Prediction | None = None, degraded: bool = False
    ) -> None:
        """Send an input to the cloud with nobody waiting: to audit a kept answer, or to find out how the cloud is."""
        if self.cloud is None or self._background:
            return
        now = self._clock()
        splits = None if audited is not None else self.splits
        half = None if splits is None else splits.tried(sample, len(self.family.chain), now)
        asked = self._open if half is None else half.tail
        if asked is None:
            return
        if audited is not None or asked.wants_shadow(now, reason):
            task = asyncio.create_task(self._compare(sample, reason, audited, degraded, half))
            self._background.add(task)
            task.add_done_callback(self._background.discard)

    async def _compare(
        self, sample: Sample, reason: Reason, kept: Prediction | None, degraded: bool, half: Half | None
    ) -> None:
        """Only audits are counted: they are a random sample of what is kept, shadows are not. half: for a shadow."""
        asked = self._open if half is None else self.splits
        assert self.cloud is not None and asked is not None
        # What takes longer counts as failed in any case, and would hold the only place for finding out.
        timeout_s = min(self._config.request.default_timeout_s, self.cloud.slow_s)
        second: Prediction | None = None
        with aside(sample, Stage.SHADOW if kept is None else Stage.AUDIT) as said:
            with contextlib.suppress(ExecutionError):
                if kept is None:
                    route = self._cloud_route if half is None else half.route
                    second = await asked.shadow(route, sample, timeout_s, reason)
                elif self._open is not None:
                    # The certificate is about what the cloud says of the input itself.
                    second = await self._open.run(self._cloud_route, sample, timeout_s, exact=True)
            if kept is not None:
                outcome = "failed" if second is None else "agree" if second.label == kept.label else "differ"
                self.metrics.audited(outcome)
                said[Attribute.OUTCOME] = outcome
        if kept is not None and second is not None:
            self.vigil.compared(sample, second, kept=not degraded, drawn=True)

    async def close(self) -> None:
        """Stop what runs in the background."""
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        self._device.close()


def _untried(again: tuple[Candidate, ...], case: Case) -> tuple[Candidate, ...]:
    """One attempt a route, and one way to the cloud: it may by now be another one, unless that was tried."""
    left = {candidate.route for candidate in case.candidates}
    away = case.failure is None and any(route.placement is not Placement.EDGE for route in left)
    return tuple(
        candidate
        for candidate in again
        if candidate.route in left or (away and candidate.route.placement is not Placement.EDGE)
    )
