"""The servicer: Open Inference Protocol in, engine, Open Inference Protocol out."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import msgspec

from edgemux.cloud.admission import AdmissionSettings
from edgemux.cloud.batcher import BatchingSettings
from edgemux.cloud.engine import Answers
from edgemux.cloud.metrics import Metrics
from edgemux.cloud.statistics import Outcome, Tally
from edgemux.multiplexer.errors import DeadlineExceeded, InputError, Overloaded, UnknownModel, Unreachable
from edgemux.multiplexer.limits import allowed_s
from edgemux.wire.codec import CHECKSUM, Parameter, make_response, requested_outputs
from edgemux.wire.model_service import ModelService, Served, priority_of, timeout_s


class Hosted(msgspec.Struct, frozen=True):
    """A model that is served: what clients see, what answers, what counts it.

    digest: of its file, in every answer; empty where there is none. well: whether it answers as it should.
    """

    served: Served
    engine: Answers
    tally: Tally
    digest: str
    well: Callable[[], Awaitable[bool]]


class CloudService(ModelService):
    """Answers with the models it is given."""

    def __init__(
        self,
        models: Sequence[Hosted],
        admission: AdmissionSettings,
        metrics: Metrics,
        batching: BatchingSettings = BatchingSettings(),  # noqa: B008 - frozen
    ) -> None:
        """The pictures that wait to be decoded are bounded like the rows that wait to be computed."""
        super().__init__("edgemux-cloud", [each.served for each in models], admission.max_queue)
        # By name and version; "" is the version for whoever asks for none.
        self._hosted: dict[tuple[str, str], Hosted] = {}
        for each in models:
            self._hosted[each.served.name, each.served.version] = self._hosted[each.served.name, ""] = each
        self._admission = admission
        self._priority_levels = batching.priority_levels
        self._metrics = metrics
        # What asks for no model that is here is counted with the only one, or with none of several.
        first, *others = models
        self._nobody = metrics.of("other") if others else first.tally

    async def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Raises InputError, DeadlineExceeded, Overloaded, Unreachable, ExecutionError."""
        came_s = self._loop.time()
        hosted = self._hosted.get((request.model_name, request.model_version))
        tally = self._nobody if hosted is None else hosted.tally
        outcome = Outcome.FAILED
        tally.inflight += 1
        try:
            response = await self._infer(request, context, hosted, came_s)
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
            tally.inflight -= 1
            tally.ended(outcome, self._loop.time() - came_s)
        return response

    async def _infer(self, request: Any, context: Any, hosted: Hosted | None, came_s: float) -> Any:
        if hosted is None:
            self.check_model(request.model_name, request.model_version)
            raise UnknownModel("model_name", "no such model here")
        served, bounds = hosted.served, self._admission
        outputs = requested_outputs(request, served.outputs)
        time_s = allowed_s(bounds.default_timeout_s, bounds.max_timeout_s, context.time_remaining(), timeout_s(request))
        deadline_s = came_s + time_s
        priority = priority_of(request, self._priority_levels)
        inputs = await self.tensors(request, deadline_s)
        answer = await hosted.engine.infer(inputs, outputs, deadline_s, priority)
        parameters: dict[str, Parameter] = {
            "edgemux_queue_ms": answer.queue_s * 1e3,
            "edgemux_compute_ms": answer.compute_s * 1e3,
            "edgemux_batch_size": answer.batch_rows,
        }
        if hosted.digest:
            parameters["edgemux_model_digest"] = hosted.digest
        checked = CHECKSUM in request.parameters
        return make_response(served.name, served.version, request.id, answer.outputs, parameters, checked)

    @property
    def hosted(self) -> list[Hosted]:
        """Every version of every model that is served."""
        return [each for (_, version), each in self._hosted.items() if version]

    async def well(self) -> bool:
        """Whether every model answers as it should."""
        return all([await each.well() for each in self.hosted])

    def status(self) -> dict[str, Any]:
        """The server at a glance: queue, batch time, counters since the start."""
        first, *others = self.hosted
        if not others:
            return super().status() | self._status_of(first)
        models = {f"{each.served.name}/{each.served.version}": self._status_of(each) for each in self.hosted}
        return super().status() | {"models": models, "counters": self._metrics.counters()}

    def _status_of(self, hosted: Hosted) -> dict[str, Any]:
        return hosted.engine.status() | {
            "version": hosted.served.version,
            "digest": hosted.digest,
            "max_batch": hosted.served.max_batch,
            "counters": self._metrics.counters(hosted.served.name),
        }

    async def stop(self) -> None:
        """Stop decoder and engines."""
        self.close()
        for each in self.hosted:
            await each.engine.close()
