"""A graph and a cut -> two graphs, head and tail, each complete in itself and each saying what it is a part of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from edgemux.compression.split.cuts import Cut, Layout, layout_of, leading_to
from edgemux.compression.split.shapes import Arrays, Measured
from edgemux.multiplexer.bundle import DATATYPES
from edgemux.multiplexer.errors import ArtifactError, PassError
from edgemux.multiplexer.onnx_model import OnnxModel

# What a half says of itself, in the model's metadata: of which file it is a part, where that was cut, which part it is.
WHOLE_KEY = "edgemux.split.whole"
CUT_KEY = "edgemux.split.cut"
PART_KEY = "edgemux.split.part"
# Of the largest value of an output: float32 sums in another order, where the runtime can no longer fuse across the cut.
TOLERANCE = 1e-3


class Halves(msgspec.Struct, frozen=True):
    """``head`` takes inputs of the whole and answers what is sent; ``tail`` takes that and answers as the whole."""

    head: onnx.ModelProto
    tail: onnx.ModelProto


def sent_name(name: str, layout: Layout) -> str:
    """What a tensor of a cut is called on the way. An input or output of the whole needs a second name there: a graph
    cannot have one name for what it takes and what it gives.
    """
    if name not in layout.inputs and name not in layout.outputs:
        return name
    sent = f"{name}.sent"
    while sent in layout.names:
        sent += "_"
    return sent


def halves_of(
    model: onnx.ModelProto, cut: Cut, measured: Mapping[str, Measured], digest: str, layout: Layout | None = None
) -> Halves:
    """Cut ``model``, of whose file ``digest`` is the SHA-256. ``measured``: every tensor of the cut.

    The head takes only those inputs that it reads, the tail only what is sent, and answers all that the whole does.
    """
    layout = layout or layout_of(model.graph)
    names = {name: sent_name(name, layout) for name in cut.tensors}
    between = [_value(names[name], measured[name]) for name in cut.tensors]
    renamed = [(name, sent) for name, sent in names.items() if name != sent]
    answered = list(model.graph.output)
    behind = layout.computed[cut.nodes :]
    read_there = {name for position in behind for name in layout.reads[position]} | set(layout.outputs)
    again = [position for position in layout.made_again(read_there) if position not in behind]
    first = _Half(model, layout, layout.computed[: cut.nodes], cut.tensors, after=_copies(renamed))
    rest = _Half(model, layout, [*again, *behind], layout.outputs, before=_copies([(b, a) for a, b in renamed]))
    read = first.reads | set(cut.tensors)
    taken = [value for value in model.graph.input if value.name in layout.inputs and value.name in read]
    head = first.finish(taken, between)
    tail = rest.finish(between, answered)
    for part, name in ((head, "head"), (tail, "tail")):
        helper.set_model_props(part, {WHOLE_KEY: digest, CUT_KEY: ",".join(names.values()), PART_KEY: name})
    return Halves(head, tail)


class _Half:
    """Some of a graph's nodes, with what they need of its weights."""

    def __init__(
        self,
        model: onnx.ModelProto,
        layout: Layout,
        positions: Iterable[int],
        makes: Sequence[str],
        before: Sequence[onnx.NodeProto] = (),
        after: Sequence[onnx.NodeProto] = (),
    ) -> None:
        self._model, self._layout = model, layout
        self._before, self._after = before, after
        self._positions = leading_to(makes, sorted(positions), model.graph, layout.reads)
        self.reads = {name for position in self._positions for name in layout.reads[position]}

    def finish(self, inputs: list[onnx.ValueInfoProto], outputs: list[onnx.ValueInfoProto]) -> onnx.ModelProto:
        """The half as a model of its own."""
        graph, model = self._model.graph, self._model
        needed = self.reads | {value.name for value in outputs}
        constant: list[int] = []
        for position in reversed(self._layout.constant):
            if needed.intersection(graph.node[position].output):
                constant.append(position)
                needed.update(self._layout.reads[position])
        inner = [graph.node[position] for position in sorted([*constant, *self._positions])]
        made = helper.make_graph(
            [*self._before, *inner, *self._after],
            graph.name or "g",
            inputs,
            outputs,
            [tensor for tensor in graph.initializer if tensor.name in needed],
        )
        made.sparse_initializer.extend(t for t in graph.sparse_initializer if t.values.name in needed)
        half = helper.make_model(made, opset_imports=model.opset_import, functions=model.functions)
        half.ir_version = model.ir_version
        half.producer_name = ""
        return half


def _copies(pairs: Iterable[tuple[str, str]]) -> list[onnx.NodeProto]:
    return [helper.make_node("Identity", [source], [target]) for source, target in pairs]


def _value(name: str, measured: Measured) -> onnx.ValueInfoProto:
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(DATATYPES[measured.datatype]))
    # An axis that follows the number of inputs without being it has a name of its own.
    free = {axis: "n" if measured.rows else f"{name}_{axis}" for axis in measured.varying}
    shape: list[int | str] = [free.get(axis, size) for axis, size in enumerate(measured.shape)]
    return helper.make_tensor_value_info(name, kind, shape)


class Pair:
    """Both halves, loaded."""

    def __init__(self, halves: Halves) -> None:
        """Raises ArtifactError when a half cannot be loaded."""
        self.head = OnnxModel(halves.head.SerializeToString(), "head.onnx", quiet=True)
        self.tail = OnnxModel(halves.tail.SerializeToString(), "tail.onnx", quiet=True)

    def answers(self, feeds: Mapping[str, NDArray[Any]]) -> Arrays:
        """What head and then tail answer, by name. Raises ArtifactError when a half cannot be run."""
        try:
            return joined(self.head, self.tail, feeds)
        except Exception as error:  # whatever the library raises
            raise ArtifactError(f"head and tail cannot be run ({type(error).__name__})") from error


def joined(head: OnnxModel, tail: OnnxModel, feeds: Mapping[str, NDArray[Any]]) -> Arrays:
    """What head and then tail answer, by name."""
    sent = dict(zip(head.outputs, head.run({name: feeds[name] for name in head.inputs}), strict=True))
    return dict(zip(tail.outputs, tail.run(sent), strict=True))


def check(halves: Halves, whole: OnnxModel, feeds: Mapping[str, NDArray[Any]], tolerance: float = TOLERANCE) -> float:
    """The largest difference of head and then tail to the whole, as a share of an output's largest value.

    Raises PassError when it is above ``tolerance`` or not a number, ArtifactError when a half cannot be loaded or run.
    """
    return compared(Pair(halves).answers(feeds), dict(zip(whole.outputs, whole.run(feeds), strict=True)), tolerance)


def compared(found: Mapping[str, Any], wanted: Mapping[str, Any], tolerance: float = TOLERANCE) -> float:
    """The largest difference of answers by name, as ``check`` has it. Raises PassError."""
    worst = 0.0
    for name, array in wanted.items():
        difference = _difference(np.asarray(array), np.asarray(found[name]))
        if not difference <= tolerance:
            raise PassError(
                f"output {name!r}: head and tail differ from the whole by {difference:.2g} of its largest value"
            )
        worst = max(worst, difference)
    return worst


def _difference(wanted: NDArray[Any], found: NDArray[Any]) -> float:
    if wanted.shape != found.shape or wanted.dtype != found.dtype:
        return float("inf")
    if wanted.dtype.kind != "f":
        return 0.0 if np.array_equal(wanted, found) else float("inf")
    finite = np.isfinite(wanted)
    # What is no number, or infinite, is so in both.
    if not np.array_equal(wanted[~finite], found[~finite], equal_nan=True):
        return float("inf")
    numbers, others = wanted[finite].astype(np.float64), found[finite].astype(np.float64)
    scale = max(float(np.abs(numbers).max(initial=0.0)), 1e-6)
    return float(np.abs(numbers - others).max(initial=0.0)) / scale
