"""Trained nets -> ONNX graphs as the servers want them.

Batch norms are folded into the convolutions, the pixel scale into the first one, the calibration temperature into
the head; the softmax is part of the graph. Level 1 is an entry graph, every other level a *delta*: it takes the
lower level's activations by name and adds its own channels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto
from torch import nn

from edgemux.compression.graph import Graph
from edgemux.compression.nested import Head, NestedNet, TriangularConv
from edgemux.compression.nets import PIXEL_SCALE, CloudNet, ConvUnit

Weights = tuple[NDArray[Any], NDArray[Any]]


def cloud_graph(model: CloudNet, temperature: float, int8: bool) -> onnx.ModelProto:
    """The cloud model: ``image`` -> ``probabilities``."""
    graph = Graph(int8)
    x = graph.image()
    scale = PIXEL_SCALE
    for part in model.body:
        if isinstance(part, ConvUnit):
            weight, bias = folded(part.conv.weight, part.norm, scale)
            x = graph.conv(x, weight, bias, stride=int(part.conv.stride[0]))
        elif isinstance(part, nn.MaxPool2d):
            x = graph.add("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
        else:
            x = graph.add("Add", x, _chain(graph, x, part))
        scale = 1.0
    _answer(graph, graph.pooled(x), model.head.weight, model.head.bias, temperature)
    return graph.finish()


def _chain(graph: Graph, x: str, block: nn.Module) -> str:
    """The units of a residual block."""
    units: Any = block.units
    for unit in units:
        x = graph.conv(x, *folded(unit.conv.weight, unit.norm))
    return x


def level_graph(model: NestedNet, level: int, temperature: float, int8: bool) -> onnx.ModelProto:
    """The delta of one level (1 = smallest).

    Inputs: ``image`` and, above level 1, ``a``, ``b``, ``c``, ``g`` of the level below: what the layers 1 to 3 and
    the pooled layer 4 hand on, of all channels up to that level. Outputs: ``probabilities`` and, below the last
    level, the same of this one. Names carry the level: ``a1``, ``a2``, ...
    """
    graph = Graph(int8)
    last = level == len(model.heads)
    channels, height, width = model.shape
    half = ((height + 1) // 2, (width + 1) // 2)  # the stride of layer 1 rounds up, the pool of layer 3 down
    quarter = (half[0] // 2, half[1] // 2)
    a = _grow(graph, model.conv1, level, "a", half, graph.image(height, width, channels), PIXEL_SCALE, last)
    b = _grow(graph, model.conv2, level, "b", half, a, 1.0, last)
    c = _grow(graph, model.conv3, level, "c", quarter, b, 1.0, last)
    g = _grow(graph, model.conv4, level, "g", (), c, 1.0, last)
    head = model.heads[level - 1]
    assert isinstance(head, Head)
    _answer(graph, g, head.matrix(), head.bias, temperature)
    return graph.finish()


def _grow(
    graph: Graph, layer: TriangularConv, level: int, name: str, size: tuple[int, ...], x: str, scale: float, last: bool
) -> str:
    """Compute the level's own channels of a layer and join them to those of the level below."""
    rows = layer.rows(level)
    weight, bias = folded(layer.weight(), layer.norm, scale)
    shape = (layer.c_out[level - 1], *size)
    state = None if last else f"{name}{level}"
    own_to = state if level == 1 else None
    own = _own_channels(graph, name, x, weight[rows, : layer.c_in[level - 1]], bias[rows], layer.stride, own_to)
    if level > 1:
        lower = graph.input(f"{name}{level - 1}", TensorProto.FLOAT, (layer.c_out[level - 2], *size))
        own = graph.add("Concat", lower, own, axis=1, to=state)
    if state is not None:
        graph.output(state, shape)
    return own


def _own_channels(
    graph: Graph, name: str, x: str, weight: NDArray[Any], bias: NDArray[Any], stride: int, to: str | None
) -> str:
    """Convolution, then what follows the layer: layer 3 is halved in size, layer 4 averaged."""
    if name == "c":
        return graph.add("MaxPool", graph.conv(x, weight, bias, stride), to=to, kernel_shape=[2, 2], strides=[2, 2])
    if name == "g":
        pooled = graph.add("GlobalAveragePool", graph.conv(x, weight, bias, stride))
        return graph.add("Flatten", pooled, to=to)
    return graph.conv(x, weight, bias, stride, to=to)


def _answer(graph: Graph, features: str, weight: torch.Tensor, bias: torch.Tensor, temperature: float) -> None:
    """Head and softmax; dividing weights and bias by the temperature divides the logits by it."""
    w = weight.detach().double().numpy() / temperature
    b = bias.detach().double().numpy() / temperature
    graph.add("Softmax", graph.linear(features, w, b), to="probabilities", axis=1)
    graph.output("probabilities", (len(w),))


def folded(weight: torch.Tensor, norm: nn.BatchNorm2d, scale: float = 1.0) -> Weights:
    """Weight and bias of a convolution that includes its batch norm and an input scale (Jacob et al. 2018, 3.2)."""
    assert norm.running_mean is not None and norm.running_var is not None
    factor = (norm.weight / (norm.running_var + norm.eps).sqrt()).detach().double().numpy()
    mean = norm.running_mean.double().numpy()
    bias = norm.bias.detach().double().numpy() - mean * factor
    return weight.detach().double().numpy() * factor[:, None, None, None] * scale, np.asarray(bias)
