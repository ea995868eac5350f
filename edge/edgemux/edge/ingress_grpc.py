"""The agent as an Open Inference Protocol server: validates, hands over to the agent, says what happened."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from edgemux.edge.agent import Agent, Answer
from edgemux.multiplexer.errors import (
    DeadlineExceeded,
    EdgemuxError,
    ExecutionError,
    InputError,
    Overloaded,
    TooLarge,
    UnknownModel,
)
from edgemux.wire import oip_pb2 as oip
from edgemux.wire.codec import Parameter, make_response, read_inputs, requested_outputs

SERVER = "edgemux-edge"
MAX_ID_BYTES = 256


class EdgeServicer:
    """Implements ``edgemux.wire.service.Servicer`` for the one model of the bundle."""

    def __init__(self, agent: Agent, max_batch: int) -> None:
        self._agent = agent
        self._manifest = agent.manifest
        self._max_batch = max_batch
        self.ready = True

    async def ServerLive(self, request: Any, context: Any) -> Any:  # noqa: N802
        return oip.ServerLiveResponse(live=True)

    async def ServerReady(self, request: Any, context: Any) -> Any:  # noqa: N802
        return oip.ServerReadyResponse(ready=self.ready)

    async def ModelReady(self, request: Any, context: Any) -> Any:  # noqa: N802
        return oip.ModelReadyResponse(ready=self.ready and self._serves(request.name, request.version))

    async def ServerMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802
        return oip.ServerMetadataResponse(name=SERVER, version=self._manifest.version, extensions=["parameters"])

    async def ModelMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._check(request.name, request.version)
        manifest = self._manifest
        metadata = oip.ModelMetadataResponse(name=manifest.name, versions=[manifest.version], platform="edgemux")
        for target, tensors in ((metadata.inputs, manifest.inputs), (metadata.outputs, manifest.outputs)):
            for tensor in tensors:
                target.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
        metadata.properties["classes"] = ",".join(manifest.classes)
        metadata.properties["bundle"] = manifest.digest
        return metadata

    async def RepositoryIndex(self, request: Any, context: Any) -> Any:  # noqa: N802
        index = oip.RepositoryIndexResponse()
        index.models.add(name=self._manifest.name, version=self._manifest.version, state="READY")
        return index

    async def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802
        try:
            return await self._infer(request, context.time_remaining())
        except EdgemuxError as error:
            self._agent.metrics.refused(_kind(error))
            raise

    async def _infer(self, request: Any, left_s: float | None) -> Any:
        began = time.perf_counter()
        manifest = self._manifest
        self._check(request.model_name, request.model_version)
        if len(request.id) > MAX_ID_BYTES:
            raise TooLarge("id", f"more than {MAX_ID_BYTES} characters")
        timeout_s = _timeout(request, left_s)
        outputs = requested_outputs(request, manifest.outputs)
        tensors = read_inputs(request, manifest.inputs, manifest.preprocessing, self._max_batch)
        self._agent.metrics.stage("validate", time.perf_counter() - began)
        answers = await self._agent.infer(tensors, timeout_s, request.id)
        arrays = {
            "probabilities": np.stack([answer.prediction.probabilities for answer in answers]),
            "label": np.array([answer.prediction.label for answer in answers], dtype=np.int64),
        }
        return make_response(
            manifest.name,
            manifest.version,
            request.id,
            {name: arrays[name] for name in outputs},
            said(answers),
        )

    def _serves(self, name: str, version: str) -> bool:
        return name == self._manifest.name and version in ("", self._manifest.version)

    def _check(self, name: str, version: str) -> None:
        if name != self._manifest.name:
            raise UnknownModel("model_name", f"no model {name[:40]!r}")
        if not self._serves(name, version):
            raise UnknownModel("model_version", f"no version {version[:40]!r}")


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


def _timeout(request: Any, left_s: float | None) -> float | None:
    """The time allowed: the gRPC deadline, or the ``timeout`` parameter (microseconds) if that is shorter."""
    if "timeout" in request.parameters:
        slot = request.parameters["timeout"]
        kind = slot.WhichOneof("parameter_choice")
        if kind not in ("int64_param", "uint64_param"):
            raise InputError("timeout", "expected int64_param, in microseconds")
        asked = getattr(slot, kind) / 1e6
        if asked < 0:
            raise InputError("timeout", "negative")
        if asked > 0:
            left_s = asked if left_s is None else min(left_s, asked)
    if left_s is not None and left_s <= 0:
        raise DeadlineExceeded("deadline: over before the request was read")
    return left_s


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
        case ExecutionError():
            return "failed"
        case _:
            return "failed"
