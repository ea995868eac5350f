"""ONNX Runtime behind the port: a bundle's cloud model, the tail of a split, or any ONNX file."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemux.cloud.backend import Arrays, read_file
from edgemux.multiplexer.bundle import Bundle, Split, Tensor
from edgemux.multiplexer.chain import PROBABILITIES, Golden, probabilities
from edgemux.multiplexer.codes import GoldenCodes
from edgemux.multiplexer.errors import ArtifactError, BadAnswer, ExecutionError
from edgemux.multiplexer.onnx_model import OnnxModel

LABEL = "label"
# ONNX Runtime's names for the protocol's datatypes.
_TYPES = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
}


class OnnxBackend:
    """An ONNX graph; its tensors are what the graph says."""

    def __init__(self, content: bytes, name: str, threads: int = 1) -> None:
        """``name`` is used in messages only. Raises ArtifactError with it."""
        self.digest = hashlib.sha256(content).hexdigest()
        self._model = model = OnnxModel(content, name, threads)
        self.inputs = _tensors(name, model.inputs, model.input_types, model.input_shapes)
        self.outputs = _tensors(name, model.outputs, model.output_types, model.output_shapes)

    @classmethod
    def read(cls, path: Path, threads: int = 1) -> OnnxBackend:
        """Load a file. Raises ArtifactError naming it."""
        return cls(read_file(path), path.name, threads)

    def run(self, inputs: Arrays, outputs: Sequence[str]) -> dict[str, NDArray[Any]]:
        """Raises ExecutionError when the graph fails."""
        try:
            return dict(zip(outputs, self._model.run(inputs, list(outputs)), strict=True))
        except Exception as error:  # with any of the library's types
            raise ExecutionError("the model fails on what it is given") from error

    def close(self) -> None:
        """The library gives memory back with its last reference."""


class BundleBackend:
    """A bundle's cloud model, or the tail of one of its splits.

    Answers probabilities FP32 [N, classes] and label INT64 [N], as the manifest says.
    """

    def __init__(self, bundle: Bundle, threads: int = 1, split: Split | None = None) -> None:
        """Load the verified model. Raises ArtifactError naming the file."""
        manifest = bundle.manifest
        if len(manifest.inputs) != 1:
            raise ArtifactError(f"{manifest.cloud.name}: a cloud model has one input")
        path = manifest.cloud.files[0] if split is None else split.tail
        self.digest = bundle.sha256(path)
        self.inputs = manifest.inputs if split is None else (split.sent,)
        self.outputs = manifest.outputs
        self._model = OnnxModel(bundle.read(path), path, threads)
        self._input = self.inputs[0].name
        self._classes = len(manifest.classes)
        if self._model.inputs != (self._input,) or PROBABILITIES not in self._model.outputs:
            raise ArtifactError(f"{path}: must turn {self._input} into {PROBABILITIES}")

    def run(self, inputs: Arrays, outputs: Sequence[str]) -> dict[str, NDArray[Any]]:
        """Raises ExecutionError when the graph fails, BadAnswer when it gives something else."""
        rows = len(inputs[self._input])
        try:
            probabilities = self._model.run(inputs, [PROBABILITIES])[0]
        except Exception as error:  # with any of the library's types
            raise ExecutionError(f"the model fails on a batch of {rows}") from error
        if probabilities.shape != (rows, self._classes) or probabilities.dtype != np.float32:
            raise BadAnswer("the model's answer has the wrong shape")
        answer: dict[str, NDArray[Any]] = {}
        for name in outputs:
            if name == PROBABILITIES:
                answer[name] = probabilities
            elif name == LABEL:
                answer[name] = probabilities.argmax(axis=1).astype(np.int64, copy=False)
        return answer

    def close(self) -> None:
        """The library gives memory back with its last reference."""


def check_golden(backend: BundleBackend, bundle: Bundle) -> None:
    """Run the bundle's golden inputs. Raises ArtifactError naming the file that does not answer as recorded."""
    manifest = bundle.manifest
    cloud = manifest.cloud

    def answer(inputs: Arrays) -> NDArray[Any]:
        return backend.run(inputs, [PROBABILITIES])[PROBABILITIES]

    Golden(bundle).check(cloud.name, cloud.files[0], len(manifest.classes), answer)


def check_tail(backend: BundleBackend, bundle: Bundle, split: Split) -> tuple[NDArray[np.uint8], NDArray[Any]]:
    """A row that a tail can be asked about, UINT8 [1, ...], and what it must say of it, FP32 [1, classes].

    Of a bundle that has golden codes for it that is their first; otherwise a row of zeros, and what it says now.
    Raises ArtifactError naming the file when it does not give its golden answers, or turn one row, and two, into
    probabilities.
    """
    classes = len(bundle.manifest.classes)

    def answer(rows: NDArray[np.uint8]) -> NDArray[Any]:
        return backend.run({split.sent.name: rows}, [PROBABILITIES])[PROBABILITIES]

    def zeros(count: int) -> NDArray[Any]:
        rows = np.zeros((count, *split.sent.shape[1:]), np.uint8)
        return probabilities(split.tail, (count, classes), lambda: answer(rows), "rows of zeros")

    zeros(2)
    of_none = zeros(1)
    golden = GoldenCodes.read(bundle, split)
    if golden is None:
        return np.zeros((1, *split.sent.shape[1:]), np.uint8), of_none
    golden.check_tail(split.tail, answer)
    return golden.sent[:1], golden.answers[:1]


def _tensors(
    file: str, names: Sequence[str], types: Sequence[str], shapes: Sequence[Sequence[int | str | None]]
) -> tuple[Tensor, ...]:
    tensors = []
    for name, kind, shape in zip(names, types, shapes, strict=True):
        datatype = _TYPES.get(kind)
        if datatype is None:
            raise ArtifactError(f"{file}: {name} is {kind}, which is not served")
        sizes = tuple(size if isinstance(size, int) and size >= 0 else -1 for size in shape)
        tensors.append(Tensor(name, datatype, sizes))
    return tuple(tensors)
