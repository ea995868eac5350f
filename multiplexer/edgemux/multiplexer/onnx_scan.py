"""Does an ONNX graph keep weights in other files? Answered from its bytes, without the onnx package.

ONNX Runtime looks for such files in the current directory when a graph is loaded from memory: nobody has digested
them. So whatever a graph can hold tensors in is walked here, as protobuf's wire format, without copying or unpacking.
"""

from __future__ import annotations

from edgemux.multiplexer.errors import ArtifactError

# Of every message that can lead to a tensor: the fields that do, and the message each holds. The numbers are onnx's.
CONTAINERS: dict[str, dict[int, str]] = {
    "ModelProto": {7: "GraphProto", 20: "TrainingInfoProto", 25: "FunctionProto"},
    "TrainingInfoProto": {1: "GraphProto", 2: "GraphProto"},
    "FunctionProto": {7: "NodeProto", 11: "AttributeProto"},
    "GraphProto": {1: "NodeProto", 5: "TensorProto", 15: "SparseTensorProto"},
    "NodeProto": {5: "AttributeProto"},
    "AttributeProto": {
        5: "TensorProto",
        6: "GraphProto",
        10: "TensorProto",
        11: "GraphProto",
        22: "SparseTensorProto",
        23: "SparseTensorProto",
    },
    "SparseTensorProto": {1: "TensorProto", 2: "TensorProto"},
    "TensorProto": {},
}
EXTERNAL_DATA = 13
DATA_LOCATION = 14

# A file in ONNX Runtime's own format names itself here; it is not protobuf and could pass for an empty graph.
_ORT_FORMAT = slice(4, 8), b"ORTM"
# Two millions of fields take two seconds; the graphs that are served have thousands.
_MAX_FIELDS = 2**21
_VARINT, _EIGHT_BYTES, _BYTES, _FOUR_BYTES = 0, 1, 2, 5
_MAX_TAG = 2**32 - 1


def refuse_external_data(content: bytes, name: str) -> None:
    """Raises ArtifactError naming ``name`` when a tensor's data is elsewhere, or when this is not an ONNX graph."""
    where, magic = _ORT_FORMAT
    if content[where] == magic:
        raise ArtifactError(f"{name}: not in the ONNX format")
    try:
        external = _has_external_data(memoryview(content))
    except (ValueError, IndexError) as error:
        raise ArtifactError(f"{name}: not an ONNX graph") from error
    if external:
        raise ArtifactError(f"{name}: keeps weights in another file, which nothing vouches for")


def _has_external_data(content: memoryview) -> bool:
    """Walk every message that may hold tensors. Raises ValueError or IndexError when it is not protobuf."""
    fields_left = _MAX_FIELDS
    waiting = [(0, len(content), "ModelProto")]
    while waiting:
        at, end, kind = waiting.pop()
        inside = CONTAINERS[kind]
        while at < end:
            fields_left -= 1
            if fields_left < 0:
                raise ValueError("too many fields")
            tag, at = _varint(content, at)
            number, wire = tag >> 3, tag & 7
            # Readers that keep 32 bits of a longer tag would see another field than this one does.
            if number == 0 or tag > _MAX_TAG:
                raise ValueError("no such field")
            value, start, at = _skip(content, at, wire)
            if at > end:
                raise ValueError("a field is longer than its message")
            if wire == _BYTES and number in inside:
                waiting.append((start, at, inside[number]))
            elif kind == "TensorProto" and (number == EXTERNAL_DATA or (number == DATA_LOCATION and value)):
                return True
    return False


def _skip(content: memoryview, at: int, wire: int) -> tuple[int, int, int]:
    """The field's number (0 when it is not one), where its content starts, and where the next field is."""
    if wire == _VARINT:
        value, end = _varint(content, at)
        return value, at, end
    if wire == _BYTES:
        length, start = _varint(content, at)
        return 0, start, start + length
    if wire == _EIGHT_BYTES:
        return 0, at, at + 8
    if wire == _FOUR_BYTES:
        return 0, at, at + 4
    raise ValueError("no such wire type")  # groups, too: onnx has none


def _varint(content: memoryview, at: int) -> tuple[int, int]:
    """A number of up to 64 bits, and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        byte = content[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("a number is too long")
