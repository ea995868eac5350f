"""Fits both gates: P(correct) per route from the raw input, and again from a device answer.

Targets are probabilities: the label's posterior given the highest level's and the cloud's answers is fitted first, and
what each route's answer is worth follows from it (see ``outcomes``). Rows that are kept back calibrate the gates, and
decide whether the post-gate is better than calibrated confidence; where it is not, confidence is what ships.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from edgemux.multiplexer.features import LOG_FLOOR, device_features, place_of_largest
from edgemux.multiplexer.training.calibrate import platt
from edgemux.multiplexer.training.curves import rank
from edgemux.multiplexer.training.labels import Answers, Floats, one_hot
from edgemux.multiplexer.training.net import How, Net, binary, fit_net, sigmoid, softmax
from edgemux.multiplexer.training.outcomes import (
    BOTH,
    CLOUD,
    DEVICE,
    OUTCOMES,
    evidence,
    fit_posterior,
    seen_outcomes,
)

# Every so many rows one is kept back, where there is no split for it.
KEPT_BACK = 5
# In nats per squared unit, towards scores as they were fitted: an outcome that was never seen is not ruled out.
RIDGE = 1e-3
Rows = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Targets:
    """What the gates learn of n rows: P(each outcome) after each level, float32 [levels, n, 4], and P(right)."""

    outcomes: Floats
    right: Floats

    @property
    def levels(self) -> int:
        """How many levels."""
        return len(self.outcomes)


def targets_of(answers: Answers) -> Targets:
    """From labels and both models' probabilities. ``right``: float32 [n, levels + 1], the cloud last."""
    seen = evidence(answers.levels[-1], answers.cloud, answers.labels)
    posterior = fit_posterior(seen)
    outcomes = np.stack([posterior.outcomes(seen.answering(label)) for label in answers.labels_of_levels()])
    right = [outcome[:, BOTH] + outcome[:, DEVICE] for outcome in outcomes]
    right.append(outcomes[-1][:, BOTH] + outcomes[-1][:, CLOUD])
    return Targets(outcomes, np.stack(right, axis=1))


def fit_pre(features: Floats, answers: Answers, back: Rows, how: How, seed: int) -> Net:
    """The pre-gate, logits [n, routes] from features [n, f]. back: rows that only calibrate it."""
    net = fit_net(features[~back], targets_of(answers).right[~back], binary, len(answers.levels) + 1, seed, how)
    scaling = platt(net.logits(features[back]), answers.right()[back])
    return replace(net, w2=net.w2 * scaling.slope[:, None], b2=net.b2 * scaling.slope + scaling.offset)


def pre_scores(net: Net, features: Floats) -> Floats:
    """P(correct) per route, float32 [n, routes]."""
    return sigmoid(net.logits(features)).astype(np.float32)


def post_features(probabilities: Floats, level: Floats, scores: Floats) -> Floats:
    """What the post-gate reads, float32 [n, f]: the answer's features, the level, the pre-gate's scores.

    The exported graph computes the same in ONNX.
    """
    return np.concatenate([device_features(probabilities), level, scores], axis=1)


def post_scores(net: Net, probabilities: Floats, level: Floats, scores: Floats) -> Floats:
    """P(correct) per route, float32 [n, levels + 1].

    The net gives logits of the four outcomes and then of each level. The level at hand and the cloud are scored by the
    outcomes, so that their difference is the gain; the other levels by their own logits.
    """
    logits = net.logits(post_features(probabilities, level, scores))
    outcome = softmax(logits[:, :OUTCOMES])
    own, cloud = outcome[:, BOTH] + outcome[:, DEVICE], outcome[:, BOTH] + outcome[:, CLOUD]
    others = sigmoid(logits[:, OUTCOMES:])
    levels = np.where(level > 0.5, own[:, None], others)
    return np.concatenate([levels, cloud[:, None]], axis=1).astype(np.float32)


def fit_post(answers: Answers, scores: Floats, back: Rows, how: How, seed: int) -> tuple[Net, bool]:
    """The post-gate, from the answers of every level in turn; False when calibrated confidence is as good.

    scores: the pre-gate's, [n, routes]. back: rows that calibrate it and judge it, and that it does not learn from.
    """
    targets = targets_of(answers)
    levels = targets.levels
    features = np.stack([_features(answers, level, scores) for level in range(1, levels + 1)])
    wanted = np.stack([np.concatenate([outcome, targets.right[:, :-1]], axis=1) for outcome in targets.outcomes])
    net = fit_net(_rows(features, ~back), _rows(wanted, ~back), _loss, OUTCOMES + levels, seed, how)
    net = _calibrated(net, features, answers, back)
    confidence = _confidence(answers, back)
    kept_back = answers.take(back)
    better = sum(
        _area(net, kept_back, k, scores[back]) - _area(confidence, kept_back, k, scores[back])
        for k in range(1, levels + 1)
    )
    return (net, True) if better > 0 else (confidence, False)


def _features(answers: Answers, level: int, scores: Floats) -> Floats:
    return post_features(answers.levels[level - 1], one_hot(level, len(answers.levels), answers.count), scores)


def _rows(of_levels: Floats, rows: Rows) -> Floats:
    """Some rows of every level, one after the other: [levels, n, k] -> [levels * m, k]."""
    chosen: Floats = of_levels[:, rows].reshape(-1, of_levels.shape[2])
    return chosen


def _loss(logits: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of the outcomes, and of each level's being right."""
    outcomes = functional.cross_entropy(logits[:, :OUTCOMES], wanted[:, :OUTCOMES])
    return outcomes + functional.binary_cross_entropy_with_logits(logits[:, OUTCOMES:], wanted[:, OUTCOMES:])


def _calibrated(net: Net, features: Floats, answers: Answers, back: Rows) -> Net:
    """Scale all logits and shift them per level by what the labels of the rows kept back say.

    The shifts ride on one more hidden unit a level, relu([level is k]).
    """
    levels = len(answers.levels)
    logits = net.logits(_rows(features, back)).reshape(levels, -1, OUTCOMES + levels)
    x, seen = torch.from_numpy(logits), torch.from_numpy(_seen(answers.take(back))).double()
    right = torch.from_numpy(answers.right()[back, :-1]).double().expand(levels, -1, -1)
    slope = torch.ones(OUTCOMES + levels, dtype=torch.float64, requires_grad=True)
    shift = torch.zeros(levels, 1, OUTCOMES + levels, dtype=torch.float64, requires_grad=True)

    def loss() -> torch.Tensor:
        scaled = torch.cat([slope[:1].expand(OUTCOMES), slope[OUTCOMES:]]) * x + shift
        outcomes = functional.cross_entropy(scaled[..., :OUTCOMES].flatten(0, 1), seen.flatten(0, 1))
        of_levels = functional.binary_cross_entropy_with_logits(scaled[..., OUTCOMES:], right)
        return outcomes + of_levels + RIDGE * (((slope - 1.0) ** 2).sum() + (shift**2).sum())

    _minimise(loss, [slope, shift])
    factor = slope.detach().numpy().copy()
    factor[:OUTCOMES] = factor[0]
    place = np.zeros((levels, net.w1.shape[1]))
    first = net.w1.shape[1] - (levels + 1) - levels
    place[:, first : first + levels] = np.eye(levels)
    return Net(
        w1=np.concatenate([net.w1, place]),
        b1=np.concatenate([net.b1, np.zeros(levels)]),
        w2=np.concatenate([net.w2 * factor[:, None], shift.detach().numpy()[:, 0].T], axis=1),
        b2=net.b2 * factor,
    )


def _seen(answers: Answers) -> Floats:
    """The outcomes that the labels decide, [levels, n, 4]."""
    cloud = answers.labels_of_cloud()
    return np.stack([seen_outcomes(label, cloud, answers.labels) for label in answers.labels_of_levels()])


def _confidence(answers: Answers, back: Rows) -> Net:
    """Calibrated confidence in the shape of a net: P(right) = sigmoid(a log p + c (p - 1) + offset), per level.

    p is the largest probability; a and c are not negative, so gains fall with it, whatever was fitted. The hidden unit
    of level k is relu(a_k log p + c_k (p - 1) + room_k * [level is k]): its own level's room is more than it can lose,
    and for the others it is 0.
    """
    levels, classes = answers.levels.shape[0], answers.levels.shape[2]
    rows = answers.take(back)
    p = rows.levels.max(axis=2).astype(np.float64)
    x = torch.from_numpy(np.stack([np.log(p + LOG_FLOOR), p - 1.0], axis=-1))
    seen, right = torch.from_numpy(_seen(rows)).double(), torch.from_numpy(rows.right()[:, :-1]).double()
    steep = torch.zeros(levels, 2, dtype=torch.float64, requires_grad=True)
    offset, of_level = (torch.zeros(levels, dtype=torch.float64, requires_grad=True) for _ in range(2))
    of_outcome = torch.zeros(OUTCOMES, dtype=torch.float64, requires_grad=True)
    lift = torch.zeros(OUTCOMES, dtype=torch.float64)
    lift[[BOTH, DEVICE]] = 1.0

    def sure() -> torch.Tensor:
        return ((functional.softplus(steep)[:, None] * x).sum(-1) + offset[:, None])[..., None]

    def of_outcomes() -> torch.Tensor:
        loss = functional.cross_entropy((sure() * lift + of_outcome).flatten(0, 1), seen.flatten(0, 1))
        return loss + RIDGE * (of_outcome**2).sum()

    def of_levels() -> torch.Tensor:
        loss = functional.binary_cross_entropy_with_logits(sure().detach() + of_level, right.expand(levels, -1, -1))
        return loss + RIDGE * (of_level**2).sum()

    _minimise(of_outcomes, [steep, offset, of_outcome])
    # Other levels get what the slope of the level at hand allows, and have no say in it.
    _minimise(of_levels, [of_level])
    slope, shift = functional.softplus(steep).detach().numpy(), offset.detach().numpy()
    room = float((slope @ [-np.log(LOG_FLOOR), 1.0]).max() - shift.min()) + 1.0
    width = device_features(rows.levels[0][:1]).shape[1]
    w1 = np.zeros((levels, width + 2 * levels + 1))
    w1[:, list(place_of_largest(classes))] = slope
    w1[:, width : width + levels] = np.diag(room + shift)
    raised = np.concatenate([lift.numpy(), np.ones(levels)])
    constant = np.concatenate([of_outcome.detach().numpy(), of_level.detach().numpy()])
    return Net(w1, -slope[:, 1], np.tile(raised[:, None], (1, levels)), constant - raised * room)


def _minimise(loss: Callable[[], torch.Tensor], weights: list[torch.Tensor]) -> None:
    optimiser = torch.optim.LBFGS(weights, max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        value = loss()
        value.backward()
        return value

    optimiser.step(closure)


def _area(net: Net, answers: Answers, level: int, scores: Floats) -> float:
    """Deferral area of a net's gains after a level's answer."""
    after = post_scores(net, answers.levels[level - 1], one_hot(level, len(answers.levels), answers.count), scores)
    right = answers.right()
    wide = after.astype(np.float64)
    return rank(wide[:, -1] - wide[:, level - 1], right[:, level - 1], right[:, -1]).curve().area
