"""The baselines: each defers what its source says, on the same budgets as the real policy."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgemux.multiplexer import baselines, plugins
from edgemux.multiplexer.domain import (
    Accept,
    Budget,
    Candidate,
    Case,
    Cost,
    Placement,
    Prediction,
    Reason,
    Route,
    Run,
)
from edgemux.multiplexer.errors import ConfigError
from edgemux.multiplexer.features import device_features, feature_count, place_of_largest, query_features

CLOUD = Candidate(Route("cloud", Placement.CLOUD), 0.2, Cost(0.01, sent_bytes=900, offloads=1), 0.5)
LEVELS = tuple(
    Candidate(Route(f"level-{n}", Placement.EDGE, n), 0.5 + n / 10, Cost(0.001, n / 1000, 100.0 * n)) for n in (1, 2, 3)
)
DISTRIBUTIONS = st.integers(0, 2**32 - 1).map(lambda seed: np.random.default_rng(seed).dirichlet(np.ones(6) * 0.3))
SHARES = st.floats(0.01, 0.99)


def policy(text: str) -> Any:
    return plugins.make("edgemux.policies", text, "policy")


def answered(p: Any, budget: Budget | None = None) -> Case:
    p = np.asarray(p, dtype=np.float32)
    held = Prediction(LEVELS[2].route, int(p.argmax()), p, 0.9)
    return Case(budget or Budget(), (CLOUD,), held, Reason.CONFIDENT)


def defers(text: str, p: Any) -> bool:
    decision = policy(text)(answered(p))
    assert isinstance(decision, Run | Accept)
    return isinstance(decision, Run)


def first_level(chooser: Any, budget: Budget | None = None) -> int:
    decision = chooser(Case(budget or Budget(), (*LEVELS, CLOUD)))
    assert isinstance(decision, Run)
    return decision.route.level


@given(DISTRIBUTIONS, SHARES)
def test_max_softmax_margin_and_entropy_defer_by_their_definitions(p: Any, threshold: float) -> None:
    p = p.astype(np.float32)
    top = np.sort(p)[::-1].astype(np.float64)
    shannon = -sum(x * math.log(x) for x in p.astype(np.float64) if x > 0) / math.log(6)
    wanted = {"max-softmax": top[0] < threshold, "margin": top[0] - top[1] < threshold, "entropy": shannon > threshold}
    near = {"max-softmax": top[0], "margin": top[0] - top[1], "entropy": shannon}
    for name, deferred in wanted.items():
        if abs(near[name] - threshold) > 1e-5:
            assert defers(f"{name}({threshold})", p) == deferred


@given(DISTRIBUTIONS, SHARES)
def test_sedna_s_filters_say_of_one_label_what_max_softmax_says(p: Any, threshold: float) -> None:
    if p.astype(np.float32).max() != threshold:
        found = {
            defers(f"{name}({threshold})", p) for name in ("max-softmax", "static", "sedna-threshold", "sedna-ibt")
        }
        assert len(found) == 1


@given(DISTRIBUTIONS, SHARES)
def test_a_temperature_of_one_is_max_softmax_and_a_higher_one_defers_no_less(p: Any, threshold: float) -> None:
    if abs(p.max() - threshold) > 1e-5:
        plain = defers(f"max-softmax({threshold})", p)
        assert defers(f"temperature({threshold}, 1.0)", p) == plain
        assert defers(f"temperature({threshold}, 3.0)", p) >= plain


def test_random_defers_its_share_and_the_same_inputs_for_the_same_seed() -> None:
    def drawn(seed: int) -> list[bool]:
        made = policy(f"random(share=0.3, seed={seed})")
        return [isinstance(made(answered([0.5, 0.5])), Run) for _ in range(4000)]

    assert sum(drawn(1)) / 4000 == pytest.approx(0.3, abs=0.03)
    assert drawn(1) == drawn(1) != drawn(2)


def test_a_cascade_asks_the_device_first_and_the_cloud_only_when_no_level_can_run() -> None:
    made = policy("max-softmax(1.0)")
    assert first_level(made) == 3
    busy = made(Case(Budget(compute_s=0.0), (*LEVELS, CLOUD)))
    assert isinstance(busy, Run)
    assert (busy.route, busy.reason) == (CLOUD.route, Reason.DEVICE_BUSY)


def test_a_doubted_answer_without_tokens_is_kept_and_degraded() -> None:
    case = answered([0.5, 0.5], Budget(offloads=0.0))
    assert policy("max-softmax(0.9)")(case) == Accept(case.held, Reason.BUDGET, degraded=True)  # type: ignore[arg-type]


def test_resource_baselines_choose_levels_by_their_rule() -> None:
    assert first_level(policy("fixed-level(2)")) == 2
    assert first_level(policy("fixed-level(2)"), Budget(memory_bytes=150)) == 1
    assert first_level(policy("fixed-level(9)")) == 3
    assert first_level(policy("largest-that-fits"), Budget(memory_bytes=250)) == 2
    turns = policy("round-robin")
    assert [first_level(turns) for _ in range(5)] == [1, 2, 3, 1, 2]


@pytest.mark.parametrize("text", ["fixed-level(1)", "round-robin", "largest-that-fits"])
def test_resource_baselines_weigh_the_cloud_like_the_real_policy(text: str) -> None:
    good = msgspec.structs.replace(CLOUD, score=0.95, price=0.1)
    for offered in (CLOUD, good):
        wanted = policy("expected-gain")(Case(Budget(), (*LEVELS, offered)))
        found = policy(text)(Case(Budget(), (*LEVELS, offered)))
        assert wanted.route.placement is found.route.placement


def saved(path: Path, **changes: Any) -> str:
    width = feature_count(6)
    arrays = {"w1": np.zeros((1, width)), "b1": np.full(1, 20.0), "w2": np.ones((1, 1)), "b2": np.full(1, -20.0)}
    arrays["w1"][0, place_of_largest(6)] = -1.0  # the smaller the largest log-probability, the higher the score
    arrays |= {"reads": np.array("answer"), "threshold": np.array(0.5)} | changes
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return str(path)


@pytest.mark.parametrize("outputs", [1, 2])
@pytest.mark.parametrize("reads", ["answer", "query"])
@given(p=DISTRIBUTIONS)
def test_a_learned_router_is_its_net_on_what_it_reads(
    tmp_path_factory: pytest.TempPathFactory, p: Any, reads: str, outputs: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "net.npz"
    rng = np.random.default_rng(0)
    p = p.astype(np.float32)
    read = {"answer": device_features, "query": query_features}[reads](p[None])
    w1, b1 = rng.normal(size=(4, read.shape[1])) / 9, rng.normal(size=4)
    w2, b2 = rng.normal(size=(outputs, 4)), rng.normal(size=outputs)
    saved(path, w1=w1, b1=b1, w2=w2, b2=b2, reads=np.array(reads), threshold=np.array(0.2))
    said = 1 / (1 + np.exp(-(w2 @ np.maximum(w1 @ read[0] + b1, 0) + b2)))
    score = said[0] if outputs == 1 else said[1] - said[0]
    if abs(score - 0.2) > 1e-6:
        assert defers(f'learned("{path}")', p) == (score > 0.2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"w1": None}, "lacks w1"),
        ({"threshold": None, "reads": None}, "lacks reads, threshold"),
        ({"w1": np.zeros(17)}, "do not fit"),
        ({"b1": np.zeros(2)}, "do not fit"),
        ({"w2": np.zeros((3, 1)), "b2": np.zeros(3)}, "do not fit"),
        ({"b2": np.zeros(2)}, "do not fit"),
        ({"threshold": np.zeros(2)}, "do not fit"),
        ({"b1": np.full(1, np.nan)}, "numbers that are none"),
        ({"b1": np.array([{}])}, "cannot be read"),
        ({"w1": np.array([["a"]])}, "cannot be read"),
        ({"reads": np.array("inputs")}, "reads 'inputs', which is none of answer, query"),
    ],
)
def test_a_weight_file_that_is_none_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        policy(f'learned("{saved(tmp_path / "bad.npz", **changes)}")')


def test_a_net_for_another_number_of_classes_says_so(tmp_path: Path) -> None:
    made = policy(f'learned("{saved(tmp_path / "six.npz")}")')
    with pytest.raises(ConfigError, match="weights: the net reads 17 numbers, and an answer of 5 classes has 15"):
        made(answered(np.full(5, 0.2)))
    with pytest.raises(ConfigError, match="weights: an answer of one class"):
        made.check(1)


def test_a_threshold_beside_the_file_s_own_goes_first(tmp_path: Path) -> None:
    path = saved(tmp_path / "net.npz")
    assert defers(f'learned("{path}")', np.full(6, 1 / 6))
    assert not defers(f'learned("{path}", threshold=2.0)', np.full(6, 1 / 6))


def test_a_file_that_is_missing_or_no_npz_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.npz").write_text("no")
    for name in ("none.npz", "text.npz"):
        with pytest.raises(ConfigError, match="weights"):
            policy(f'learned("{tmp_path / name}")')


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max-sofmax(0.9)", "policy: no 'max-sofmax'.*installed: .*max-softmax"),
        ("max-softmax", "policy: max-softmax needs threshold"),
        ("max-softmax(level=1)", "policy: max-softmax has no parameter 'level'; it has threshold"),
        ("max-softmax(threshold=high)", "policy: max-softmax: .*float"),
        ("max-softmax(0.9, 0.8)", "at most 1"),
        ("temperature(0.9, temperature=0)", "policy: temperature: .*> 0"),
        ("random(share=1.5)", "policy: random: .*1"),
        ("fixed-level(level=0)", "policy: fixed-level: .*1"),
        ("expected-gain(price=1)", "expected-gain has no parameter 'price'; it has none"),
        ("max-softmax(0.9", "is not a plug-in"),
    ],
)
def test_a_policy_that_is_written_wrongly_is_named_and_what_is_there_is_listed(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        policy(text)


def test_a_threshold_between_two_float32_numbers_tells_them_apart() -> None:
    surest = np.array([[1.0, 0.0], [np.nextafter(np.float32(1), np.float32(0)), 0.0]], np.float32)
    between = 1.0 - 2.0**-26
    for kind in (baselines.MaxSoftmax, baselines.BoxThreshold, baselines.Margin):
        assert kind(between).doubts(surest).tolist() == [False, True]


def test_a_temperature_that_keeps_the_likeliest_lets_the_others_count_with_their_mean() -> None:
    p = np.array([0.5, 0.2, 0.15, 0.15], np.float32)
    roots = np.sqrt(p.astype(np.float64))
    share = roots[0] / roots.sum()
    for kept in (None, 2, 4, 9):
        for threshold, doubted in ((share - 1e-6, False), (share + 1e-6, True)):
            assert baselines.Temperature(threshold, 2.0, kept).doubts(p) == doubted


def test_thresholds_judge_many_answers_as_they_judge_one() -> None:
    p = np.random.default_rng(0).dirichlet(np.ones(6), 50).astype(np.float32)
    for kind in (baselines.MaxSoftmax, baselines.BoxThreshold, baselines.Margin, baselines.Entropy):
        rule = kind(0.5)
        assert rule.doubts(p).tolist() == [bool(rule.doubts(row)) for row in p]
