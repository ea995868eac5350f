"""``.dcz``: an ONNX model whose float32 weights are stored sparse, shared and Huffman-coded; decoding is bit-exact.

Layout, numbers lowest byte first: magic ``DCZ``, version (1), BLAKE2b-128 of all that follows; the model without these
weights, as its size (4), its deflated size (4) and the deflated protobuf; then for each weight its place among the
initializers (4), scaled or not (1), [scales of its output channels], and the tensor as ``tensors`` has it.
"""

from __future__ import annotations

import copy
import hashlib
import math
import zlib
from collections.abc import Sequence

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from edgemux.compression.deep import tensors
from edgemux.compression.deep.octets import Octets, number, words
from edgemux.compression.deep.scaling import Weight, parted, scaled
from edgemux.multiplexer.errors import ArtifactError

MAGIC, VERSION = b"DCZ", 1
FILE = "model.dcz"
DIGEST_BYTES = 16
# Below this a record saves less than it costs.
MIN_ELEMENTS = 32


def encode(model: onnx.ModelProto, weights: Sequence[Weight] = ()) -> bytes:
    """The model as a container; it is not changed.

    weights: float32 tensors that the exporter may have multiplied by one scale an output channel, see ``scaling``.
    Weights that do not get smaller stay as they are.
    """
    skeleton, records = copy.deepcopy(model), []
    for at, tensor in enumerate(skeleton.graph.initializer):
        if tensor.data_type != TensorProto.FLOAT or math.prod(tensor.dims) < MIN_ELEMENTS:
            continue
        value = numpy_helper.to_array(tensor)
        weight, scale = parted(value, weights)
        record = number(at, 4) + (b"\0" if scale is None else b"\1" + words(scale.view(np.uint32)))
        record += tensors.encode(weight)
        if len(record) < value.nbytes:
            records.append(record)
            tensor.ClearField("raw_data")
            tensor.ClearField("float_data")
    plain = skeleton.SerializeToString(deterministic=True)
    packed = zlib.compress(plain, 9)
    body = number(len(plain), 4) + number(len(packed), 4) + packed + b"".join(records)
    return MAGIC + bytes([VERSION]) + _digest(body) + body


def decode(content: bytes) -> onnx.ModelProto:
    """The model that was encoded, every weight bit for bit, ready to run.

    Raises ArtifactError for anything else than such a container; never takes more memory than a fixed multiple of the
    file's size (deflate and the gaps of zeros both expand a thousandfold at most).
    """
    octets = Octets(content)
    if octets.take(len(MAGIC)) != MAGIC:
        raise ArtifactError("container: not a .dcz file")
    version = octets.number(1)
    if version != VERSION:
        raise ArtifactError(f"container: format {version}, this version reads {VERSION}")
    if octets.take(DIGEST_BYTES) != _digest(content[len(MAGIC) + 1 + DIGEST_BYTES :]):
        raise ArtifactError("container: is not the file that was saved")
    model = _skeleton(octets)
    last = -1
    while octets.left:
        at = octets.number(4)
        if not last < at < len(model.graph.initializer):
            raise ArtifactError("container: weights are not in order")
        _fill(model.graph.initializer[at], octets)
        last = at
    return model


def _skeleton(octets: Octets) -> onnx.ModelProto:
    size, packed = octets.number(4), octets.number(4)
    unpack = zlib.decompressobj()
    try:
        # One byte more than it should be tells a stream that goes on.
        plain = unpack.decompress(octets.take(packed), size + 1)
        model = onnx.load_from_string(plain)
    except ArtifactError:
        raise
    except Exception as error:  # zlib's and protobuf's own types
        raise ArtifactError("container: holds no ONNX model") from error
    if len(plain) != size or not unpack.eof or unpack.unused_data:
        raise ArtifactError("container: holds no ONNX model")
    return model


def _fill(tensor: TensorProto, octets: Octets) -> None:
    """Read one record into its initializer."""
    shape = tuple(tensor.dims)
    if tensor.data_type != TensorProto.FLOAT or min(shape, default=0) < 0 or tensor.ByteSize() > _bare(tensor):
        raise ArtifactError("container: weights for a tensor that takes none")
    is_scaled = octets.number(1)
    if is_scaled > 1 or (is_scaled and not shape):
        raise ArtifactError("container: a tensor is of no known kind")
    scale = octets.words(shape[0]).view(np.float32) if is_scaled else None
    value = tensors.decode(octets, math.prod(shape)).reshape(shape)
    if scale is not None:
        with np.errstate(all="ignore"):  # what a damaged file multiplies
            value = scaled(value, scale)
    tensor.raw_data = value.astype("<f4").tobytes()


def _bare(tensor: TensorProto) -> int:
    """Size of the tensor's message without content."""
    bare = TensorProto(name=tensor.name, data_type=tensor.data_type, doc_string=tensor.doc_string)
    bare.dims.extend(tensor.dims)
    return bare.ByteSize()


def _digest(body: bytes) -> bytes:
    return hashlib.blake2b(body, digest_size=DIGEST_BYTES).digest()
