"""What a router reads off a device's answer: a few numbers whose count does not grow with thousands of classes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

# Keeps log() finite; below what float32 softmax resolves for ten classes in practice.
LOG_FLOOR = 1e-6
# Up to this many classes a router is told each class's probability and which one was answered.
FEW_CLASSES = 64
TOP = 10
TOP_OF_FEW = 5
# Differences of the largest probabilities that a selective query reads.
MARGINS = 10
# Below what float32 softmax gives in practice; exp(log) of it is still a normal number.
LEAST_PROBABILITY = 1e-35


def device_features(probabilities: NDArray[Any]) -> NDArray[np.float32]:
    """Features float32 [n, f] of a device model's probabilities [n, classes], at least 2 classes.

    Of up to FEW_CLASSES classes: all log-probabilities, 1 for the class answered, the 5 largest log-probabilities,
    falling. Of more: the 10 largest log-probabilities, falling, and minus the entropy in nats. Margins are differences
    of these; the entropy of few classes, and probabilities beside their logarithms, added nothing where measured.
    Raises ValueError for what is no such table.
    """
    p = np.asarray(probabilities, np.float32)
    if p.ndim != 2 or p.shape[1] < 2 or not np.isfinite(p).all():
        raise ValueError("probabilities must be finite, of shape [n, classes] with 2 classes or more")
    logs = np.log(p + np.float32(LOG_FLOOR))
    ranked = largest(logs, ranks_read(p.shape[1]))
    if p.shape[1] > FEW_CLASSES:
        return np.concatenate([ranked, (p * logs).sum(axis=1, keepdims=True)], axis=1)
    answered = np.eye(p.shape[1], dtype=np.float32)[p.argmax(axis=1)]
    return np.concatenate([logs, answered, ranked], axis=1)


def feature_count(classes: int) -> int:
    """How many features there are of so many classes."""
    return ranks_read(classes) + (2 * classes if classes <= FEW_CLASSES else 1)


def entropy(probabilities: NDArray[Any]) -> NDArray[np.float64]:
    """Entropy [...] of distributions [..., classes] as a share of its most, log classes: 1 knows nothing."""
    p = np.asarray(probabilities, np.float64)
    if p.shape[-1] < 2:
        return np.zeros(p.shape[:-1])
    return np.asarray(-(p * np.log(np.maximum(p, 1e-12))).sum(axis=-1) / np.log(p.shape[-1]))


def query_features(probabilities: NDArray[Any]) -> NDArray[np.float32]:
    """What Selective Query's router reads (Kag et al. 2023), float32 [n, f] of [n, classes]: see ``query_of``."""
    p = np.asarray(probabilities, np.float32)
    features = device_features(p)
    return query_of(entropy(p), largest(p, MARGINS + 1), features)


def query_of(unsure: NDArray[Any], top: NDArray[Any], features: NDArray[Any]) -> NDArray[np.float32]:
    """Entropy [n], differences of the largest probabilities [n, k], falling, and features [n, f], as one table."""
    return np.concatenate([unsure[:, None].astype(np.float32), top[:, :-1] - top[:, 1:], features], axis=1)


def log_tail(probabilities: NDArray[Any], kept: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Of [n, classes]: the ``kept`` largest log-probabilities [n, k], falling, and the log of the others' mean [n]."""
    p = np.asarray(probabilities, np.float32)
    top = largest(p, kept).astype(np.float64)
    spare = p.shape[1] - top.shape[1]
    mass = np.clip(1.0 - top.sum(axis=1), 0.0, 1.0) / max(spare, 1)
    logs, rest = (np.log(np.maximum(values, LEAST_PROBABILITY)).astype(np.float32) for values in (top, mass))
    return logs, rest


def tempered_total(logs: NDArray[Any], rest: NDArray[Any], classes: int, t: float) -> NDArray[np.float64]:
    """Sum over the classes of (p / largest p)^(1/t), [n], by a ``log_tail``; 1 over it is the largest share at t."""
    wide = logs.astype(np.float64)
    total = np.exp((wide - wide[:, :1]) / t).sum(axis=1)
    others = (classes - wide.shape[1]) * np.exp((rest.astype(np.float64) - wide[:, 0]) / t)
    return np.asarray(total + others)


def ranks_read(classes: int) -> int:
    """How many of the largest log-probabilities are read."""
    return min(classes, TOP_OF_FEW if classes <= FEW_CLASSES else TOP)


def place_of_largest(classes: int) -> int:
    """The column of the features that is the largest log-probability."""
    return 2 * classes if classes <= FEW_CLASSES else 0


def largest(values: NDArray[Any], count: int) -> NDArray[Any]:
    """The ``count`` largest of each row, falling: [n, count] of [n, classes]."""
    if count < values.shape[1]:
        values = -np.partition(-values, count - 1, axis=1)[:, :count]
    return -np.sort(-values, axis=1)
