"""Requests as an enemy, a broken client or a broken network would send them: seeded, cheap to make, endless.

Three kinds, mixed: hostile requests made by hand (rows 35 to 41 of the failure matrix), good ones with a field set to
something else, and good ones whose bytes were changed.
"""

from __future__ import annotations

import io
import math
import random
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image

from edgemux.multiplexer.bundle import Manifest
from edgemux.wire import oip_pb2 as oip
from edgemux.wire.codec import CHECKSUM, DTYPES, add_checksum, join_bytes, make_request
from edgemux.wire.payload import ENCODING, OWN, PACKED_BITS, encode, mark

# Numbers at which something wraps, overflows or turns negative, and some that nobody may allocate.
NUMBERS = (0, 1, -1, 2, 3, 10, 28, 255, 256, 257, 1000, 2**16, 10**6, 2**31 - 1, 2**31, -(2**31), 2**32, 2**33)
NUMBERS += (2**53, 2**62, 2**63 - 1, -(2**63))
WORDS = (
    "",
    "image",
    "IMAGE",
    "image\0",
    "\0",
    "é",
    "\U0001f600",
    "a" * 300,
    "probabilities",
    "label",
    "../../etc/passwd",
)
WORDS += ("%s%n", "{0}", "$(reboot)", "\n", "timeout", CHECKSUM, "UINT8", "fashion-mnist")
DATATYPES = (*DTYPES, "BYTES", "", "uint8", "BF16", "FP8", "OBJECT", "\0", "U" * 100)
# Lengths and varints that lie: 0, 127, 2**28 - 1, 2**32 - 1, 2**63, and eleven bytes, one more than there can be.
LIES = (b"\0", b"\x7f", b"\xff\xff\xff\x7f", b"\xff\xff\xff\xff\x0f", b"\x80" * 9 + b"\x01", b"\xff" * 11)
TAGS = tuple(bytes([number << 3 | wire]) for number in (1, 2, 3, 4, 5, 6, 7, 8, 15) for wire in range(8))
# The bytes of a small request that say something; behind them are its pixels, of which any value is right.
HEADER_BYTES = 120


def good_requests(manifest: Manifest) -> list[bytes]:
    """Requests that the model takes, in all the forms that the protocol has for them."""
    rng = np.random.default_rng(5)
    made = [_tensors(manifest, rng, rows) for rows in (1, 2, 7)]
    wordy = _tensors(manifest, rng, 1)
    wordy.id, wordy.model_version = "an-id", manifest.version
    wordy.parameters["timeout"].int64_param = 500_000
    wordy.parameters["edgemux_note"].string_param = "x"
    for output in manifest.outputs:
        wordy.outputs.add(name=output.name)
    made.append(wordy)
    if all(tensor.datatype != "FP16" for tensor in manifest.inputs):
        made.append(_typed(manifest, made[0]))
    if manifest.preprocessing is not None:
        made.append(_pictures(manifest))
    if takes_packed_bits(manifest):
        made += [_packed(manifest, form, rows) for form in PACKED_BITS for rows in (1, 3)]
    sealed = _tensors(manifest, rng, 1)
    add_checksum(sealed)
    made.append(sealed)
    return [request.SerializeToString() for request in made]


def _tensors(manifest: Manifest, rng: np.random.Generator, rows: int) -> Any:
    arrays = {}
    for tensor in manifest.inputs:
        shape = [rows, *(3 if size < 0 else size for size in tensor.shape[1:])]
        arrays[tensor.name] = rng.integers(0, 2, shape).astype(DTYPES[tensor.datatype])
    return make_request(manifest.name, arrays)


def _typed(manifest: Manifest, raw: Any) -> Any:
    """The same request with its values in the typed fields."""
    request = oip.ModelInferRequest(model_name=manifest.name)
    fields = {"u": "uint_contents", "i": "int_contents", "f": "fp32_contents"}
    for message, content in zip(raw.inputs, raw.raw_input_contents, strict=True):
        values = np.frombuffer(content, DTYPES[message.datatype])
        field = "int64_contents" if message.datatype == "INT64" else fields[values.dtype.kind]
        made = request.inputs.add(name=message.name, datatype=message.datatype, shape=message.shape)
        getattr(made.contents, field).extend(values.tolist())
    return request


def takes_packed_bits(manifest: Manifest) -> bool:
    """Whether its one input is what a head makes."""
    (tensor, *others) = manifest.inputs
    return not others and tensor.datatype == "UINT8" and manifest.preprocessing is None


def _packed(manifest: Manifest, form: str, rows: int) -> Any:
    tensor = manifest.inputs[0]
    values = np.random.default_rng(rows).integers(0, 2 ** PACKED_BITS[form], (rows, *tensor.shape[1:]))
    request = make_request(manifest.name, {tensor.name: encode(form, values.astype(np.uint8), None)})
    mark(request.inputs[0], form)
    return request


def _packed_hostility(manifest: Manifest) -> Iterator[bytes]:
    """Rows that are not what they say: too long, too short, bombs, no deflate at all, none, of another number."""
    size = math.prod(manifest.inputs[0].shape[1:])
    bomb = zlib.compressobj(9, wbits=-15)
    bombs = bomb.compress(bytes(8 * 2**20)) + bomb.flush()
    plain = zlib.compressobj(0, wbits=-15)
    stored = plain.compress(b"\xff" * size) + plain.flush()
    empty_blocks = b"\0\0\0\xff\xff" * 4000 + stored
    for element in (b"", b"\0", b"\xff" * 9, bombs, bombs[:-5], stored[:-1], stored + b"\0", stored * 2, empty_blocks):
        for form in PACKED_BITS:
            for rows in (1, 3, 300):
                request = _packed(manifest, form, 1)
                request.inputs[0].shape[0] = rows
                request.raw_input_contents[0] = join_bytes([element] * rows)
                if len(request.raw_input_contents[0]) < 2**20:
                    yield bytes(request.SerializeToString())


def _pictures(manifest: Manifest) -> Any:
    buffer = io.BytesIO()
    Image.new("L", (28, 28), 100).save(buffer, "PNG")
    return make_request(manifest.name, {manifest.inputs[0].name: [buffer.getvalue()] * 2})


def hostile_requests(manifest: Manifest) -> list[bytes]:
    """What somebody thought of, as bytes; most are refused for what they claim, some for what they are."""
    name = manifest.inputs[0].name
    shapes: list[Sequence[int]] = [
        (10**6, 10**6),
        (10**6, 10**6, 10**6),
        (2**31, 2**33, 1),
        (-1, 28, 28),
        (1, -28, -28),
        (0, 28, 28),
        (1, 0, 28),
        (0,),
        (),
        (1,) * 1000,
        (2**62, 2, 2),
        (2**63 - 1, 28, 28),
        (257, 28, 28),
    ]
    made = [_shaped(manifest, shape, b"\0" * 4) for shape in shapes]
    made += [_named(manifest, word) for word in ("", "fashion-mnist\0", "\0", "m" * 2**20, "é" * 1000, "../" * 99)]
    for word in ("FP64", "BYTES", "U" * 2000):
        request = _tensors(manifest, np.random.default_rng(1), 1)
        request.inputs[0].datatype = word
        made.append(request)
    for datatype in ("FP32", "FP64", "FP16"):
        for value in (math.nan, math.inf, -math.inf):
            made += list(_with_value(manifest, datatype, value))
    made.append(oip.ModelInferRequest())
    twice = _tensors(manifest, np.random.default_rng(2), 1)
    twice.inputs.add().CopyFrom(twice.inputs[0])
    twice.raw_input_contents.append(twice.raw_input_contents[0])
    made.append(twice)
    elements = oip.ModelInferRequest(model_name=manifest.name)
    elements.inputs.add(name=name, datatype="BYTES", shape=[3])
    elements.raw_input_contents.append(join_bytes([b"\x89PNG\r\n\x1a\n", b"", b"\xff\xd8\xff"]) + b"\xff\xff\xff\xff")
    made.append(elements)
    packed = _packed_hostility(manifest) if takes_packed_bits(manifest) else ()
    return [*(request.SerializeToString() for request in made), *_raw_hostility(manifest), *packed]


def _shaped(manifest: Manifest, shape: Sequence[int], content: bytes) -> Any:
    tensor = manifest.inputs[0]
    request = oip.ModelInferRequest(model_name=manifest.name)
    request.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=shape)
    request.raw_input_contents.append(content)
    return request


def _named(manifest: Manifest, word: str) -> Any:
    request = _tensors(manifest, np.random.default_rng(3), 1)
    request.model_name = word
    return request


def _with_value(manifest: Manifest, datatype: str, value: float) -> Iterator[Any]:
    """``value`` in a tensor of that datatype, where the model has one."""
    for index, tensor in enumerate(manifest.inputs):
        if tensor.datatype == datatype:
            request = _tensors(manifest, np.random.default_rng(4), 1)
            array = np.frombuffer(request.raw_input_contents[index], DTYPES[datatype]).copy()
            array[-1] = value
            request.raw_input_contents[index] = array.tobytes()
            yield request


def _raw_hostility(manifest: Manifest) -> Iterator[bytes]:
    """What no library would write: depth, wrong text, fields without end."""
    good = _tensors(manifest, np.random.default_rng(6), 1).SerializeToString()
    yield b"\x7b" * 5000 + b"\x7c" * 5000  # groups of field 15, 5,000 deep
    yield b"\x7b" * 900 + b"\x7c" * 900
    deep = b""
    for _ in range(5000):
        deep = b"\x2a" + _varint(len(deep)) + deep  # inputs in inputs
    yield deep
    yield b"\x2a\0" * 4000
    yield good + b"\x3a\0" * 990
    yield b"\x0a\x04\xff\xfe\x00\xc0"  # a model name that is no UTF-8
    yield good + b"\x1a\x02\xc3\x28"
    yield b"\x1a" + _varint(2**20) + b"i" * 2**20
    yield good + b"\x2a" + _varint(2**40)
    yield b"{" + b'"a":{' * 5000  # JSON
    yield b"\x1f\x8b\x08\0\0\0\0\0" + good
    yield b""


def _varint(number: int) -> bytes:
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


class Mutator:
    """``next()``: one more mutated request. The same seed gives the same requests."""

    def __init__(self, manifest: Manifest, seed: int) -> None:
        self._random = random.Random(seed)
        self._good = good_requests(manifest)
        self._hostile = hostile_requests(manifest)
        self._small = [content for content in self._hostile if len(content) < 4000]
        self._parsed = [oip.ModelInferRequest.FromString(content) for content in self._good]
        self._of_fields: tuple[Callable[[Any], None], ...] = (
            self._dimension,
            self._rank,
            self._name,
            self._datatype,
            self._content,
            self._parameter,
            self._output,
            self._typed_value,
            self._tensor,
        )
        self._of_bytes: tuple[Callable[[bytes], bytes], ...] = (
            self._flipped,
            self._flipped,
            self._lied,
            self._spliced,
            self._cut,
            self._inserted,
            self._repeated,
        )

    def next(self) -> bytes:
        """A request: 55 in 100 with changed bytes, 40 with changed fields, 5 hostile ones (a large one in 1,000)."""
        choice = self._random.random()
        if choice < 0.55:
            content = self._random.choice(self._good)
            return self._random.choice(self._of_bytes)(content)
        if choice < 0.95:
            request = oip.ModelInferRequest()
            request.CopyFrom(self._random.choice(self._parsed))
            for _ in range(self._random.choice((1, 1, 2, 3))):
                self._random.choice(self._of_fields)(request)
            return bytes(request.SerializeToString())
        if choice < 0.999:
            return self._random.choice(self._small)
        return self._random.choice(self._hostile)

    # --- bytes --------------------------------------------------------------------------------------------------
    def _at(self, content: bytes) -> int:
        """A place in ``content``, mostly among the bytes that say something."""
        most = len(content) if self._random.random() < 0.1 else min(HEADER_BYTES, len(content))
        return int(self._random.random() * most)

    def _flipped(self, content: bytes) -> bytes:
        changed = bytearray(content)
        for _ in range(self._random.choice((1, 1, 1, 2, 8))):
            changed[self._at(content)] ^= 1 << self._random.getrandbits(3) % 8
        return bytes(changed)

    def _lied(self, content: bytes) -> bytes:
        at = self._at(content)
        return content[:at] + self._random.choice(LIES) + content[at + 1 :]

    def _spliced(self, content: bytes) -> bytes:
        other = self._random.choice(self._good if self._random.random() < 0.5 else self._small)
        return content[: self._at(content)] + other[self._at(other or b"\0") :]

    def _cut(self, content: bytes) -> bytes:
        start = self._at(content)
        return content[:start] + content[start + self._random.choice((1, 2, 5, 50, 5000)) :]

    def _inserted(self, content: bytes) -> bytes:
        at = self._at(content)
        extra = self._random.choice(TAGS) + self._random.choice(LIES)
        return content[:at] + extra * self._random.choice((1, 1, 1, 30)) + content[at:]

    def _repeated(self, content: bytes) -> bytes:
        start = self._at(content)
        piece = content[start : start + 1 + int(self._random.random() * 40)]
        return content[:start] + piece * self._random.choice((2, 3, 40)) + content[start:]

    # --- fields -------------------------------------------------------------------------------------------------
    def _input(self, request: Any) -> Any:
        return self._random.choice(request.inputs) if request.inputs else request.inputs.add()

    def _dimension(self, request: Any) -> None:
        shape = self._input(request).shape
        if shape:
            shape[int(self._random.random() * len(shape))] = self._random.choice(NUMBERS)

    def _rank(self, request: Any) -> None:
        shape = self._input(request).shape
        if self._random.random() < 0.5 and shape:
            del shape[int(self._random.random() * len(shape))]
        else:
            shape.extend([self._random.choice(NUMBERS)] * self._random.choice((1, 2, 1000)))

    def _name(self, request: Any) -> None:
        word = self._random.choice(WORDS)
        match self._random.choice(("model_name", "model_version", "id", "input", "input")):
            case "input":
                self._input(request).name = word
            case field:
                setattr(request, field, word)

    def _datatype(self, request: Any) -> None:
        self._input(request).datatype = self._random.choice(DATATYPES)

    def _content(self, request: Any) -> None:
        raw = request.raw_input_contents
        kind = self._random.random()
        if not raw or kind < 0.2:
            raw.append(b"\xff" * self._random.choice((0, 1, 4, 784, 3136)))
        elif kind < 0.4:
            raw.pop()
        else:
            at = int(self._random.random() * len(raw))
            content = raw[at]
            ends = (content[:-1], content + b"\0", b"", content * 2, content[:4], b"\xff" * len(content))
            raw[at] = self._random.choice(ends)

    def _parameter(self, request: Any) -> None:
        if self._random.random() < 0.2:
            self._input(request).parameters[ENCODING].string_param = self._random.choice((*OWN, "bits3", "", "raw"))
            return
        slot = request.parameters[self._random.choice(WORDS)]
        match self._random.choice(("int64_param", "uint64_param", "string_param", "bool_param", "double_param", None)):
            case "int64_param":
                slot.int64_param = self._random.choice(NUMBERS)
            case "uint64_param":
                slot.uint64_param = abs(self._random.choice(NUMBERS))
            case "string_param":
                slot.string_param = self._random.choice(WORDS)
            case "bool_param":
                slot.bool_param = True
            case "double_param":
                slot.double_param = self._random.choice((0.0, math.nan, math.inf, -1e308))

    def _output(self, request: Any) -> None:
        request.outputs.add(name=self._random.choice(WORDS))

    def _typed_value(self, request: Any) -> None:
        contents = self._input(request).contents
        match self._random.choice(
            ("uint_contents", "int_contents", "fp32_contents", "bytes_contents", "bool_contents")
        ):
            case "uint_contents":
                contents.uint_contents.extend([2**32 - 1] * self._random.choice((1, 784)))
            case "int_contents":
                contents.int_contents.append(self._random.choice((-1, -(2**31), 2**31 - 1)))
            case "fp32_contents":
                contents.fp32_contents.append(self._random.choice((math.nan, math.inf, 1e38)))
            case "bytes_contents":
                contents.bytes_contents.append(self._random.choice((b"", b"\x89PNG\r\n\x1a\n", b"\xff" * 100)))
            case "bool_contents":
                contents.bool_contents.append(True)

    def _tensor(self, request: Any) -> None:
        if self._random.random() < 0.5 and request.inputs:
            request.inputs.pop()
        else:
            request.inputs.add().CopyFrom(self._input(request))
