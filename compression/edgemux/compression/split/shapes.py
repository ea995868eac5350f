"""What the tensors of a graph look like, found by running it once or twice: types, shapes, bytes of one input."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from edgemux.multiplexer.bundle import DATATYPES
from edgemux.multiplexer.errors import ArtifactError, ConfigError
from edgemux.multiplexer.onnx_model import OnnxModel

_DATATYPE_OF = {numpy_name: name for name, numpy_name in DATATYPES.items()}
# As the runtime calls arrays of numbers.
_NUMBERS = (
    "bool",
    *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)),
    "float16",
    "float",
    "double",
)
_ARRAYS = frozenset(f"tensor({kind})" for kind in _NUMBERS)
# More values than these of an input are not made up: a gigabyte.
_MOST_VALUES = 2**28
Arrays = dict[str, NDArray[Any]]
Sizes = Mapping[str, tuple[int, ...]]


class Measured(msgspec.Struct, frozen=True):
    """A tensor as it was for one input: its datatype in the protocol's words, its shape, and its bytes.

    ``rows``: its first axis counts inputs, so the tensors of several inputs can be joined and computed together.
    ``varying``: the axes whose size follows the number of inputs.
    """

    datatype: str
    shape: tuple[int, ...]
    bytes: int
    rows: bool
    varying: tuple[int, ...]


def with_sizes(model: onnx.ModelProto, sizes: Sizes) -> onnx.ModelProto:
    """The model with all sizes of its inputs known but the first, which counts inputs.

    sizes: by input, the whole shape, for those whose sizes are open. Raises ConfigError naming an input that is not
    there, whose sizes stay open, or whose known ones are others.
    """
    made = onnx.ModelProto()
    made.CopyFrom(model)
    stored = {tensor.name for tensor in made.graph.initializer}
    given = [value for value in made.graph.input if value.name not in stored]
    unknown = set(sizes) - {value.name for value in given}
    if unknown:
        raise ConfigError(f"--shape: the model has no input {min(unknown)!r}")
    for value in given:
        _set_sizes(value, sizes.get(value.name))
    return made


def example(model: onnx.ModelProto, rows: int = 1, seed: int = 0) -> Arrays:
    """Made-up inputs, ``rows`` of them where the model lets their number open: noise where numbers are real or bytes,
    zeros and ones elsewhere, as they may be positions in a table.

    Raises ConfigError naming an input whose type is not one of numbers.
    """
    draw = np.random.default_rng(seed)
    stored = {tensor.name for tensor in model.graph.initializer}
    return {value.name: _drawn(draw, value, rows) for value in model.graph.input if value.name not in stored}


def measure(model: onnx.ModelProto, names: Iterable[str]) -> dict[str, Measured]:
    """The named tensors that are arrays of a type that can be sent; sequences and others are left out.

    Raises ArtifactError when ONNX Runtime cannot run the model on made-up inputs, ConfigError as ``example`` does.
    """
    wanted = tuple(dict.fromkeys(names))
    inputs = {value.name for value in model.graph.input}
    inner = [name for name in wanted if name not in inputs]
    alone = _looked_into(model, inner, example(model))
    try:
        pair = _looked_into(model, inner, example(model, rows=2))
    except ArtifactError:  # a batch that is part of the graph
        pair = {}
    return {
        name: _measured(alone[name], pair.get(name))
        for name in wanted
        if isinstance(alone.get(name), np.ndarray) and alone[name].dtype.name in _DATATYPE_OF
    }


def _measured(alone: NDArray[Any], pair: NDArray[Any] | None) -> Measured:
    sizes = pair.shape if pair is not None and pair.ndim == alone.ndim else alone.shape
    varying = tuple(axis for axis, (one, two) in enumerate(zip(alone.shape, sizes, strict=True)) if one != two)
    rows = varying == (0,) and sizes[0] == 2 * alone.shape[0] == 2
    return Measured(_DATATYPE_OF[alone.dtype.name], alone.shape, alone.nbytes, rows, varying)


def _looked_into(model: onnx.ModelProto, names: list[str], feeds: Arrays) -> Arrays:
    looked = onnx.ModelProto()
    looked.CopyFrom(model)
    answered = {value.name for value in looked.graph.output}
    looked.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names if name not in answered)
    graph = OnnxModel(looked.SerializeToString(), "model", quiet=True)
    kinds = dict(zip(graph.outputs, graph.output_types, strict=True))
    names = [name for name in names if kinds[name] in _ARRAYS]
    try:
        found = dict(zip(names, graph.run(feeds, names), strict=True)) if names else {}
    except Exception as error:  # whatever the library raises
        raise ArtifactError(f"the model cannot be run on made-up inputs ({type(error).__name__})") from error
    return found | feeds


def _set_sizes(value: onnx.ValueInfoProto, given: tuple[int, ...] | None) -> None:
    """Open sizes are set, but for the first where it is given as 1: that stays open, it counts inputs."""
    kind = value.type.tensor_type
    if not kind.HasField("shape") and value.type.HasField("tensor_type"):
        if given is None:
            raise ConfigError(f"--shape: the sizes of input {value.name!r} are open: give {value.name}=1,...")
        for _ in given:
            kind.shape.dim.add()
    axes = kind.shape.dim
    known = [axis.dim_value for axis in axes]
    if given is None:
        given = tuple(known)
    if len(given) != len(known) or any(size not in (0, new) for size, new in zip(known, given, strict=True)):
        raise ConfigError(f"--shape: {value.name!r} has the sizes {_shown(known)}, not {','.join(map(str, given))}")
    if not all(given[1:]):
        raise ConfigError(
            f"--shape: sizes of input {value.name!r} are open: give {value.name}={_shown([1, *known[1:]])}"
        )
    first = int(given[:1] == (1,))
    for axis, size in zip(axes[first:], given[first:], strict=True):
        if size:
            axis.dim_value = size


def _shown(sizes: list[int]) -> str:
    return ",".join(str(size) if size else "?" for size in sizes)


def _drawn(draw: np.random.Generator, value: onnx.ValueInfoProto, rows: int) -> NDArray[Any]:
    kind = value.type.tensor_type.elem_type
    if kind in (TensorProto.UNDEFINED, TensorProto.STRING, TensorProto.BFLOAT16):
        raise ConfigError(f"input {value.name!r}: no array of numbers, and nothing else can be made up")
    axes = [axis.dim_value for axis in value.type.tensor_type.shape.dim]
    shape = (axes[0] or rows, *axes[1:]) if axes else ()
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    if math.prod(shape) > _MOST_VALUES:
        raise ConfigError(f"input {value.name!r}: {math.prod(shape):,} values are too many to be made up")
    if dtype.kind == "f":
        return draw.standard_normal(shape).astype(dtype)
    return draw.integers(0, 256 if dtype == np.uint8 else 2, shape).astype(dtype)
