"""Fits both gates: P(correct) per route from the raw input, and again from a device answer.

Targets are probabilities: the label's posterior given the highest level's and the cloud's answers is fitted first, and
what each route's answer is worth follows from it (see ``posterior``). The post-gate's loss counts errors of the gain,
P(cloud right) - P(level right), beside those of each probability: only their difference decides. Rows that are kept
back calibrate the gates. Where the post-gate is no better than calibrated confidence on rows that it has not seen,
confidence is what ships.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from edgemux.multiplexer.features import LOG_FLOOR, device_features, feature_count, place_of_largest
from edgemux.multiplexer.gates import gain_after
from edgemux.multiplexer.learned import Net, sigmoid
from edgemux.multiplexer.training.calibrate import platt
from edgemux.multiplexer.training.labels import Answers, Floats, one_hot
from edgemux.multiplexer.training.minimise import minimise
from edgemux.multiplexer.training.net import How, binary, fit_net, gain_loss
from edgemux.multiplexer.training.posterior import evidence, fit_posterior

# Every so many rows one is kept back, where there is no split for it.
KEPT_BACK = 5
# In nats per squared unit, towards scores as they were fitted.
RIDGE = 1e-3
STEPS = 200
Rows = NDArray[np.bool_]


def targets_of(answers: Answers) -> Floats:
    """P(each route is right) given the label's posterior, float32 [n, levels + 1], the cloud last."""
    seen = evidence(answers.levels[-1], answers.cloud, answers.labels)
    posterior = fit_posterior(seen)
    pairs = [posterior.right(seen.answering(label)) for label in answers.labels_of_levels()]
    return np.stack([*(device for device, _ in pairs), pairs[-1][1]], axis=1)


def fit_pre(features: Floats, answers: Answers, targets: Floats, back: Rows, how: How, seed: int) -> Net:
    """The pre-gate, logits [n, routes] from features [n, f] and ``targets_of``. back: rows that only calibrate it."""
    net = fit_net(features[~back], targets[~back], binary, len(answers.levels) + 1, seed, how)
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
    """P(correct) per route, float32 [n, levels + 1]."""
    return sigmoid(net.logits(post_features(probabilities, level, scores))).astype(np.float32)


def fit_post(answers: Answers, targets: Floats, scores: Floats, back: Rows, how: How, seed: int) -> tuple[Net, bool]:
    """The post-gate, from the answers of every level in turn; False when calibrated confidence is as good.

    targets: ``targets_of``; scores: the pre-gate's; both [n, routes]. back: rows that calibrate it and that it does not
    learn from. It is judged by a trial that learns from half of the others, on all the rest.
    """
    levels = len(answers.levels)
    features = np.stack([_features(answers, level, scores) for level in range(1, levels + 1)])
    wanted = np.stack(
        [np.concatenate([targets, one_hot(level, levels, answers.count)], axis=1) for level in range(1, levels + 1)]
    )

    def fitted(rows: Rows) -> Net:
        return fit_net(_rows(features, rows), _rows(wanted, rows), gain_loss, levels + 1, seed, how)

    half = ~back & (np.random.default_rng(seed).random(answers.count) < 0.5)
    trial, unseen = fitted(half), answers.take(~half)
    better = sum(
        _area(trial, unseen, level, scores[~half]) - unseen.area(level, -unseen.levels[level - 1].max(axis=1))
        for level in range(1, levels + 1)
    )
    held = answers.take(back)
    if better <= 0:
        return _confidence(held), False
    return _calibrated(fitted(~back), features[:, back], held), True


def _features(answers: Answers, level: int, scores: Floats) -> Floats:
    return post_features(answers.levels[level - 1], one_hot(level, len(answers.levels), answers.count), scores)


def _rows(of_levels: Floats, rows: Rows) -> Floats:
    """Some rows of every level, one after the other: [levels, n, k] -> [levels * m, k]."""
    chosen: Floats = of_levels[:, rows].reshape(-1, of_levels.shape[2])
    return chosen


def _calibrated(net: Net, features: Floats, answers: Answers) -> Net:
    """Scale each route's logits, and shift them per level at hand, by what the labels say. features: [levels, n, f].

    The shifts ride on one more hidden unit a level, relu([level is k]).
    """
    levels, count = features.shape[:2]
    routes = levels + 1
    x = torch.from_numpy(net.logits(features.reshape(levels * count, -1)).reshape(levels, count, routes))
    right = torch.from_numpy(answers.right()).double().expand(levels, -1, -1)
    slope = torch.ones(routes, dtype=torch.float64, requires_grad=True)
    shift = torch.zeros(levels, 1, routes, dtype=torch.float64, requires_grad=True)

    def loss() -> torch.Tensor:
        ridge = RIDGE * (((slope - 1.0) ** 2).sum() + (shift**2).sum())
        return functional.binary_cross_entropy_with_logits(slope * x + shift, right) + ridge

    minimise(loss, [slope, shift], STEPS)
    factor = slope.detach().numpy()
    place = np.zeros((levels, net.w1.shape[1]))
    first = net.w1.shape[1] - levels - routes
    place[:, first : first + levels] = np.eye(levels)
    return Net(
        w1=np.concatenate([net.w1, place]),
        b1=np.concatenate([net.b1, np.zeros(levels)]),
        w2=np.concatenate([net.w2 * factor[:, None], shift.detach().numpy()[:, 0].T], axis=1),
        b2=net.b2 * factor,
    )


def _confidence(answers: Answers) -> Net:
    """Calibrated confidence in the shape of a net: P(level right) = sigmoid(slope * log p + offset), per level at hand.

    p is the largest probability; the slope is positive and the cloud's score a constant, so gains fall with p, whatever
    was fitted. The hidden unit of level k is relu(slope_k * log p + room_k * [level is k]): its own level's room is
    more than it can lose, and for the others it is 0.
    """
    levels, classes = answers.levels.shape[0], answers.levels.shape[2]
    x = torch.from_numpy(np.log(answers.levels.max(axis=2) + LOG_FLOOR).astype(np.float64))
    right = torch.from_numpy(answers.right()).double()
    steep, offset, others = (torch.zeros(levels, dtype=torch.float64, requires_grad=True) for _ in range(3))

    def sure() -> torch.Tensor:
        return functional.softplus(steep)[:, None] * x + offset[:, None]

    def at_hand() -> torch.Tensor:
        return functional.binary_cross_entropy_with_logits(sure(), right[:, :levels].T)

    def not_at_hand() -> torch.Tensor:
        logits = sure().detach()[..., None] + others
        wanted = right[:, :levels].expand(levels, -1, -1)
        return functional.binary_cross_entropy_with_logits(logits, wanted) + RIDGE * (others**2).sum()

    minimise(at_hand, [steep, offset], STEPS)
    # Other levels get what the slope of the level at hand allows, and have no say in it.
    minimise(not_at_hand, [others], STEPS)
    slope, shift = functional.softplus(steep).detach().numpy(), offset.detach().numpy()
    room = float(slope.max() * -np.log(LOG_FLOOR) - shift.min()) + 1.0
    width = feature_count(classes)
    w1 = np.zeros((2 * levels, width + 2 * levels + 1))
    w1[:levels, place_of_largest(classes)] = slope
    w1[:levels, width : width + levels] = np.diag(room + shift)
    # A second unit says which level is at hand: its own score has no correction for being another.
    w1[levels:, width : width + levels] = np.eye(levels)
    w2 = np.zeros((levels + 1, 2 * levels))
    w2[:levels, :levels] = 1.0
    w2[:levels, levels:] = -np.diag(others.detach().numpy())
    share = float(right[:, -1].mean().clip(1e-4, 1 - 1e-4))
    b2 = np.append(others.detach().numpy() - room, np.log(share / (1.0 - share)))
    return Net(w1, np.zeros(2 * levels), w2, b2)


def _area(net: Net, answers: Answers, level: int, scores: Floats) -> float:
    """Deferral area of a net's gains after a level's answer."""
    after = post_scores(net, answers.levels[level - 1], one_hot(level, len(answers.levels), answers.count), scores)
    return answers.area(level, gain_after(after, level))
