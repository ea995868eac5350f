"""The service: method paths, a stub to call it, a registration to serve it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from typing import Any, Protocol

import grpc
import grpc.aio

from edgemux.multiplexer.errors import EdgemuxError, InputError, Overloaded, Unreachable
from edgemux.wire import oip_pb2 as oip
from edgemux.wire.events import InternalError, Name, kind, places, tell
from edgemux.wire.fields import check_fields
from edgemux.wire.status import PUSHBACK, grpc_code, internal_id

SERVICE = "inference.GRPCInferenceService"

_STOPPING = "the server is stopping"

_Infer = Callable[[Any, Any], Coroutine[Any, Any, Any]]
_Handler = Callable[[bytes, Any], Coroutine[Any, Any, Any]]

_log = logging.getLogger("edgemux.wire")

# method -> (request, response). A servicer that lacks one answers UNIMPLEMENTED.
METHODS: dict[str, tuple[Any, Any]] = {
    "ServerLive": (oip.ServerLiveRequest, oip.ServerLiveResponse),
    "ServerReady": (oip.ServerReadyRequest, oip.ServerReadyResponse),
    "ModelReady": (oip.ModelReadyRequest, oip.ModelReadyResponse),
    "ServerMetadata": (oip.ServerMetadataRequest, oip.ServerMetadataResponse),
    "ModelMetadata": (oip.ModelMetadataRequest, oip.ModelMetadataResponse),
    "ModelInfer": (oip.ModelInferRequest, oip.ModelInferResponse),
    "RepositoryIndex": (oip.RepositoryIndexRequest, oip.RepositoryIndexResponse),
    "ModelConfig": (oip.ModelConfigRequest, oip.ModelConfigResponse),
    "ModelStatistics": (oip.ModelStatisticsRequest, oip.ModelStatisticsResponse),
    "TraceSetting": (oip.TraceSettingRequest, oip.TraceSettingResponse),
    "LogSettings": (oip.LogSettingsRequest, oip.LogSettingsResponse),
}
# What changes a server, for whoever may: served on an address of its own.
ADMIN_METHODS: dict[str, tuple[Any, Any]] = {
    "RepositoryIndex": METHODS["RepositoryIndex"],
    "RepositoryModelLoad": (oip.RepositoryModelLoadRequest, oip.RepositoryModelLoadResponse),
    "RepositoryModelUnload": (oip.RepositoryModelUnloadRequest, oip.RepositoryModelUnloadResponse),
}
STREAM = "ModelStreamInfer"
# Requests of one stream that are worked on at once; more are not read before answers have left.
MAX_STREAMED = 64


class Servicer(Protocol):
    """What a server implements, one coroutine a method; errors are raised, never set on the context."""

    async def ServerLive(self, request: Any, context: Any) -> Any: ...  # noqa: N802
    async def ServerReady(self, request: Any, context: Any) -> Any: ...  # noqa: N802
    async def ModelReady(self, request: Any, context: Any) -> Any: ...  # noqa: N802
    async def ServerMetadata(self, request: Any, context: Any) -> Any: ...  # noqa: N802
    async def ModelMetadata(self, request: Any, context: Any) -> Any: ...  # noqa: N802
    async def ModelInfer(self, request: Any, context: Any) -> Any: ...  # noqa: N802
    async def RepositoryIndex(self, request: Any, context: Any) -> Any: ...  # noqa: N802


class Stub:
    """Callables for every method over a grpc.aio channel; each takes (request, timeout=seconds)."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        for method, (request, response) in METHODS.items():
            call = channel.unary_unary(
                f"/{SERVICE}/{method}",
                request_serializer=request.SerializeToString,
                response_deserializer=response.FromString,
            )
            setattr(self, method, call)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)


class Door:
    """The way in for inferences: who is inside, and whether more may come in.

    ``grpc.aio`` takes calls in one at a time, and ``Server.stop`` cancels those that have arrived but not been taken
    in yet: measured, 14 of 16 clients got CANCELLED at every stop. So a server closes its door first, which answers
    UNAVAILABLE, and stops once nobody is inside or knocking.
    """

    def __init__(self, expired: Callable[[], None] = lambda: None) -> None:
        """``expired`` is called for every call whose time was over before it came in."""
        self.closed = False
        self.arrived = 0
        self.expired = expired
        self._inside: set[asyncio.Task[Any]] = set()
        self._cleared = False

    @property
    def inside(self) -> int:
        """How many are being answered."""
        return len(self._inside)

    async def clear(self, patience_s: float) -> None:
        """Let nobody in, and send those who are inside away with UNAVAILABLE; ``Server.stop`` would say CANCELLED."""
        self.closed = self._cleared = True
        for task in self._inside:
            task.cancel()
        if self._inside:
            await asyncio.wait(set(self._inside), timeout=patience_s)

    async def within(self, work: Coroutine[Any, Any, Any]) -> Any:
        """``work``, an inference, as one who is let in. Raises Unreachable when the server is stopping."""
        self.arrived += 1
        if self.closed:
            work.close()
            raise Unreachable(_STOPPING)
        task = asyncio.current_task()
        assert task is not None
        self._inside.add(task)
        try:
            return await work
        except asyncio.CancelledError:
            if not self._cleared:
                raise
            raise Unreachable(_STOPPING) from None
        finally:
            self._inside.discard(task)

    def counted(self, handle: _Handler) -> _Handler:
        """``handle`` for those who are let in."""

        async def enter(content: bytes, context: Any) -> Any:
            left_s = context.time_remaining()
            if left_s is not None and left_s <= 0 and not self.closed:
                # Under overload calls wait in the library before they are taken in; each that is answered although its
                # time is over makes the next one late, and in the end none is answered in time.
                self.arrived += 1
                self.expired()
                raise asyncio.CancelledError
            try:
                return await self.within(handle(content, context))
            except Unreachable:  # the door's own: what is behind it has told the client already
                await _abort(context, grpc.StatusCode.UNAVAILABLE, _STOPPING)

        return enter


async def _abort(context: Any, code: grpc.StatusCode, text: str) -> None:
    """End a call with a status. Where it is over already nobody hears of it, and it is no error of ours."""
    try:
        await context.abort(code, text)
    except grpc.aio.AbortError:
        raise
    except grpc.aio.BaseError as error:
        raise asyncio.CancelledError from error


def register(server: grpc.aio.Server, servicer: Any, door: Door | None = None) -> None:
    """Serve what ``servicer`` has of the protocol under its service name; inferences come in through ``door``.

    Requests are parsed inside the handler: the library answers UNKNOWN to bytes that do not parse, where
    INVALID_ARGUMENT is right, and would send the text of an uncaught exception to the client.
    """
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(SERVICE, handlers(servicer, door or Door())),),
    )


def handlers(servicer: Any, door: Door) -> dict[str, Any]:
    """gRPC's handlers of what ``servicer`` has of the protocol, by method: raw bytes in, messages out.

    What ``register`` serves, for transports that bring a server of their own. Of the context they use
    ``time_remaining``, ``peer``, ``set_trailing_metadata`` and ``abort``, which raises ``grpc.aio.AbortError``.
    """
    made = _handlers(servicer, METHODS, door)
    if hasattr(servicer, "ModelInfer"):
        made[STREAM] = grpc.stream_stream_rpc_method_handler(
            _streaming(servicer.ModelInfer, door),
            response_serializer=oip.ModelStreamInferResponse.SerializeToString,
        )
    return made


def register_admin(server: grpc.aio.Server, servicer: Any) -> None:
    """Serve what ``servicer`` has of the methods that change a server."""
    handlers = _handlers(servicer, ADMIN_METHODS, Door())
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))


def _handlers(servicer: Any, methods: Mapping[str, tuple[Any, Any]], door: Door) -> dict[str, Any]:
    handlers = {}
    for method, (request, response) in methods.items():
        answer = getattr(servicer, method, None)
        if answer is None:
            continue
        handle = _guarded(answer, _parse_infer if method == "ModelInfer" else request.FromString)
        if method == "ModelInfer":
            handle = door.counted(handle)
        handlers[method] = grpc.unary_unary_rpc_method_handler(handle, response_serializer=response.SerializeToString)
    return handlers


def _parse_infer(content: bytes) -> Any:
    """Raises TooLarge, and InputError for bytes that are no such message."""
    check_fields(content)
    return _parsed(oip.ModelInferRequest.FromString, content)


def _parsed(parse: Callable[[bytes], Any], content: bytes) -> Any:
    try:
        return parse(content)
    except InputError:
        raise
    except Exception as error:  # the protobuf runtimes raise different types
        raise InputError("request", "not a valid message of this method") from error


def refusal(error: Exception) -> tuple[grpc.StatusCode, str]:
    """The status that an exception of a handler is answered with; foreign ones become an id that is in the log."""
    if isinstance(error, EdgemuxError):
        return grpc_code(error), str(error)
    if isinstance(error, MemoryError):  # a limit of the system, or all there is: fewer at a time may do
        return grpc.StatusCode.RESOURCE_EXHAUSTED, "out of memory"
    error_id = internal_id()
    tell(_log, InternalError(id=Name(error_id), error=kind(error), at=places(error)))
    return grpc.StatusCode.INTERNAL, f"internal error {error_id}"


def _guarded(method: Callable[[Any, Any], Awaitable[Any]], parse: Callable[[bytes], Any]) -> _Handler:
    """A handler of raw bytes that turns every exception into one status."""

    async def handle(content: bytes, context: Any) -> Any:
        try:
            return await method(_parsed(parse, content), context)
        except Exception as error:
            if isinstance(error, Overloaded) and error.retry_after_s is not None:
                pushback = str(max(1, round(error.retry_after_s * 1000)))
                context.set_trailing_metadata(((PUSHBACK, pushback),))
            await _abort(context, *refusal(error))

    return handle


def _streaming(infer: _Infer, door: Door) -> Callable[[Any, Any], AsyncIterator[Any]]:
    """A handler of a stream of inferences: answers come in the order of the requests, each with its own error.

    A refusal is told in ``error_message``, as Triton has it, and the stream goes on.
    """

    async def answer(content: bytes, context: Any) -> Any:
        response = oip.ModelStreamInferResponse()
        try:
            request = _parse_infer(content)
            response.infer_response.id = request.id
            response.infer_response.CopyFrom(await door.within(infer(request, context)))
        except Exception as error:
            _, response.error_message = refusal(error)
        return response

    async def read(requests: AsyncIterator[bytes], context: Any, answers: asyncio.Queue[Any]) -> None:
        try:
            async for content in requests:
                await answers.put(asyncio.ensure_future(answer(content, context)))
        finally:
            await answers.put(None)

    async def handle(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[Any]:
        answers: asyncio.Queue[Any] = asyncio.Queue(MAX_STREAMED)
        reading = asyncio.ensure_future(read(requests, context, answers))
        try:
            while (task := await answers.get()) is not None:
                yield await task
        finally:
            reading.cancel()
            while not answers.empty():
                left = answers.get_nowait()
                if left is not None:
                    left.cancel()

    return handle
