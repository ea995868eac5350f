"""Which channels to keep: pure functions of two statistics, computed once from sampled inputs.

A consumer's output is a sum over channels, Y = sum_i Z_i (+ bias), Z_i [samples, outputs] what channel i contributes.
``gram`` G[i, j] = <Z_i, Z_j> and ``target`` b[i] = <Z_i, Y>, summed over all consumers, is all that LASSO channel
pruning (He, Zhang, Sun 2017) and ThiNet (Luo et al. 2017) need to know.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Index = NDArray[np.int64]
SWEEPS = 200
SETTLED = 1e-6
BISECTIONS = 40


def thinet(gram: Floats, keep: int) -> Index:
    """ThiNet, algorithm 1: greedily drop the channel whose loss leaves the outputs most as they were.

    The set T of dropped channels is grown by the i with the least ||sum over T and i of Z||^2.
    """
    count = len(gram)
    dropped: list[int] = []
    with_dropped = np.zeros(count)  # sum over j in T of G[i, j]
    left = set(range(count))
    while len(left) > keep:
        candidates = np.array(sorted(left))
        growth = 2.0 * with_dropped[candidates] + gram[candidates, candidates]
        chosen = int(candidates[int(np.argmin(growth))])
        dropped.append(chosen)
        left.discard(chosen)
        with_dropped += gram[:, chosen]
    return np.array(sorted(left), np.int64)


def lasso(gram: Floats, target: Floats, keep: int) -> Index:
    """He et al. 2017, equation 2: min over beta of 1/2 ||Y - sum beta_i Z_i||^2 + lambda |beta|_1, with lambda
    bisected until ``keep`` coefficients are left.

    Where no lambda leaves exactly so many (columns that depend on each other), the largest of the next larger set stay.
    """
    high = float(np.abs(target).max())
    low = 0.0
    best: NDArray[Any] = np.ones(len(gram))
    best_count = len(gram)
    start: NDArray[Any] = np.zeros(len(gram))
    for _ in range(BISECTIONS):
        middle = 0.5 * (low + high)
        start = descended(gram, target, middle, start)
        count = int((start != 0.0).sum())
        if count >= keep:
            low = middle
            if count <= best_count:
                best, best_count = start.copy(), count
        else:
            high = middle
        if count == keep:
            break
    strength = np.abs(best) * np.sqrt(np.maximum(np.diag(gram), 0.0))
    return largest(strength, keep)


def descended(gram: Floats, target: Floats, penalty: float, start: NDArray[Any]) -> NDArray[Any]:
    """Coordinate descent with soft thresholds on the Gram matrix (Friedman, Hastie, Tibshirani 2010)."""
    beta = start.copy()
    scale = np.maximum(np.diag(gram), 1e-30)
    slope = target - gram @ beta
    for _ in range(SWEEPS):
        moved = 0.0
        for i in range(len(beta)):
            pull = slope[i] + gram[i, i] * beta[i]
            new = np.sign(pull) * max(abs(pull) - penalty, 0.0) / scale[i]
            step = new - beta[i]
            if step != 0.0:
                slope -= gram[:, i] * step
                beta[i] = new
                moved = max(moved, abs(step))
        if moved < SETTLED:
            break
    return beta


def rescaled(gram: Floats, target: Floats, keep: Index) -> NDArray[Any]:
    """ThiNet, section 3.2.4: the factor of each kept channel that fits the outputs best, by least squares."""
    inner = gram[np.ix_(keep, keep)]
    ridge = 1e-6 * float(np.trace(inner)) / len(keep)
    return np.linalg.solve(inner + ridge * np.eye(len(keep)), target[keep] + ridge)


def largest(strength: NDArray[Any], keep: int) -> Index:
    """Indices of the ``keep`` largest values, rising; ties go to the lower index."""
    order = np.argsort(-strength, kind="stable")[:keep]
    return np.sort(order).astype(np.int64)


def kept_width(width: int, ratio: float, round_to: int) -> int:
    """How many of ``width`` channels stay when the share ``ratio`` goes: a multiple of ``round_to`` where that fits.

    round_to 0 chooses: 8 from 64 channels on, 4 from 16 on, else 1, the widths that vector units like.
    """
    step = round_to if round_to > 0 else (8 if width >= 64 else 4 if width >= 16 else 1)
    wanted = max(1, round((1.0 - ratio) * width))
    if step >= width:
        return min(width, wanted)
    return min(width, max(step, step * round(wanted / step)))
