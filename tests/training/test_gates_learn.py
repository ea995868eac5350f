"""Labels, calibration and the fit of both gates on made-up answers with known chances."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch")

from edgemux.multiplexer.training.calibrate import platt, temperature
from edgemux.multiplexer.training.fit import fit_post, fit_pre, post_scores, pre_scores, targets_of
from edgemux.multiplexer.training.labels import Answers, one_hot
from edgemux.multiplexer.training.net import How
from edgemux.multiplexer.training.report import calibration, routed

HOW = How(hidden=16, steps=400, members=1)


def softmax(logits: np.ndarray) -> np.ndarray:
    e = np.exp(logits - logits.max(-1, keepdims=True))
    return (e / e.sum(-1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def answers() -> Answers:
    """Two levels and a cloud that see the same evidence with falling noise."""
    rng = np.random.default_rng(8)
    labels = rng.integers(0, 10, 4000)
    truth = 3.0 * np.eye(10)[labels]
    noise = rng.normal(size=(3, 4000, 10)) * np.array([2.0, 1.5, 0.8])[:, None, None]
    p = softmax(truth + noise)
    return Answers(p[:2], p[2], labels.astype(np.int64))


def test_targets_say_which_route_is_right(answers: Answers) -> None:
    right = answers.right()
    assert right.shape == (4000, 3)
    assert right[:, 0].mean() < right[:, 1].mean() < right[:, 2].mean()
    agree = ~answers.differs(1)
    assert np.array_equal(right[agree, 0], right[agree, 2])


def test_temperature_undoes_a_scale(answers: Answers) -> None:
    logits = np.log(answers.cloud)
    best = temperature(logits, answers.labels)
    assert temperature(logits * 3.0, answers.labels) == pytest.approx(3.0 * best, rel=1e-3)


def test_platt_scaling_recovers_the_chances_it_was_given() -> None:
    rng = np.random.default_rng(9)
    scores = rng.normal(size=(40000, 1))
    right = (rng.random((40000, 1)) < 1 / (1 + np.exp(-(2.0 * scores + 0.5)))).astype(np.float32)
    found = platt(scores, right)
    assert found.slope[0] == pytest.approx(2.0, abs=0.1)
    assert found.offset[0] == pytest.approx(0.5, abs=0.1)


def every_fifth(count: int) -> np.ndarray:
    return np.arange(count) % 5 == 0


def test_targets_follow_from_a_posterior_that_is_calibrated(answers: Answers) -> None:
    targets = targets_of(answers)
    assert abs(targets.mean(axis=0) - answers.right().mean(axis=0)).max() < 0.02
    # Two answers are never both right, and one answer is as right in the cloud as on the device.
    differs = answers.differs(1)
    assert (targets[differs, 0] + targets[differs, -1] <= 1.0 + 1e-5).all()
    assert np.array_equal(targets[~differs, 0], targets[~differs, -1])


def test_the_pre_gate_learns_what_the_input_tells(answers: Answers) -> None:
    features = np.log(answers.levels[0] + 1e-3).astype(np.float32)
    gate = fit_pre(features, answers, targets_of(answers), every_fifth(4000), HOW, seed=0)
    scores = pre_scores(gate, features)
    right = answers.right()
    assert np.corrcoef(scores[:, 0], right[:, 0])[0, 1] > 0.2
    assert abs(scores.mean(0) - right.mean(0)).max() < 0.06  # calibrated on 800 rows


def split(answers: Answers) -> tuple[Answers, Answers]:
    return answers.take(np.arange(2000)), answers.take(np.arange(2000, 4000))


def test_the_post_gate_is_calibrated_and_beats_no_gate(answers: Answers) -> None:
    half, rest = split(answers)
    scores = np.full((2000, 3), 0.7, np.float32)
    gate, _ = fit_post(half, targets_of(half), scores, every_fifth(2000), HOW, seed=0)
    after = post_scores(gate, rest.levels[0], one_hot(1, 2, 2000), scores)
    assert max(calibration(rest, 1, after)) < 0.08  # 133 rows a bin: 0.03 of it is chance
    chance = np.random.default_rng(0).random(2000)
    assert rest.area(1, after[:, -1] - after[:, 0]) > rest.area(1, chance) + 0.02


def test_the_post_gate_sees_through_a_cloud_with_blind_spots(answers: Answers) -> None:
    blind = answers.cloud.copy()
    blind[:, [3, 4]] *= 1e-4
    half, rest = split(Answers(answers.levels, blind / blind.sum(axis=1, keepdims=True), answers.labels))
    scores = np.full((2000, 3), 0.7, np.float32)
    gate, better = fit_post(half, targets_of(half), scores, every_fifth(2000), HOW, seed=0)
    assert better
    after = post_scores(gate, rest.levels[1], one_hot(2, 2, 2000), scores)
    confident = rest.area(2, -rest.levels[1].max(axis=1))
    assert rest.area(2, after[:, -1] - after[:, 1]) > confident + 0.02


def test_where_nothing_but_confidence_tells_the_gate_falls_back_to_it(answers: Answers) -> None:
    untrained = How(hidden=2, steps=1, members=1)
    scores = np.full((4000, 3), 0.7, np.float32)
    gate, better = fit_post(answers, targets_of(answers), scores, every_fifth(4000), untrained, seed=0)
    assert not better
    for level in (1, 2):
        after = post_scores(gate, answers.levels[level - 1], one_hot(level, 2, 4000), scores).astype(np.float64)
        confidence = answers.levels[level - 1].max(axis=1)
        gain = after[:, -1] - after[:, level - 1]
        order = np.argsort(confidence)
        assert (np.diff(gain[order]) <= 1e-6).all()
        assert max(calibration(answers, level, after)) < 0.08


def test_routing_with_extreme_prices_is_one_model_alone(answers: Answers) -> None:
    before = np.full((4000, 3), 0.5, np.float32)
    device = routed(answers, 1, before, before, offload_first=2.0, defer=2.0)
    cloud = routed(answers, 1, before, before, offload_first=2.0, defer=-2.0)
    skipped = routed(answers, 1, before, before, offload_first=-2.0, defer=2.0)
    assert device.accuracy == device.level_accuracy and device.kept == 1.0
    assert cloud.accuracy == cloud.cloud_accuracy and cloud.kept == 0.0 and cloud.distance == 0.0
    assert skipped.skipped == 1.0 and skipped.accuracy == cloud.accuracy
