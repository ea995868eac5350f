"""Tensors of any rank as what convolutions read: channels, height, width. Series are one high, vectors one by one.

An encoder halves what it reads until it has the size of what crosses the cut, so of the ways to lay out both, one is
taken in which that comes out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Image = tuple[int, int, int]
_OWN = "edgemux.layout/"
# Of these an axis that stands last is taken for the colours of a picture.
COLOURS = (1, 3)


class Layout(msgspec.Struct, frozen=True):
    """sizes: of a tensor of one input. order: its axes as ``shape`` has them, which is channels, height, width."""

    sizes: tuple[int, ...]
    order: tuple[int, ...]
    shape: Image

    def laid_out(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """[n, *sizes] -> [n, *shape]."""
        turned = np.transpose(rows, (0, *(1 + axis for axis in self.order)))
        return np.ascontiguousarray(turned.reshape(len(rows), *self.shape))


def layouts(sizes: Sequence[int]) -> tuple[Layout, ...]:
    """All ways that are known, the likeliest first; none for tensors of more than three axes, or of none."""
    sizes = tuple(sizes)
    if len(sizes) == 1:
        return (Layout(sizes, (0,), (sizes[0], 1, 1)),)
    if len(sizes) == 2:
        a, b = sizes
        return Layout(sizes, (0, 1), (1, a, b)), Layout(sizes, (0, 1), (a, b, 1)), Layout(sizes, (1, 0), (b, a, 1))
    if len(sizes) == 3:
        a, b, c = sizes
        ways = Layout(sizes, (0, 1, 2), (a, b, c)), Layout(sizes, (2, 0, 1), (c, a, b))
        return ways[::-1] if c in COLOURS and a not in COLOURS else ways
    return ()


def across(sizes: Sequence[int]) -> tuple[Layout, ...]:
    """Those of what crosses a cut: two axes are channels and time, or time and channels, and no picture."""
    return layouts(sizes)[1:] if len(sizes) == 2 else layouts(sizes)


def halvings(shape: Image, size: tuple[int, int]) -> int | None:
    """How often an encoder halves height and width until they are ``size``; None where they never are."""
    extent, count = shape[1:], 0
    while extent != size:
        halved = ((extent[0] + 1) // 2, (extent[1] + 1) // 2)
        if halved == extent or halved[0] < size[0] or halved[1] < size[1]:
            return None
        extent, count = halved, count + 1
    return count


def chosen(sources: Mapping[str, Sequence[int]], crossing: Sequence[int]) -> tuple[dict[str, Layout], Layout] | None:
    """Layouts of the sources that can be read for what crosses, and of that; None where none of them can."""
    for target in across(crossing):
        found: dict[str, Layout] = {}
        for name, sizes in sources.items():
            able = [way for way in layouts(sizes) if halvings(way.shape, target.shape[1:]) is not None]
            if able:
                found[name] = able[0]
        if found:
            return found, target
    return None


class Scaled(msgspec.Struct, frozen=True):
    """A tensor's layout and scale: what is computed with is (x - low) / unit."""

    layout: Layout
    low: float
    unit: float

    @classmethod
    def of(cls, layout: Layout, rows: NDArray[np.float32], centred: bool) -> Scaled:
        """By some rows [n, *sizes]. centred: around 0; else never below it."""
        low = float(rows.mean()) if centred else min(0.0, float(rows.min()))
        return cls(layout, low, float(rows.std()) or 1.0)

    def scaled(self, rows: NDArray[Any]) -> NDArray[np.float32]:
        """[n, *sizes] -> float32 [n, *shape]."""
        x = (rows.astype(np.float32) - np.float32(self.low)) / np.float32(self.unit)
        return self.layout.laid_out(np.asarray(x, np.float32))


def entered(model: onnx.ModelProto, inner: str, name: str, kind: int, how: Scaled) -> None:
    """Let ``model`` take ``name``, of that kind and the layout's sizes, where it took ``inner`` laid out and scaled."""
    layout, own = how.layout, f"{_OWN}{inner}/"
    numbers: dict[str, NDArray[Any]] = {
        "low": np.array(how.low, np.float32),
        "unit": np.array(how.unit, np.float32),
        "shape": np.array([-1, *layout.shape], np.int64),
    }
    nodes = [
        helper.make_node("Cast", [name], [f"{own}wide"], to=TensorProto.FLOAT),
        helper.make_node("Sub", [f"{own}wide", f"{own}low"], [f"{own}above"]),
        helper.make_node("Div", [f"{own}above", f"{own}unit"], [f"{own}scaled"]),
        helper.make_node("Transpose", [f"{own}scaled"], [f"{own}turned"], perm=_turn(layout.order)),
        helper.make_node("Reshape", [f"{own}turned", f"{own}shape"], [inner]),
    ]
    _put_before(model, inner, nodes, {f"{own}{key}": value for key, value in numbers.items()})
    model.graph.input.append(helper.make_tensor_value_info(name, kind, ["n", *layout.sizes]))


def left(model: onnx.ModelProto, name: str, inner: str, how: Scaled) -> None:
    """Let ``model`` take ``inner`` laid out and scaled where it took ``name``; the reverse of ``entered``."""
    layout, own = how.layout, f"{_OWN}{inner}/"
    (kind,) = (value.type.tensor_type.elem_type for value in model.graph.input if value.name == name)
    turned = [layout.sizes[axis] for axis in layout.order]
    back = [layout.order.index(axis) for axis in range(len(layout.order))]
    numbers: dict[str, NDArray[Any]] = {
        "low": np.array(how.low, np.float32),
        "unit": np.array(how.unit, np.float32),
        "shape": np.array([-1, *turned], np.int64),
    }
    nodes = [
        helper.make_node("Mul", [inner, f"{own}unit"], [f"{own}wide"]),
        helper.make_node("Add", [f"{own}wide", f"{own}low"], [f"{own}above"]),
        helper.make_node("Reshape", [f"{own}above", f"{own}shape"], [f"{own}turned"]),
        helper.make_node("Transpose", [f"{own}turned"], [f"{own}plain"], perm=_turn(back)),
        helper.make_node("Cast", [f"{own}plain"], [name], to=kind),
    ]
    _put_before(model, name, nodes, {f"{own}{key}": value for key, value in numbers.items()})
    model.graph.input.append(helper.make_tensor_value_info(inner, TensorProto.FLOAT, ["n", *layout.shape]))


def _turn(order: Sequence[int]) -> list[int]:
    return [0, *(1 + axis for axis in order)]


def _put_before(
    model: onnx.ModelProto, taken: str, nodes: list[onnx.NodeProto], numbers: Mapping[str, NDArray[Any]]
) -> None:
    """Put nodes before all others, in place of the input ``taken``."""
    graph = model.graph
    after, inputs = list(graph.node), [value for value in graph.input if value.name != taken]
    del graph.node[:], graph.input[:]
    graph.node.extend([*nodes, *after])
    graph.input.extend(inputs)
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in numbers.items())
