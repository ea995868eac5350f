"""What the tensors of a graph look like, found by running it once or twice: types, shapes, bytes of one input."""

from __future__ import annotations

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
Arrays = dict[str, NDArray[Any]]
Sizes = Mapping[str, tuple[int, ...]]


class Measured(msgspec.Struct, frozen=True):
    """A tensor as it was for one input: its datatype in the protocol's words, its shape, and its bytes.

    ``rows``: its first axis counts inputs, so the tensors of several inputs can be joined and computed together.
    """

    datatype: str
    shape: tuple[int, ...]
    bytes: int
    rows: bool


def example(model: onnx.ModelProto, sizes: Sizes, rows: int = 1, seed: int = 0) -> Arrays:
    """Made-up inputs: noise where numbers are real or bytes, zeros and ones elsewhere, as they may be positions in a table.

    sizes: the whole shape of inputs whose sizes are open beyond the first axis. Raises ConfigError naming an input of
    which a size or the type is not known, or that is not in the graph.
    """
    draw = np.random.default_rng(seed)
    stored = {tensor.name for tensor in model.graph.initializer}
    given = [value for value in model.graph.input if value.name not in stored]
    unknown = set(sizes) - {value.name for value in given}
    if unknown:
        raise ConfigError(f"--shape: the model has no input {min(unknown)!r}")
    return {value.name: _drawn(draw, value, _shape(value, sizes.get(value.name), rows)) for value in given}


def measure(model: onnx.ModelProto, names: Iterable[str], sizes: Sizes) -> dict[str, Measured]:
    """The named tensors that are arrays of a type that can be sent; sequences and others are left out.

    Raises ArtifactError when ONNX Runtime cannot run the model on made-up inputs, ConfigError as ``example`` does.
    """
    wanted = tuple(dict.fromkeys(names))
    inputs = {value.name for value in model.graph.input}
    inner = [name for name in wanted if name not in inputs]
    alone = _looked_into(model, inner, example(model, sizes))
    try:
        pair = _looked_into(model, inner, example(model, sizes, rows=2))
    except ArtifactError:  # a batch that is part of the graph
        pair = {}
    return {
        name: _measured(alone[name], pair.get(name))
        for name in wanted
        if isinstance(alone[name], np.ndarray) and alone[name].dtype.name in _DATATYPE_OF
    }


def _measured(alone: NDArray[Any], pair: NDArray[Any] | None) -> Measured:
    rows = pair is not None and alone.ndim > 0 and alone.shape[0] == 1 and pair.shape == (2, *alone.shape[1:])
    return Measured(_DATATYPE_OF[alone.dtype.name], alone.shape, alone.nbytes, rows)


def _looked_into(model: onnx.ModelProto, names: list[str], feeds: Arrays) -> Arrays:
    looked = onnx.ModelProto()
    looked.CopyFrom(model)
    answered = {value.name for value in looked.graph.output}
    looked.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names if name not in answered)
    graph = OnnxModel(looked.SerializeToString(), "model", quiet=True)
    try:
        found = dict(zip(names, graph.run(feeds, names), strict=True)) if names else {}
    except Exception as error:  # whatever the library raises
        raise ArtifactError(f"the model cannot be run on made-up inputs ({type(error).__name__})") from error
    return found | feeds


def _shape(value: onnx.ValueInfoProto, given: tuple[int, ...] | None, rows: int) -> tuple[int, ...]:
    axes = [axis.dim_value for axis in value.type.tensor_type.shape.dim]
    if given is not None:
        if len(given) != len(axes) or any(known and known != size for known, size in zip(axes, given, strict=True)):
            raise ConfigError(f"--shape: {value.name} has {[size or 'open' for size in axes]}, not {list(given)}")
        axes = [known if number == 0 else size for number, (known, size) in enumerate(zip(axes, given, strict=True))]
    missing = [number for number, size in enumerate(axes) if size == 0 and number > 0]
    if missing:
        sizes = ",".join(["1", *("?" if size == 0 else str(size) for size in axes[1:])])
        raise ConfigError(f"--shape: the sizes of input {value.name!r} are open: give {value.name}={sizes}")
    return (axes[0] or rows, *axes[1:]) if axes else ()


def _drawn(draw: np.random.Generator, value: onnx.ValueInfoProto, shape: tuple[int, ...]) -> NDArray[Any]:
    kind = value.type.tensor_type.elem_type
    if kind in (TensorProto.UNDEFINED, TensorProto.STRING, TensorProto.BFLOAT16):
        raise ConfigError(f"input {value.name!r}: is no array of numbers that can be made up")
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    if dtype.kind == "f":
        return draw.standard_normal(shape).astype(dtype)
    return draw.integers(0, 256 if dtype == np.uint8 else 2, shape).astype(dtype)
