"""JSON and binary tensors -> messages of the protocol: what the REST side reads. Pure.

A body is skimmed once with a fixed schema; what may be large (data, shapes, parameters) is bounded before it becomes
objects. Tensors become raw contents: from there REST and gRPC are one path.
"""

from __future__ import annotations

import base64
import binascii
import itertools
import math
import re
import zlib
from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta, Raw

from edgemux.multiplexer.errors import InputError, TooLarge
from edgemux.wire import oip_pb2 as oip
from edgemux.wire.codec import DTYPES, join_bytes

# Numbers or strings of a body in JSON, some 50 ms of the event loop; binary data has no such limit.
MAX_JSON_ELEMENTS = 2**19
# Inputs, outputs and parameters; as objects a body of braces alone would be a hundred times as large.
MAX_JSON_OBJECTS = 1000
MAX_RANK = 16
_MAX_SHAPE_BYTES = 512
_MAX_PARAMETERS_BYTES = 16 * 2**10
_STRINGS = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
_WHERE = re.compile(r"(.*?) - at `\$\.?(.*)`", re.DOTALL)
_BOUNDS = {
    "INT8": (-(2**7), 2**7 - 1),
    "INT16": (-(2**15), 2**15 - 1),
    "INT32": (-(2**31), 2**31 - 1),
    "INT64": (None, None),
    "UINT8": (0, 2**8 - 1),
    "UINT16": (0, 2**16 - 1),
    "UINT32": (0, 2**32 - 1),
    "UINT64": (0, None),
}
_FLOATS = ("FP16", "FP32", "FP64", "BF16")
# Parameters that are about how a message is written, not part of what it says.
_TIMEOUT_MS = "timeout_ms"
_ALL_BINARY, _BINARY, BINARY_SIZE = "binary_data_output", "binary_data", "binary_data_size"
CONTENT_TYPE = "content_type"
# Extensions that would change the answer; whoever asks for them must not get another.
_NOT_HERE = ("classification", "shared_memory_region")

_Parameters = dict[str, bool | int | float | str]


class _Input(msgspec.Struct, gc=False):
    name: str
    datatype: str
    shape: Raw
    data: Raw = Raw()
    parameters: Raw = Raw()


class _Output(msgspec.Struct, gc=False):
    name: str
    parameters: Raw = Raw()


class _Body(msgspec.Struct, gc=False):
    inputs: list[_Input]
    outputs: list[_Output] = []
    id: str = ""
    parameters: Raw = Raw()


class _Encoded(msgspec.Struct, gc=False):
    """Bytes as KServe's first protocol and TensorFlow Serving write them."""

    b64: str


class Wanted(msgspec.Struct, frozen=True, gc=False):
    """How an answer is to be written, and how soon: which outputs in binary, beside what holds for all others."""

    binary: bool = False
    outputs: dict[str, bool] = {}
    timeout_s: float | None = None


class _Known(msgspec.Struct, frozen=True, gc=False):
    """A head that was read before: what it says, and the sizes of the binary data that belong to it, in order."""

    request: Any
    wanted: Wanted
    sizes: tuple[int, ...]


# Clients that send one input after the other send the same head each time; reading it is a third of our work.
MAX_KNOWN_HEADS = 64
_MAX_KNOWN_BYTES = 1024
_known: dict[tuple[bytes, str, str], _Known] = {}

_body = msgspec.json.Decoder(_Body)
_shape = msgspec.json.Decoder(list[int])
_parameters = msgspec.json.Decoder(_Parameters)
_decoders: dict[tuple[str, int], Any] = {}
_AS_JSON = Wanted()


def unfold(body: bytes, encoding: bytes, most: int) -> bytes:
    """A body as it was before Content-Encoding. Raises InputError, and TooLarge for more than ``most`` bytes."""
    folded = zlib.decompressobj(zlib.MAX_WBITS | 16 if encoding in (b"gzip", b"x-gzip") else zlib.MAX_WBITS)
    try:
        plain = folded.decompress(body, most + 1)
    except zlib.error as error:
        raise InputError("body", "not what its content-encoding says") from error
    if len(plain) > most:
        raise TooLarge("body", f"more than {most} bytes")
    if not folded.eof or folded.unused_data:
        raise InputError("body", "not what its content-encoding says")
    return plain


def read_infer(body: bytes, head_bytes: int | None, model: str, version: str) -> tuple[Any, Wanted]:
    """A ModelInferRequest with raw contents, and how it is to be answered.

    ``head_bytes``: of JSON before the binary data, None for JSON alone. Raises InputError naming the field, TooLarge.
    """
    if head_bytes is None or head_bytes == len(body):
        head, binary = body, b""
    elif 0 < head_bytes < len(body):
        head, binary = body[:head_bytes], body[head_bytes:]
    else:
        raise InputError("Inference-Header-Content-Length", f"{head_bytes} of a body of {len(body)} bytes")
    if not binary or len(head) > _MAX_KNOWN_BYTES:
        return _read_head(head, binary, model, version)
    known = _known.get((head, model, version))
    if known is None:
        return _read_head(head, binary, model, version, remember=True)
    if sum(known.sizes) != len(binary):
        raise _wrong_size(sum(known.sizes), len(binary))
    request = oip.ModelInferRequest()
    request.CopyFrom(known.request)
    if len(known.sizes) == 1:
        request.raw_input_contents.append(binary)
        return request, known.wanted
    at = 0
    for size in known.sizes:
        request.raw_input_contents.append(binary[at : at + size])
        at += size
    return request, known.wanted


def _remember(head: bytes, request: Any, wanted: Wanted) -> None:
    """``request`` as far as it is in ``head``, which holds no tensor itself."""
    if len(_known) >= MAX_KNOWN_HEADS:
        _known.clear()
    sizes = tuple(len(raw) for raw in request.raw_input_contents)
    frame = oip.ModelInferRequest()
    frame.CopyFrom(request)
    del frame.raw_input_contents[:]
    _known[head, request.model_name, request.model_version] = _Known(frame, wanted, sizes)


def _read_head(head: bytes, binary: bytes, model: str, version: str, remember: bool = False) -> tuple[Any, Wanted]:
    given = _decoded(head)
    request = oip.ModelInferRequest(model_name=model, model_version=version, id=given.id)
    at, elements = 0, 0
    for tensor in given.inputs:
        at, count = _add_input(request, tensor, binary, at)
        elements += count
        if elements > MAX_JSON_ELEMENTS:
            raise _too_many(tensor.name)
    if at != len(binary):
        raise _wrong_size(at, len(binary))
    wanted = _wanted(request, given) if given.outputs or given.parameters else _AS_JSON
    if remember and not elements:
        _remember(head, request, wanted)
    return request, wanted


def _wrong_size(claimed: int, come: int) -> InputError:
    return InputError("inputs", f"binary_data_size is {claimed} bytes in all, and {come} bytes have come")


def _decoded(head: bytes) -> _Body:
    if head.count(b"{") > MAX_JSON_OBJECTS and _STRINGS.sub(b"", head).count(b"{") > MAX_JSON_OBJECTS:
        raise TooLarge("body", f"more than {MAX_JSON_OBJECTS} objects of JSON")
    try:
        return _body.decode(head)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        _find_not_numbers(head)
        raise _malformed("", error) from error


def _find_not_numbers(head: bytes) -> None:
    """Where JSON is none for a NaN or infinity, raises InputError naming the input that holds it."""
    plain = head
    for word in (b"-Infinity", b"Infinity", b"NaN"):
        plain = plain.replace(word, b"null")
    if plain is head or plain == head:
        return
    try:
        given = _body.decode(plain)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return
    for tensor in given.inputs:
        if b"null" in bytes(tensor.data):
            raise InputError(tensor.name[:40], "holds NaN or infinity")


def _malformed(field: str, error: Exception) -> InputError:
    """An error of the decoder's in our words."""
    if isinstance(error, UnicodeDecodeError):
        return InputError(field or "body", "not UTF-8")
    if isinstance(error, RecursionError):
        return InputError(field or "body", "nested too deeply")
    text, where = str(error), ""
    if found := _WHERE.fullmatch(text):
        text, where = found[1], found[2]
    if field and where and where[0] != "[":
        where = f".{where}"
    name = f"{field}{where}" or "body"
    return InputError(name[:80], text.replace("`", "")[:120])


def _add_input(request: Any, tensor: _Input, binary: bytes, at: int) -> tuple[int, int]:
    """Add an input, whose binary data if any begins at ``at``: where it ends, and how many elements came as JSON."""
    name = tensor.name
    if len(tensor.shape) > _MAX_SHAPE_BYTES:
        raise InputError(f"{name[:40]}.shape", "too long")
    try:
        shape = _shape.decode(tensor.shape)
        given = _parameters.decode(tensor.parameters) if tensor.parameters else None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise _malformed(name[:40] or "inputs", error) from error
    if len(shape) > MAX_RANK or any(not 0 <= size < 2**63 for size in shape):
        raise InputError(f"{name[:40]}.shape", f"must be up to {MAX_RANK} sizes, none negative")
    size = None
    message = request.inputs.add(name=name, datatype=tensor.datatype, shape=shape)
    if given is not None:
        _refuse_extensions(name, given)
        size = given.pop(BINARY_SIZE, None)
        encoded = given.pop(CONTENT_TYPE, None) == "base64"
        _set(message, given, name)
    else:
        encoded = False
    if size is None:
        if not tensor.data:
            raise InputError(name[:40], "has no data")
        raw, count = _from_json(name[:40], tensor, shape, encoded)
        request.raw_input_contents.append(raw)
        return at, count
    if tensor.data:
        raise InputError(name[:40], "has both data and binary_data_size")
    if type(size) is not int or not 0 <= size <= len(binary) - at:
        raise InputError(name[:40], f"binary_data_size is more than the {len(binary) - at} bytes that are left")
    request.raw_input_contents.append(binary[at : at + size])
    return at + size, 0


def _refuse_extensions(name: str, given: _Parameters) -> None:
    for extension in _NOT_HERE:
        if extension in given:
            raise InputError(name[:40], f"{extension} is not supported here")


def _wanted(request: Any, given: _Body) -> Wanted:
    """Add outputs and parameters to ``request``; what they say of how to answer."""
    parameters = _read_parameters("parameters", given.parameters)
    binary = parameters.pop(_ALL_BINARY, False) is True
    timeout = parameters.pop(_TIMEOUT_MS, None)
    _set(request, parameters, "parameters")
    outputs = {}
    for output in given.outputs:
        message = request.outputs.add(name=output.name)
        if output.parameters:
            own = _read_parameters(output.name[:40], output.parameters)
            _refuse_extensions(output.name, own)
            outputs[output.name] = own.pop(_BINARY, binary) is True
            _set(message, own, output.name)
    return Wanted(binary, outputs, None if timeout is None else seconds(timeout))


def seconds(timeout_ms: object) -> float:
    """A timeout of milliseconds, as a number or as text. Raises InputError."""
    try:
        timeout_s = float(timeout_ms) / 1e3 if isinstance(timeout_ms, (int, float, str)) else 0.0
    except (ValueError, OverflowError):
        timeout_s = 0.0
    if not 0.0 < timeout_s < math.inf or isinstance(timeout_ms, bool):
        raise InputError(_TIMEOUT_MS, "must be a positive number of milliseconds")
    return timeout_s


def _read_parameters(field: str, raw: Raw) -> _Parameters:
    if not raw:
        return {}
    if len(raw) > _MAX_PARAMETERS_BYTES:
        raise TooLarge(field, f"more than {_MAX_PARAMETERS_BYTES} bytes of parameters")
    try:
        return _parameters.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise _malformed(field, error) from error


def _set(message: Any, parameters: _Parameters, field: str) -> None:
    """Write parameters into a message; numbers of more than 63 bits as unsigned ones."""
    for key, value in parameters.items():
        slot = message.parameters[key]
        if isinstance(value, bool):
            slot.bool_param = value
        elif isinstance(value, float):
            slot.double_param = value
        elif isinstance(value, str):
            slot.string_param = value
        elif -(2**63) <= value < 2**63:
            slot.int64_param = value
        elif 0 < value < 2**64:
            slot.uint64_param = value
        else:
            raise InputError(f"{field[:40]}.{key[:40]}", "is no number of 64 bits")


def _too_many(name: str) -> TooLarge:
    return TooLarge(name[:40], f"more than {MAX_JSON_ELEMENTS} elements of JSON in all: send them as binary data")


def _from_json(name: str, tensor: _Input, shape: Sequence[int], encoded: bool) -> tuple[bytes, int]:
    """``data`` as raw contents, and how many elements it has. ``encoded``: its strings are base64."""
    content, datatype = bytes(tensor.data), tensor.datatype
    count = math.prod(shape)
    # Before anything becomes an object: there is a comma between any two elements, however they are nested.
    if datatype != "BYTES" and content.count(b",") > min(count, MAX_JSON_ELEMENTS):
        if count > MAX_JSON_ELEMENTS:
            raise _too_many(name)
        raise InputError(name, f"more values than the {count} that its shape needs")
    if datatype == "BYTES" and content.count(b",") > MAX_JSON_ELEMENTS:
        raise _too_many(name)
    try:
        depth = _depth(name, content)
        values = _decoder(name, datatype, depth).decode(content)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise _malformed(name, error) from error
    flat = _flattened(name, values, depth, shape)
    if datatype == "BYTES":
        return join_bytes([_bytes(name, value, encoded) for value in flat]), len(flat)
    return _packed(name, datatype, flat), len(flat)


def _depth(name: str, content: bytes) -> int:
    """How many lists the first element is in."""
    start = content[: 4 * MAX_RANK].translate(None, b" \t\r\n")
    depth = len(start) - len(start.lstrip(b"["))
    if not 1 <= depth <= MAX_RANK:
        raise InputError(name, f"data must be a list, of lists up to {MAX_RANK} deep")
    return depth


def _decoder(name: str, datatype: str, depth: int) -> Any:
    """Of ``depth`` lists of one datatype."""
    decoder = _decoders.get((datatype, depth))
    if decoder is not None:
        return decoder
    kind: Any
    if datatype in _BOUNDS:
        low, high = _BOUNDS[datatype]
        kind = int if low is None else Annotated[int, Meta(ge=low, le=high)]
    elif datatype in _FLOATS:
        kind = float
    elif datatype == "BOOL":
        kind = bool
    elif datatype == "BYTES":
        kind = str | _Encoded
    else:
        raise InputError(name, f"datatype {datatype[:40]!r} is none of the protocol's")
    for _ in range(depth):
        kind = list[kind]
    decoder = _decoders[datatype, depth] = msgspec.json.Decoder(kind)
    return decoder


def _flattened(name: str, values: Any, depth: int, shape: Sequence[int]) -> list[Any]:
    """Elements in row-major order, from a flat list or from one that is nested as ``shape`` says."""
    flat: list[Any] = values
    if depth > 1:
        fits = depth == len(shape) and len(values) == shape[0]
        for size in shape[1:] if fits else ():
            fits = fits and all(len(row) == size for row in flat)
            flat = list(itertools.chain.from_iterable(flat)) if fits else []
        if not fits:
            raise InputError(name, f"data is nested otherwise than its shape {list(shape)} says")
    if len(flat) != math.prod(shape):
        raise InputError(name, f"{len(flat)} values, its shape needs {math.prod(shape)}")
    return flat


def _bytes(name: str, value: str | _Encoded, encoded: bool) -> bytes:
    if isinstance(value, str) and not encoded:
        return value.encode()
    try:
        return base64.b64decode(value if isinstance(value, str) else value.b64, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InputError(name, "an element is not base64") from error


def _packed(name: str, datatype: str, values: list[Any]) -> bytes:
    """Numbers as raw contents."""
    dtype = DTYPES["FP32" if datatype == "BF16" else datatype]
    try:
        with np.errstate(over="ignore"):
            array = np.array(values, dtype=dtype)
    except OverflowError as error:
        raise InputError(name, f"a value does not fit {datatype}") from error
    if dtype.kind == "f" and not np.isfinite(array).all():
        raise InputError(name, f"a value does not fit {datatype}")
    if datatype != "BF16":
        return array.tobytes()
    bits = array.view(np.uint32)
    # To the nearest, ties to even, as hardware does it.
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2").tobytes()
