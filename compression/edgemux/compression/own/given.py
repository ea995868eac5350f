"""A model that somebody brings along: an ONNX file with one input, looked at before anything is built on it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import version_converter

from edgemux.compression.glance import KINDS
from edgemux.compression.graph import OPSET
from edgemux.compression.own.inputs import digest
from edgemux.compression.to_onnx import stripped
from edgemux.multiplexer.errors import ConfigError

# From here on Softmax, Unsqueeze and the like mean what they mean today.
OLDEST_OPSET = 13
MAX_BYTES = 2**31 - 1
_DATATYPES = {kind: name for name, kind in KINDS.items()}


@dataclass(frozen=True)
class Given:
    """A user's graph. input: name, datatype and shape of its one input, -1 where a size is left open.

    file: its name, for messages. model: with all weights inside. sha256: of the file as it was found.
    """

    file: str
    model: onnx.ModelProto
    input: str
    datatype: str
    shape: tuple[int, ...]
    sha256: str

    @property
    def batch(self) -> int | None:
        """The batch that the graph was exported for, None when it takes any."""
        return None if self.shape[0] == -1 else self.shape[0]


def read(path: Path) -> Given:
    """Load a model with its external weights, in an opset of today. Raises ConfigError naming the file."""
    model = _current(_loaded(path), path.name)
    if model.ByteSize() > MAX_BYTES:
        raise ConfigError(f"{path.name}: larger than 2 GB with its weights, which one ONNX file cannot hold")
    stored = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in stored]
    if len(inputs) != 1:
        named = ", ".join(value.name for value in inputs)
        raise ConfigError(f"{path.name}: has {len(inputs)} inputs ({named}); models of one input can be served")
    tensor = inputs[0].type.tensor_type
    datatype = _DATATYPES.get(tensor.elem_type)
    if datatype is None:
        raise ConfigError(f"{path.name}: its input {inputs[0].name} is of a type that the servers do not know")
    if not tensor.HasField("shape") or not tensor.shape.dim:
        raise ConfigError(f"{path.name}: its input {inputs[0].name} has no axes; the first must be the batch")
    shape = tuple(axis.dim_value if axis.dim_value > 0 else -1 for axis in tensor.shape.dim)
    return Given(path.name, stripped(model), inputs[0].name, datatype, shape, digest(path))


def _loaded(path: Path) -> onnx.ModelProto:
    try:
        model = onnx.load(path)
    except FileNotFoundError as error:
        if not path.exists():
            raise ConfigError(f"{path.name}: not there") from error
        raise ConfigError(f"{path.name}: the file that holds its weights is not beside it") from error
    except Exception as error:  # protobuf and onnx raise a dozen types for what is no model
        what = "the file that holds its weights cannot be used" if _parses(path) else "not an ONNX model"
        raise ConfigError(f"{path.name}: {what}") from error
    if not model.graph.node:
        raise ConfigError(f"{path.name}: not an ONNX model")
    return model


def _parses(path: Path) -> bool:
    try:
        return bool(onnx.load(path, load_external_data=False).graph.node)
    except Exception:  # as above
        return False


def _current(model: onnx.ModelProto, file: str) -> onnx.ModelProto:
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), None)
    if opset is None or opset >= OLDEST_OPSET:
        return model
    try:
        return version_converter.convert_version(model, OPSET)
    except Exception as error:  # the converter raises RuntimeError and more
        raise ConfigError(f"{file}: its opset {opset} cannot be brought to {OPSET}; export it anew") from error
