"""Where a graph can be cut. Pure functions over a graph's nodes and names; nothing is run.

Nodes stand in an order in which each is computed after what it reads, so every place between two of them is a cut: what
stands before it is the head, the rest is the tail, and the tensors that are made on one side and read on the other are
what has to be sent. A residual connection is one tensor more. Weights, and what is computed from weights alone, are not
sent: both sides keep what they read of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec
import onnx

from edgemux.multiplexer.errors import PassError


class Cut(msgspec.Struct, frozen=True):
    """The first ``nodes`` of the computed nodes are the head. ``tensors``: what the tail reads of it, by name, in the
    order in which they are made, the graph's inputs first.
    """

    index: int
    nodes: int
    tensors: tuple[str, ...]


class Layout(msgspec.Struct, frozen=True):
    """A graph's names: which nodes depend on its inputs, and who reads what. Positions are of ``graph.node``."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    # Positions of the nodes that depend on the inputs, and of those that depend on weights alone.
    computed: tuple[int, ...]
    constant: tuple[int, ...]
    # By position: every name that the node and the graphs inside it read from outside.
    reads: tuple[tuple[str, ...], ...]
    stored: frozenset[str]


def layout_of(graph: onnx.GraphProto) -> Layout:
    """Raises PassError when nodes do not stand in an order in which they can be computed."""
    stored = frozenset(tensor.name for tensor in graph.initializer) | frozenset(
        tensor.values.name for tensor in graph.sparse_initializer
    )
    inputs = tuple(value.name for value in graph.input if value.name not in stored)
    known, fixed = {*inputs, *stored}, set(stored)
    computed, constant, reads = [], [], []
    for position, node in enumerate(graph.node):
        read = tuple(dict.fromkeys(_reads(node)))
        missing = [name for name in read if name not in known]
        if missing:
            raise PassError(f"{missing[0]}: is read before it is made, or never made")
        # A node without inputs that is no Constant draws a new value at each run.
        if all(name in fixed for name in read) and (read or node.op_type == "Constant") and not _random(node):
            constant.append(position)
            fixed.update(node.output)
        else:
            computed.append(position)
        known.update(name for name in node.output if name)
        reads.append(read)
    outputs = tuple(value.name for value in graph.output)
    return Layout(inputs, outputs, tuple(computed), tuple(constant), tuple(reads), stored)


def cuts_of(graph: onnx.GraphProto) -> list[Cut]:
    """Every place between two computed nodes, once for each set of tensors: of several the one with the largest head.

    Cuts at which nothing but the graph's inputs would be sent are not among them: that is the whole model in the cloud,
    and neither are those whose head has made every output. Raises PassError when there is none.
    """
    layout = layout_of(graph)
    made = _made_by(graph, layout)
    found: dict[tuple[str, ...], int] = {}
    for count in range(1, len(layout.computed)):
        tensors = _crossing(layout, made, count)
        if any(name not in layout.inputs for name in tensors) and not _tail_is_empty(layout, made, count):
            found[tensors] = count
    if not found:
        raise PassError("the graph cannot be cut: no tensors are between its inputs and its outputs")
    return [Cut(index, count, tensors) for index, (tensors, count) in enumerate(found.items(), start=1)]


def _made_by(graph: onnx.GraphProto, layout: Layout) -> dict[str, int]:
    """For every tensor that depends on the inputs: how many computed nodes have to run for it; 0 for the inputs."""
    made = dict.fromkeys(layout.inputs, 0)
    for count, position in enumerate(layout.computed, start=1):
        made.update((name, count) for name in graph.node[position].output if name)
    return made


def _crossing(layout: Layout, made: dict[str, int], count: int) -> tuple[str, ...]:
    """What nodes from ``count`` on read of what was there before, and outputs that were made before."""
    read = {name for position in layout.computed[count:] for name in layout.reads[position]}
    read.update(layout.outputs)
    return tuple(name for name, when in made.items() if name in read and when <= count)


def _tail_is_empty(layout: Layout, made: dict[str, int], count: int) -> bool:
    return all(made.get(name, 0) <= count for name in layout.outputs)


def _reads(node: onnx.NodeProto) -> Iterator[str]:
    """The names that a node reads, those that graphs inside it take from outside included."""
    yield from (name for name in node.input if name)
    for inner in _inner_graphs(node):
        own = {value.name for value in inner.input} | {tensor.name for tensor in inner.initializer}
        for inside in inner.node:
            yield from (name for name in _reads(inside) if name not in own)
            own.update(inside.output)
        yield from (value.name for value in inner.output if value.name not in own)


def _inner_graphs(node: onnx.NodeProto) -> Sequence[onnx.GraphProto]:
    graphs: list[onnx.GraphProto] = []
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            graphs.append(attribute.g)
        graphs.extend(attribute.graphs)
    return graphs


_DRAWING = frozenset(
    {"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Multinomial", "Bernoulli"}
)


def _random(node: onnx.NodeProto) -> bool:
    return node.op_type in _DRAWING
