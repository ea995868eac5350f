"""Keep or reject: a pure judgement of measured figures."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from edgemux.compression.verdict import Figures, judge

GAINS = st.frozensets(st.sampled_from(["speed", "storage", "accuracy"]))
FIGURES = st.builds(
    Figures,
    accuracy=st.floats(0.0, 1.0),
    interval=st.just((0.0, 1.0)),
    params=st.just(1),
    macs=st.just(1),
    bytes=st.integers(1, 10**9),
    stored_bytes=st.integers(1, 10**9),
    memory_bytes=st.none(),
    ms=st.floats(0.001, 1000.0),
)


def figures(ms: float = 1.0, stored: int = 1000, accuracy: float = 0.9) -> Figures:
    return Figures(accuracy, (0.8, 0.95), 10, 10, stored, stored, None, ms)


def test_a_pass_that_made_the_model_slower_is_rejected_with_the_factor() -> None:
    verdict = judge("int8", {"speed", "storage"}, figures(), figures(ms=1.0 / 0.72, stored=250))
    assert not verdict.kept
    assert verdict.line == "int8 is 0.72× here: rejected"


def test_force_keeps_it_and_says_so() -> None:
    verdict = judge("int8", {"speed", "storage"}, figures(), figures(ms=2.0, stored=250), forced=True)
    assert verdict.kept
    assert verdict.line == "int8 is 0.50× here: kept, forced"


def test_storage_without_speed_is_called_storage_only() -> None:
    verdict = judge("int8", {"speed", "storage"}, figures(), figures(ms=1.01, stored=250))
    assert verdict.kept
    assert verdict.gained == "storage"
    assert "storage only, 4.00× smaller" in verdict.line


def test_a_promise_without_any_gain_is_rejected() -> None:
    assert not judge("prune", {"speed", "storage"}, figures(), figures()).kept


def test_training_that_lost_accuracy_is_rejected_and_preparation_is_not() -> None:
    worse = figures(accuracy=0.85)
    assert not judge("finetune", {"accuracy"}, figures(), worse).kept
    assert judge("qat", frozenset(), figures(), worse).kept


@given(GAINS, FIGURES, FIGURES)
def test_every_verdict_has_one_line_that_begins_with_the_pass(gives: Any, before: Figures, after: Figures) -> None:
    verdict = judge("pass", gives, before, after)
    assert verdict.line.startswith("pass")
    assert "\n" not in verdict.line
    assert verdict.kept == ("rejected" not in verdict.line)
    assert judge("pass", gives, before, after, forced=True).kept


@given(GAINS, FIGURES, FIGURES)
def test_nothing_that_is_slower_than_noise_is_kept_by_what_promises_something(
    gives: Any, before: Figures, after: Figures
) -> None:
    if gives and before.ms / after.ms < 0.94:
        assert not judge("pass", gives, before, after).kept
