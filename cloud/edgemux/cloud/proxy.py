"""Another Open Inference Protocol server that answers for a model: requests pass through, checked on both ways."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import grpc
import grpc.aio

from edgemux.cloud.admission import Refused
from edgemux.cloud.backend import Arrays, batched
from edgemux.cloud.config import CloudConfig, ModelSettings
from edgemux.cloud.engine import Answer
from edgemux.cloud.metrics import Metrics
from edgemux.cloud.service import Hosted
from edgemux.cloud.statistics import Tally
from edgemux.multiplexer.bundle import DATATYPES, Tensor
from edgemux.multiplexer.errors import (
    BadAnswer,
    ConfigError,
    DeadlineExceeded,
    ExecutionError,
    Overloaded,
    TooLarge,
)
from edgemux.wire import oip_pb2 as oip
from edgemux.wire.channel import open_renewed_channel
from edgemux.wire.codec import get_parameters, make_request, read_outputs
from edgemux.wire.model_service import Served
from edgemux.wire.service import Stub
from edgemux.wire.status import from_peer, pushback_s
from edgemux.wire.tracing import Stage, Trace

# How long a question to the other server may take that is not an inference.
ASK_S = 5.0
# Kept back from a deadline for the way home, at least and at most.
MARGIN = 0.02
LEAST_MARGIN_S, MOST_MARGIN_S = 0.001, 0.05


class ProxyEngine:
    """Answers by asking another server. Lives in one event loop; ``close`` it there."""

    def __init__(self, channel: Any, model: str, served: Served, most_inflight: int, tally: Tally) -> None:
        """``model`` is its name there. ``most_inflight``: rows that are under way; more are refused."""
        self._channel = channel
        self._stub = Stub(channel)
        self._model = model
        self._outputs = {tensor.name: tensor for tensor in served.outputs}
        self._max_batch = max(1, served.max_batch)
        self._batched = served.max_batch > 0
        self._most = most_inflight
        self._rows = 0
        self._tally = tally

    async def infer(
        self,
        inputs: Arrays,
        outputs: Sequence[str],
        deadline_s: float,
        priority: int = 0,
        trace: Trace | None = None,
    ) -> Answer:
        """Raises TooLarge, DeadlineExceeded, Overloaded, Unreachable, BadAnswer and other ExecutionErrors."""
        rows = len(next(iter(inputs.values()))) if self._batched else 1
        if rows > self._max_batch:
            raise TooLarge("inputs", f"a batch of {rows}, at most {self._max_batch}")
        if self._rows + rows > self._most:
            self._tally.refused[Refused.FULL] += 1
            raise Overloaded("too many requests are under way to the server that answers for this model")
        started_s = time.monotonic()
        left_s = deadline_s - started_s
        left_s -= min(max(MARGIN * left_s, LEAST_MARGIN_S), MOST_MARGIN_S)
        if left_s <= 0:
            raise DeadlineExceeded("the deadline is too near to ask the server that answers for this model")
        request = self._request(inputs, outputs, left_s, priority)
        self._rows += rows
        try:
            response = await self._ask(request, left_s, trace)
        except grpc.aio.AioRpcError as error:
            raise _failure(error) from error
        finally:
            self._rows -= rows
        if response is None:  # a stream that was damaged can end like this, with status OK
            raise BadAnswer("no answer from the server that answers for this model")
        elapsed_s = time.monotonic() - started_s
        arrays = read_outputs(response, [self._outputs[name] for name in outputs], rows if self._batched else None)
        self._tally.ran(rows, 1, 0.0, elapsed_s, 0.0)
        there_s = _told_s(response, "edgemux_queue_ms", elapsed_s)
        self._tally.queue.observe(there_s)
        return Answer(arrays, there_s, elapsed_s - there_s, rows)

    async def _ask(self, request: Any, left_s: float, trace: Trace | None) -> Any:
        """Raises AioRpcError."""
        if trace is None:
            return await self._stub.ModelInfer(request, timeout=left_s)
        passed, failed = trace.begin(Stage.PROXY), "cancelled"
        try:
            response = await self._stub.ModelInfer(request, timeout=left_s, metadata=passed.headers)
            failed = ""
        except grpc.aio.AioRpcError as error:
            failed = error.code().name.lower()
            raise
        finally:
            passed.end(failed or None)
        return response

    def _request(self, inputs: Arrays, outputs: Sequence[str], left_s: float, priority: int) -> Any:
        parameters: dict[str, int] = {"timeout": max(1, int(left_s * 1e6))}
        request = make_request(self._model, dict(inputs), parameters=parameters)
        if priority:
            request.parameters["priority"].uint64_param = priority
        for name in outputs:
            request.outputs.add(name=name)
        return request

    async def ready(self) -> bool:
        """Whether the other server says that it answers for the model."""
        try:
            asked = oip.ModelReadyRequest(name=self._model)
            reply = await self._stub.ModelReady(asked, timeout=ASK_S)
            return reply is not None and bool(reply.ready)
        except grpc.aio.AioRpcError:
            return False

    def status(self) -> dict[str, Any]:
        """At a glance."""
        return {"worker": "proxy", "model_there": self._model, "rows_under_way": self._rows}

    async def close(self) -> None:
        """Close the channel; calls that are under way are cancelled."""
        await self._channel.close()


async def open_proxy(settings: ModelSettings, config: CloudConfig, metrics: Metrics) -> list[Hosted]:
    """The model as the other server describes it now.

    Raises ExecutionError when it does not, which may change, ConfigError when what it describes cannot be passed on.
    """
    assert settings.address is not None
    assert settings.name is not None
    model = settings.model or settings.name
    channel = open_renewed_channel(settings.address, tls=settings.tls, token_file=settings.token_file, section="models")
    try:
        metadata = await _described(Stub(channel), model, settings.address)
        inputs, outputs = _tensors(metadata.inputs), _tensors(metadata.outputs)
    except BaseException:
        await channel.close()
        raise
    max_batch = config.batching_of(settings).max_batch if batched(inputs, outputs) else 0
    version = settings.version or (metadata.versions[-1] if metadata.versions else "1")
    served = Served(settings.name, version, inputs, outputs, platform=metadata.platform, max_batch=max_batch)
    tally = metrics.of(served.name, served.version)
    engine = ProxyEngine(channel, model, served, config.admission.max_queue, tally)
    return [Hosted(served, engine, tally, "", _well, follows=engine.ready)]


async def _well() -> bool:
    """That another server is away is no reason to start this one again."""
    return True


async def _described(stub: Stub, model: str, address: str) -> Any:
    try:
        described = await stub.ModelMetadata(oip.ModelMetadataRequest(name=model), timeout=ASK_S)
    except grpc.aio.AioRpcError as error:
        failure = from_peer(error.code(), error.details())
        reason = str(failure).replace("the cloud", "it")
        raise type(failure)(f"{address} does not describe {model}: {reason}") from error
    if described is None or not described.inputs or not described.outputs:
        raise BadAnswer(f"{address} does not describe {model}: no inputs or outputs in its answer")
    return described


def _tensors(described: Sequence[Any]) -> tuple[Tensor, ...]:
    tensors = []
    for each in described:
        if each.datatype not in DATATYPES:
            raise ConfigError(f"models: {each.name} is {each.datatype}, which is not passed on")
        tensors.append(Tensor(each.name, each.datatype, tuple(max(-1, size) for size in each.shape)))
    return tuple(tensors)


def _failure(error: grpc.aio.AioRpcError) -> ExecutionError:
    """What the other server's refusal is to our client, in words that name neither it nor its internals."""
    failure = from_peer(error.code(), error.details())
    text = str(failure).replace("the cloud", "the server that answers for this model")
    if isinstance(failure, Overloaded):
        return Overloaded(text, pushback_s(error))
    return type(failure)(text)


def _told_s(response: Any, parameter: str, most_s: float) -> float:
    value = get_parameters(response).get(parameter)
    return min(max(0.0, value / 1e3), most_s) if isinstance(value, int | float) else 0.0
