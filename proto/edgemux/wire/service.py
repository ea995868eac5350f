"""The service: method paths, a stub to call it, a registration to serve it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import grpc
import grpc.aio

from edgemux.multiplexer.errors import EdgemuxError, InputError, Overloaded
from edgemux.wire import oip_pb2 as oip
from edgemux.wire.fields import check_fields
from edgemux.wire.status import grpc_code, internal_id

SERVICE = "inference.GRPCInferenceService"

_STOPPING = "the server is stopping"

_Handler = Callable[[bytes, Any], Awaitable[Any]]

_log = logging.getLogger("edgemux.wire")

# method -> (request, response); what a server of ours does not implement answers UNIMPLEMENTED by itself.
METHODS: dict[str, tuple[Any, Any]] = {
    "ServerLive": (oip.ServerLiveRequest, oip.ServerLiveResponse),
    "ServerReady": (oip.ServerReadyRequest, oip.ServerReadyResponse),
    "ModelReady": (oip.ModelReadyRequest, oip.ModelReadyResponse),
    "ServerMetadata": (oip.ServerMetadataRequest, oip.ServerMetadataResponse),
    "ModelMetadata": (oip.ModelMetadataRequest, oip.ModelMetadataResponse),
    "ModelInfer": (oip.ModelInferRequest, oip.ModelInferResponse),
    "RepositoryIndex": (oip.RepositoryIndexRequest, oip.RepositoryIndexResponse),
}


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

    def counted(self, handle: _Handler) -> _Handler:
        """``handle`` for those who are let in."""

        async def enter(content: bytes, context: Any) -> Any:
            self.arrived += 1
            if self.closed:
                await _abort(context, grpc.StatusCode.UNAVAILABLE, _STOPPING)
            left_s = context.time_remaining()
            if left_s is not None and left_s <= 0:
                # Under overload calls wait in the library before they are taken in; each that is answered although its
                # time is over makes the next one late, and in the end none is answered in time.
                self.expired()
                raise asyncio.CancelledError
            task = asyncio.current_task()
            assert task is not None  # the library gives every call one of its own
            self._inside.add(task)
            try:
                return await handle(content, context)
            except asyncio.CancelledError:
                if not self._cleared:
                    raise
                await _abort(context, grpc.StatusCode.UNAVAILABLE, _STOPPING)
            finally:
                self._inside.discard(task)

        return enter


async def _abort(context: Any, code: grpc.StatusCode, text: str) -> None:
    """End a call with a status. Where it is over already nobody hears of it, and it is no error of ours."""
    try:
        await context.abort(code, text)
    except grpc.aio.AbortError:
        raise
    except grpc.aio.BaseError as error:
        raise asyncio.CancelledError from error


def register(server: grpc.aio.Server, servicer: Servicer, door: Door | None = None) -> None:
    """Serve ``servicer`` under the protocol's service name; inferences come in through ``door``.

    Requests are parsed inside the handler: the library answers UNKNOWN to bytes that do not parse, where
    INVALID_ARGUMENT is right, and would send the text of an uncaught exception to the client.
    """
    handlers = {}
    for method, (request, response) in METHODS.items():
        parse = _parse_infer if method == "ModelInfer" else request.FromString
        handle = _guarded(getattr(servicer, method), parse)
        if door is not None and method == "ModelInfer":
            handle = door.counted(handle)
        handlers[method] = grpc.unary_unary_rpc_method_handler(handle, response_serializer=response.SerializeToString)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))


def _parse_infer(content: bytes) -> Any:
    """Raises TooLarge, and InputError or what the protobuf runtime raises for bytes that are no such message."""
    check_fields(content)
    return oip.ModelInferRequest.FromString(content)


def _guarded(method: Callable[[Any, Any], Awaitable[Any]], parse: Callable[[bytes], Any]) -> _Handler:
    """A handler of raw bytes that turns every exception into one status, and foreign ones into an id only."""

    async def handle(content: bytes, context: Any) -> Any:
        try:
            request = parse(content)
        except InputError as error:
            await _abort(context, grpc_code(error), str(error))
        except Exception:  # the protobuf runtimes raise different types
            await _abort(context, grpc.StatusCode.INVALID_ARGUMENT, "request: not a valid message of this method")
        try:
            return await method(request, context)
        except EdgemuxError as error:
            if isinstance(error, Overloaded) and error.retry_after_s is not None:
                pushback = str(max(1, round(error.retry_after_s * 1000)))
                context.set_trailing_metadata((("grpc-retry-pushback-ms", pushback),))
            await _abort(context, grpc_code(error), str(error))
        except MemoryError:  # a limit of the system, or all there is: fewer at a time may do
            await _abort(context, grpc.StatusCode.RESOURCE_EXHAUSTED, "out of memory")
        except Exception:
            error_id = internal_id()
            _log.exception("internal error %s", error_id)
            await _abort(context, grpc.StatusCode.INTERNAL, f"internal error {error_id}")

    return handle
