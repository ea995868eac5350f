"""Smaller forms of an input tensor: pictures as PNG, JPEG or WebP, FP32 as FP16 or as 8 bits, UINT8 as packed bits.

Pictures go into BYTES tensors as any client may send them. The forms of FP32, and packed bits, are our own: an input
says which one it has in a parameter, and other servers take none of them.
"""

from __future__ import annotations

import io
import math
import struct
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemux.multiplexer.bundle import BITS, Preprocessing, Tensor
from edgemux.multiplexer.errors import InputError
from edgemux.wire.bits import packed as packed_bits
from edgemux.wire.bits import unpacked

RAW = "raw"
ENCODING = "edgemux_encoding"
# How each is written. Quick ones: what saves a tenth of the bytes for ten times the time is of no use to a device.
_PICTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "png": ("PNG", {"compress_level": 3}),
    "webp-lossless": ("WEBP", {"lossless": True, "quality": 20, "method": 1}),
    "jpeg-95": ("JPEG", {"quality": 95}),
    "jpeg-85": ("JPEG", {"quality": 85}),
    "jpeg-70": ("JPEG", {"quality": 70}),
    "jpeg-50": ("JPEG", {"quality": 50}),
    "webp-85": ("WEBP", {"quality": 85, "method": 1}),
    "webp-60": ("WEBP", {"quality": 60, "method": 1}),
}
LOSSLESS = frozenset({RAW, "png", "webp-lossless"})
FLOATS = ("fp16", "u8")
# What splits send: values of UINT8 that need no more bits than these.
PACKED_BITS = {f"bits{bits}": bits for bits in BITS}
OWN = (*FLOATS, *PACKED_BITS)
# All of them, each once.
EVERY_FORM = (RAW, *_PICTURES, *FLOATS, *PACKED_BITS)
# Before the values of a row of 8 bits: its least value and the size of a step, FP32 little-endian.
_SCALE = struct.Struct("<ff")

Packed = NDArray[Any] | Sequence[bytes]


def encodings(tensor: Tensor, preprocessing: Preprocessing | None) -> tuple[str, ...]:
    """What an input of a whole model can be sent as, "raw" first."""
    if tensor.datatype == "UINT8" and preprocessing is not None:
        return (RAW, *_PICTURES)
    whole = -1 not in tensor.shape[1:]
    return (RAW, *FLOATS) if tensor.datatype == "FP32" and whole else (RAW,)


def encode(encoding: str, rows: NDArray[Any], preprocessing: Preprocessing | None) -> Packed:
    """``rows`` [N, ...] in a form that is known: an array, or N elements of a BYTES tensor.

    Raises ValueError for a form that is not known, or not of such rows.
    """
    if encoding == RAW:
        return rows
    if encoding == "fp16":
        most = np.finfo(np.float16).max
        return np.asarray(np.clip(rows, -most, most), np.float16)
    if encoding == "u8":
        return [_scaled(row) for row in rows]
    if encoding in PACKED_BITS:
        return packed_bits(rows, PACKED_BITS[encoding])
    if encoding not in _PICTURES or preprocessing is None:
        raise ValueError(f"{encoding}: not a form that is known")
    kind, how = _PICTURES[encoding]
    return [_picture(row, kind, how, preprocessing) for row in rows]


def _picture(row: NDArray[np.uint8], kind: str, how: dict[str, Any], preprocessing: Preprocessing) -> bytes:
    from PIL import Image  # on use: tensors need no picture library

    pixels = 255 - row if preprocessing.invert else row
    written = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels), preprocessing.mode).save(written, kind, **how)
    return written.getvalue()


def _scaled(row: NDArray[np.float32]) -> bytes:
    least, most = float(row.min()), float(row.max())
    step = np.float32((most - least) / 255.0) or np.float32(1.0)  # 0 too where FP32 has nothing so small
    values = np.rint((row - np.float32(least)) / step).clip(0, 255).astype(np.uint8)
    return bytes(_SCALE.pack(least, step) + values.tobytes())


def size_of(packed: Packed) -> int:
    """Bytes of it in a message."""
    return packed.nbytes if isinstance(packed, np.ndarray) else sum(4 + len(element) for element in packed)


def mark(message: Any, encoding: str) -> None:
    """Say in an input of a request which of our own forms it has."""
    if encoding in OWN:
        message.parameters[ENCODING].string_param = encoding


def marked(message: Any, tensor: Tensor) -> str:
    """Which of our own forms an input has, empty for none. Raises InputError for one that is not known."""
    if ENCODING not in message.parameters:
        return ""
    encoding = str(message.parameters[ENCODING].string_param)
    known = {"FP32": FLOATS, "UINT8": tuple(PACKED_BITS)}.get(tensor.datatype, ())
    if encoding not in known or -1 in tensor.shape[1:]:
        raise InputError(
            tensor.name,
            f"{ENCODING} is {', '.join(FLOATS)} of FP32, {', '.join(PACKED_BITS)} of UINT8, of a fixed size",
        )
    return encoding


def unpacked_rows(
    encoding: str, tensor: Tensor, elements: Sequence[bytes], go_on: Callable[[], None] = lambda: None
) -> NDArray[Any]:
    """Rows [N, ...] of an input of a fixed size, of elements in one of our own forms. Raises InputError naming it.

    ``go_on`` is called before each row of packed bits, and may raise.
    """
    if encoding == "u8":
        return unscaled(tensor.name, elements, tensor.shape[1:])
    return unpacked(tensor.name, elements, tensor.shape[1:], PACKED_BITS[encoding], go_on)


def unscaled(name: str, elements: Sequence[bytes], shape: Sequence[int]) -> NDArray[np.float32]:
    """Rows FP32 [N, *shape] of elements that ``encode`` made as "u8". Raises InputError naming the input."""
    count = math.prod(shape)
    rows = np.empty((len(elements), count), np.float32)
    for at, element in enumerate(elements):
        if len(element) != _SCALE.size + count:
            raise InputError(name, f"a row of {len(element)} bytes, expected {_SCALE.size + count}")
        least, step = _SCALE.unpack_from(element)
        values = np.frombuffer(element, np.uint8, offset=_SCALE.size)
        rows[at] = values * np.float32(step) + np.float32(least)
    if not np.isfinite(rows).all():
        raise InputError(name, "holds NaN or infinity")
    return rows.reshape(len(elements), *shape)


def decoder(encoding: str, tensor: Tensor, preprocessing: Preprocessing | None) -> Callable[[Packed], NDArray[Any]]:
    """What a server makes of it; for measurements. Raises InputError for what does not decode."""
    from edgemux.wire.image import decode_images

    def decode(packed: Packed) -> NDArray[Any]:
        if isinstance(packed, np.ndarray):
            return packed.astype(np.float32) if encoding == "fp16" else packed
        if encoding in OWN:
            return unpacked_rows(encoding, tensor, packed)
        assert preprocessing is not None
        return decode_images(tensor.name, packed, preprocessing)

    return decode
