"""The agent as an Open Inference Protocol server: validates, hands over to the agent, says what happened."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from edgemux.edge.agent import Agent, Answer
from edgemux.edge.status import status_of
from edgemux.multiplexer.errors import (
    DeadlineExceeded,
    EdgemuxError,
    InputError,
    Overloaded,
    TooLarge,
    UnknownModel,
)
from edgemux.wire.codec import Parameter, make_response, requested_outputs
from edgemux.wire.model_service import ModelService, timeout_s


class EdgeService(ModelService):
    """Answers with an agent."""

    def __init__(self, agent: Agent, max_batch: int) -> None:
        super().__init__("edgemux-edge", "edgemux", agent.manifest, max_batch, max_decoding=max_batch)
        self._agent = agent

    async def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Raises InputError, DeadlineExceeded, Overloaded, ExecutionError."""
        try:
            return await self._infer(request, context.time_remaining())
        except EdgemuxError as error:
            self._agent.metrics.refused(_kind(error))
            raise

    async def _infer(self, request: Any, left_s: float | None) -> Any:
        came_s = self._loop.time()
        self.check_model(request.model_name, request.model_version)
        deadline_s = came_s + self._agent.request.allowed_s(left_s, timeout_s(request))
        outputs = requested_outputs(request, self._manifest.outputs)
        tensors = await self.tensors(request, deadline_s)
        now_s = self._loop.time()
        self._agent.metrics.stage("validate", now_s - came_s)
        if now_s >= deadline_s:
            raise DeadlineExceeded("deadline: over before anything could run")
        answers = await self._agent.infer(tensors, deadline_s - now_s)
        arrays = {
            "probabilities": np.stack([answer.prediction.probabilities for answer in answers]),
            "label": np.array([answer.prediction.label for answer in answers], dtype=np.int64),
        }
        chosen = {name: arrays[name] for name in outputs}
        return make_response(self._manifest.name, self._manifest.version, request.id, chosen, said(answers))

    def status(self) -> dict[str, Any]:
        """The agent's state now."""
        return super().status() | status_of(self._agent)


def said(answers: Sequence[Answer]) -> dict[str, Parameter]:
    """What happened, as reply parameters: plain values for one input, comma-separated in row order for several."""
    columns: dict[str, list[Parameter]] = {
        "edgemux_route": [answer.prediction.route.placement.value for answer in answers],
        "edgemux_variant": [answer.prediction.route.variant for answer in answers],
        "edgemux_reason": [answer.reason.value for answer in answers],
        "edgemux_score": [answer.prediction.confidence for answer in answers],
        "edgemux_degraded": [answer.degraded for answer in answers],
    }
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
