"""What Ray Serve's gRPC servers take in: the methods' paths, requests as raw bytes, a call's token and deadline.

Ray puts handlers of its own behind the paths, which carry requests to replicas. Bytes are carried instead of messages:
nothing needs to be pickled, and replicas parse them as our own server does.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc

from edgemux.wire.security import AUTHORIZATION, NO_TOKEN, Gate, TokenFile
from edgemux.wire.service import ADMIN_METHODS, METHODS, SERVICE, STREAM

HEALTH = "grpc.health.v1.Health"
TOKEN_FILE = "EDGEMUX_RAY_TOKEN_FILE"
# The time that is left to a call: Ray hands on the metadata of a call, but not its deadline.
TIME_LEFT = "edgemux-time-left-s"
# Paths that reach the replicas; what is not served is refused there as it is by our own server.
UNARY = (*METHODS, *(method for method in ADMIN_METHODS if method not in METHODS))


def add_to_server(_: Any, server: Any) -> None:
    """Ray's "servicer function", named to it by import path, run in every process that listens."""
    unary, stream = grpc.unary_unary_rpc_method_handler(_unused), grpc.stream_stream_rpc_method_handler(_unused)
    methods = {f"/{SERVICE}/{method}": unary for method in UNARY} | {f"/{SERVICE}/{STREAM}": stream}
    checks = {f"/{HEALTH}/Check": unary, f"/{HEALTH}/Watch": grpc.unary_stream_rpc_method_handler(_unused)}
    server.add_generic_rpc_handlers((Methods(methods, gate()),))
    server.add_generic_rpc_handlers((Methods(checks, Gate()),))


def gate() -> Gate:
    """Who may ask, as the environment says: Ray calls ``add_to_server`` by name, with nothing of ours."""
    tokens = os.environ.get(TOKEN_FILE)
    return Gate(TokenFile(Path(tokens), "listen.token_file") if tokens else None)


def _unused(*_: Any) -> None:
    """Ray puts its own in the place of every handler."""
    raise AssertionError("called without Ray")


class Methods(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Handlers by path. Ray replaces those in ``_method_handlers``, as it does in gRPC's own class."""

    def __init__(self, handlers: dict[str, Any], gate: Gate) -> None:
        self._method_handlers = handlers
        self._gate = gate

    def service(self, handler_call_details: Any) -> Any:
        """The handler of a call, one that says UNAUTHENTICATED, or None for paths of others."""
        handler = self._method_handlers.get(handler_call_details.method)
        if handler is None:
            return None
        if not self._gate.allows(_authorization(handler_call_details.invocation_metadata)):
            return grpc.unary_unary_rpc_method_handler(_deny)
        return _dated(handler)


async def _deny(_: bytes, context: Any) -> None:
    await context.abort(grpc.StatusCode.UNAUTHENTICATED, NO_TOKEN)


def _authorization(metadata: Any) -> str | None:
    return next((str(value) for key, value in metadata or () if key == AUTHORIZATION), None)


def _dated(handler: Any) -> Any:
    """``handler``, told the time that is left to its call."""
    if handler.response_streaming:
        inner = handler.stream_stream if handler.request_streaming else handler.unary_stream

        async def stream(given: Any, context: Any) -> AsyncIterator[Any]:
            async for answer in inner(given, Dated(context)):
                yield answer

        return handler._replace(stream_stream=stream, unary_stream=stream)

    async def unary(content: bytes, context: Any) -> Any:
        return await handler.unary_unary(content, Dated(context))

    return handler._replace(unary_unary=unary)


class Dated:
    """A gRPC context whose metadata says how much time is left."""

    def __init__(self, context: Any) -> None:
        self._context = context

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    def invocation_metadata(self) -> tuple[tuple[str, Any], ...]:
        """What the client sent, less what only we may say."""
        given = tuple(pair for pair in self._context.invocation_metadata() or () if pair[0] != TIME_LEFT)
        left_s = self._context.time_remaining()
        return given if left_s is None else (*given, (TIME_LEFT, repr(float(left_s))))
