"""Where a graph can be cut. Pure functions over a graph's nodes and names; nothing is run.

Nodes stand in an order in which each is computed after what it reads, so every place between two of them is a cut: what
stands before it is the head, the rest is the tail, and the tensors that are made on one side and read on the other are
what has to be sent. A residual connection is one tensor more. Weights, and what is computed from weights alone, are not
sent: both sides keep what they read of them.

Where a graph computes in integers (QuantizeLinear, DequantizeLinear) the runtime fuses what is between two such nodes.
So integers are sent, a quarter of the bytes, and the tail makes real numbers of them again; and there is no cut
between a node and what makes integers of its answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import msgspec
import onnx

from edgemux.multiplexer.errors import PassError

# Nobody sends more tensors than these for one input, and telling which they are takes time and memory for each cut.
MOST_TENSORS = 64


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
    # Positions of the nodes that depend on the inputs and lead to an output, and of those that depend on weights alone.
    computed: tuple[int, ...]
    constant: tuple[int, ...]
    # By position: every name that the node and the graphs inside it read from outside.
    reads: tuple[tuple[str, ...], ...]
    stored: frozenset[str]
    # By name: real numbers that a node of ``computed`` makes of integers, by steps and a zero that are fixed.
    dequantised: Mapping[str, int]
    # Every name that there is, inside of nodes too.
    names: frozenset[str]

    def sent_for(self, name: str) -> str:
        """What is sent where the tail reads ``name``."""
        while name in self.dequantised:
            name = self.reads[self.dequantised[name]][0]
        return name

    def made_again(self, names: Iterable[str]) -> list[int]:
        """Positions of the nodes that make ``names`` of what is sent for them."""
        found: set[int] = set()
        waiting = list(names)
        while waiting:
            position = self.dequantised.get(waiting.pop())
            if position is not None:
                found.add(position)
                waiting.append(self.reads[position][0])
        return sorted(found)


def layout_of(graph: onnx.GraphProto) -> Layout:
    """Raises PassError when nodes do not stand in an order in which they can be computed."""
    stored = frozenset(tensor.name for tensor in graph.initializer) | frozenset(
        tensor.values.name for tensor in graph.sparse_initializer
    )
    inputs = tuple(value.name for value in graph.input if value.name not in stored)
    known, fixed = {*inputs, *stored}, set(stored)
    computed, constant, reads = [], [], []
    dequantised: dict[str, int] = {}
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
            if node.op_type == "DequantizeLinear" and fixed.issuperset(node.input[1:]):
                dequantised[node.output[0]] = position
        known.update(name for name in node.output if name)
        reads.append(read)
    outputs = tuple(value.name for value in graph.output)
    alive = leading_to(outputs, computed, graph, reads)
    return Layout(inputs, outputs, tuple(alive), tuple(constant), tuple(reads), stored, dequantised, names_of(graph))


def leading_to(
    names: Sequence[str], positions: Sequence[int], graph: onnx.GraphProto, reads: Sequence[Sequence[str]]
) -> list[int]:
    """Those of ``positions``, which ascend, without which ``names`` could not be made."""
    needed, found = set(names), []
    for position in reversed(positions):
        if needed.intersection(graph.node[position].output):
            found.append(position)
            needed.update(reads[position])
    return found[::-1]


def cuts_of(graph: onnx.GraphProto) -> list[Cut]:
    """Every place between two computed nodes, once for each set of tensors: of several the one with the largest head.

    Cuts at which nothing but the graph's inputs would be sent are not among them: that is the whole model in the cloud.
    Neither are those that more than MOST_TENSORS cross, and those between a node and what makes integers of its answer.
    Raises PassError when there is none.
    """
    layout = layout_of(graph)
    inputs, within = set(layout.inputs), _made_integers(graph, layout)
    found: dict[tuple[str, ...], int] = {}
    for count, tensors in _crossing(graph, layout):
        if not inputs.issuperset(tensors) and within.isdisjoint(tensors):
            found[tensors] = count
    if not found:
        raise PassError(
            f"the graph cannot be cut: nowhere between its inputs and its outputs do 1 to {MOST_TENSORS} tensors cross"
        )
    return [Cut(index, count, tensors) for index, (tensors, count) in enumerate(found.items(), start=1)]


def _crossing(graph: onnx.GraphProto, layout: Layout) -> Iterator[tuple[int, tuple[str, ...]]]:
    """For each number of nodes in the head: what the tail reads of it, and outputs that the head has made."""
    last = _last_read(layout)
    ending: dict[int, list[str]] = {}
    for name, count in last.items():
        ending.setdefault(count, []).append(name)
    crossing = dict.fromkeys(name for name in layout.inputs if last.get(name, 0) > 0)
    for count in range(1, len(layout.computed)):
        for name in ending.get(count, ()):
            crossing.pop(name, None)
        made = graph.node[layout.computed[count - 1]].output
        crossing.update(dict.fromkeys(name for name in made if last.get(name, 0) > count))
        if len(crossing) <= MOST_TENSORS:
            yield count, tuple(crossing)


def _last_read(layout: Layout) -> dict[str, int]:
    """By what is sent: how many computed nodes run until it is read no more; one more than there are for outputs."""
    last: dict[str, int] = {}
    for count, position in enumerate(layout.computed, start=1):
        last.update((layout.sent_for(name), count) for name in layout.reads[position])
    last.update((layout.sent_for(name), len(layout.computed) + 1) for name in layout.outputs)
    return last


# What the runtime computes together with the node before it.
_ACTIVATIONS = frozenset({"Relu", "Clip", "LeakyRelu", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh"})


def _made_integers(graph: onnx.GraphProto, layout: Layout) -> set[str]:
    """Tensors that are read for nothing but to make integers of them."""
    readers: dict[str, list[int]] = {}
    for position in layout.computed:
        for name in layout.reads[position]:
            readers.setdefault(name, []).append(position)
    found: set[str] = set()
    for position in reversed(layout.computed):
        for name in graph.node[position].output:
            nodes = [graph.node[at] for at in readers.get(name, ())]
            if nodes and name not in layout.outputs and all(_makes_integers(node, found) for node in nodes):
                found.add(name)
    return found


def _makes_integers(node: onnx.NodeProto, found: set[str]) -> bool:
    return node.op_type == "QuantizeLinear" or (node.op_type in _ACTIVATIONS and found.issuperset(node.output))


_INTEGERS = ("QLinear", "DynamicQuantize", "QuantizeLinear", "ConvInteger", "MatMulInteger", "QGemm")


def computes_in_integers(graph: onnx.GraphProto) -> bool:
    """Whether anything but weights is made integers of."""
    layout = layout_of(graph)
    return any(graph.node[position].op_type.startswith(_INTEGERS) for position in layout.computed)


def _reads(node: onnx.NodeProto) -> Iterator[str]:
    """The names that a node reads, those that graphs inside it take from outside included."""
    yield from (name for name in node.input if name)
    for inner in _inner_graphs(node):
        own = {value.name for value in inner.input} | {tensor.name for tensor in inner.initializer}
        own.update(tensor.values.name for tensor in inner.sparse_initializer)
        for inside in inner.node:
            yield from (name for name in _reads(inside) if name not in own)
            own.update(inside.output)
        yield from (value.name for value in inner.output if value.name not in own)


def names_of(graph: onnx.GraphProto) -> frozenset[str]:
    """Every name that there is, inside of nodes too."""
    found = {value.name for value in (*graph.input, *graph.output)} | {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        found.update(node.input, node.output)
        for inner in _inner_graphs(node):
            found |= names_of(inner)
    return frozenset(found)


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
    inner = (inside for graph in _inner_graphs(node) for inside in graph.node)
    return node.op_type in _DRAWING or any(map(_random, inner))
