"""A simulated cloud: a real gRPC server in this process, whose behaviour a test sets."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import grpc.aio

from edgemux.multiplexer.bundle import Bundle
from edgemux.multiplexer.onnx_model import OnnxModel
from edgemux.wire import oip_pb2 as oip
from edgemux.wire.channel import bind, server_options
from edgemux.wire.codec import check_inputs, decode_inputs, make_response
from edgemux.wire.service import METHODS, SERVICE


class SimulatedCloud:
    """Answers like the bundle's cloud model until told otherwise. ``seen`` counts the inputs that reached it."""

    def __init__(self, bundle: Bundle) -> None:
        manifest = bundle.manifest
        self._model = OnnxModel(bundle.read(manifest.cloud.files[0]), "cloud.onnx")
        self.manifest = manifest
        self.seen = 0
        self.ready = False
        self.reached = asyncio.Event()
        self.address = ""
        self.answer: Callable[[Any, Any], Awaitable[Any]] = self.well

    async def well(self, request: Any, context: Any) -> Any:
        """What the real server says."""
        how = self.manifest.preprocessing
        inputs = decode_inputs(check_inputs(request, self.manifest.inputs, how), how)
        (probabilities,) = self._model.run(inputs, ["probabilities"])
        said = {"edgemux_queue_ms": 0.1, "edgemux_compute_ms": 0.1}
        return make_response(request.model_name, "1", request.id, {"probabilities": probabilities}, said, True)

    async def silent(self, request: Any, context: Any) -> Any:
        """Never answers."""
        await asyncio.Event().wait()

    def refusing(self, code: grpc.StatusCode, text: str = "no") -> Callable[[Any, Any], Awaitable[Any]]:
        """Answers with a status."""

        async def refuse(request: Any, context: Any) -> Any:
            await context.abort(code, text)

        return refuse

    def bending(self, bend: Callable[[Any], None]) -> Callable[[Any, Any], Awaitable[Any]]:
        """Answers well, then spoils the answer."""

        async def spoil(request: Any, context: Any) -> Any:
            response = await self.well(request, context)
            bend(response)
            return response

        return spoil

    async def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.seen += 1
        self.reached.set()
        return await self.answer(request, context)

    async def ModelReady(self, request: Any, context: Any) -> Any:  # noqa: N802
        return oip.ModelReadyResponse(ready=self.ready)

    async def ServerLive(self, request: Any, context: Any) -> Any:  # noqa: N802
        return oip.ServerLiveResponse(live=True)

    def __getattr__(self, name: str) -> Any:
        if name in METHODS:
            return self.refusing(grpc.StatusCode.UNIMPLEMENTED)
        raise AttributeError(name)


@contextlib.asynccontextmanager
async def listening(
    cloud: SimulatedCloud, secure: grpc.ServerCredentials | None = None
) -> AsyncIterator[SimulatedCloud]:
    """Within the block ``cloud`` answers at its address. Answers may be bytes, which are sent as they are."""
    server = grpc.aio.server(options=server_options())
    handlers = {
        method: grpc.unary_unary_rpc_method_handler(
            getattr(cloud, method), request_deserializer=request.FromString, response_serializer=_bytes
        )
        for method, (request, _) in METHODS.items()
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    cloud.address = f"127.0.0.1:{bind(server, '127.0.0.1', 0, secure)}"
    await server.start()
    try:
        yield cloud
    finally:
        await server.stop(0)


def _bytes(answer: Any) -> bytes:
    return answer if isinstance(answer, bytes) else bytes(answer.SerializeToString())
