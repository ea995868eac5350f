"""The servicer: Open Inference Protocol in, engine, Open Inference Protocol out."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from edgemux.cloud.admission import AdmissionSettings
from edgemux.cloud.batcher import BatchingSettings
from edgemux.cloud.engine import Answers
from edgemux.cloud.live import counted
from edgemux.cloud.metrics import Metrics
from edgemux.cloud.spans import finish
from edgemux.cloud.statistics import Outcome, Tally, model_statistics
from edgemux.multiplexer.errors import DeadlineExceeded, InputError, Overloaded, UnknownModel, Unreachable
from edgemux.multiplexer.limits import allowed_s
from edgemux.wire import oip_pb2 as oip
from edgemux.wire.codec import CHECKSUM, add_checksum, requested_outputs
from edgemux.wire.model_service import READY, UNAVAILABLE, ModelService, Served, priority_of, timeout_s
from edgemux.wire.quick import Answers as AnswerWriter
from edgemux.wire.tracing import OFF, Trace, Tracer


@dataclass(eq=False)
class Hosted:
    """A model that is served: what clients see, what answers, what counts it.

    digest: of its file, in every answer; empty where there is none. well: whether it answers as it should.
    inside: requests that hold on to it. follows: whether another server, which answers for it, is ready; away: why not.
    """

    served: Served
    engine: Answers
    tally: Tally
    digest: str
    well: Callable[[], Awaitable[bool]]
    inside: int = 0
    follows: Callable[[], Awaitable[bool]] | None = None
    away: str = ""

    def __post_init__(self) -> None:
        served = self.served
        self.answers = AnswerWriter(served.name, served.version, self.digest)
        self.outputs = [tensor.name for tensor in served.outputs]


class CloudService(ModelService):
    """Answers with the models it is given."""

    EXTENSIONS = (*ModelService.EXTENSIONS, "statistics", "schedule_policy", "model_repository")

    def __init__(
        self,
        models: Sequence[Hosted],
        admission: AdmissionSettings,
        metrics: Metrics,
        batching: BatchingSettings = BatchingSettings(),  # noqa: B008 - frozen
        tracer: Tracer = OFF,
    ) -> None:
        """The pictures that wait to be decoded are bounded like the rows that wait to be computed."""
        super().__init__("edgemux-cloud", [], admission.max_queue)
        # By name and version; "" is the version for whoever asks for none.
        self._hosted: dict[tuple[str, str], Hosted] = {}
        self._admission = admission
        self._batching = batching
        self._tracer = tracer
        self._metrics = metrics
        # Why versions that could be served are not, by name and version.
        self.absent: dict[tuple[str, str], str] = {}
        # How many servers there are behind the same ports; this is one of them.
        self.processes = 1
        for name in dict.fromkeys(each.served.name for each in models):
            self.put(name, [each for each in models if each.served.name == name])

    def put(self, name: str, versions: Sequence[Hosted]) -> list[Hosted]:
        """From now on these versions of a model are served, by rising version; returns those that are no more."""
        before = [each for each in self.hosted if each.served.name == name]
        hosted = {key: each for key, each in self._hosted.items() if key[0] != name}
        for each in versions:
            hosted[name, each.served.version] = hosted[name, ""] = each
        self._hosted = hosted
        self.show(name, [each.served for each in versions])
        # What asks for no model that is here is counted with the only one, or with none of several.
        names = {each.served.name for each in self.hosted}
        self._nobody = self.hosted[0].tally if len(names) == 1 else self._metrics.of("other")
        return before

    async def ModelReady(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Not while another server that answers for it is away."""
        response = await super().ModelReady(request, context)
        hosted = self._hosted.get((request.name, request.version))
        response.ready = response.ready and hosted is not None and not hosted.away
        return response

    async def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Raises InputError, DeadlineExceeded, Overloaded, Unreachable, ExecutionError."""
        came_s = time.monotonic()
        hosted = self._hosted.get((request.model_name, request.model_version))
        if hosted is None:
            tally = self._nobody
        else:
            tally = hosted.tally
            hosted.inside += 1
        outcome = Outcome.FAILED
        tally.inflight += 1
        trace = self._tracer.begin(context) if self._tracer.enabled else None
        try:
            response = await self._infer(request, context, hosted, came_s, trace)
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
            if hosted is not None:
                hosted.inside -= 1
            tally.ended(outcome, time.monotonic() - came_s)
            if trace is not None:
                known = "other" if hosted is None else hosted.served.name
                finish(trace, known, outcome, context.time_remaining())
        return response

    async def _infer(
        self, request: Any, context: Any, hosted: Hosted | None, came_s: float, trace: Trace | None
    ) -> Any:
        if hosted is None:
            if (request.model_name, "") in self.absent:
                raise Unreachable("the model is not ready")
            self.check_model(request.model_name, request.model_version)
            raise UnknownModel("model_name", "no such model here")
        served, bounds, parameters = hosted.served, self._admission, request.parameters
        outputs = requested_outputs(request, served.outputs) if request.outputs else hosted.outputs
        asked_s, priority = None, 0
        if parameters:
            asked_s, priority = timeout_s(request), priority_of(request, self._batching.priority_levels)
        deadline_s = came_s + allowed_s(
            bounds.default_timeout_s, bounds.max_timeout_s, context.time_remaining(), asked_s
        )
        inputs = await self.tensors(request, deadline_s)
        answer = await hosted.engine.infer(inputs, outputs, deadline_s, priority, trace)
        queue_ms, compute_ms = answer.queue_s * 1e3, answer.compute_s * 1e3
        response = hosted.answers.make(request.id, answer.outputs, queue_ms, compute_ms, answer.batch_rows)
        if parameters and CHECKSUM in parameters:
            add_checksum(response)
        return response

    async def ModelStatistics(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Raises UnknownModel."""
        asked = self.hosted
        if request.name:
            self.check_model(request.name, request.version, "name", "version")
            versions = (request.version,) if request.version else [each.version for each in self.versions(request.name)]
            asked = [self._hosted[request.name, version] for version in versions]
        response = oip.ModelStatisticsResponse()
        for each in asked:
            response.model_stats.append(model_statistics(each.served.name, each.served.version, each.tally))
        return response

    def config_of(self, served: Served) -> Any:
        """With how requests are put together."""
        config = super().config_of(served)
        batching, policy = config.dynamic_batching, config.dynamic_batching.default_queue_policy
        if served.max_batch:
            batching.max_queue_delay_microseconds = round(self._batching.linger_s * 1e6)
        batching.priority_levels = self._batching.priority_levels
        batching.default_priority_level = self._batching.default_priority
        policy.default_timeout_microseconds = round(self._admission.default_timeout_s * 1e6)
        policy.allow_timeout_override = True
        policy.max_queue_size = self._admission.max_queue
        return config

    def index(self) -> list[tuple[str, str, str, str]]:
        """With those that could be served and are not."""
        absent = dict(self.absent)
        here = []
        for name, version, state, reason in super().index():
            away = self._hosted[name, version].away if state == READY else ""
            why = absent.pop((name, version), away or reason)
            here.append((name, version, UNAVAILABLE if away else state, why))
        return here + [(*key, UNAVAILABLE, reason) for key, reason in absent.items()]

    @property
    def hosted(self) -> list[Hosted]:
        """Every version of every model that is served."""
        return [each for (_, version), each in self._hosted.items() if version]

    async def well(self) -> bool:
        """Whether every model answers as it should."""
        return all([await each.well() for each in self.hosted])

    def status(self) -> dict[str, Any]:
        """The server at a glance: queue, batch time, counters since the start."""
        if len(self.hosted) == 1:
            return super().status() | self._status_of(self.hosted[0]) | {"tracing": self._tracer.describe()}
        models = {f"{each.served.name}/{each.served.version}": self._status_of(each) for each in self.hosted}
        counters, tracing = self._metrics.counters(), self._tracer.describe()
        return super().status() | {"models": models, "counters": counters, "tracing": tracing}

    def _status_of(self, hosted: Hosted) -> dict[str, Any]:
        return hosted.engine.status() | {
            "version": hosted.served.version,
            "digest": hosted.digest,
            "max_batch": hosted.served.max_batch,
            "counters": self._metrics.counters(hosted.served.name),
        }

    def _live_of(self, hosted: Hosted) -> dict[str, Any]:
        return hosted.engine.status() | {
            "name": hosted.served.name,
            "version": hosted.served.version,
            "digest": hosted.digest,
            "max_batch": hosted.served.max_batch,
            "away": hosted.away,
            **counted(hosted.tally),
        }

    def live(self, after: int) -> dict[str, Any]:
        """What the live page shows. No inputs: what they are is their owners' business, and says nothing here."""
        return super().status() | {
            "kind": "cloud",
            "processes": self.processes,
            "models": [self._live_of(each) for each in self.hosted],
            "absent": [{"name": name, "version": version, "why": why} for (name, version), why in self.absent.items()],
        }

    async def stop(self) -> None:
        """Stop decoder and engines."""
        self.close()
        for each in self.hosted:
            await each.engine.close()
