"""The server that is asked, its model, and requests for it: a good one, from which probes make bad ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import grpc
import msgspec
import numpy as np

from edgemux.multiplexer.errors import ConfigError, Unreachable
from edgemux.wire import oip_pb2 as oip
from edgemux.wire.conformance.probe import Inapplicable
from edgemux.wire.conformance.rest_client import RestClient
from edgemux.wire.service import SERVICE

PATIENCE_S = 20.0
# A free dimension other than the batch is asked for with this size.
FREE = 4
UNKNOWN = "edgemux-conformance-no-such-model"

# Own tables, not the codec's: a suite must not inherit the mistakes of what it tests.
DTYPES = {
    "BOOL": "?",
    "UINT8": "<u1",
    "UINT16": "<u2",
    "UINT32": "<u4",
    "UINT64": "<u8",
    "INT8": "<i1",
    "INT16": "<i2",
    "INT32": "<i4",
    "INT64": "<i8",
    "FP16": "<f2",
    "FP32": "<f4",
    "FP64": "<f8",
}
SIZES = {name: np.dtype(code).itemsize for name, code in DTYPES.items()} | {"BF16": 2}
FIELDS = {
    "BOOL": "bool_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
}


class Tensor(msgspec.Struct, frozen=True):
    """As the server's metadata has it; sizes that it leaves open are -1."""

    name: str
    datatype: str
    shape: tuple[int, ...]


class Target:
    """A server and one of its models. Close it."""

    def __init__(self, address: str, http: str | None, model: str | None, admin: str | None = None) -> None:
        """Ask the server what it has. Raises Unreachable, and ConfigError when there is no model to ask for."""
        self._channel = grpc.insecure_channel(address, _OPTIONS)
        self._admin = None if admin is None else grpc.insecure_channel(admin, _OPTIONS)
        self._http = None if http is None else RestClient(http, PATIENCE_S)
        code, answer = self.call("ServerMetadata", oip.ServerMetadataRequest(), oip.ServerMetadataResponse)
        if answer is None:
            raise Unreachable(f"{address}: {'no answer' if code in _NOBODY else f'ServerMetadata answers {code}'}")
        self.server, self.extensions = answer.name, tuple(answer.extensions)
        self.model = model or self._first_model()
        code, found = self.call("ModelMetadata", oip.ModelMetadataRequest(name=self.model), oip.ModelMetadataResponse)
        if found is None:
            raise ConfigError(f"model: ModelMetadata of {self.model!r} answers {code}")
        self.version = found.versions[0] if found.versions else ""
        self.inputs, self.outputs = _tensors(found.inputs), _tensors(found.outputs)
        odd = [tensor.datatype for tensor in self.inputs if tensor.datatype not in DTYPES]
        if odd or not self.inputs:
            raise ConfigError(f"model: {self.model!r} has no numeric inputs only ({', '.join(odd) or 'none at all'})")
        self.max_batch = self._max_batch()

    def close(self) -> None:
        """Close the connections."""
        self._channel.close()
        if self._admin is not None:
            self._admin.close()
        if self._http is not None:
            self._http.close()

    @property
    def http(self) -> RestClient:
        """The REST side. Raises Inapplicable."""
        if self._http is None:
            raise Inapplicable("no --http address")
        return self._http

    # --- calls ------------------------------------------------------------------------------------------------------
    def call(self, method: str, request: Any, response: Any, service: str = SERVICE) -> tuple[str, Any]:
        """The status's name and, when it is OK, the answer. ``request``: a message, or bytes as they are."""
        return _call(self._channel, f"/{service}/{method}", request, response)

    def order(self, method: str, request: Any, response: Any) -> tuple[str, Any]:
        """As ``call``, at the address that takes orders. Raises Inapplicable."""
        if self._admin is None:
            raise Inapplicable("no --admin address")
        return _call(self._admin, f"/{SERVICE}/{method}", request, response)

    def infer(self, request: Any) -> tuple[str, Any]:
        """ModelInfer's status and answer."""
        return self.call("ModelInfer", request, oip.ModelInferResponse)

    def stream(self, method: str, requests: Sequence[bytes], response: Any, service: str = SERVICE) -> Any:
        """The call of a stream of requests, which yields answers. Raises grpc.RpcError from it."""
        ask = self._channel.stream_stream(f"/{service}/{method}", response_deserializer=response.FromString)
        return ask(iter(requests), timeout=PATIENCE_S)

    def watch(self, service: str, method: str, request: bytes, response: Any) -> Any:
        """The call of one request that yields answers without end. Raises grpc.RpcError from it."""
        ask = self._channel.unary_stream(f"/{service}/{method}", response_deserializer=response.FromString)
        return ask(request, timeout=PATIENCE_S)

    # --- requests ---------------------------------------------------------------------------------------------------
    def shape(self, tensor: Tensor, rows: int = 1) -> list[int]:
        """A shape that fits an input."""
        first = rows if self.batches else FREE
        return [(first if at == 0 else FREE) if size < 0 else size for at, size in enumerate(tensor.shape)]

    def values(self, tensor: Tensor, rows: int = 1) -> Any:
        """An array that fits an input: ones, which most models can make something of."""
        return np.ones(self.shape(tensor, rows), DTYPES[tensor.datatype])

    @property
    def batches(self) -> bool:
        """Whether every input's first dimension is a batch of any size."""
        return all(tensor.shape and tensor.shape[0] == -1 for tensor in self.inputs)

    def good(self, rows: int = 1) -> Any:
        """A request that should be answered, its data raw."""
        request = oip.ModelInferRequest(model_name=self.model, id="probe")
        for tensor in self.inputs:
            array = self.values(tensor, rows)
            request.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=array.shape)
            request.raw_input_contents.append(array.tobytes())
        return request

    def good_contents(self) -> Any:
        """One whose data are in the typed fields. Raises Inapplicable."""
        request = self.good()
        del request.raw_input_contents[:]
        for message, tensor in zip(request.inputs, self.inputs, strict=True):
            getattr(message.contents, self.field(tensor.datatype)).extend(self.values(tensor).ravel().tolist())
        return request

    def field(self, datatype: str) -> str:
        """The typed field of a datatype. Raises Inapplicable for FP16, which has none."""
        if datatype not in FIELDS:
            raise Inapplicable(f"{datatype} has no typed field")
        return FIELDS[datatype]

    def changed(self, change: Callable[[Any], None]) -> Any:
        """A good request with something done to it."""
        request = self.good()
        change(request)
        return request

    # --- answers ----------------------------------------------------------------------------------------------------
    def flaw(self, answer: Any, rows: int = 1, names: Sequence[str] | None = None) -> str:
        """What is wrong with a ModelInferResponse to a good request; empty when nothing is."""
        wanted = [each.name for each in self.outputs] if names is None else list(names)
        if answer.model_name != self.model:
            return f"model_name is {answer.model_name[:40]!r}"
        if sorted(each.name for each in answer.outputs) != sorted(wanted):
            return f"outputs are {[each.name for each in answer.outputs]}"[:120]
        raw = answer.raw_output_contents
        if len(raw) not in (0, len(answer.outputs)):
            return f"{len(raw)} raw buffers for {len(answer.outputs)} outputs"
        known = {each.name: each for each in self.outputs}
        for index, output in enumerate(answer.outputs):
            text = self._output_flaw(output, known[output.name], rows, raw[index] if raw else None)
            if text:
                return f"{output.name}: {text}"
        return ""

    def _output_flaw(self, output: Any, tensor: Tensor, rows: int, raw: bytes | None) -> str:
        if output.datatype != tensor.datatype:
            return f"is {output.datatype}, metadata has {tensor.datatype}"
        shape = tuple(output.shape)
        open_sizes = (rows, *tensor.shape[1:]) if self.batches and tensor.shape else tensor.shape
        if len(shape) != len(open_sizes) or any(w not in (-1, s) for s, w in zip(shape, open_sizes, strict=True)):
            return f"shape {list(shape)}, metadata has {list(open_sizes)}"
        if tensor.datatype not in SIZES:
            return ""
        count = math.prod(shape)
        if raw is not None:
            return "" if len(raw) == count * SIZES[tensor.datatype] else f"{len(raw)} bytes for {list(shape)}"
        held = len(getattr(output.contents, FIELDS.get(tensor.datatype, "bytes_contents")))
        return "" if held == count else f"{held} values for {list(shape)}"

    def output(self, answer: Any, tensor: Tensor) -> Any:
        """One output of an answer as an array. Raises Inapplicable unless it is numbers, and raw."""
        names = [each.name for each in answer.outputs]
        if not answer.raw_output_contents or tensor.datatype not in DTYPES:
            raise Inapplicable(f"{tensor.name} is not raw numbers")
        index = names.index(tensor.name)
        raw = np.frombuffer(answer.raw_output_contents[index], DTYPES[tensor.datatype])
        return raw.reshape(tuple(answer.outputs[index].shape))

    # --- what it has ------------------------------------------------------------------------------------------------
    def _first_model(self) -> str:
        _, index = self.call("RepositoryIndex", oip.RepositoryIndexRequest(), oip.RepositoryIndexResponse)
        if index is None:
            raise ConfigError("model: the server has no index of its models, name one with --model")
        for model in index.models:
            if "READY" in model.state or not model.state:
                return str(model.name)
        raise ConfigError("model: the server lists none that is ready, name one with --model")

    def _max_batch(self) -> int | None:
        """As the model's configuration has it; None when the server does not tell."""
        request = oip.ModelConfigRequest(name=self.model)
        _, answer = self.call("ModelConfig", request, oip.ModelConfigResponse)
        return None if answer is None else int(answer.config.max_batch_size)


_OPTIONS = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.enable_http_proxy", 0),
]
_NOBODY = ("UNAVAILABLE", "DEADLINE_EXCEEDED")


def _tensors(messages: Any) -> tuple[Tensor, ...]:
    return tuple(Tensor(each.name, each.datatype, tuple(each.shape)) for each in messages)


def _call(channel: Any, path: str, request: Any, response: Any) -> tuple[str, Any]:
    content = request if isinstance(request, bytes) else request.SerializeToString()
    ask = channel.unary_unary(path, response_deserializer=response.FromString)
    try:
        return "OK", ask(content, timeout=PATIENCE_S)
    except grpc.RpcError as error:
        return str(error.code().name), None
