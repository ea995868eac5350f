"""The servicer: Open Inference Protocol in, engine, Open Inference Protocol out."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemux.cloud.engine import Answer, Engine
from edgemux.cloud.metrics import Metrics, Outcome
from edgemux.multiplexer.bundle import Manifest
from edgemux.multiplexer.chain import PROBABILITIES
from edgemux.multiplexer.errors import DeadlineExceeded, InputError, Overloaded, Unreachable
from edgemux.wire.codec import CHECKSUM, Parameter, make_response, requested_outputs
from edgemux.wire.model_service import ModelService, timeout_s

LABEL = "label"


class CloudService(ModelService):
    """Answers with one bundle's cloud model."""

    def __init__(self, manifest: Manifest, model_digest: str, engine: Engine, metrics: Metrics, max_queue: int) -> None:
        """``model_digest`` is told in every answer; ``max_queue`` bounds the pictures that wait to be decoded."""
        super().__init__("edgemux-cloud", "onnxruntime_onnx", [manifest], engine.batcher.max_batch, max_queue)
        self._manifest = manifest
        self._digest = model_digest
        self._engine = engine
        self._metrics = metrics

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
        self.check_model(request.model_name, request.model_version)
        outputs = requested_outputs(request, self._manifest.outputs)
        deadline_s = self._engine.admission.deadline_s(now_s, context.time_remaining(), timeout_s(request))
        images = (await self.tensors(request, deadline_s))[self._manifest.inputs[0].name]
        answer = await self._engine.infer(images, deadline_s)
        return self._response(request, outputs, answer)

    def _response(self, request: Any, outputs: list[str], answer: Answer) -> Any:
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
        name, number, checked = self._manifest.name, self._manifest.version, CHECKSUM in request.parameters
        return make_response(name, number, request.id, arrays, parameters, checked)

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
