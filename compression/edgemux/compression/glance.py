"""What the pre-gate sees of an input: some dozen numbers that cost microseconds, whatever the input is.

They are computed by nodes of the pre-gate's own graph. Fitting runs the same nodes, so that what is fitted and what is
served cannot differ.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto

from edgemux.compression.graph import Graph
from edgemux.multiplexer.bundle import Tensor

# No input is called that: the names of inputs that are kept are identifiers.
FEATURES = "/features"
# Tiles along each axis of an image; 7 are tiles of 4 pixels in a picture of 28.
TILES = 7
# A vector is seen as it is up to this length; a longer one as the means of as many runs of neighbours.
SEEN = 64
# Up to this many channels are looked at one by one (colours), more of them as their mean.
COLOURS = 4
# Integers may be names, as of words: the share of each remainder says which are there, coarsely.
REMAINDERS = 16
KINDS: dict[str, int] = {
    "BOOL": TensorProto.BOOL,
    "UINT8": TensorProto.UINT8,
    "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32,
    "UINT64": TensorProto.UINT64,
    "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16,
    "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64,
    "FP16": TensorProto.FLOAT16,
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
}


def glance(graph: Graph, tensor: Tensor) -> str:
    """Append the nodes to ``graph``; returns the float32 [n, features] that they make of the input ``tensor``.

    Pictures and arrays of rank 3 and up: means of tiles of the last two axes (of the first two where channels are
    last). Vectors: their values, or means of neighbours. Of arrays that are no pictures the spread, too; of rows of
    integers the share of zeros and of each remainder. All axes but the batch must have a size.
    """
    name = graph.input(tensor.name, KINDS[tensor.datatype], tensor.shape[1:])
    x = name if tensor.datatype == "FP32" else graph.add("Cast", name, to_type=TensorProto.FLOAT)
    sizes = tensor.shape[1:]
    if len(sizes) < 2:
        flat = graph.add("Flatten", x, axis=1)
        parts = [_row(graph, flat, math.prod(sizes)), _spread(graph, flat)]
        if tensor.datatype.startswith(("INT", "UINT")):
            parts += _of_integers(graph, name, x)
        return graph.add("Concat", *parts, axis=1)
    tiles = _tiles(graph, *_as_image(graph, x, sizes))
    if tensor.datatype == "UINT8":
        return tiles
    return graph.add("Concat", tiles, _spread(graph, graph.add("Flatten", x, axis=1)), axis=1)


def glance_graph(tensor: Tensor) -> onnx.ModelProto:
    """A graph ``tensor`` -> features: what a pre-gate for it is fitted to."""
    graph = Graph(int8=False)
    graph.add("Identity", glance(graph, tensor), to=FEATURES)
    graph.output(FEATURES, ("f",))
    return graph.finish()


def _as_image(graph: Graph, x: str, sizes: tuple[int, ...]) -> tuple[str, int, int]:
    """The array as [n, channels, height, width], with height and width."""
    if len(sizes) == 3 and sizes[2] <= COLOURS < sizes[0]:  # channels last
        return graph.add("Transpose", x, perm=[0, 3, 1, 2]), sizes[0], sizes[1]
    height, width = sizes[-2:]
    channels = math.prod(sizes[:-2])
    if len(sizes) != 3:
        x = graph.add("Reshape", x, graph.constant(np.array([0, channels, height, width], np.int64)))
    if channels > COLOURS:
        x = graph.add("ReduceMean", x, axes=[1], keepdims=1)
    return x, height, width


def _tiles(graph: Graph, x: str, height: int, width: int) -> str:
    """Means of tiles; the last of each axis is smaller where they do not come out even."""
    along = (SEEN if width == 1 else TILES, SEEN if height == 1 else TILES)
    kernel = [math.ceil(size / most) for size, most in zip((height, width), along, strict=True)]
    missing = [-size % side for size, side in zip((height, width), kernel, strict=True)]
    how: dict[str, Any] = {"kernel_shape": kernel, "strides": kernel}
    if any(missing):
        how |= {"pads": [0, 0, *missing], "count_include_pad": 0}
    return graph.add("Flatten", graph.add("AveragePool", x, **how))


def _row(graph: Graph, x: str, length: int) -> str:
    """A row [n, length] as it is, or as the means of neighbours."""
    if length <= SEEN:
        return x
    image = graph.add("Unsqueeze", x, graph.constant(np.array([1, 2], np.int64)))
    return _tiles(graph, image, 1, length)


def _spread(graph: Graph, x: str) -> str:
    """The standard deviation of each row, [n, 1]."""
    centred = graph.add("Sub", x, graph.add("ReduceMean", x, axes=[1], keepdims=1))
    return graph.add("Sqrt", graph.add("ReduceMean", graph.add("Mul", centred, centred), axes=[1], keepdims=1))


def _of_integers(graph: Graph, name: str, as_float: str) -> list[str]:
    """The share of zeros, which pad what is shorter, [n, 1], and of each remainder, [n, REMAINDERS]."""
    zero = graph.add("Equal", as_float, graph.constant(np.zeros(1, np.float32)))
    zeros = graph.add("ReduceMean", graph.add("Cast", zero, to_type=TensorProto.FLOAT), axes=[1], keepdims=1)
    number = graph.add("Cast", name, to_type=TensorProto.INT64)
    rest = graph.add("Mod", number, graph.constant(np.array([REMAINDERS], np.int64)))
    rest = graph.add("Unsqueeze", rest, graph.constant(np.array([2], np.int64)))
    which = graph.add("Equal", rest, graph.constant(np.arange(REMAINDERS, dtype=np.int64)))
    shares = graph.add("ReduceMean", graph.add("Cast", which, to_type=TensorProto.FLOAT), axes=[1], keepdims=0)
    return [zeros, shares]
