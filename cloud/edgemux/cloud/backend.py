"""What computes: the port behind which every kind of model is, and what is found out about one before it serves."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgemux.cloud.admission import BatchTime
from edgemux.multiplexer.bundle import DATATYPES, Tensor
from edgemux.multiplexer.errors import ArtifactError, BadAnswer

# Runs of each size that are timed; fewer of a model that takes long.
MEASURED_RUNS = 5
PATIENCE_S = 0.3
# What a free dimension is tried with, until the model takes it.
_TRIED_SIZES = (1, 16, 224)

Arrays = Mapping[str, NDArray[Any]]
Clock = Callable[[], float]
# A backend may have a ``room``: memory for the next batch of an input, by its name and shape, or None.
Room = Callable[[str, Sequence[int]], NDArray[Any] | None]


class Backend(Protocol):
    """Runs batches; blocks its caller, is called from one thread at a time.

    ``inputs`` and ``outputs`` have -1 for free dimensions. Where all of them begin with -1 that is the batch; a model
    with any other first dimension is run for one request at a time.
    """

    @property
    def inputs(self) -> tuple[Tensor, ...]: ...

    @property
    def outputs(self) -> tuple[Tensor, ...]: ...

    def run(self, inputs: Arrays, outputs: Sequence[str]) -> dict[str, NDArray[Any]]:
        """The named outputs, [N, ...] for inputs of [N, ...]. Raises ExecutionError."""
        ...

    def close(self) -> None:
        """Give back what it holds; nothing runs then, or ever after."""
        ...


def read_file(path: Path) -> bytes:
    """A model's file. Raises ArtifactError naming it."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"{path.name}: cannot be read ({error.strerror})") from error


def batched(inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> bool:
    """Whether requests can be run together."""
    return all(tensor.shape[:1] == (-1,) for tensor in (*inputs, *outputs))


def sample(backend: Backend) -> dict[str, NDArray[Any]]:
    """Zeros, or ones, that the model takes, one row, and that it has finite answers for.

    Raises ArtifactError when it takes no zeros of the sizes that are tried, or its answers are not finite.
    """
    together = batched(backend.inputs, backend.outputs)
    for size in _TRIED_SIZES:
        given = {tensor.name: _zeros(tensor, size, together) for tensor in backend.inputs}
        try:
            endless = _endless(check(backend, given))
        except Exception as error:  # with any of a library's types
            failed = error
            continue
        if endless is not None:  # some divide by what is there
            given = {name: np.ones_like(array) for name, array in given.items()}
            endless = _endless(check(backend, given))
        if endless is None:
            return given
        raise ArtifactError(f"{endless}: NaN or infinity, for zeros and for ones")
    raise ArtifactError("the model does not run on zeros") from failed


def _endless(answer: Arrays) -> str | None:
    """The name of an output with NaN or infinity, None when there is none."""
    for name, array in answer.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            return name
    return None


def check(backend: Backend, given: Arrays) -> dict[str, NDArray[Any]]:
    """All outputs for ``given``, which must be what the backend says they are. Raises BadAnswer, and what it raises."""
    answer = backend.run(given, [tensor.name for tensor in backend.outputs])
    rows = len(next(iter(given.values()))) if batched(backend.inputs, backend.outputs) else -1
    for tensor in backend.outputs:
        array = answer.get(tensor.name)
        shape = (rows, *tensor.shape[1:]) if rows >= 0 else tensor.shape
        if array is None or not fits(array, DATATYPES[tensor.datatype], shape):
            raise BadAnswer(f"{tensor.name}: not {tensor.datatype} {list(shape)}")
    return answer


def fits(array: NDArray[Any], dtype: str, shape: Sequence[int]) -> bool:
    """Whether an array has that dtype and shape, where -1 is any size."""
    sizes = len(array.shape) == len(shape) and all(w in (-1, s) for s, w in zip(array.shape, shape, strict=True))
    return sizes and array.dtype.name == dtype


def _zeros(tensor: Tensor, size: int, together: bool) -> NDArray[Any]:
    shape = [size if want == -1 else want for want in tensor.shape]
    if together:
        shape[0] = 1
    return np.zeros(shape, DATATYPES[tensor.datatype])


def measure(
    backend: Backend,
    row: Arrays,
    max_batch: int,
    clock: Clock = time.perf_counter,
) -> BatchTime:
    """How long batches of 1, 2, 4, ... and of ``max_batch`` rows take: the median of a few runs after one to warm up.

    ``row`` holds one row of each input, [1, ...]; with a ``max_batch`` of 1 any input is run as it is.
    """
    outputs = [tensor.name for tensor in backend.outputs]
    measured_s = {1: _median_s(backend, row, outputs, clock)}
    rows = 1
    while rows < max_batch:
        rows = min(2 * rows, max_batch)
        batch = {name: np.repeat(array, rows, axis=0) for name, array in row.items()}
        measured_s[rows] = _median_s(backend, batch, outputs, clock)
    return BatchTime(measured_s[1], measured_s[rows], max_batch, measured_s)


def _median_s(backend: Backend, inputs: Arrays, outputs: Sequence[str], clock: Clock) -> float:
    backend.run(inputs, outputs)
    durations: list[float] = []
    while len(durations) < MEASURED_RUNS and sum(durations) < PATIENCE_S:
        started_s = clock()
        backend.run(inputs, outputs)
        durations.append(clock() - started_s)
    return statistics.median(durations)
