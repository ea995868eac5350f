"""What computes: a model behind one method."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgemux.cloud.admission import BatchTime
from edgemux.multiplexer.bundle import Bundle
from edgemux.multiplexer.chain import PROBABILITIES, Golden
from edgemux.multiplexer.errors import ArtifactError, BadAnswer, ExecutionError
from edgemux.multiplexer.onnx_model import OnnxModel

MEASURED_RUNS = 5


class Backend(Protocol):
    """Runs batches; blocks its caller, is called from one thread at a time."""

    def run(self, image: NDArray[Any]) -> NDArray[Any]:
        """Probabilities FP32 [N, classes] of images UINT8 [N, ...]. Raises ExecutionError."""
        ...


class OnnxBackend:
    """A bundle's cloud model on ONNX Runtime."""

    def __init__(self, bundle: Bundle, threads: int = 1) -> None:
        """Load the verified model. Raises ArtifactError naming the file."""
        manifest = bundle.manifest
        if len(manifest.inputs) != 1:
            raise ArtifactError(f"{manifest.cloud.name}: a cloud model has one input")
        path = manifest.cloud.files[0]
        self._model = OnnxModel(bundle.read(path), path, threads)
        self._input = manifest.inputs[0].name
        self._classes = len(manifest.classes)
        if self._model.inputs != (self._input,) or PROBABILITIES not in self._model.outputs:
            raise ArtifactError(f"{path}: must turn {self._input} into {PROBABILITIES}")

    def run(self, image: NDArray[Any]) -> NDArray[Any]:
        """Probabilities FP32 [N, classes].

        Raises ExecutionError when the graph fails, BadAnswer when it gives something else.
        """
        try:
            probabilities = self._model.run({self._input: image}, [PROBABILITIES])[0]
        except Exception as error:  # with any of the library's types
            raise ExecutionError(f"the model fails on a batch of {len(image)}") from error
        if probabilities.shape != (image.shape[0], self._classes) or probabilities.dtype != np.float32:
            raise BadAnswer("the model's answer has the wrong shape")
        return probabilities


def check(backend: Backend, bundle: Bundle) -> None:
    """Run the bundle's golden inputs. Raises ArtifactError naming the file that does not answer as recorded."""
    manifest = bundle.manifest
    cloud, image = manifest.cloud, manifest.inputs[0].name
    Golden(bundle).check(cloud.name, cloud.files[0], len(manifest.classes), lambda inputs: backend.run(inputs[image]))


def measure(
    backend: Backend, image: NDArray[Any], max_batch: int, clock: Callable[[], float] = time.perf_counter
) -> BatchTime:
    """How long batches of one row and of ``max_batch`` rows take: the median of a few runs after one to warm up.

    ``image`` holds one row, [1, ...].
    """
    full = np.repeat(image, max_batch, axis=0)
    return BatchTime(_median_s(backend, image, clock), _median_s(backend, full, clock), max_batch)


def _median_s(backend: Backend, images: NDArray[Any], clock: Callable[[], float]) -> float:
    backend.run(images)
    durations = []
    for _ in range(MEASURED_RUNS):
        started_s = clock()
        backend.run(images)
        durations.append(clock() - started_s)
    return statistics.median(durations)
