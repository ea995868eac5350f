"""The agent as an Open Inference Protocol server: validates, hands over to the agent, says what happened."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edgemux.edge.admission import Shares
from edgemux.edge.agent import Agent, Answer
from edgemux.edge.gallery import Gallery
from edgemux.edge.live import live_of_all
from edgemux.edge.request_log import Line, RequestLog
from edgemux.edge.spans import finish
from edgemux.edge.status import status_of_all
from edgemux.multiplexer.errors import (
    DeadlineExceeded,
    EdgemuxError,
    InputError,
    Overloaded,
    TooLarge,
    UnknownModel,
)
from edgemux.wire import oip_pb2 as oip
from edgemux.wire.codec import CHECKSUM, Parameter, make_response, requested_outputs
from edgemux.wire.described import Counts
from edgemux.wire.model_service import MAX_ID_CHARACTERS, ModelService, Served, timeout_s
from edgemux.wire.tracing import OFF, Trace, Tracer

# When it is worth asking again where there are too many at once: most are answered by then.
FULL_RETRY_S = 0.1


class EdgeService(ModelService):
    """Answers with the agent of the application that is asked for."""

    EXTENSIONS = (*ModelService.EXTENSIONS, "statistics")

    def __init__(
        self,
        agents: Mapping[str, Agent],
        max_batch: int,
        log: RequestLog | None = None,
        gallery: Gallery | None = None,
        tracer: Tracer = OFF,
    ) -> None:
        """``agents``: at least one, by the name of its model on the wire. ``gallery``: for the live page."""
        models = [Served.of(agent.manifest, "edgemux", max_batch) for agent in agents.values()]
        super().__init__("edgemux-edge", models, max_decoding=max_batch)
        self._agents = agents
        self._counts = {name: Counts() for name in agents}
        first, *others = agents.values()
        # What asks for no model that is here is counted with the only one, or with none of several.
        self._nobody = first.metrics.of_nobody() if others else first.metrics
        self._log = log
        self._tracer = tracer
        self._gallery = gallery or Gallery("none")
        for agent in agents.values():
            agent.gallery = self._gallery
        self._places = Shares()
        self._max_inflight = first.max_inflight

    async def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Raises InputError, DeadlineExceeded, Overloaded, ExecutionError. Every end of it is counted and logged."""
        agent = self._agents.get(request.model_name)
        metrics = self._nobody if agent is None else agent.metrics
        came_s = self._loop.time()
        outcome, answers = "failed", list[Answer]()
        metrics.inflight += 1
        trace = self._tracer.begin(context) if self._tracer.enabled else None
        try:
            client = context.peer()
            if not self._places.fits(client, 1.0, self._max_inflight, came_s):
                raise Overloaded("too many requests are being answered", retry_after_s=FULL_RETRY_S)
            self._places.take(client, 1.0)
            try:
                response, answers = await self._infer(request, context.time_remaining(), came_s, client, trace)
            finally:
                self._places.give(client, 1.0)
            outcome = "answered"
        except EdgemuxError as error:
            outcome = _kind(error)
            raise
        except asyncio.CancelledError:
            # The library cancels a call whose own deadline passes, often a moment before the agent would.
            left_s = context.time_remaining()
            outcome = "cancelled" if left_s is None or left_s > 0 else "expired"
            raise
        finally:
            metrics.inflight -= 1
            if agent is not None:
                self._counts[request.model_name].ended(len(answers), self._loop.time() - came_s)
            if outcome != "answered":
                metrics.refused(outcome)
            if trace is not None:
                known = "other" if agent is None else agent.manifest.name
                finish(trace, known, outcome, answers, context.time_remaining())
            if self._log is not None:
                self._log.add(_line(request, outcome, self._loop.time() - came_s, answers))
        return response

    async def _infer(
        self, request: Any, left_s: float | None, came_s: float, client: str, trace: Trace | None
    ) -> tuple[Any, list[Answer]]:
        served = self.check_model(request.model_name, request.model_version)
        agent = self._agents[served.name]
        deadline_s = came_s + agent.request.allowed_s(left_s, timeout_s(request))
        agent.check_room(client, deadline_s - came_s)
        outputs = requested_outputs(request, served.outputs)
        tensors = await self.tensors(request, deadline_s)
        now_s = self._loop.time()
        agent.metrics.stage("validate", now_s - came_s)
        if now_s >= deadline_s:
            raise DeadlineExceeded("deadline: over before anything could run")
        answers = await agent.infer(tensors, deadline_s - now_s, client, trace)
        arrays = {
            "probabilities": np.stack([answer.prediction.probabilities for answer in answers]),
            "label": np.array([answer.prediction.label for answer in answers], dtype=np.int64),
        }
        chosen = {name: arrays[name] for name in outputs}
        response = make_response(
            served.name, served.version, request.id, chosen, said(answers), CHECKSUM in request.parameters
        )
        return response, answers

    async def ModelStatistics(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Raises UnknownModel."""
        asked = [self.check_model(request.name, request.version, "name", "version")] if request.name else self.every()
        response = oip.ModelStatisticsResponse()
        for served in asked:
            response.model_stats.append(self._counts[served.name].message(served.name, served.version))
        return response

    def came_late(self) -> None:
        """Counted with what asks for no model: which one it is about is not known."""
        self._nobody.refused("expired")

    def status(self) -> dict[str, Any]:
        """The agents' state now."""
        return super().status() | status_of_all(self._agents) | {"tracing": self._tracer.describe()}

    def live(self, after: int) -> dict[str, Any]:
        """What the live page shows: of the inputs those after that number. What comes in is kept for a while now."""
        self._gallery.look()
        return super().status() | live_of_all(self._agents, self._gallery, after)

    def close(self) -> None:
        """As the servicer's; and nothing is kept for the live page any more."""
        self._gallery.close()
        super().close()


def _line(request: Any, outcome: str, elapsed_s: float, answers: Sequence[Answer]) -> Line:
    """What the request log keeps; names that a client made up are cut to a bound."""
    return Line(
        id=request.id[:MAX_ID_CHARACTERS],
        model=request.model_name[:MAX_ID_CHARACTERS],
        outcome=outcome,
        elapsed_s=elapsed_s,
        rows=len(answers),
        routes=tuple(answer.prediction.route.placement.value for answer in answers),
        variants=tuple(answer.prediction.route.variant for answer in answers),
        reasons=tuple(answer.reason.value for answer in answers),
        labels=tuple(answer.prediction.label for answer in answers),
    )


def said(answers: Sequence[Answer]) -> dict[str, Parameter]:
    """What happened, as reply parameters: plain values for one input, comma-separated in row order for several.

    edgemux_peer: which of several clouds has answered, by its place in the configuration; empty for the device.
    """
    columns: dict[str, list[Parameter]] = {
        "edgemux_route": [answer.prediction.route.placement.value for answer in answers],
        "edgemux_variant": [answer.prediction.route.variant for answer in answers],
        "edgemux_reason": [answer.reason.value for answer in answers],
        "edgemux_score": [answer.prediction.confidence for answer in answers],
        "edgemux_degraded": [answer.degraded for answer in answers],
    }
    peers = [answer.prediction.peer for answer in answers]
    if any(peer is not None for peer in peers):
        columns["edgemux_peer"] = ["" if peer is None else peer for peer in peers]
    if len(answers) == 1:
        return {name: column[0] for name, column in columns.items()}
    return {name: ",".join(_word(value) for value in column) for name, column in columns.items()}


def _word(value: Parameter) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def _kind(error: EdgemuxError) -> str:
    """The ``reason`` label of a refusal, out of metrics.REFUSALS."""
    match error:
        case UnknownModel():
            return "unknown_model"
        case TooLarge():
            return "too_large"
        case InputError():
            return "input"
        case DeadlineExceeded():
            return "expired"
        case Overloaded():
            return "overloaded"
        case _:
            return "failed"
