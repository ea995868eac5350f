"""The servicer: Open Inference Protocol in, engine, Open Inference Protocol out."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemux.cloud.backends import PROBABILITIES
from edgemux.cloud.engine import Answer, Engine
from edgemux.cloud.metrics import Metrics, Outcome
from edgemux.multiplexer.bundle import Manifest
from edgemux.multiplexer.errors import DeadlineExceeded, InputError, Overloaded, UnknownModel, Unreachable
from edgemux.wire import oip_pb2 as oip
from edgemux.wire.codec import Parameter, make_response, read_inputs, requested_outputs
from edgemux.wire.http import Page

LABEL = "label"
NAME = "edgemux-cloud"
PLATFORM = "onnxruntime_onnx"


class CloudService:
    """Serves one bundle's cloud model, under the bundle's name and version."""

    def __init__(self, manifest: Manifest, model_digest: str, engine: Engine, metrics: Metrics, max_queue: int) -> None:
        """``model_digest`` is told in every answer; ``max_queue`` bounds the pictures that wait to be decoded."""
        self.draining = False
        self._manifest = manifest
        self._digest = model_digest
        self._engine = engine
        self._metrics = metrics
        self._max_batch = engine.batcher.max_batch
        # Decoding a large picture takes as long as many answers: it must not hold up the event loop.
        self._decoder = ThreadPoolExecutor(1, "edgemux-pictures")
        self._max_decoding = max_queue
        self._decoding = 0
        self._loop = asyncio.get_running_loop()

    async def ServerLive(self, request: Any, context: Any) -> Any:  # noqa: N802
        return oip.ServerLiveResponse(live=True)

    async def ServerReady(self, request: Any, context: Any) -> Any:  # noqa: N802
        return oip.ServerReadyResponse(ready=not self.draining)

    async def ModelReady(self, request: Any, context: Any) -> Any:  # noqa: N802
        """An unknown model or version is not ready, as Triton has it; it is no error."""
        return oip.ModelReadyResponse(ready=self._serves(request.name, request.version) and not self.draining)

    async def ServerMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802
        return oip.ServerMetadataResponse(**self.server_metadata())

    async def ModelMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Raises UnknownModel."""
        self._check_model(request.name, request.version, "name", "version")
        return oip.ModelMetadataResponse(**self.model_metadata())

    async def RepositoryIndex(self, request: Any, context: Any) -> Any:  # noqa: N802
        response = oip.RepositoryIndexResponse()
        if not (request.ready and self.draining):
            state, reason = ("UNAVAILABLE", "stopping") if self.draining else ("READY", "")
            manifest = self._manifest
            response.models.add(name=manifest.name, version=manifest.version, state=state, reason=reason)
        return response

    async def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Raises InputError, DeadlineExceeded, Overloaded, Unreachable, ExecutionError."""
        outcome = Outcome.FAILED
        self._metrics.inflight.inc()
        try:
            response = await self._infer(request, context)
            outcome = Outcome.ANSWERED
        except InputError:
            outcome = Outcome.INVALID
            raise
        except DeadlineExceeded:
            outcome = Outcome.EXPIRED
            raise
        except (Overloaded, Unreachable):
            outcome = Outcome.REFUSED
            raise
        except asyncio.CancelledError:
            # The library cancels a call whose own deadline passes, often a moment before the engine would.
            left_s = context.time_remaining()
            outcome = Outcome.CANCELLED if left_s is None or left_s > 0 else Outcome.EXPIRED
            raise
        finally:
            self._metrics.inflight.dec()
            self._metrics.requests[outcome].inc()
        return response

    async def _infer(self, request: Any, context: Any) -> Any:
        now_s = self._loop.time()
        self._check_model(request.model_name, request.model_version, "model_name", "model_version")
        outputs = requested_outputs(request, self._manifest.outputs)
        deadline_s = self._engine.admission.deadline_s(now_s, context.time_remaining(), _timeout_s(request))
        images = await self._images(request)
        answer = await self._engine.infer(images, deadline_s)
        return self._response(request.id, outputs, answer)

    async def _images(self, request: Any) -> NDArray[Any]:
        """The request's pixels, UINT8 [N, ...]; encoded pictures are decoded beside the event loop."""
        encoded = [message for message in request.inputs if message.datatype == "BYTES"]
        if not encoded:
            return self._read(request)
        # What a client claims, within reason; whether it is true is for the codec to say.
        rows = sum(min(max(sum(message.shape[:1]), 1), self._max_batch) for message in encoded)
        if self._decoding > 0 and self._decoding + rows > self._max_decoding:
            raise Overloaded("too many pictures are waiting to be decoded")
        self._decoding += rows
        try:
            return await self._loop.run_in_executor(self._decoder, self._read, request)
        finally:
            self._decoding -= rows

    def _read(self, request: Any) -> NDArray[Any]:
        manifest = self._manifest
        arrays = read_inputs(request, manifest.inputs, manifest.preprocessing, self._max_batch)
        return arrays[manifest.inputs[0].name]

    def _response(self, request_id: str, outputs: list[str], answer: Answer) -> Any:
        arrays: dict[str, NDArray[Any]] = {}
        for name in outputs:
            if name == PROBABILITIES:
                arrays[name] = answer.probabilities
            elif name == LABEL:
                arrays[name] = answer.probabilities.argmax(axis=1).astype(np.int64, copy=False)
        parameters: dict[str, Parameter] = {
            "edgemux_queue_ms": answer.queue_s * 1e3,
            "edgemux_compute_ms": answer.compute_s * 1e3,
            "edgemux_batch_size": answer.batch_rows,
            "edgemux_model_digest": self._digest,
        }
        return make_response(self._manifest.name, self._manifest.version, request_id, arrays, parameters)

    def _serves(self, name: str, model_version: str) -> bool:
        return name == self._manifest.name and model_version in ("", self._manifest.version)

    def _check_model(self, name: str, model_version: str, name_field: str, version_field: str) -> None:
        if name != self._manifest.name:
            raise UnknownModel(name_field, "no such model here")
        if model_version not in ("", self._manifest.version):
            raise UnknownModel(version_field, f"only version {self._manifest.version} is here")

    def server_metadata(self) -> dict[str, Any]:
        """Name, version and protocol extensions."""
        return {"name": NAME, "version": version("edgemux"), "extensions": ["parameters"]}

    def model_metadata(self) -> dict[str, Any]:
        """Name, versions, platform and tensors, -1 for the batch."""
        manifest = self._manifest
        return {
            "name": manifest.name,
            "versions": [manifest.version],
            "platform": PLATFORM,
            "inputs": [{"name": t.name, "datatype": t.datatype, "shape": list(t.shape)} for t in manifest.inputs],
            "outputs": [{"name": t.name, "datatype": t.datatype, "shape": list(t.shape)} for t in manifest.outputs],
        }

    def pages(self) -> dict[str, Any]:
        """What the HTTP port answers, by path."""
        model = f"/v2/models/{self._manifest.name}"
        return {
            "/v2": lambda: Page(200, self.server_metadata()),
            "/v2/health/live": lambda: Page(200, {"live": True}),
            "/v2/health/ready": self._ready_page,
            model: lambda: Page(200, self.model_metadata()),
            f"{model}/ready": self._ready_page,
            "/status": lambda: Page(200, self.status()),
        }

    def _ready_page(self) -> Page:
        return Page(503 if self.draining else 200, {"ready": not self.draining})

    def status(self) -> dict[str, Any]:
        """The server at a glance: queue, batch time, counters since the start."""
        timing, engine = self._engine.timing, self._engine
        return {
            "model": self._manifest.name,
            "version": self._manifest.version,
            "digest": self._digest,
            "ready": not self.draining,
            "worker": "inline" if engine.inline else "thread",
            "queue": {"requests": len(engine.batcher), "rows": engine.batcher.queued_rows, "busy": engine.batcher.busy},
            "batch_ms": {"fixed": timing.fixed_s * 1e3, "per_row": timing.per_row_s * 1e3},
            "max_batch": self._max_batch,
            "counters": self._metrics.counters(),
        }

    def close(self) -> None:
        """Stop the decoder; a picture that is being decoded is not waited for."""
        self._decoder.shutdown(wait=False, cancel_futures=True)


def _timeout_s(request: Any) -> float | None:
    """The protocol's own ``timeout`` parameter, microseconds, in seconds; None when absent or 0."""
    if "timeout" not in request.parameters:
        return None
    slot = request.parameters["timeout"]
    kind = slot.WhichOneof("parameter_choice")
    if kind not in ("int64_param", "uint64_param"):
        raise InputError("timeout", "expected int64_param, microseconds")
    microseconds = int(getattr(slot, kind))
    if microseconds < 0:
        raise InputError("timeout", "must not be negative")
    return microseconds / 1e6 if microseconds else None
