"""One replica: our cloud server's service behind Ray's gRPC server instead of our own."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2
from prometheus_client import generate_latest

from edgemux.cloud.config import CloudConfig
from edgemux.cloud.ray_methods import TIME_LEFT, UNARY, gate
from edgemux.cloud.server import prepare
from edgemux.multiplexer.errors import ExecutionError
from edgemux.wire.http import Page
from edgemux.wire.rest import Rest
from edgemux.wire.service import STREAM, Door, handlers

Status = health_pb2.HealthCheckResponse


class Reply:
    """Bytes that are a message already; Ray asks for nothing but this method."""

    __slots__ = ("_content",)

    def __init__(self, content: bytes) -> None:
        self._content = content

    def SerializeToString(self) -> bytes:  # noqa: N802
        return self._content


NOTHING = Reply(b"")


class CallContext:
    """What our handlers use of a gRPC context, on top of Ray's, which has neither a deadline nor ``abort``."""

    def __init__(self, context: Any, clock: Callable[[], float] = time.monotonic) -> None:
        self._context = context
        self._clock = clock
        left = dict(context.invocation_metadata()).get(TIME_LEFT)
        self._deadline_s = None if left is None else clock() + float(left)

    def time_remaining(self) -> float | None:
        """Seconds to the deadline, None without one."""
        return None if self._deadline_s is None else max(0.0, self._deadline_s - self._clock())

    def peer(self) -> str:
        """Who asks: behind a proxy, the proxy."""
        return str(self._context.peer())

    def set_trailing_metadata(self, metadata: Any) -> None:
        """What goes out with the status."""
        self._context.set_trailing_metadata(list(metadata))

    async def abort(self, code: grpc.StatusCode, text: str) -> None:
        """End the call with a status. Ray sends status and trailers as they are of calls that return, so ``Replica``
        catches this and returns: of those that raise it would log a traceback and forget the trailers."""
        self._context.set_code(code)
        self._context.set_details(text)
        raise grpc.aio.AbortError


class Replica:
    """Ray's deployment: a method for every path, bytes in, ``Reply`` out.

    Batcher, admission, deadlines, metrics are those of ``edgemux cloud``, and so is what HTTP answers; ``/metrics`` is
    of the replica that happens to be asked.
    """

    async def __init__(self, config: CloudConfig) -> None:  # type: ignore[misc]  # Ray awaits it
        """Raises ArtifactError."""
        self._serving = await prepare(config)
        self._serving.servicer.check_fits(config.listen.max_message_bytes)
        self._door = Door(self._serving.servicer.came_late)
        self._handlers = handlers(self._serving.servicer, self._door)
        pages = {**self._serving.pages, "/metrics": self._metrics}
        self._rest = Rest(self._serving.servicer, self._door, pages, gate(), config.listen.max_message_bytes)

    async def check_health(self) -> None:
        """Asked by Ray every few seconds; a replica that raises is replaced. Raises ExecutionError."""
        if not await self._serving.well():
            raise ExecutionError("the model does not answer as it should")

    async def __call__(self, request: Any) -> Any:
        """HTTP: the protocol's REST side and our pages, in requests and responses of starlette, which Ray brings."""
        from starlette.responses import Response

        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        await self._rest(request.scope, request.receive, send)
        started, *bodies = sent
        headers = {str(name, "latin-1"): str(value, "latin-1") for name, value in started["headers"]}
        return Response(b"".join(each["body"] for each in bodies), started["status"], headers)

    def _metrics(self) -> Page:
        return Page(200, generate_latest(self._serving.registry), "text/plain; version=0.0.4")

    async def answer(self, method: str, content: bytes, context: Any) -> Reply:
        """A unary call. Every error of ours becomes a status on Ray's context."""
        handler = self._handlers.get(method)
        if handler is None:
            context.set_code(grpc.StatusCode.UNIMPLEMENTED)
            context.set_details("Method not found!")  # as the library says it
            return NOTHING
        try:
            message = await handler.unary_unary(content, CallContext(context))
        except grpc.aio.AbortError:
            return NOTHING
        return Reply(message.SerializeToString())

    async def stream(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[Reply]:
        """A stream of inferences: answers in the order of the requests, each with its own error."""
        async for message in self._handlers[STREAM].stream_stream(requests, CallContext(context)):
            yield Reply(message.SerializeToString())

    async def Check(self, content: bytes, grpc_context: Any) -> Reply:  # noqa: N802
        """grpc.health.v1: a replica that is asked serves all its models."""
        asked = health_pb2.HealthCheckRequest.FromString(content).service
        if asked not in ("", *self._serving.models):
            grpc_context.set_code(grpc.StatusCode.NOT_FOUND)
            return NOTHING
        return Reply(Status(status=Status.SERVING).SerializeToString())

    async def Watch(self, content: bytes, grpc_context: Any) -> AsyncIterator[Reply]:  # noqa: N802
        """grpc.health.v1: the state now; later ones are told by the end of the call."""
        asked = health_pb2.HealthCheckRequest.FromString(content).service
        known = asked in ("", *self._serving.models)
        yield Reply(Status(status=Status.SERVING if known else Status.SERVICE_UNKNOWN).SerializeToString())
        await asyncio.Event().wait()


def _unary(method: str) -> Callable[[Replica, bytes, Any], Awaitable[Reply]]:
    async def call(self: Replica, content: bytes, grpc_context: Any) -> Reply:
        return await self.answer(method, content, grpc_context)

    call.__name__ = method
    return call


async def _stream(self: Replica, requests: Any, grpc_context: Any) -> AsyncIterator[Reply]:
    async for reply in self.stream(requests, grpc_context):
        yield reply


for _method in UNARY:
    setattr(Replica, _method, _unary(_method))
setattr(Replica, STREAM, _stream)
