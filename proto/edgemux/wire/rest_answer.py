"""Messages of the protocol -> JSON and binary tensors: what the REST side writes. Pure."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
from msgspec import Raw
from numpy.typing import NDArray

from edgemux.multiplexer.errors import BadAnswer, InputError
from edgemux.wire.codec import DTYPES, get_parameters, join_bytes, split_bytes
from edgemux.wire.rest_codec import BINARY_SIZE, CONTENT_TYPE, Wanted

# Outputs in binary look the same from answer to answer; what is known of one, by name, datatype, shape and size.
MAX_KNOWN_OUTPUTS = 64
_known: dict[tuple[str, str, tuple[int, ...], int], Raw] = {}


def write_infer(response: Any, wanted: Wanted) -> tuple[bytes, tuple[bytes, ...]]:
    """JSON of a ModelInferResponse, and the binary data that follow it. Raises BadAnswer for one that is none."""
    raw, pieces, outputs = response.raw_output_contents, list[bytes](), list[Any]()
    for index, output in enumerate(response.outputs):
        content = raw[index] if index < len(raw) else _contents(output)
        parameters = get_parameters(output) if output.parameters else {}
        if not (wanted.outputs.get(output.name, wanted.binary) if wanted.outputs else wanted.binary):
            outputs.append(_described(output, {"data": _to_json(output, content, parameters)}, parameters))
            continue
        pieces.append(content)
        if parameters:
            outputs.append(_described(output, {}, parameters | {BINARY_SIZE: len(content)}))
        else:
            outputs.append(_binary(output, len(content)))
    answer: dict[str, Any] = {"model_name": response.model_name, "model_version": response.model_version}
    if response.id:
        answer["id"] = response.id
    parameters = get_parameters(response)
    if parameters:
        answer["parameters"] = parameters
    answer["outputs"] = outputs
    return msgspec.json.encode(answer), tuple(pieces)


def _described(output: Any, more: dict[str, Any], parameters: Mapping[str, Any]) -> dict[str, Any]:
    described = {"name": output.name, "datatype": output.datatype, "shape": list(output.shape)} | more
    return described | {"parameters": parameters} if parameters else described


def _binary(output: Any, size: int) -> Raw:
    """JSON of an output without parameters of its own, whose data follow in binary."""
    key = (output.name, output.datatype, tuple(output.shape), size)
    known = _known.get(key)
    if known is None:
        if len(_known) >= MAX_KNOWN_OUTPUTS:
            _known.clear()
        known = _known[key] = Raw(msgspec.json.encode(_described(output, {}, {BINARY_SIZE: size})))
    return known


def _contents(output: Any) -> bytes:
    """Typed contents as raw ones."""
    for _, values in output.contents.ListFields():
        if output.datatype == "BYTES":
            return join_bytes(values)
        if output.datatype in DTYPES:
            return np.array(values, dtype=DTYPES[output.datatype]).tobytes()
    return b""


def _to_json(output: Any, content: bytes, parameters: dict[str, Any]) -> list[Any]:
    """A flat list; of bytes that are no text, base64, which ``parameters`` are made to say. NaN becomes null."""
    datatype = output.datatype
    if datatype == "BYTES":
        try:
            elements = split_bytes(output.name, content, math.prod(output.shape))
        except InputError as error:
            raise BadAnswer(str(error)) from error
        try:
            return [str(element, "utf-8") for element in elements]
        except UnicodeDecodeError:
            parameters[CONTENT_TYPE] = "base64"
            return [str(base64.b64encode(element), "ascii") for element in elements]
    try:
        if datatype == "BF16":
            array: NDArray[Any] = (np.frombuffer(content, "<u2").astype(np.uint32) << 16).view(np.float32)
        else:
            array = np.frombuffer(content, DTYPES[datatype])
    except (KeyError, ValueError) as error:
        raise BadAnswer(f"{output.name}: wrong datatype or size in the answer") from error
    flat: list[Any] = array.tolist()
    return flat


def plain(message: Any) -> dict[str, Any]:
    """Any message of the protocol as a value for JSON: all numbers as numbers, enumerations by name."""
    values: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if hasattr(value, "DESCRIPTOR"):
            if message.HasField(field.name):
                values[field.name] = plain(value)
        elif field.enum_type is not None:
            values[field.name] = field.enum_type.values_by_number[value].name
        elif isinstance(value, (bool, int, float, str, bytes)):
            if field.containing_oneof is None or message.HasField(field.name):
                values[field.name] = value
        elif hasattr(value, "items"):
            values[field.name] = {key: _item(item) for key, item in value.items()}
        else:
            values[field.name] = [_item(item) for item in value]
    return values


def _item(value: Any) -> Any:
    return plain(value) if hasattr(value, "DESCRIPTOR") else value
