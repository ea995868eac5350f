"""Inputs as a bundle takes them: rows of its datatype, some at a time. Needs neither torch nor onnx."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemux.compression.own.inputs import Inputs
from edgemux.multiplexer.bundle import DATATYPES, Tensor
from edgemux.multiplexer.errors import ConfigError
from edgemux.multiplexer.onnx_model import OnnxModel

ROWS = 256


class Feed:
    """The inputs as the bundle takes them, some rows at a time."""

    def __init__(self, inputs: Inputs, tensor: Tensor) -> None:
        self.tensor = tensor
        self._inputs = inputs

    def rows(self, index: NDArray[np.int64]) -> NDArray[Any]:
        """Rows [n, ...] of the bundle's datatype. Raises ConfigError for what the servers would refuse."""
        rows = self._inputs.take(index)
        if self.tensor.datatype == "UINT8" and rows.ndim > len(self.tensor.shape):
            rows = rows[..., 0]  # grey pictures with their one channel spelt out
        rows = cast(rows, self.tensor.datatype)
        if rows.dtype.kind == "f" and not np.isfinite(rows).all():
            bad = index[~np.isfinite(rows).reshape(len(rows), -1).all(axis=1)][0]
            raise ConfigError(f"inputs: row {bad} holds NaN or infinity, which the servers refuse")
        return np.ascontiguousarray(rows)

    def batches(self, index: NDArray[np.int64]) -> Iterator[NDArray[Any]]:
        """All rows of ``index``, in order, in batches."""
        for start in range(0, len(index), ROWS):
            yield self.rows(index[start : start + ROWS])

    def answers(self, model: OnnxModel, index: NDArray[np.int64]) -> NDArray[Any]:
        """The first output of a model for rows of the inputs."""
        return np.concatenate([model.run({self.tensor.name: rows})[0] for rows in self.batches(index)])


def cast(rows: NDArray[Any], datatype: str) -> NDArray[Any]:
    """Rows as the bundle's datatype. Raises ConfigError where that would change whole numbers, or make floats whole."""
    wanted = np.dtype(DATATYPES[datatype])
    if rows.dtype == wanted:
        return rows
    if not np.can_cast(rows.dtype, wanted, "same_kind") and not (rows.dtype.kind in "iu" and wanted.kind in "iu"):
        raise ConfigError(f"inputs: they are {rows.dtype}, the models take {datatype}")
    result = rows.astype(wanted)
    if wanted.kind in "iu" and not np.array_equal(result, rows):
        raise ConfigError(f"inputs: some numbers are outside of what {datatype} holds")
    return result


def check_labels(labels: NDArray[np.int64], classes: int) -> None:
    """Raises ConfigError for a label that no class has."""
    outside = np.flatnonzero((labels < 0) | (labels >= classes))
    if len(outside):
        row = int(outside[0])
        raise ConfigError(f"labels: {labels[row]} in row {row}, the models answer classes 0 to {classes - 1}")
