"""ndarray <-> tensor message: the only place that knows wire datatypes.

Everything a client claims is checked against the model's tensors before anything of that size is allocated.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgemux.multiplexer.bundle import DATATYPES, Preprocessing, Tensor
from edgemux.multiplexer.errors import BadAnswer, InputError, TooLarge
from edgemux.wire import oip_pb2 as oip
from edgemux.wire.image import decode_images
from edgemux.wire.payload import PACKED_BITS, marked, unpacked_rows

Array = NDArray[Any]
Parameter = bool | int | float | str

# Raw bytes are little-endian whatever the machine.
DTYPES: dict[str, np.dtype[Any]] = {name: np.dtype(kind).newbyteorder("<") for name, kind in DATATYPES.items()}
_DATATYPES = {dtype: name for name, dtype in DTYPES.items()}

# The typed field that carries each datatype; FP16 travels raw only, as the protocol says.
_CONTENTS = {
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
    "BYTES": "bytes_contents",
}
_CONTENTS_FIELDS = sorted(set(_CONTENTS.values()))

MAX_BATCH = 1024
# Values of packed bits that are read at once, within a millisecond; more are decoded as pictures are. A row takes as
# long as some values, however few it has.
FEW_VALUES, ROW_VALUES = 2**17, 2**10
# The parameter that holds a message's checksum, and the one that it covers beside contents and id.
CHECKSUM = "edgemux_crc32"
MODEL_DIGEST = "edgemux_model_digest"


def row_bytes(tensors: Iterable[Tensor]) -> int:
    """Of one row of all of them, as raw contents; their sizes but the first must be fixed."""
    return sum(math.prod(tensor.shape[1:]) * DTYPES[tensor.datatype].itemsize for tensor in tensors)


class Pictures(msgspec.Struct, frozen=True):
    """An input of encoded pictures: as many as its shape says, nothing of them looked at yet."""

    field: str
    elements: Sequence[bytes]


class PackedRows(Pictures, frozen=True):
    """Rows of packed bits that are many or large: a few bytes of them may be as much work as a picture."""

    tensor: Tensor
    encoding: str


def check_inputs(
    request: Any,
    tensors: Sequence[Tensor],
    preprocessing: Preprocessing | None = None,
    max_batch: int = MAX_BATCH,
) -> dict[str, Array | Pictures]:
    """``read_inputs`` but for pictures and large rows, which are counted only: everything that is quick to find out.

    ``max_batch``: rows at most; 0 where the tensors have no dimension for the batch.
    Raises InputError naming the tensor.
    """
    if not intact(request):
        raise InputError(CHECKSUM, "the message is not what it was when it was sent")
    if len(tensors) == 1:
        plain = _plain(request, tensors[0], max_batch)
        if plain is not None:
            return {tensors[0].name: plain}
    return _check_each(request, tensors, preprocessing, max_batch)


def _check_each(
    request: Any, tensors: Sequence[Tensor], preprocessing: Preprocessing | None, max_batch: int
) -> dict[str, Array | Pictures]:
    wanted = {tensor.name: tensor for tensor in tensors}
    raw = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        raise InputError("raw_input_contents", f"{len(raw)} buffers for {len(request.inputs)} inputs")
    checked: dict[str, Array | Pictures] = {}
    rows = set()
    for index, message in enumerate(request.inputs):
        tensor = wanted.get(message.name)
        if tensor is None:
            raise InputError(_quoted(message.name), f"no such input, the model has {', '.join(wanted)}")
        if tensor.name in checked:
            raise InputError(tensor.name, "given twice")
        checked[tensor.name], shape = _checked_input(
            message, tensor, raw[index] if raw else None, preprocessing, max_batch
        )
        rows.add(shape[0] if max_batch else 1)
    for name in wanted:
        if name not in checked:
            raise InputError(name, "missing")
    if len(rows) > 1:
        raise InputError("inputs", "the batch sizes differ")
    return checked


def _plain(request: Any, tensor: Tensor, max_batch: int) -> Array | None:
    """The one input of a model, as nearly all send it; None where there is anything to be looked at twice."""
    contents, inputs = request.raw_input_contents, request.inputs
    if len(contents) != 1 or len(inputs) != 1:
        return None
    message, raw = inputs[0], contents[0]
    shape, expected = tuple(message.shape), tensor.shape
    if len(shape) != len(expected) or len(shape) == 0 or shape[1:] != expected[1:] or expected[0] != -1:
        return None
    dtype = DTYPES[tensor.datatype]
    if not 1 <= shape[0] <= max_batch or len(raw) != math.prod(shape) * dtype.itemsize:
        return None
    if message.datatype != tensor.datatype or message.name != tensor.name or message.HasField("contents"):
        return None
    array: Array = np.frombuffer(raw, dtype=dtype).reshape(shape)
    if dtype.kind == "f" and np.count_nonzero(np.isfinite(array)) != array.size:
        return None
    return array


def _checked_input(
    message: Any, tensor: Tensor, raw: bytes | None, preprocessing: Preprocessing | None, max_batch: int
) -> tuple[Array | Pictures, tuple[int, ...]]:
    """One input, and its shape as it is in the message."""
    encoding = marked(message, tensor)
    if encoding:
        return _packed(message, tensor, encoding, raw, max_batch)
    pictures = message.datatype == "BYTES" and tensor.datatype == "UINT8" and preprocessing is not None
    if message.datatype == "BYTES" and not pictures:  # before its shape is, which an encoded picture has but one of
        raise InputError(tensor.name, f"encoded pictures are not taken here, expected {tensor.datatype}")
    shape = _checked_shape(message, tensor.shape[:1] if pictures else tensor.shape, max_batch)
    if pictures:
        return _pictures(tensor.name, message, raw, shape[0]), shape
    if message.datatype != tensor.datatype:
        raise InputError(tensor.name, f"datatype {_quoted(message.datatype)}, expected {tensor.datatype}")
    return _dense(tensor.name, message, raw, shape), shape


def _packed(
    message: Any, tensor: Tensor, encoding: str, raw: bytes | None, max_batch: int
) -> tuple[Array | Pictures, tuple[int, ...]]:
    """An FP32 input that came as FP16, or with 8 bits a value; a UINT8 input that came as packed bits."""
    wanted = "FP16" if encoding == "fp16" else "BYTES"
    if message.datatype != wanted or raw is None:
        raise InputError(tensor.name, f"{encoding} travels as raw {wanted}")
    if encoding == "fp16":
        shape = _checked_shape(message, tensor.shape, max_batch)
        return _dense(tensor.name, message, raw, shape).astype(np.float32), shape
    shape = _checked_shape(message, tensor.shape[:1], max_batch)
    elements = _pictures(tensor.name, message, raw, shape[0]).elements
    if encoding in PACKED_BITS and shape[0] * max(ROW_VALUES, math.prod(tensor.shape[1:])) > FEW_VALUES:
        return PackedRows(tensor.name, elements, tensor, encoding), shape
    return unpacked_rows(encoding, tensor, elements), shape


def decode_inputs(
    checked: Mapping[str, Array | Pictures],
    preprocessing: Preprocessing | None,
    go_on: Callable[[], None] = lambda: None,
) -> dict[str, Array]:
    """Checked inputs with their pictures decoded; may take long. ``go_on`` is called before each, and may raise.

    Raises InputError naming the tensor, and what ``go_on`` raises.
    """
    arrays: dict[str, Array] = {}
    for name, value in checked.items():
        if isinstance(value, PackedRows):
            arrays[name] = unpacked_rows(value.encoding, value.tensor, value.elements, go_on)
        elif isinstance(value, Pictures):
            assert preprocessing is not None  # without it check_inputs takes no pictures
            arrays[name] = decode_images(value.field, value.elements, preprocessing, go_on)
        else:
            arrays[name] = value
    return arrays


def _quoted(text: str) -> str:
    """A client's own word, short and printable, for an error message."""
    return repr(text[:40])


def _checked_shape(message: Any, expected: Sequence[int], max_batch: int) -> tuple[int, ...]:
    name = message.name
    given = message.shape
    if len(given) != len(expected):  # before anything of that length is made
        raise InputError(name, f"shape has {len(given)} dimensions, expected {_dims(expected)}")
    shape = tuple(given)
    if max_batch and expected[0] < 0 and shape[1:] == expected[1:] and min(shape) > 0 and shape[0] <= max_batch:
        return shape  # what nearly all have, without a look at each dimension
    if any(size < 0 for size in shape):
        raise InputError(name, "shape has a negative dimension")
    if max_batch and shape[0] == 0:
        raise InputError(name, "shape has a batch of 0")
    for size, want in zip(shape, expected, strict=True):
        if want >= 0 and size != want:
            raise InputError(name, f"shape {list(shape)}, expected {_dims(expected)}"[:200])
    if 0 in shape:  # which a dimension of any size would take
        raise InputError(name, "shape has a dimension of 0")
    if max_batch and shape[0] > max_batch:
        raise TooLarge(name, f"batch of {shape[0]}, at most {max_batch}")
    return shape


def _dims(expected: Sequence[int]) -> str:
    return "[" + ", ".join(str(size) for size in expected) + "]"


def _dense(name: str, message: Any, raw: bytes | None, shape: tuple[int, ...]) -> Array:
    """A tensor of fixed-size elements. ``math.prod``: numpy's own product wraps at 2**63."""
    dtype = DTYPES[message.datatype]
    count = math.prod(shape)
    if raw is not None:
        _refuse_contents(name, message)
        if len(raw) != count * dtype.itemsize:
            raise InputError(name, f"{len(raw)} bytes of data, its shape and datatype need {count * dtype.itemsize}")
        array: Array = np.frombuffer(raw, dtype=dtype).reshape(shape)
    else:
        values = _contents(name, message, message.datatype)
        if len(values) != count:
            raise InputError(name, f"{len(values)} values, its shape needs {count}")
        try:
            array = np.array(values, dtype=dtype).reshape(shape)
        except OverflowError as error:
            raise InputError(name, f"a value does not fit {message.datatype}") from error
    if dtype.kind == "f" and np.count_nonzero(np.isfinite(array)) != count:  # a third of the time of all()
        raise InputError(name, "holds NaN or infinity")
    return array


def _refuse_contents(name: str, message: Any) -> None:
    if message.HasField("contents") and any(len(getattr(message.contents, field)) for field in _CONTENTS_FIELDS):
        raise InputError(name, "has both contents and raw_input_contents")


def _contents(name: str, message: Any, datatype: str) -> Any:
    field = _CONTENTS.get(datatype)
    if field is None:
        raise InputError(name, f"{datatype} travels in raw_input_contents only")
    for other in _CONTENTS_FIELDS:
        if other != field and len(getattr(message.contents, other)):
            raise InputError(name, f"has {other}, {datatype} needs {field}")
    values = getattr(message.contents, field)
    if not len(values):
        raise InputError(name, "has no data")
    return values


def _pictures(name: str, message: Any, raw: bytes | None, count: int) -> Pictures:
    elements: Sequence[bytes]
    if raw is not None:
        _refuse_contents(name, message)
        elements = split_bytes(name, raw, count)
    else:
        elements = _contents(name, message, "BYTES")
    if len(elements) != count:
        raise InputError(name, f"{len(elements)} elements, its shape needs {count}")
    return Pictures(name, list(elements))


def split_bytes(name: str, raw: bytes, count: int) -> list[bytes]:
    """The elements of a raw BYTES tensor: each has its length before it, 4 bytes little-endian."""
    elements: list[bytes] = []
    at = 0
    while at < len(raw):
        if len(elements) == count:
            raise InputError(name, f"more than {count} elements of data")
        end = at + 4
        size = int.from_bytes(raw[at:end], "little")
        if end > len(raw) or end + size > len(raw):
            raise InputError(name, "an element is cut short")
        elements.append(raw[end : end + size])
        at = end + size
    return elements


def join_bytes(elements: Iterable[bytes]) -> bytes:
    """The raw form of a BYTES tensor."""
    return b"".join(len(element).to_bytes(4, "little") + element for element in elements)


def requested_outputs(request: Any, tensors: Sequence[Tensor]) -> list[str]:
    """Names of the outputs to send, in the client's order; all when it names none. Raises InputError."""
    names = [tensor.name for tensor in tensors]
    if not request.outputs:
        return names
    for output in request.outputs:
        if output.name not in names:
            raise InputError(_quoted(output.name), f"no such output, the model has {', '.join(names)}")
    return [output.name for output in request.outputs]


def make_request(
    model: str,
    inputs: Mapping[str, Array | Sequence[bytes]],
    *,
    request_id: str = "",
    parameters: Mapping[str, Parameter] | None = None,
) -> Any:
    """A ModelInferRequest with raw contents. A sequence of bytes becomes a BYTES tensor of rank 1."""
    request = oip.ModelInferRequest(model_name=model, id=request_id)
    for name, value in inputs.items():
        if isinstance(value, np.ndarray):
            array = np.ascontiguousarray(value)
            request.inputs.add(name=name, datatype=datatype_of(array), shape=array.shape)
            request.raw_input_contents.append(array.tobytes())
        else:
            request.inputs.add(name=name, datatype="BYTES", shape=[len(value)])
            request.raw_input_contents.append(join_bytes(value))
    set_parameters(request, parameters or {})
    return request


def make_response(
    model: str,
    version: str,
    request_id: str,
    outputs: Mapping[str, Array],
    parameters: Mapping[str, Parameter],
    checked: bool = False,
) -> Any:
    """A ModelInferResponse with raw contents; ``checked``: with a checksum, as where its request has one."""
    response = oip.ModelInferResponse(model_name=model, model_version=version, id=request_id)
    described, contents = response.outputs, response.raw_output_contents
    for name, array in outputs.items():
        described.add(name=name, datatype=datatype_of(array), shape=array.shape)
        contents.append(array.tobytes())  # in C order, whatever the array's
    set_parameters(response, parameters)
    if checked:
        add_checksum(response)
    return response


def add_checksum(message: Any) -> None:
    """Let the receiver of a request or response find out whether its contents, id or model digest were altered.

    TCP's own checksum misses one damaged segment in some tens of thousands; TLS misses none, but is not everywhere.
    """
    message.parameters[CHECKSUM].int64_param = _checksum(message)


def intact(message: Any) -> bool:
    """Whether a message is what its checksum says; True for one that has none, as from other software."""
    parameters = message.parameters
    return CHECKSUM not in parameters or parameters[CHECKSUM].int64_param == _checksum(message)


def _checksum(message: Any) -> int:
    """CRC-32 of the raw contents in order, then of the id and the model's digest as UTF-8."""
    answer = isinstance(message, oip.ModelInferResponse)
    crc = 0
    for content in message.raw_output_contents if answer else message.raw_input_contents:
        crc = zlib.crc32(content, crc)
    digest = message.parameters[MODEL_DIGEST].string_param if MODEL_DIGEST in message.parameters else ""
    return zlib.crc32(f"{message.id}\0{digest}".encode(), crc)


def datatype_of(array: Array) -> str:
    """The protocol's name of an array's dtype. Raises InputError for one that it cannot carry."""
    dtype = array.dtype
    name = _DATATYPES.get(dtype.newbyteorder("<") if dtype.byteorder == ">" else dtype)
    if name is None:
        raise InputError("datatype", f"{array.dtype} cannot be sent")
    return name


def read_outputs(response: Any, tensors: Sequence[Tensor], rows: int | None) -> dict[str, Array]:
    """The named outputs of a peer's ModelInferResponse, checked; raw is preferred. Raises BadAnswer.

    ``rows``: their first dimension, None where that is not the batch.
    """
    if not intact(response):
        raise BadAnswer("the answer is not what it was when it was sent")
    found = {output.name: index for index, output in enumerate(response.outputs)}
    if len(found) != len(response.outputs):
        raise BadAnswer("an output is in the answer more than once")
    arrays: dict[str, Array] = {}
    for tensor in tensors:
        index = found.get(tensor.name)
        if index is None:
            raise BadAnswer(f"{tensor.name}: missing from the answer")
        output = response.outputs[index]
        shape = tuple(output.shape)
        expected = tensor.shape if rows is None else (rows, *tensor.shape[1:])
        fits = len(shape) == len(expected) and all(
            size >= 0 and want in (-1, size) for size, want in zip(shape, expected, strict=True)
        )
        if output.datatype != tensor.datatype or not fits:
            raise BadAnswer(f"{tensor.name}: wrong datatype or shape in the answer")
        dtype = DTYPES[tensor.datatype]
        if index < len(response.raw_output_contents):
            content = response.raw_output_contents[index]
            if len(content) != math.prod(shape) * dtype.itemsize:
                raise BadAnswer(f"{tensor.name}: wrong size in the answer")
            array: Array = np.frombuffer(content, dtype=dtype).reshape(shape)
        else:
            values = getattr(output.contents, _CONTENTS[tensor.datatype])
            if len(values) != math.prod(shape):
                raise BadAnswer(f"{tensor.name}: wrong size in the answer")
            array = np.array(values, dtype=dtype).reshape(shape)
        if dtype.kind == "f" and not np.isfinite(array).all():
            raise BadAnswer(f"{tensor.name}: NaN or infinity in the answer")
        arrays[tensor.name] = array
    return arrays


def set_parameters(message: Any, parameters: Mapping[str, Parameter]) -> None:
    """Write parameters into a request or response."""
    given = message.parameters
    for key, value in parameters.items():
        slot = given[key]
        if isinstance(value, bool):
            slot.bool_param = value
        elif isinstance(value, int):
            slot.int64_param = value
        elif isinstance(value, float):
            slot.double_param = value
        else:
            slot.string_param = value


def get_parameters(message: Any) -> dict[str, Parameter]:
    """The parameters of a request or response; entries without a value are left out."""
    values: dict[str, Parameter] = {}
    for key, slot in message.parameters.items():
        kind = slot.WhichOneof("parameter_choice")
        if kind is not None:
            values[key] = getattr(slot, kind)
    return values
