"""What it costs to send inputs to the cloud in a smaller form: bytes, time, and how right the cloud then is."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgemux.multiplexer import bundle
from edgemux.multiplexer.bundle import Bundle, Payload, Preprocessing, Tensor
from edgemux.multiplexer.certify import interval
from edgemux.multiplexer.onnx_model import OnnxModel
from edgemux.wire.codec import DTYPES
from edgemux.wire.payload import RAW, decoder, encode, encodings, size_of

# Below this what is around a message weighs as much, and there is little to save.
LEAST_RAW_BYTES = 4096
MOST_ROWS = 1000
MOST_BYTES = 512 * 2**20
BLOCK = 50

Take = Callable[[NDArray[np.int64]], NDArray[Any]]


def add_payloads(folder: Path, take: Take, rows: NDArray[np.int64], labels: NDArray[np.int64] | None) -> None:
    """Measure every form that the bundle in ``folder`` can be sent its input in, and seal it again with the figures.

    take: inputs [n, ...] by their numbers, of which ``rows`` are held out. labels: of ``rows``; None: what the cloud
    says of the tensor is the truth. Nothing is done for inputs that are small, several, or have but one form.
    """
    manifest = Bundle.open(folder).manifest
    if len(manifest.inputs) != 1 or not len(rows):
        return
    tensor, raw_bytes = manifest.inputs[0], take(rows[:1]).nbytes
    if raw_bytes < LEAST_RAW_BYTES or len(encodings(tensor, manifest.preprocessing)) == 1:
        return
    count = min(len(rows), MOST_ROWS, max(1, MOST_BYTES // raw_bytes))
    truth = None if labels is None else labels[:count]
    found = measured(Bundle.open(folder), take, rows[:count], truth)
    bundle.seal(folder, msgspec.structs.replace(manifest, payloads=found))


def measured(
    source: Bundle, take: Take, rows: NDArray[np.int64], truth: NDArray[np.int64] | None
) -> tuple[Payload, ...]:
    """The figures of every form, raw first."""
    manifest = source.manifest
    tensor, preprocessing = manifest.inputs[0], manifest.preprocessing
    model = OnnxModel(source.read(manifest.cloud.files[0]), manifest.cloud.files[0])
    trials = {encoding: _Trial(encoding, tensor, preprocessing, model) for encoding in encodings(tensor, preprocessing)}
    for block in np.array_split(rows, max(1, len(rows) // BLOCK)):
        inputs = np.asarray(take(block), DTYPES[tensor.datatype])
        for trial in trials.values():
            trial.send(inputs)
    plain = np.concatenate(trials[RAW].labels)
    return tuple(trial.figures(plain if truth is None else truth, plain) for trial in trials.values())


class _Trial:
    """One form: every input is encoded, decoded and given to the cloud model."""

    def __init__(self, encoding: str, tensor: Tensor, preprocessing: Preprocessing | None, model: OnnxModel) -> None:
        self._encoding, self._tensor, self._preprocessing, self._model = encoding, tensor, preprocessing, model
        self._decode = decoder(encoding, tensor, preprocessing)
        self._bytes = 0
        self._encode_s: list[float] = []
        self._decode_s: list[float] = []
        self.labels: list[NDArray[np.int64]] = []

    def send(self, inputs: NDArray[Any]) -> None:
        """[N, ...], each on its own."""
        arrived = []
        for at in range(len(inputs)):
            began = time.perf_counter()
            packed = encode(self._encoding, inputs[at : at + 1], self._preprocessing)
            between = time.perf_counter()
            arrived.append(self._decode(packed))
            self._decode_s.append(time.perf_counter() - between)
            self._encode_s.append(between - began)
            self._bytes += size_of(packed)
        answers = self._model.run({self._tensor.name: np.concatenate(arrived)}, ["probabilities"])[0]
        self.labels.append(answers.argmax(axis=1).astype(np.int64))

    def figures(self, truth: NDArray[np.int64], plain: NDArray[np.int64]) -> Payload:
        """``plain``: the labels through the tensor itself."""
        labels = np.concatenate(self.labels)
        right, count = int((labels == truth).sum()), len(labels)
        return Payload(
            encoding=self._encoding,
            bytes=round(self._bytes / count, 1),
            accuracy=right / count,
            accuracy_interval=interval(right, count),
            changed=float((labels != plain).mean()),
            encode_ms=1000 * statistics.median(self._encode_s),
            decode_ms=1000 * statistics.median(self._decode_s),
            n=count,
        )
