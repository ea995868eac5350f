"""A trained pair -> two ONNX files: the head ends in the UINT8 tensor that is sent, the tail begins with it.

Values that are sent are below 2**bits, one in each byte; packing them is the wire's work. Batch norms are folded, and
weights are stored as int8 where asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, compose, helper

from edgemux.compression.export import folded
from edgemux.compression.graph import Graph
from edgemux.compression.nets import PIXEL_SCALE
from edgemux.compression.split.bottleneck import Encoder, Pair, Source, steps_of
from edgemux.compression.split.halves import PART_KEY, WHOLE_KEY
from edgemux.multiplexer.errors import PassError
from edgemux.multiplexer.onnx_model import OnnxModel

SENT = "sent"
# Between a trained net and its file, both float32: a sum in another order may round the other way.
ROUNDED_OTHERWISE = 0.01
TOLERANCE = 1e-3


class PairFiles(msgspec.Struct, frozen=True):
    """Head and tail of one pair for ``bits`` on the way. ``sent``: channels, height, width of what is sent."""

    head: onnx.ModelProto
    tail: onnx.ModelProto
    bits: int
    sent: tuple[int, int, int]


def pair_files(pair: Pair, bits: int, whole: str, int8: bool = True) -> PairFiles:
    """Write both halves. whole: the SHA-256 of the file that the tail is a part of, kept in both.

    Raises ConfigError for bits that cannot be sent.
    """
    pair.eval()
    sent = (int(pair.encoder.last.out_channels), *pair.encoder.size)
    head, tail = head_graph(pair.encoder, bits, int8), _tail_graph(pair, sent, bits, int8)
    for part, name in ((head, "head"), (tail, "tail")):
        helper.set_model_props(part, {WHOLE_KEY: whole, PART_KEY: name})
    return PairFiles(head, tail, bits, sent)


def behind(first: onnx.ModelProto, files: PairFiles) -> PairFiles:
    """The pair's files with ``first`` before the head: it makes the one tensor that the head reads.

    So the device runs the whole's own first layers, and what the encoder narrows is what the whole has there. Raises
    PassError when the head reads something else.
    """
    made, read = [value.name for value in first.graph.output], [value.name for value in files.head.graph.input]
    if len(made) != 1 or len(read) != 1:
        raise PassError(f"the head reads {', '.join(read)}, the layers before it make {', '.join(made)}")
    parts = []
    for part in (first, files.head):
        bare = onnx.ModelProto()
        bare.CopyFrom(part)
        del bare.metadata_props[:]
        parts.append(bare)
    named = compose.add_prefix(parts[0], "f.", rename_inputs=False)
    head = compose.merge_models(named, parts[1], [(f"f.{made[0]}", read[0])])
    helper.set_model_props(head, {entry.key: entry.value for entry in files.head.metadata_props})
    return msgspec.structs.replace(files, head=head)


def head_graph(encoder: Encoder, bits: int, int8: bool) -> onnx.ModelProto:
    """The encoder: its sources -> ``sent`` UINT8 [n, channels, height, width], below 2**bits."""
    graph, steps = Graph(int8), steps_of(bits)
    parts = [_branch(graph, source, units) for source, units in zip(encoder.sources, encoder.branches, strict=True)]
    x = parts[0] if len(parts) == 1 else graph.add("Concat", *parts, axis=1)
    joins: Any = encoder.join
    for unit in joins:
        x = graph.conv(x, *folded(unit.conv.weight, unit.norm))
    weight, bias = folded(encoder.last.weight, encoder.norm, float(steps))
    # The bias is scaled as the weights are: what comes out are steps, not values in 0..1.
    constants = graph.weight(weight), graph.constant((bias * steps).astype(np.float32))
    y = graph.add("Conv", x, *constants, pads=[int(encoder.last.padding[0])] * 4, strides=[1, 1])
    bounds = [graph.constant(np.array(value, np.float32)) for value in (0.0, steps)]
    whole = graph.add("Round", graph.add("Clip", y, *bounds))
    graph.add("Cast", whole, to=SENT, to_type=TensorProto.UINT8)
    graph.output(SENT, (int(encoder.last.out_channels), *encoder.size), TensorProto.UINT8)
    return graph.finish()


def _branch(graph: Graph, source: Source, units: Any) -> str:
    channels, height, width = source.shape
    x, scale = _taken(graph, source, channels, height, width)
    for unit in units:
        x = graph.conv(x, *folded(unit.conv.weight, unit.norm, scale), stride=int(unit.conv.stride[0]))
        scale = 1.0
    return x


def _taken(graph: Graph, source: Source, channels: int, height: int, width: int) -> tuple[str, float]:
    """The source as float [n, c, h, w], and the scale that belongs into the first weights."""
    if not source.pixels:
        return graph.input(source.name, TensorProto.FLOAT, (channels, height, width)), 1.0
    shape = (height, width) if channels == 1 else (channels, height, width)
    x = graph.add("Cast", graph.input(source.name, TensorProto.UINT8, shape), to_type=TensorProto.FLOAT)
    if channels == 1:
        x = graph.add("Unsqueeze", x, graph.constant(np.array([1], np.int64)))
    return x, PIXEL_SCALE


def _tail_graph(pair: Pair, sent: tuple[int, int, int], bits: int, int8: bool) -> onnx.ModelProto:
    """``sent`` -> what the whole answers."""
    graph = Graph(int8)
    x = graph.add("Cast", graph.input(SENT, TensorProto.UINT8, sent), to_type=TensorProto.FLOAT)
    scale = 1.0 / steps_of(bits)
    inner = pair.tail.written(int8, without=pair.features)
    units = list(pair.decoder.units)
    for number, unit in enumerate(units, start=1):
        last = inner.graph.input[0].name if number == len(units) else None
        x = graph.conv(x, *folded(unit.conv.weight, unit.norm, scale), to=last)
        scale = 1.0
    graph.include(inner)
    for value in inner.graph.output:
        sizes = tuple(axis.dim_value or axis.dim_param for axis in value.type.tensor_type.shape.dim)
        graph.output(value.name, sizes[1:], value.type.tensor_type.elem_type)
    return graph.finish()


def check_files(files: PairFiles, pair: Pair, given: Mapping[str, NDArray[Any]]) -> float:
    """The share of sent values that the head's file rounds otherwise than the trained net; for files without int8.

    Raises PassError when it is large, when a value is more than a step away, or when the tail answers otherwise.
    """
    head = OnnxModel(files.head.SerializeToString(), "head.onnx")
    tail = OnnxModel(files.tail.SerializeToString(), "tail.onnx")
    sent = head.run({name: given[name] for name in head.inputs}, [SENT])[0]
    pair.eval()
    steps = steps_of(files.bits)
    with torch.inference_mode():
        values = pair.encoder({name: torch.from_numpy(np.array(value)) for name, value in given.items()})
        wanted = (values * steps).round().numpy().astype(np.int64)
        answers = pair.answers(pair.decoder(torch.from_numpy(sent).float() / steps)).numpy()
    apart = np.abs(sent.astype(np.int64) - wanted)
    share = float((apart > 0).mean())
    if apart.max(initial=0) > 1 or share > ROUNDED_OTHERWISE:
        raise PassError(f"head: rounds {100 * share:.1f} % of its values otherwise than the trained net")
    difference = float(np.abs(tail.run({SENT: sent})[0] - answers).max())
    if not difference <= TOLERANCE:
        raise PassError(f"tail: differs from the trained net by {difference:.2g}")
    return share
