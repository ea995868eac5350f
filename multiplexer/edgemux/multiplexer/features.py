"""What a learned router looks at: features of the device's answer. No torch: the agent and the lab share this file."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

# As many sorted probabilities as Selective Query's hybrid router takes (Kag & Fedorov, ICLR 2023).
TOP = 10
# Beyond this many classes the one-hot of the answer would be nearly all of the features.
MOST_CLASSES = 256
LEAST = 1e-12


def device_features(probabilities: NDArray[Any]) -> NDArray[np.float32]:
    """Features FP32 [N, feature_count(C)] of the device's answers, probabilities [N, C].

    In this order: the natural logarithms of the k = min(TOP, C) largest probabilities, falling; the two largest
    probabilities; their difference (margin); the entropy as a share of its most, log C; and, for C of at most
    MOST_CLASSES, the one-hot of the answer. One class alone has the second probability 0 and the entropy
    0. Raises ValueError unless the array is [N, C] with C of at least 1 and finite.
    """
    p = np.asarray(probabilities, dtype=np.float64)
    if p.ndim != 2 or p.shape[1] < 1 or not np.isfinite(p).all():
        raise ValueError("probabilities must be finite, of shape [N, C] with C of at least 1")
    rows, classes = p.shape
    k = min(TOP, classes)
    ordered = -np.sort(-p, axis=1)[:, :k]
    second = ordered[:, 1] if k > 1 else np.zeros(rows)
    columns = [
        np.log(np.maximum(ordered, LEAST)),
        np.stack([ordered[:, 0], second, ordered[:, 0] - second, entropy(p)], axis=1),
    ]
    if classes <= MOST_CLASSES:
        columns.append(np.eye(classes)[p.argmax(axis=1)])
    return np.concatenate(columns, axis=1).astype(np.float32)


def feature_count(classes: int) -> int:
    """How many features ``device_features`` gives for so many classes."""
    return min(TOP, classes) + 4 + (classes if classes <= MOST_CLASSES else 0)


def entropy(probabilities: NDArray[Any]) -> NDArray[np.float64]:
    """Entropy [...] of distributions [..., C] as a share of its most, log C: 0 is certain, 1 knows nothing."""
    p = np.asarray(probabilities, dtype=np.float64)
    if p.shape[-1] < 2:
        return np.zeros(p.shape[:-1])
    return np.asarray(-(p * np.log(np.maximum(p, LEAST))).sum(axis=-1) / np.log(p.shape[-1]))
