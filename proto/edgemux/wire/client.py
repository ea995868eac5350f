"""A small blocking client for agents and cloud servers (any Open Inference Protocol v2 server over gRPC)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import grpc
import msgspec
from numpy.typing import NDArray

from edgemux.multiplexer.bundle import Tensor
from edgemux.multiplexer.errors import EdgemuxError, InputError, UnknownModel, Untrusted
from edgemux.wire import oip_pb2 as oip
from edgemux.wire.channel import PLAINTEXT, open_blocking_channel
from edgemux.wire.codec import Parameter, add_checksum, get_parameters, make_request, read_outputs
from edgemux.wire.forks import Home
from edgemux.wire.security import AUTHORIZATION, ClientTls
from edgemux.wire.service import METHODS, SERVICE
from edgemux.wire.status import from_peer
from edgemux.wire.tracing import TRACEPARENT


class Reply(msgspec.Struct, frozen=True):
    """What came back: arrays by output name, and what the server says happened, by parameter name."""

    outputs: dict[str, NDArray[Any]]
    parameters: dict[str, Parameter]
    id: str


class Client:
    """One channel to one server. Use as a context manager, or call ``close``.

    A process that was forked since needs a client of its own: every call raises ConfigError there.
    """

    def __init__(self, address: str, tls: ClientTls = PLAINTEXT, token_file: Path | None = None) -> None:
        """``address`` is HOST:PORT; nothing is connected before the first call.

        ``tls`` says how it is encrypted, by default not at all; ``token_file`` holds the bearer token. Raises
        ConfigError when a file cannot be used, or the token would go over a network in plaintext.
        """
        self._home = Home()
        self._channel, self._tokens = open_blocking_channel(address, tls, token_file, "client")

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the channel; calls in flight are cancelled."""
        self._channel.close()

    def ready(self, timeout_s: float = 5.0) -> bool:
        """Whether the server answers requests. Raises ExecutionError when it cannot be reached."""
        return bool(self._call("ServerReady", oip.ServerReadyRequest(), timeout_s).ready)

    def models(self, timeout_s: float = 5.0) -> list[str]:
        """Names of the models the server lists."""
        return [model.name for model in self._call("RepositoryIndex", oip.RepositoryIndexRequest(), timeout_s).models]

    def metadata(self, model: str, timeout_s: float = 5.0) -> Any:
        """The model's ModelMetadataResponse."""
        return self._call("ModelMetadata", oip.ModelMetadataRequest(name=model), timeout_s)

    def infer(
        self,
        model: str,
        inputs: Mapping[str, NDArray[Any] | Sequence[bytes]],
        timeout_s: float = 5.0,
        parameters: Mapping[str, Parameter] | None = None,
        request_id: str = "",
        traceparent: str = "",
    ) -> Reply:
        """Answer ``inputs``: arrays as tensors, a list of bytes as encoded pictures.

        ``traceparent``: of the trace that this belongs to, as W3C writes it; the servers go on with it.

        Raises InputError when the server refuses the request, ExecutionError when there is no answer in time.
        """
        request = make_request(model, inputs, request_id=request_id, parameters=parameters)
        add_checksum(request)
        response = self._call("ModelInfer", request, timeout_s, traceparent)
        tensors = [Tensor(o.name, o.datatype, tuple(o.shape)) for o in response.outputs]
        rows = int(tensors[0].shape[0]) if tensors and tensors[0].shape else 0
        return Reply(read_outputs(response, tensors, rows), get_parameters(response), response.id)

    def _call(self, method: str, request: Any, timeout_s: float, traceparent: str = "") -> Any:
        self._home.check()
        request_type, response_type = METHODS[method]
        call = self._channel.unary_unary(
            f"/{SERVICE}/{method}",
            request_serializer=request_type.SerializeToString,
            response_deserializer=response_type.FromString,
        )
        try:
            return call(request, timeout=timeout_s, metadata=self._metadata(traceparent))
        except grpc.RpcError as error:
            raise _typed(error.code(), error.details() or "") from error

    def _metadata(self, traceparent: str) -> list[tuple[str, str]]:
        metadata = [(TRACEPARENT, traceparent)] if traceparent else []
        if self._tokens is not None:
            metadata.append((AUTHORIZATION, f"Bearer {self._tokens.current()[0]}"))
        return metadata


def _typed(code: grpc.StatusCode, details: str) -> EdgemuxError:
    """The server's refusal in our own tree, with its text: here the reader is the one who asked."""
    if code in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND):
        field, _, reason = details.partition(": ")
        kind = UnknownModel if code is grpc.StatusCode.NOT_FOUND else InputError
        return kind(field, reason) if reason else kind("request", details)
    failure = from_peer(code, details)
    if isinstance(failure, Untrusted):
        return Untrusted(str(failure).replace("the cloud", "the server"))
    kind_of_failure = type(failure)
    return kind_of_failure(details.splitlines()[0][:200] if details else f"the server answered {code.name}")
