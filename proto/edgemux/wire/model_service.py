"""What agent and cloud answer alike: everything of the protocol but how an input is answered."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from typing import Any

from edgemux.multiplexer.bundle import Manifest, Tensor
from edgemux.multiplexer.errors import InputError, Overloaded, TooLarge, UnknownModel
from edgemux.wire import oip_pb2 as oip
from edgemux.wire.codec import Array, read_inputs
from edgemux.wire.http import Page

MAX_ID_CHARACTERS = 256


class ModelService:
    """Serves the one model of a bundle, under the bundle's name and version; subclasses add ``ModelInfer``."""

    def __init__(self, name: str, platform: str, manifest: Manifest, max_batch: int, max_decoding: int) -> None:
        """``max_batch`` bounds a request's rows, ``max_decoding`` the pictures that wait to be decoded."""
        self.draining = False
        self._name = name
        self._platform = platform
        self._manifest = manifest
        self._max_batch = max_batch
        # Decoding a large picture takes as long as many answers: it must not hold up the event loop.
        self._decoder = ThreadPoolExecutor(1, "edgemux-pictures")
        self._max_decoding = max_decoding
        self._decoding = 0

    async def ServerLive(self, request: Any, context: Any) -> Any:  # noqa: N802
        return oip.ServerLiveResponse(live=True)

    async def ServerReady(self, request: Any, context: Any) -> Any:  # noqa: N802
        return oip.ServerReadyResponse(ready=not self.draining)

    async def ModelReady(self, request: Any, context: Any) -> Any:  # noqa: N802
        """An unknown model or version is not ready, as Triton has it; it is no error."""
        manifest = self._manifest
        serves = request.name == manifest.name and request.version in ("", manifest.version)
        return oip.ModelReadyResponse(ready=serves and not self.draining)

    async def ServerMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802
        return oip.ServerMetadataResponse(**self.server_metadata())

    async def ModelMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Raises UnknownModel."""
        self.check_model(request.name, request.version, "name", "version")
        return oip.ModelMetadataResponse(**self.model_metadata())

    async def RepositoryIndex(self, request: Any, context: Any) -> Any:  # noqa: N802
        response = oip.RepositoryIndexResponse()
        if not (request.ready and self.draining):
            state, reason = ("UNAVAILABLE", "stopping") if self.draining else ("READY", "")
            manifest = self._manifest
            response.models.add(name=manifest.name, version=manifest.version, state=state, reason=reason)
        return response

    def check_model(
        self, name: str, model_version: str, name_field: str = "model_name", version_field: str = "model_version"
    ) -> None:
        """Raises UnknownModel naming the field."""
        if name != self._manifest.name:
            raise UnknownModel(name_field, "no such model here")
        if model_version not in ("", self._manifest.version):
            raise UnknownModel(version_field, f"only version {self._manifest.version} is here")

    async def tensors(self, request: Any) -> dict[str, Array]:
        """The request's inputs by name, [N, ...]; encoded pictures are decoded beside the event loop.

        Raises InputError naming the tensor, Overloaded when too many pictures wait.
        """
        if len(request.id) > MAX_ID_CHARACTERS:
            raise TooLarge("id", f"more than {MAX_ID_CHARACTERS} characters")
        rows = sum(message.shape[0] for message in request.inputs if message.datatype == "BYTES" and message.shape)
        if rows <= 0:
            return self._read(request)
        if self._decoding > 0 and self._decoding + rows > self._max_decoding:
            raise Overloaded("too many pictures are waiting to be decoded")
        self._decoding += rows
        try:
            return await asyncio.get_running_loop().run_in_executor(self._decoder, self._read, request)
        finally:
            self._decoding -= rows

    def _read(self, request: Any) -> dict[str, Array]:
        return read_inputs(request, self._manifest.inputs, self._manifest.preprocessing, self._max_batch)

    def server_metadata(self) -> dict[str, Any]:
        """Name, version and protocol extensions."""
        return {"name": self._name, "version": version("edgemux"), "extensions": ["parameters"]}

    def model_metadata(self) -> dict[str, Any]:
        """Name, versions, platform, tensors with -1 for the batch, and what clients may want to show."""
        manifest = self._manifest
        return {
            "name": manifest.name,
            "versions": [manifest.version],
            "platform": self._platform,
            "inputs": [_described(tensor) for tensor in manifest.inputs],
            "outputs": [_described(tensor) for tensor in manifest.outputs],
            "properties": {"classes": ",".join(manifest.classes), "bundle": manifest.digest},
        }

    def pages(self) -> dict[str, Callable[[], Page]]:
        """What the HTTP port answers, by path."""
        model = f"/v2/models/{self._manifest.name}"
        return {
            "/": lambda: Page(200, {"name": self._name, "pages": ["/status", "/v2", "/v2/health/ready", model]}),
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
        """The server at a glance."""
        return {"model": self._manifest.name, "version": self._manifest.version, "ready": not self.draining}

    def close(self) -> None:
        """Stop the decoder; a picture that is being decoded is not waited for."""
        self._decoder.shutdown(wait=False, cancel_futures=True)


def timeout_s(request: Any) -> float | None:
    """The protocol's own ``timeout`` parameter, microseconds, in seconds; None when absent or 0. Raises InputError."""
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


def _described(tensor: Tensor) -> dict[str, Any]:
    return {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}
