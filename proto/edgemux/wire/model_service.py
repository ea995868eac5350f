"""What agent and cloud answer alike: everything of the protocol but how an input is answered."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from typing import Any

import msgspec

from edgemux.multiplexer.bundle import Manifest, Preprocessing, Tensor
from edgemux.multiplexer.codes import within
from edgemux.multiplexer.errors import (
    ConfigError,
    DeadlineExceeded,
    InputError,
    Overloaded,
    TooLarge,
    UnknownModel,
    Unreachable,
)
from edgemux.wire import oip_pb2 as oip
from edgemux.wire.codec import DTYPES, Array, Pictures, check_inputs, decode_inputs
from edgemux.wire.described import log_settings, model_config, trace_settings
from edgemux.wire.http import Page
from edgemux.wire.worker import Worker

MAX_ID_CHARACTERS = 256
# What a request holds beside its tensors' bytes: names, shapes, id, parameters.
MESSAGE_OVERHEAD_BYTES = 1024

READY, UNAVAILABLE = "READY", "UNAVAILABLE"

_TOO_LATE = "deadline: over before the pictures were decoded"


class Served(msgspec.Struct, frozen=True):
    """A model as clients see it.

    preprocessing: None where encoded pictures are not taken. max_batch: rows of one request; 0 for a model whose
    tensors have no dimension for the batch. properties: what clients may want to show. bits: values of UINT8 inputs are
    below 2**bits.
    """

    name: str
    version: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    preprocessing: Preprocessing | None = None
    platform: str = ""
    max_batch: int = 1
    properties: Mapping[str, str] = {}
    bits: int = 8

    @classmethod
    def of(cls, manifest: Manifest, platform: str, max_batch: int) -> Served:
        """A bundle's model."""
        properties = {"classes": ",".join(manifest.classes), "bundle": manifest.digest}
        return cls(
            manifest.name,
            manifest.version,
            manifest.inputs,
            manifest.outputs,
            manifest.preprocessing,
            platform,
            max_batch,
            properties,
        )


def _within_bits(arrays: dict[str, Array], served: Served) -> dict[str, Array]:
    """``arrays``. Raises InputError naming what would spoil a batch: tails may take values for places in a table."""
    if served.bits < 8:
        for name, array in arrays.items():
            if array.dtype.name == "uint8" and not within(served.bits, array):
                raise InputError(name, f"holds values of more than {served.bits} bits")
    return arrays


class ModelService:
    """Serves models, each under its name and version; subclasses add ``ModelInfer``.

    Lives in one event loop; ``close`` it there.
    """

    # Of the protocol, by the names that Triton gives them.
    EXTENSIONS: tuple[str, ...] = ("model_configuration", "parameters", "trace", "logging")

    def __init__(self, name: str, models: Sequence[Served], max_decoding: int) -> None:
        """``models``: of several versions of one name the last is the one for whoever asks for none.

        ``max_decoding`` bounds the pictures that wait to be decoded.
        """
        self.draining = False
        self._name = name
        # By name and version; "" is the version for whoever asks for none.
        self._models: dict[str, dict[str, Served]] = {}
        for served in models:
            self.show(served.name, [*self.versions(served.name), served])
        # Decoding a large picture takes as long as many answers: it must not hold up the event loop.
        self._loop = asyncio.get_running_loop()
        self._decoder = Worker("edgemux-pictures", self._loop)
        self._max_decoding = max_decoding
        self._decoding = 0
        self._closed = False

    def show(self, name: str, versions: Sequence[Served]) -> None:
        """From now on these versions of a model are served, by rising version; none: the model is not."""
        if versions:
            self._models[name] = {each.version: each for each in versions} | {"": versions[-1]}
        else:
            self._models.pop(name, None)

    def versions(self, name: str) -> list[Served]:
        """The versions of a model that are served."""
        return [served for version, served in self._models.get(name, {}).items() if version]

    def every(self) -> list[Served]:
        """Everything that is served."""
        return [served for name in self._models for served in self.versions(name)]

    async def ServerLive(self, request: Any, context: Any) -> Any:  # noqa: N802
        return oip.ServerLiveResponse(live=True)

    async def ServerReady(self, request: Any, context: Any) -> Any:  # noqa: N802
        return oip.ServerReadyResponse(ready=not self.draining)

    async def ModelReady(self, request: Any, context: Any) -> Any:  # noqa: N802
        """An unknown model or version is not ready, as Triton has it; it is no error."""
        serves = request.version in self._models.get(request.name, {})
        return oip.ModelReadyResponse(ready=serves and not self.draining)

    async def ServerMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802
        return oip.ServerMetadataResponse(**self.server_metadata())

    async def ModelMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Raises UnknownModel."""
        return oip.ModelMetadataResponse(**self.model_metadata(self._asked(request)))

    async def ModelConfig(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Raises UnknownModel."""
        return oip.ModelConfigResponse(config=self.config_of(self._asked(request)))

    async def TraceSetting(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Raises InputError, UnknownModel."""
        if request.model_name:
            self.check_model(request.model_name, "")
        return trace_settings(request)

    async def LogSettings(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Raises InputError."""
        return log_settings(request)

    def config_of(self, served: Served) -> Any:
        """A ModelConfig message."""
        return model_config(served)

    def _asked(self, request: Any) -> Served:
        return self.check_model(request.name, request.version, "name", "version")

    async def RepositoryIndex(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Raises InputError for another repository than the only one."""
        if request.repository_name:
            raise InputError("repository_name", "there is one repository, which has no name")
        response = oip.RepositoryIndexResponse()
        for name, model_version, state, reason in self.index():
            if state == READY or not request.ready:
                response.models.add(name=name, version=model_version, state=state, reason=reason)
        return response

    def index(self) -> list[tuple[str, str, str, str]]:
        """Name, version, state, and why it is not ready, or not what it should be."""
        state, reason = (UNAVAILABLE, "stopping") if self.draining else (READY, "")
        return [(served.name, served.version, state, reason) for served in self.every()]

    def check_model(
        self, name: str, model_version: str, name_field: str = "model_name", version_field: str = "model_version"
    ) -> Served:
        """The model that is asked for. Raises UnknownModel naming the field."""
        versions = self._models.get(name)
        if versions is None:
            raise UnknownModel(name_field, "no such model here")
        served = versions.get(model_version)
        if served is None:
            here = [version for version in versions if version]
            only = f"version {here[0]} is" if len(here) == 1 else f"versions {', '.join(here)} are"
            raise UnknownModel(version_field, f"only {only} here")
        return served

    async def tensors(self, request: Any, deadline_s: float) -> dict[str, Array]:
        """The inputs of the request's model by name, [N, ...], by ``deadline_s`` on the event loop's clock.

        Encoded pictures are decoded beside the event loop, one request after the other. Raises InputError naming the
        tensor, Overloaded when too many pictures wait, DeadlineExceeded, Unreachable when the service is closed, and
        UnknownModel.
        """
        served = self.check_model(request.model_name, request.model_version)
        if len(request.id) > MAX_ID_CHARACTERS:
            raise TooLarge("id", f"more than {MAX_ID_CHARACTERS} characters")
        inputs = self._read(request, served)
        pictures = 0
        for given in inputs.values():
            if isinstance(given, Pictures):
                pictures += len(given.elements)
        if not pictures:
            return _within_bits(inputs, served)  # type: ignore[arg-type]
        if self._decoding > 0 and self._decoding + pictures > self._max_decoding:
            raise Overloaded("too many pictures are waiting to be decoded")
        return _within_bits(await self._decoded(inputs, served, pictures, deadline_s), served)

    def _read(self, request: Any, served: Served) -> dict[str, Array | Pictures]:
        return check_inputs(request, served.inputs, served.preprocessing, served.max_batch)

    async def _decoded(
        self, inputs: Mapping[str, Array | Pictures], served: Served, pictures: int, deadline_s: float
    ) -> dict[str, Array]:
        """``inputs`` decoded in the thread; whoever waits is told at the deadline, whatever the thread does then."""
        loop = self._loop
        decoded: asyncio.Future[dict[str, Array]] = loop.create_future()

        def go_on() -> None:
            if self._closed:
                raise Unreachable("the server is stopping")
            # Cancelled: the caller is gone, and nobody hears what is raised here.
            if decoded.cancelled() or loop.time() >= deadline_s:
                raise DeadlineExceeded(_TOO_LATE)

        def work() -> dict[str, Array] | Exception:
            try:
                return decode_inputs(inputs, served.preprocessing, go_on)
            except Exception as error:
                return error

        def done(result: dict[str, Array] | Exception) -> None:
            # Only now: until the thread comes to them, pictures that nobody waits for still take memory.
            self._decoding -= pictures
            if decoded.done():
                return
            if isinstance(result, Exception):
                decoded.set_exception(result)
            else:
                decoded.set_result(result)

        self._decoding += pictures
        self._decoder.submit(work, done)
        try:
            async with asyncio.timeout_at(deadline_s):
                return await decoded
        except TimeoutError as error:
            raise DeadlineExceeded(_TOO_LATE) from error

    def check_fits(self, max_message_bytes: int) -> None:
        """Raises ConfigError when not even one row of a model's inputs fits a message of that size."""
        for served in self.every():
            row_bytes = MESSAGE_OVERHEAD_BYTES
            for tensor in served.inputs:
                sizes = [max(1, size) for size in tensor.shape]
                row_bytes += math.prod(sizes) * DTYPES[tensor.datatype].itemsize
            if row_bytes > max_message_bytes:
                raise ConfigError(
                    f"listen.max_message_bytes: {max_message_bytes}, one input of {served.name} needs {row_bytes}"
                )

    def server_metadata(self) -> dict[str, Any]:
        """Name, version and protocol extensions."""
        return {"name": self._name, "version": version("edgemux"), "extensions": list(self.EXTENSIONS)}

    def model_metadata(self, served: Served) -> dict[str, Any]:
        """Name, versions, platform, tensors with -1 for the batch, and what clients may want to show."""
        return {
            "name": served.name,
            "versions": [each.version for each in self.versions(served.name)],
            "platform": served.platform,
            "inputs": [_described(tensor) for tensor in served.inputs],
            "outputs": [_described(tensor) for tensor in served.outputs],
            "properties": dict(served.properties),
        }

    def pages(self) -> dict[str, Callable[[], Page]]:
        """What the HTTP port answers beside the protocol, by path."""
        return {"/pages": self._every_page, "/status": lambda: Page(200, self.status())}

    def _every_page(self) -> Page:
        models = [f"/v2/models/{name}" for name in self._models]
        return Page(200, {"name": self._name, "pages": ["/status", "/v2", "/v2/health/ready", *models]})

    def status(self) -> dict[str, Any]:
        """The server at a glance."""
        models = self.every()
        named = {"model": models[0].name, "version": models[0].version} if len(models) == 1 else {}
        return named | {"ready": not self.draining}

    def came_late(self) -> None:
        """An inference came in whose time was over already; nothing of it was looked at."""

    def close(self) -> None:
        """Stop the decoder; it gives up after the picture at hand, for which nobody waits."""
        self._closed = True
        self._decoder.stop()


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


def priority_of(request: Any, levels: int) -> int:
    """The protocol's own ``priority`` parameter: 1, the highest, to ``levels``; 0 when absent. Raises InputError."""
    if "priority" not in request.parameters:
        return 0
    slot = request.parameters["priority"]
    kind = slot.WhichOneof("parameter_choice")
    if kind not in ("int64_param", "uint64_param"):
        raise InputError("priority", "expected uint64_param or int64_param")
    priority = int(getattr(slot, kind))
    if not 0 <= priority <= levels:
        raise InputError("priority", f"must be between 1, the highest, and {levels}; 0 for the default")
    return priority


def _described(tensor: Tensor) -> dict[str, Any]:
    return {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}
