"""Whole numbers of few bits for the tensor that crosses a cut: in which steps, and as nodes of both halves."""

from __future__ import annotations

import msgspec
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgemux.compression.split.cuts import names_of
from edgemux.compression.split.halves import Halves
from edgemux.multiplexer.errors import ConfigError

SENT = "sent"
# Ends of the range that are tried, as shares of the values' own: few values at the ends may be worth less than finer
# steps between them.
SHARES = tuple(np.linspace(0.1, 1.0, 37).tolist())
MOST_VALUES = 2**18
# Smaller ones are hard to divide by in FP32.
LEAST_STEP = 1e-30
_OWN = "edgemux.split/"


class Steps(msgspec.Struct, frozen=True):
    """A value x is sent as round((x - low) / step), no less than 0 and no more than ``bits`` bits hold."""

    low: float
    step: float
    bits: int

    @property
    def top(self) -> int:
        return int(2**self.bits - 1)

    def sent(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """What the other side makes of them."""
        whole = np.clip(np.rint((values - np.float32(self.low)) / np.float32(self.step)), 0, self.top)
        return np.asarray(whole * np.float32(self.step) + np.float32(self.low), np.float32)


def steps_for(values: NDArray[np.generic], bits: int) -> Steps:
    """The steps that miss such values by the least squares. Values that are never below 0 are counted from 0, and whole
    numbers of 8 bits are sent in 8 bits as they are.

    Raises ConfigError for values that are not finite.
    """
    if values.dtype in (np.uint8, np.int8) and bits == 8:
        return Steps(0.0 if values.dtype == np.uint8 else -128.0, 1.0, bits)
    x = np.asarray(values, np.float32).ravel()
    if not np.isfinite(x).all():
        raise ConfigError("--at: NaN or infinity crosses that cut")
    x = x[:: max(1, len(x) // MOST_VALUES)]
    least, most = float(x.min()), float(x.max())
    if least == most:
        return Steps(least, 1.0, bits)
    tried = []
    for share in SHARES:
        low, high = 0.0 if least >= 0 else share * least, share * most if most > 0 else most
        if low < high:
            tried.append(Steps(float(low), max((high - low) / (2**bits - 1), LEAST_STEP), bits))
    return min(tried, key=lambda steps: float(np.square(steps.sent(x) - x, dtype=np.float64).mean()))


def rounded(halves: Halves, tensor: str, steps: Steps) -> tuple[Halves, str]:
    """Halves that send ``tensor`` in ``steps``, as UINT8, and what that is called: SENT, unless that name is taken."""
    head, tail = onnx.ModelProto(), onnx.ModelProto()
    head.CopyFrom(halves.head)
    tail.CopyFrom(halves.tail)
    name = SENT
    while name in names_of(head.graph) | names_of(tail.graph):
        name += "_"
    _end(head.graph, tensor, name, steps)
    _begin(tail.graph, tensor, name, steps)
    return Halves(head, tail), name


def _end(graph: onnx.GraphProto, tensor: str, name: str, steps: Steps) -> None:
    low, step, none, top = _numbers(graph, low=steps.low, step=steps.step, none=0.0, top=float(steps.top))
    whole, above = f"{_OWN}whole", f"{_OWN}above"
    graph.node.extend(
        [
            helper.make_node("Cast", [tensor], [f"{_OWN}wide"], to=TensorProto.FLOAT),
            helper.make_node("Sub", [f"{_OWN}wide", low], [above]),
            helper.make_node("Div", [above, step], [f"{_OWN}steps"]),
            helper.make_node("Round", [f"{_OWN}steps"], [whole]),
            helper.make_node("Clip", [whole, none, top], [f"{_OWN}clipped"]),
            helper.make_node("Cast", [f"{_OWN}clipped"], [name], to=TensorProto.UINT8),
        ]
    )
    _replace(graph.output, tensor, name)


def _begin(graph: onnx.GraphProto, tensor: str, name: str, steps: Steps) -> None:
    low, step = _numbers(graph, low=steps.low, step=steps.step)
    kind = next(value.type.tensor_type.elem_type for value in graph.input if value.name == tensor)
    before = [
        helper.make_node("Cast", [name], [f"{_OWN}steps"], to=TensorProto.FLOAT),
        helper.make_node("Mul", [f"{_OWN}steps", step], [f"{_OWN}above"]),
        helper.make_node("Add", [f"{_OWN}above", low], [f"{_OWN}wide"]),
        *_narrowed(f"{_OWN}wide", tensor, kind),
    ]
    after = list(graph.node)
    del graph.node[:]
    graph.node.extend([*before, *after])
    _replace(graph.input, tensor, name)


def _narrowed(wide: str, tensor: str, kind: int) -> list[onnx.NodeProto]:
    if kind not in (TensorProto.UINT8, TensorProto.INT8):
        return [helper.make_node("Cast", [wide], [tensor], to=kind)]
    rounded = helper.make_node("Round", [wide], [f"{_OWN}rounded"])
    return [rounded, helper.make_node("Cast", [f"{_OWN}rounded"], [tensor], to=kind)]


def _numbers(graph: onnx.GraphProto, **numbers: float) -> list[str]:
    made = [numpy_helper.from_array(np.array(number, np.float32), f"{_OWN}{key}") for key, number in numbers.items()]
    graph.initializer.extend(made)
    return [tensor.name for tensor in made]


def _replace(values: list[onnx.ValueInfoProto], tensor: str, name: str) -> None:
    for value in values:
        if value.name == tensor:
            value.name, value.type.tensor_type.elem_type = name, TensorProto.UINT8
