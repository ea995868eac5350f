"""Fits both gates: P(correct) per route from the raw input, and again from a device answer.

Each gate is one hidden layer. Targets are 0 or 1 per route, "this route is right", so that differences of scores
estimate the gain P(cloud right) - P(device right). Every fifth image is kept back for choosing when to stop and for
calibration; its augmented copies are kept back with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from edgemux.multiplexer.training.calibrate import platt
from edgemux.multiplexer.training.labels import Answers, Floats, one_hot

# Keeps log() finite; below what float32 softmax resolves for ten classes in practice.
LOG_FLOOR = 1e-6
TOP = 3
# Of more classes than MANY the gate reads the largest TOP_OF_MANY only: it stays small, and the rest is noise to it.
MANY = 64
TOP_OF_MANY = 10
KEPT_BACK = 5
CHECK_EVERY = 50


@dataclass(frozen=True, slots=True)
class Layers:
    """A fitted gate, calibration folded in: sigmoid(w2 @ relu(w1 @ features + b1) + b2); weights [out, in]."""

    w1: NDArray[np.float64]
    b1: NDArray[np.float64]
    w2: NDArray[np.float64]
    b2: NDArray[np.float64]

    def scores(self, features: NDArray[Any]) -> Floats:
        """P(correct) per route, float32 [n, routes]."""
        hidden = np.maximum(features @ self.w1.T + self.b1, 0.0)
        logits = hidden @ self.w2.T + self.b2
        result: Floats = (1.0 / (1.0 + np.exp(-logits))).astype(np.float32)
        return result


@dataclass(frozen=True, slots=True)
class How:
    """Settings of a fit: hidden units, steps of AdamW on batches of ``batch`` rows, and the seed."""

    hidden: int
    steps: int
    rate: float
    weight_decay: float
    seed: int
    batch: int = 2048


def post_features(probabilities: Floats, level: Floats, scores: Floats) -> Floats:
    """What the post-gate reads, float32 [n, features]; the exported graph computes the same in ONNX.

    In order: probabilities, their logs, the largest three logs, minus the entropy, the level, the pre-gate's scores.
    Of more than ``MANY`` classes: the margin between the largest two in place of all probabilities and their logs, and
    the largest ten logs.
    """
    classes = probabilities.shape[1]
    logs = np.log(probabilities + np.float32(LOG_FLOOR))
    top = -np.sort(-logs, axis=1)[:, : top_of(classes)]
    negentropy = (probabilities * logs).sum(axis=1, keepdims=True)
    if classes > MANY:
        first = -np.sort(-probabilities, axis=1)[:, :2]
        return np.concatenate([first[:, :1] - first[:, 1:], top, negentropy, level, scores], axis=1)
    return np.concatenate([probabilities, logs, top, negentropy, level, scores], axis=1)


def top_of(classes: int) -> int:
    """How many of the largest logs the post-gate reads."""
    return TOP_OF_MANY if classes > MANY else min(TOP, classes)


def fit_pre(features: Floats, right: Floats, group: NDArray[np.int64], how: How) -> Layers:
    """The pre-gate. features: [n, f]; right: [n, routes]; group: which image each row is a copy of, [n]."""
    return _fit(features, right, group, how)


def fit_post(answers: Answers, scores: Floats, group: NDArray[np.int64], how: How) -> Layers:
    """The post-gate, from the answers of every level in turn. scores: the pre-gate's, [n, routes]."""
    levels = len(answers.levels)
    features = np.concatenate(
        [post_features(answers.levels[k - 1], one_hot(k, levels, answers.count), scores) for k in range(1, levels + 1)]
    )
    right = np.tile(answers.right(), (levels, 1))
    return _fit(features, right, np.tile(group, levels), how)


def _fit(features: Floats, right: Floats, group: NDArray[np.int64], how: How) -> Layers:
    """Standardise, train with early stopping, calibrate, and fold all three into two matrices."""
    torch.manual_seed(how.seed)
    mean = features.mean(axis=0, dtype=np.float64)
    spread = features.std(axis=0, dtype=np.float64) + 1e-3
    x = torch.from_numpy(((features - mean) / spread).astype(np.float32))
    y = torch.from_numpy(right)
    back = torch.from_numpy(group % KEPT_BACK == 0)
    net = nn.Sequential(nn.Linear(x.shape[1], how.hidden), nn.ReLU(), nn.Linear(how.hidden, y.shape[1]))
    _train(net, x[~back], y[~back], x[back], y[back], how)
    with torch.inference_mode():
        logits = net(x[back]).double().numpy().copy()
    calibration = platt(logits, y[back].numpy())
    w1, b1, w2, b2 = (p.detach().double().numpy() for p in net.parameters())
    w1 = w1 / spread
    return Layers(
        w1=w1,
        b1=b1 - w1 @ mean,
        w2=w2 * calibration.slope[:, None],
        b2=b2 * calibration.slope + calibration.offset,
    )


def _train(
    net: nn.Module, x: torch.Tensor, y: torch.Tensor, x_back: torch.Tensor, y_back: torch.Tensor, how: How
) -> None:
    """AdamW under a cosine; the weights that did best on the rows kept back are the ones that stay."""
    optimiser = torch.optim.AdamW(net.parameters(), lr=how.rate, weight_decay=how.weight_decay)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, how.steps)
    generator = torch.Generator().manual_seed(how.seed)
    best, kept = float("inf"), {name: value.clone() for name, value in net.state_dict().items()}
    for step in range(1, how.steps + 1):
        index = torch.randint(0, len(x), (min(how.batch, len(x)),), generator=generator)
        loss = functional.binary_cross_entropy_with_logits(net(x[index]), y[index])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        rate.step()
        if step % CHECK_EVERY == 0 or step == how.steps:
            with torch.inference_mode():
                now = float(functional.binary_cross_entropy_with_logits(net(x_back), y_back))
            if now < best:
                best, kept = now, {name: value.clone() for name, value in net.state_dict().items()}
    net.load_state_dict(kept)
