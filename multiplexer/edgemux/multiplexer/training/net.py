"""Fits of the one shape of everything that a router learns: a hidden layer, standardisation folded into it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from edgemux.multiplexer.learned import Net
from edgemux.multiplexer.training.minimise import minimise

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

# About 64 passes: more of them learn few rows by heart, and lose a point of deferral area at 250 rows.
STEPS_A_ROW = 1 / 8
LEAST_STEPS, MOST_STEPS = 60, 2500
# Of a squared error of the gain, against nats. On the starter pair areas are alike from 10 to 30, and smaller at 0; few
# rows bear less.
GAIN_WEIGHT = 10.0


@dataclass(frozen=True, slots=True)
class How:
    """Settings of a fit: hidden units of each member, AdamW on batches of ``batch`` rows, members of the ensemble."""

    hidden: int = 32
    rate: float = 3e-3
    weight_decay: float = 1e-2
    batch: int = 512
    members: int = 2
    steps: int | None = None


def binary(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Of target probabilities per output, [n, k]."""
    return functional.binary_cross_entropy_with_logits(logits, targets)


def gain_loss(logits: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Of target probabilities per route, and of the gain over the level at hand.

    logits: [n, levels + 1], the cloud last; wanted: [n, 2 * levels + 1], the targets and then 1 for the level at hand.
    """
    routes = logits.shape[1]
    targets, level = wanted[:, :routes], wanted[:, routes:]
    said = torch.sigmoid(logits)
    error = said - targets
    missed = error[:, -1] - (error[:, :-1] * level).sum(dim=1)
    return binary(logits, targets) + GAIN_WEIGHT * (missed**2).mean()


def squared(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Of target values, [n, k]."""
    return functional.mse_loss(logits, targets)


def fit_net(
    features: NDArray[Any],
    targets: NDArray[Any],
    loss: Loss,
    outputs: int,
    seed: int,
    how: How | None = None,
) -> Net:
    """Fit ``how.members`` nets with different starts and return them as one: the mean of their logits.

    features: [n, f]; targets: [n, k], handed to ``loss`` with logits [n, outputs].
    """
    how = how if how is not None else How()
    mean = features.mean(axis=0, dtype=np.float64)
    spread = features.std(axis=0, dtype=np.float64) + 1e-3
    x = torch.from_numpy(((features - mean) / spread).astype(np.float32))
    y = torch.from_numpy(np.ascontiguousarray(targets, np.float32))
    steps = how.steps if how.steps is not None else int(np.clip(len(x) * STEPS_A_ROW, LEAST_STEPS, MOST_STEPS))
    members = [_member(x, y, loss, outputs, how, steps, seed * how.members + k) for k in range(how.members)]
    w1, b1, w2, b2 = zip(*members, strict=True)
    joined = np.concatenate(w1) / spread
    return Net(
        w1=joined,
        b1=np.concatenate(b1) - joined @ mean,
        w2=np.concatenate(w2, axis=1) / how.members,
        b2=np.mean(b2, axis=0),
    )


def _member(
    x: torch.Tensor, y: torch.Tensor, loss: Loss, outputs: int, how: How, steps: int, seed: int
) -> list[NDArray[np.float64]]:
    generator = torch.Generator().manual_seed(seed)
    first, second = nn.Linear(x.shape[1], how.hidden), nn.Linear(how.hidden, outputs)
    for layer in (first, second):
        bound = layer.in_features**-0.5
        for tensor in (layer.weight, layer.bias):
            nn.init.uniform_(tensor, -bound, bound, generator=generator)
    net = nn.Sequential(first, nn.ReLU(), second)
    optimiser = torch.optim.AdamW(net.parameters(), lr=how.rate, weight_decay=how.weight_decay)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        index = torch.randint(0, len(x), (min(how.batch, len(x)),), generator=generator)
        value = loss(net(x[index]), y[index])
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
        rate.step()
    return [tensor.detach().double().numpy() for tensor in net.parameters()]


def fit_logistic(features: NDArray[Any], target: NDArray[Any], ridge: float = 1e-4) -> Net:
    """Logistic regression, [n, f] on target probabilities [n], by L-BFGS with a ridge on standardised weights.

    Returned in the shape of a net, exactly: z = relu(z) - relu(-z).
    """
    mean = features.mean(axis=0, dtype=np.float64)
    spread = features.std(axis=0, dtype=np.float64) + 1e-3
    x = torch.from_numpy((features - mean) / spread)
    y = torch.from_numpy(np.asarray(target, np.float64))
    weights = torch.zeros(x.shape[1] + 1, dtype=torch.float64, requires_grad=True)

    def loss() -> torch.Tensor:
        surprise = functional.binary_cross_entropy_with_logits(x @ weights[:-1] + weights[-1], y)
        return surprise + ridge * (weights[:-1] ** 2).sum()

    minimise(loss, [weights])
    fitted = weights.detach().numpy()
    slope = fitted[:-1] / spread
    offset = fitted[-1] - slope @ mean
    return Net(np.stack([slope, -slope]), np.array([offset, -offset]), np.array([[1.0, -1.0]]), np.zeros(1))
