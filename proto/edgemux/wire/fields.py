"""How many fields an inference request has, found out before it is parsed.

A field of two bytes becomes an object of a hundred and fifty: 8 MiB of empty ``inputs`` took 600 MB and kept the
event loop for 0.8 s. So fields are counted in the bytes first, and parsing has a bound.
"""

from __future__ import annotations

from edgemux.multiplexer.errors import InputError, TooLarge

# Of the message, its inputs, their contents and its outputs together. Packed numbers, however many, are one field.
MAX_FIELDS = 1000
# No field takes less: a tag and a value. A message of this size cannot have too many, and is not looked at.
_UNCOUNTED_BYTES = 2 * MAX_FIELDS

_NAMES = {
    1: "model_name",
    2: "model_version",
    3: "id",
    4: "parameters",
    5: "inputs",
    6: "outputs",
    7: "raw_input_contents",
}
# Tags of one byte, of fields that have fields of their own to count: the name of what is inside, by what it is in.
_INSIDE = {
    "": {5 << 3 | 2: "inputs", 6 << 3 | 2: "outputs"},
    "inputs": {5 << 3 | 2: "contents"},
    "outputs": {},
    "contents": {},
}

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def check_fields(content: bytes) -> None:
    """Raises TooLarge naming the field with which a ModelInferRequest has too many, InputError when it is none."""
    if len(content) <= _UNCOUNTED_BYTES:
        return
    try:
        _count(content, 0, len(content), 0, "")
    except IndexError as error:  # cut short within a tag, a length or a number
        raise _invalid() from error


def _count(content: bytes, at: int, end: int, count: int, within: str) -> int:
    """``count`` and the fields of the message at [at, end); ``within`` is the field that holds it, "" for none."""
    inside = _INSIDE[within]
    while at < end:
        tag = content[at]
        at += 1
        if tag >= 0x80:
            tag, at = _varint(content, at, tag)
        count += 1
        if count > MAX_FIELDS:
            raise TooLarge(within or _NAMES.get(tag >> 3, "request"), f"the message has more than {MAX_FIELDS} fields")
        kind = tag & 7
        if kind == _BYTES:
            size = content[at]
            at += 1
            if size >= 0x80:
                size, at = _varint(content, at, size)
            inner = inside.get(tag)
            if inner is not None:
                if at + size > end:
                    raise _invalid()
                count = _count(content, at, at + size, count, inner)
            at += size
        else:
            at = _after_number(content, at, kind)
    if at != end:
        raise _invalid()
    return count


def _after_number(content: bytes, at: int, kind: int) -> int:
    """Where the number at ``at`` ends."""
    if kind == _VARINT:
        while content[at] >= 0x80:
            at += 1
        return at + 1
    if kind == _FIXED32:
        return at + 4
    if kind == _FIXED64:
        return at + 8
    raise _invalid()  # groups: this protocol has none


def _varint(content: bytes, at: int, first: int) -> tuple[int, int]:
    """The number that goes on at ``at`` after its byte ``first``, and where it ends."""
    number, shift = first & 0x7F, 7
    while True:
        byte = content[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, at
        shift += 7
        if shift > 63:
            raise _invalid()


def _invalid() -> InputError:
    return InputError("request", "not a valid message of this method")
