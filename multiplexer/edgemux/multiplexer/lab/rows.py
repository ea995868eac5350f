"""What is kept of a row of two models' answers: enough for every router, and no array that grows with the classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemux.multiplexer.features import FEW_CLASSES, MARGINS, device_features, entropy, largest, log_tail
from edgemux.multiplexer.training.posterior import Evidence, Floats, evidence

# Log-probabilities kept for temperature scaling; exact up to that many classes.
KEPT = FEW_CLASSES
LEAST_LOG = -80.0


@dataclass(frozen=True, slots=True)
class Rows:
    """n rows. ``label`` is the truth: the given label, or the cloud's answer where there are none.

    features: float32 [n, f], of the device's answer; logs, rest: float32 [n, k], [n], its ``log_tail``; top: float32
    [n, at most 11], its largest probabilities, falling; unsure: float64 [n], its normalised entropy. All five are of
    probabilities in float32, which is what an agent sees. device, cloud, label: int64 [n]. device_on_label,
    cloud_on_device, cloud_on_label, cloud_top: float32 [n], one model's probability of a label. tiles: float32 [n, p],
    the input made small, p = 0 where there is none.
    """

    classes: int
    labelled: bool
    features: Floats
    logs: Floats
    rest: Floats
    top: Floats
    unsure: NDArray[np.float64]
    device: NDArray[np.int64]
    cloud: NDArray[np.int64]
    label: NDArray[np.int64]
    device_on_label: Floats
    cloud_on_device: Floats
    cloud_on_label: Floats
    cloud_top: Floats
    tiles: Floats
    seen: Evidence | None

    @property
    def count(self) -> int:
        """n."""
        return len(self.device)

    @property
    def device_right(self) -> NDArray[np.bool_]:
        """[n]."""
        right: NDArray[np.bool_] = self.device == self.label
        return right

    @property
    def cloud_right(self) -> NDArray[np.bool_]:
        """[n]."""
        right: NDArray[np.bool_] = self.cloud == self.label
        return right

    @property
    def differs(self) -> NDArray[np.bool_]:
        """Where the two models give different answers, [n]."""
        differs: NDArray[np.bool_] = self.device != self.cloud
        return differs

    def take(self, index: NDArray[Any]) -> Rows:
        """Some of the rows, by index or mask."""
        picked: dict[str, Any] = {
            field.name: value[index] if isinstance(value := getattr(self, field.name), np.ndarray) else value
            for field in fields(self)
        }
        if self.seen is not None:
            picked["seen"] = Evidence(**{name: value[index] for name, value in _arrays(self.seen).items()})
        return Rows(**picked)


def condense(
    device: NDArray[Any],
    cloud: NDArray[Any],
    labels: NDArray[np.int64] | None,
    tiles: Floats | None,
    with_evidence: bool,
) -> Rows:
    """Rows of log-probabilities float32 [n, classes] of both models; ``with_evidence`` for rows to fit on."""
    count, classes = device.shape
    rows = np.arange(count)
    p, q = np.exp(device), np.exp(cloud)
    device_label, cloud_label = p.argmax(axis=1), q.argmax(axis=1)
    label = cloud_label if labels is None else labels
    logs, rest = log_tail(p, KEPT)
    return Rows(
        classes=classes,
        labelled=labels is not None,
        features=device_features(p),
        logs=logs,
        rest=rest,
        top=largest(p, MARGINS + 1),
        unsure=entropy(p),
        device=device_label,
        cloud=cloud_label,
        label=label,
        device_on_label=p[rows, label],
        cloud_on_device=q[rows, device_label],
        cloud_on_label=q[rows, label],
        cloud_top=q[rows, cloud_label],
        tiles=tiles if tiles is not None else np.zeros((count, 0), np.float32),
        seen=evidence(p, q, label) if with_evidence else None,
    )


def _arrays(seen: Evidence) -> dict[str, NDArray[Any]]:
    return {field.name: getattr(seen, field.name) for field in fields(seen)}


def join(parts: Sequence[Rows]) -> Rows:
    """Rows one after the other."""
    first = parts[0]
    joined: dict[str, Any] = {
        field.name: np.concatenate([getattr(part, field.name) for part in parts])
        if isinstance(getattr(first, field.name), np.ndarray)
        else getattr(first, field.name)
        for field in fields(first)
    }
    if first.seen is not None:
        seen = [_arrays(part.seen) for part in parts if part.seen is not None]
        joined["seen"] = Evidence(**{name: np.concatenate([one[name] for one in seen]) for name in seen[0]})
    return Rows(**joined)


def log_probabilities(values: NDArray[Any], probabilities: bool | None = None) -> Floats:
    """log softmax of finite rows, float32; probabilities stay what they are. None: found out from these rows alone."""
    # Differences of float32 may be twice what it holds, and those of float64 too.
    wide = values.astype(np.float64)
    if probabilities_already(values) if probabilities is None else probabilities:
        wide = wide / np.maximum(wide.sum(axis=1, keepdims=True), 1e-30)
        return np.log(np.maximum(wide, 1e-30)).astype(np.float32)
    with np.errstate(over="ignore"):
        wide = np.maximum(wide - wide.max(axis=1, keepdims=True), -1e30)
    logs = wide - np.log(np.exp(wide).sum(axis=1, keepdims=True))
    return np.maximum(logs, LEAST_LOG).astype(np.float32)


def probabilities_already(values: NDArray[Any]) -> bool:
    """Whether rows are distributions and not logits: none negative, each sums to 1."""
    return bool((values >= 0).all() and np.allclose(values.sum(axis=1, dtype=np.float64), 1.0, atol=1e-3))


# At most this many numbers are kept of an input: 7 x 7 tiles of a grey picture, 4 x 4 of a colour one.
MOST_TILES = 49
# Larger ones count as this: sums of a million of them are finite.
MOST_INPUT = np.float32(1e30)


def tiles_of(inputs: NDArray[Any]) -> Floats:
    """The input made small, float32 [n, p], p <= 64: means over tiles of its rows and columns, or over stretches.

    Works for [n, f], [n, h, w] and, channels first or last, [n, 3, h, w]; anything else is taken as flat.
    """
    with np.errstate(over="ignore"):
        values = np.clip(inputs.astype(np.float32), -MOST_INPUT, MOST_INPUT)
    if values.ndim == 4:
        if values.shape[-1] <= 4:
            values = np.moveaxis(values, -1, 1)
        if values.shape[1] <= 4:
            side = int((MOST_TILES / values.shape[1]) ** 0.5)
            parts = [_grid(values[:, channel], side) for channel in range(values.shape[1])]
            return np.concatenate(parts, axis=1)
    if values.ndim == 3:
        return _grid(values, 7)
    flat = values.reshape(len(values), -1)
    return flat if flat.shape[1] <= KEPT else _stretches(flat, MOST_TILES, axis=1)


def _grid(planes: Floats, side: int) -> Floats:
    """Means of side x side tiles of [n, h, w], flat."""
    rows = _stretches(planes, min(side, planes.shape[1]), axis=1)
    return _stretches(rows, min(side, planes.shape[2]), axis=2).reshape(len(planes), -1)


def _stretches(values: Floats, count: int, axis: int) -> Floats:
    """Means of ``count`` stretches of nearly equal length along an axis."""
    size = values.shape[axis]
    starts = (np.arange(count) * size) // count
    lengths = np.diff(np.append(starts, size)).astype(np.float32)
    shape = [1] * values.ndim
    shape[axis] = count
    sums = np.add.reduceat(values, starts, axis=axis)
    means: Floats = (sums / lengths.reshape(shape)).astype(np.float32)
    return means
