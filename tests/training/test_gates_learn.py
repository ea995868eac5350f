"""Labels, calibration and the fit of both gates on made-up answers with known chances."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch")

from edgemux.multiplexer.training.calibrate import expected_calibration_error, platt, temperature
from edgemux.multiplexer.training.fit import How, fit_post, fit_pre, post_features
from edgemux.multiplexer.training.labels import Answers, one_hot, pooled
from edgemux.multiplexer.training.report import calibration, deferral_area, routed

HOW = How(hidden=8, steps=300, rate=0.01, weight_decay=0.01, seed=0)


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


def test_calibration_error_is_zero_for_an_honest_score_and_large_for_a_boaster() -> None:
    rng = np.random.default_rng(10)
    scores = rng.random(50000)
    right = rng.random(50000) < scores
    assert expected_calibration_error(scores, right) < 0.01
    assert expected_calibration_error(np.full(50000, 0.99), right) > 0.4


def test_tiles_are_the_means_of_their_pixels() -> None:
    image = np.arange(64, dtype=np.uint8).reshape(1, 8, 8)
    assert pooled(image, 4).tolist() == [[13.5, 17.5, 45.5, 49.5]]


def test_the_pre_gate_learns_what_the_input_tells() -> None:
    rng = np.random.default_rng(1)
    features = rng.normal(size=(3000, 5)).astype(np.float32)
    right = (rng.random((3000, 2)) < 1 / (1 + np.exp(-2 * features[:, :2]))).astype(np.float32)
    gate = fit_pre(features, right, np.arange(3000), HOW)
    scores = gate.scores(features)
    assert np.corrcoef(scores[:, 0], features[:, 0])[0, 1] > 0.8
    assert abs(scores.mean(0) - right.mean(0)).max() < 0.06  # calibrated on 600 rows


def test_the_post_gate_is_calibrated_and_beats_no_gate(answers: Answers) -> None:
    scores = np.full((4000, 3), 0.7, np.float32)
    half = Answers(answers.levels[:, :2000], answers.cloud[:2000], answers.labels[:2000])
    rest = Answers(answers.levels[:, 2000:], answers.cloud[2000:], answers.labels[2000:])
    gate = fit_post(half, scores[:2000], np.arange(2000), HOW)
    after = gate.scores(post_features(rest.levels[0], one_hot(1, 2, 2000), scores[2000:]))
    assert max(calibration(rest, 1, after)) < 0.06
    gain = after[:, -1] - after[:, 0]
    chance = np.random.default_rng(0).random(2000)
    assert deferral_area(rest, 1, gain) > deferral_area(rest, 1, chance) + 0.02


def test_routing_with_extreme_prices_is_one_model_alone(answers: Answers) -> None:
    before = np.full((4000, 3), 0.5, np.float32)
    device = routed(answers, 1, before, before, offload_first=2.0, defer=2.0)
    cloud = routed(answers, 1, before, before, offload_first=2.0, defer=-2.0)
    skipped = routed(answers, 1, before, before, offload_first=-2.0, defer=2.0)
    assert device.accuracy == device.level_accuracy and device.kept == 1.0
    assert cloud.accuracy == cloud.cloud_accuracy and cloud.kept == 0.0 and cloud.distance == 0.0
    assert skipped.skipped == 1.0 and skipped.accuracy == cloud.accuracy
