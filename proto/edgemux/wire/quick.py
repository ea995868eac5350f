"""Answers to inferences, written as bytes: what is the same in all of them once, the rest with no call for each field.

A message that is built field by field costs as much as a quick model runs. The bytes are those of
``codec.make_response``; they are parsed back, which is cheap, so that whoever passes the answer on has a message.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from edgemux.wire import oip_pb2 as oip
from edgemux.wire.codec import MODEL_DIGEST, Array, datatype_of

QUEUE_MS, COMPUTE_MS, BATCH_SIZE = "edgemux_queue_ms", "edgemux_compute_ms", "edgemux_batch_size"
_ID, _PARAMETERS, _OUTPUTS, _RAW = (number << 3 | 2 for number in (3, 4, 5, 6))
# A double in a parameter: its tag and eight bytes; the value of a map entry is a message of nine.
_DOUBLE = b"\x12\x09\x21"
_MAX_SHAPES = 256


class Answers:
    """Writes the answers of one version of a model."""

    def __init__(self, name: str, version: str, digest: str) -> None:
        """``digest``: of the model; empty for none."""
        fixed = oip.ModelInferResponse(model_name=name, model_version=version)
        if digest:
            fixed.parameters[MODEL_DIGEST].string_param = digest
        self._fixed: bytes = fixed.SerializeToString()
        queue, compute = (_double_entry(key) for key in (QUEUE_MS, COMPUTE_MS))
        self._queue, self._compute = queue, compute
        self._took = struct.Struct(f"<{len(queue)}sd{len(compute)}sd")
        # Names, datatypes and shapes of outputs, as they were written before.
        self._described: dict[tuple[Any, ...], bytes] = {}

    def make(
        self, request_id: str, outputs: Mapping[str, Array], queue_ms: float, compute_ms: float, batch_rows: int
    ) -> Any:
        """A ModelInferResponse with raw contents and the three numbers as parameters."""
        took = self._took.pack(self._queue, queue_ms, self._compute, compute_ms)
        parts = [self._fixed, took, _int_entry(BATCH_SIZE, batch_rows)]
        if request_id:
            parts += _field(_ID, request_id.encode())
        for name, array in outputs.items():
            key = (name, array.dtype, array.shape)
            described = self._described.get(key)
            parts.append(self._describe(key, array) if described is None else described)
        for array in outputs.values():
            parts += _field(_RAW, array.tobytes())
        return oip.ModelInferResponse.FromString(b"".join(parts))

    def _describe(self, key: tuple[Any, ...], array: Array) -> bytes:
        tensor = oip.ModelInferResponse.InferOutputTensor(name=key[0], datatype=datatype_of(array), shape=array.shape)
        described = b"".join(_field(_OUTPUTS, tensor.SerializeToString()))
        if len(self._described) >= _MAX_SHAPES:
            self._described.clear()
        self._described[key] = described
        return described


def _field(tag: int, content: bytes) -> tuple[bytes, bytes]:
    return bytes((tag,)) + _varint(len(content)), content


def _varint(number: int) -> bytes:
    if number < 0x80:
        return bytes((number,))
    written = bytearray()
    while number >= 0x80:
        written.append(number & 0x7F | 0x80)
        number >>= 7
    written.append(number)
    return bytes(written)


def _double_entry(key: str) -> bytes:
    """A parameter that is a double, but for its eight bytes."""
    inner = b"\x0a" + _varint(len(key)) + key.encode() + _DOUBLE
    return bytes((_PARAMETERS,)) + _varint(len(inner) + 8) + inner


@lru_cache(_MAX_SHAPES)
def _int_entry(key: str, number: int) -> bytes:
    """A parameter that is a whole number, not negative."""
    value = b"\x10" + _varint(number)
    inner = b"\x0a" + _varint(len(key)) + key.encode() + b"\x12" + _varint(len(value)) + value
    return bytes((_PARAMETERS,)) + _varint(len(inner)) + inner
