"""Scores that mean what they say: temperature for class probabilities, Platt scaling for P(correct)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from edgemux.multiplexer.training.minimise import along, minimise


def temperature(logits: NDArray[Any], labels: NDArray[np.int64]) -> float:
    """The T for which softmax(logits / T) has the least negative log-likelihood (Guo et al. 2017).

    logits: [n, classes], labels: [n]. Golden-section search over log T in [0.05, 20]: the loss has one minimum.
    """
    values = torch.from_numpy(np.ascontiguousarray(logits)).double()
    targets = torch.from_numpy(labels)

    def loss(log_t: float) -> float:
        return float(functional.cross_entropy(values / math.exp(log_t), targets))

    return math.exp(along(loss, math.log(0.05), math.log(20.0), rounds=60))


@dataclass(frozen=True, slots=True)
class Platt:
    """P(correct) = sigmoid(slope * score + offset), one pair per route: float64 [routes]."""

    slope: NDArray[np.float64]
    offset: NDArray[np.float64]


def platt(scores: NDArray[Any], right: NDArray[Any]) -> Platt:
    """Fit slope and offset per route by maximum likelihood (Platt 1999), with his smoothed targets.

    scores: logits [n, routes]; right: 0 or 1, [n, routes].
    """
    x = torch.from_numpy(np.ascontiguousarray(scores)).double()
    y = torch.from_numpy(np.ascontiguousarray(right)).double()
    positives = y.sum(dim=0)
    negatives = len(y) - positives
    target = torch.where(y > 0.5, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    slope = torch.ones(x.shape[1], dtype=torch.float64, requires_grad=True)
    offset = torch.zeros(x.shape[1], dtype=torch.float64, requires_grad=True)
    minimise(lambda: functional.binary_cross_entropy_with_logits(slope * x + offset, target), [slope, offset])
    return Platt(slope.detach().numpy(), offset.detach().numpy())
