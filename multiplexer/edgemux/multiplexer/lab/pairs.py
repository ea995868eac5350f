"""Where the rows come from: saved logits, or two models run on saved inputs; checked, sampled and split three ways."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgemux.multiplexer.certify import rows_needed
from edgemux.multiplexer.errors import ArtifactError, InputError
from edgemux.multiplexer.lab.files import Stored, array_of, arrays_of, check_file
from edgemux.multiplexer.lab.rows import Rows, condense, join, log_probabilities, probabilities_already, tiles_of
from edgemux.multiplexer.lab.stopwatch import median_ms
from edgemux.multiplexer.onnx_model import OnnxModel

LEAST_ROWS = 200
LOGITS = ("edge_logits", "cloud_logits")
# Shares of the rows, and the most rows that are looked at: more narrow an interval by less than it is worth.
FIT, CERTIFY, TEST = range(3)
SHARES = (0.4, 0.3, 0.3)
MOST = (100_000, 100_000, 200_000)
BLOCK_BYTES = 16 * 2**20
REPEATS = 30
ANSWERS = ("probabilities", "logits")
# Numbers are cast to what a model takes, as `edgemux build` does.
FLOATS = {"tensor(float)": np.float32, "tensor(double)": np.float64, "tensor(float16)": np.float16}

Progress = Callable[[float], None]


@dataclass(frozen=True, slots=True)
class Splits:
    """The three splits, how many rows there were in all, and the models' own times in ms where they were run."""

    fit: Rows
    certify: Rows
    test: Rows
    total: int
    device_ms: float | None = None
    cloud_ms: float | None = None

    def timed(self, device_ms: float, cloud_ms: float) -> Splits:
        """The same, with the models' times."""
        return replace(self, device_ms=device_ms, cloud_ms=cloud_ms)


class Source(Protocol):
    """Answers of two models to ``total`` inputs, a stretch at a time."""

    total: int
    classes: int
    labelled: bool
    names: tuple[str, str]  # what to call the answers of device and cloud in errors

    def stretches(self, index: NDArray[np.int64], rows: int) -> Iterator[Stretch]:
        """The rows of rising ``index``, at most ``rows`` at a time."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """Raw rows: logits or probabilities [n, classes], labels [n] or None, inputs [n, ...] or None."""

    device: NDArray[Any]
    cloud: NDArray[Any]
    labels: NDArray[Any] | None
    inputs: NDArray[Any] | None


def splits_of(source: Source, seed: int, progress: Progress) -> Splits:
    """Draw, read and condense the rows of each split. Raises InputError naming the array and the row."""
    index, split = draw(source.total, seed)
    rows = int(np.clip(BLOCK_BYTES // (4 * source.classes), 1, 4096))
    parts: tuple[list[Rows], ...] = ([], [], [])
    at = 0
    kinds: tuple[bool, bool] | None = None
    for found in source.stretches(index, rows):
        here = slice(at, at + len(found.device))
        stretch = _checked(found, index[here], source)
        kinds = _kinds(stretch, index[here], source.names, kinds)
        _place(stretch, split[here], kinds, parts)
        at = here.stop
        progress(at / len(index))
    fit, certify, test = (join(part) for part in parts)
    return Splits(fit, certify, test, source.total)


def draw(total: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int8]]:
    """Which rows are looked at, rising, and the split of each. Raises InputError for too few."""
    if total < LEAST_ROWS:
        needed = rows_needed(0.05, 0.1)
        raise InputError(
            "rows",
            f"{total} are too few: the lab needs at least {LEAST_ROWS}; the certificate's split gets "
            f"{SHARES[CERTIFY]:.0%} of them and needs {needed} at alpha 0.05 and delta 0.1",
        )
    order = np.random.default_rng(seed).permutation(total)
    counts = [min(int(total * share), most) for share, most in zip(SHARES, MOST, strict=True)]
    chosen = order[: sum(counts)]
    split = np.repeat(np.arange(3, dtype=np.int8), counts)
    rising = np.argsort(chosen)
    return chosen[rising].astype(np.int64), split[rising]


def _kinds(
    stretch: Stretch, index: NDArray[np.int64], names: tuple[str, str], known: tuple[bool, bool] | None
) -> tuple[bool, bool]:
    """Whether device and cloud give probabilities: what the first rows are, all are. Raises InputError where not."""
    if known is None:
        return probabilities_already(stretch.device), probabilities_already(stretch.cloud)
    for name, values, kind in zip(names, (stretch.device, stretch.cloud), known, strict=True):
        below = (values < 0).any(axis=1)
        if kind and below.any():
            raise InputError(name, f"row {index[int(below.argmax())]} is below 0, and the rows before it add up to 1")
    return known


def _place(stretch: Stretch, split: NDArray[np.int8], kinds: tuple[bool, bool], parts: tuple[list[Rows], ...]) -> None:
    device, cloud = log_probabilities(stretch.device, kinds[0]), log_probabilities(stretch.cloud, kinds[1])
    for number, part in enumerate(parts):
        mine = np.flatnonzero(split == number)
        if len(mine):
            labels = None if stretch.labels is None else stretch.labels[mine].astype(np.int64)
            tiles = None if stretch.inputs is None else tiles_of(stretch.inputs[mine])
            part.append(condense(device[mine], cloud[mine], labels, tiles, with_evidence=number == FIT))


def _checked(stretch: Stretch, index: NDArray[np.int64], source: Source) -> Stretch:
    """The stretch, if nothing in it is nonsense."""
    arrays = [] if stretch.inputs is None else [("inputs", stretch.inputs)]
    arrays += zip(source.names, (stretch.device, stretch.cloud), strict=True)
    for name, values in arrays:
        finite = np.isfinite(values).reshape(len(values), -1).all(axis=1)
        if not finite.all():
            raise InputError(name, f"row {index[int(finite.argmin())]} holds a value that is not finite")
    if stretch.labels is not None:
        known = (stretch.labels >= 0) & (stretch.labels < source.classes)
        if not known.all():
            at = int(known.argmin())
            raise InputError("labels", f"row {index[at]} is {stretch.labels[at]}, not one of 0 to {source.classes - 1}")
    return stretch


class SavedLogits:
    """An .npz archive: ``edge_logits`` and ``cloud_logits`` [N, C]; optional ``labels`` [N], ``inputs`` [N, ...]."""

    def __init__(self, path: Path) -> None:
        """Raises InputError naming the array that is missing or does not fit."""
        arrays = arrays_of(path, LOGITS, ("labels", "inputs"))
        self._device, self._cloud = (arrays[name] for name in LOGITS)
        self._labels, self._inputs = arrays.get("labels"), arrays.get("inputs")
        shape = self._device.shape
        if len(shape) != 2 or shape[1] < 2:
            raise InputError("edge_logits", f"has the shape {list(shape)}, not [rows, classes] with 2 classes or more")
        if self._cloud.shape != shape:
            raise InputError("cloud_logits", f"has the shape {list(self._cloud.shape)}, edge_logits {list(shape)}")
        _check_beside(self._labels, self._inputs, shape[0])
        self.total, self.classes = shape
        self.names = LOGITS
        self.labelled = self._labels is not None

    def stretches(self, index: NDArray[np.int64], rows: int) -> Iterator[Stretch]:
        """See Source."""
        beside = [_or_none(array, index, rows) for array in (self._labels, self._inputs)]
        both = zip(self._device.stretches(index, rows), self._cloud.stretches(index, rows), *beside, strict=False)
        for device, cloud, labels, inputs in both:
            yield Stretch(device, cloud, labels, inputs)


def _or_none(array: Stored | None, index: NDArray[np.int64], rows: int) -> Iterator[NDArray[Any] | None]:
    if array is not None:
        yield from array.stretches(index, rows)
    else:
        yield from (None for _ in range(0, len(index), rows))


def _check_beside(labels: Stored | None, inputs: Stored | None, total: int) -> None:
    if labels is not None and labels.shape != (total,):
        raise InputError("labels", f"has the shape {list(labels.shape)}, not [{total}]: one for each row")
    if labels is not None and labels.dtype.kind not in "iu":
        raise InputError("labels", f"holds {labels.dtype}, not whole numbers")
    if inputs is not None and (len(inputs.shape) < 2 or inputs.shape[0] != total or 0 in inputs.shape[1:]):
        raise InputError("inputs", f"has the shape {list(inputs.shape)}, not [{total}, ...]")


class RunModels:
    """Two ONNX classifiers with one input each, run on the rows of an .npy file; labels [N] optional.

    A model's answer is its output ``probabilities`` or ``logits``; where it has neither, its first.
    """

    def __init__(self, device: Path, cloud: Path, inputs: Path, labels: Path | None) -> None:
        """Raises ArtifactError or InputError naming the file that does not fit."""
        self._device, self._cloud = _model(device), _model(cloud)
        self.names = (self._device.name, self._cloud.name)
        self._inputs = array_of(inputs)
        self._labels = array_of(labels) if labels is not None else None
        if len(self._inputs.shape) < 2:
            raise InputError("inputs", f"has the shape {list(self._inputs.shape)}, not [rows, ...]")
        self.total = len(self._inputs)
        self.labelled = self._labels is not None
        _check_beside(self._labels, self._inputs, self.total)
        if not self.total:
            raise InputError("inputs", "has no rows")
        self._first = next(self._inputs.stretches(np.arange(1), 1))
        widths = [_answer(model, self._first).shape[1] for model in (self._device, self._cloud)]
        if widths[0] != widths[1]:
            raise InputError("cloud", f"answers with {widths[1]} classes, the edge model with {widths[0]}")
        self.classes = widths[0]

    def stretches(self, index: NDArray[np.int64], rows: int) -> Iterator[Stretch]:
        """See Source."""
        row_bytes = self._first.nbytes + 8 * self.classes
        rows = int(np.clip(BLOCK_BYTES // row_bytes, 1, min(rows, 256)))
        labels = _or_none(self._labels, index, rows)
        for inputs, label in zip(self._inputs.stretches(index, rows), labels, strict=False):
            yield Stretch(_answer(self._device, inputs), _answer(self._cloud, inputs), label, inputs)

    def times_ms(self) -> tuple[float, float]:
        """Median time of one input on one thread, of the device model and of the cloud model."""
        return (
            median_ms(lambda: _answer(self._device, self._first), REPEATS),
            median_ms(lambda: _answer(self._cloud, self._first), REPEATS),
        )


def _model(path: Path) -> OnnxModel:
    check_file(path)
    model = OnnxModel.read(path, quiet=True)  # a batch that it does not take is tried, and is no news
    if len(model.inputs) != 1:
        raise ArtifactError(f"{path.name}: has {len(model.inputs)} inputs, the lab feeds one")
    return model


def _answer(model: OnnxModel, inputs: NDArray[Any]) -> NDArray[Any]:
    """Its answer, [n, classes]. Models that were exported for one input at a time are run so."""
    name = next((name for name in ANSWERS if name in model.outputs), model.outputs[0])
    wanted = FLOATS.get(model.input_types[0])
    if wanted is not None and np.can_cast(inputs.dtype, wanted, "same_kind"):
        inputs = inputs.astype(wanted, copy=False)
    try:
        given: Any = model.run({model.inputs[0]: inputs}, [name])[0]
    except Exception as error:  # the library raises a dozen unrelated types
        if len(inputs) <= 1:
            takes = f"{model.input_types[0]} {list(model.input_shapes[0])}"
            raise InputError(
                "inputs", f"{model.name} takes {takes}, not {inputs.dtype} {list(inputs.shape)}"
            ) from error
        return np.concatenate([_answer(model, inputs[k : k + 1]) for k in range(len(inputs))])
    if not isinstance(given, np.ndarray) or given.dtype.kind not in "fiu":
        raise InputError("inputs", f"{model.name} answers with no array of numbers in {name}")
    if given.ndim != 2 or len(given) != len(inputs) or given.shape[1] < 2:
        raise InputError("inputs", f"{model.name} answers with {list(given.shape)}, not [rows, classes]")
    return given
