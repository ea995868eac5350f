"""`search`: what it tries next is pure, what it returns is not beaten, and a need is read or refused."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgemux.multiplexer.errors import ConfigError

pytest.importorskip("torch")
import edgemux.compression as toolkit
from edgemux.compression.pass_contract import PassContract
from edgemux.compression.recipe_search import CHANNELS, ENDINGS, GRID, Need, Trial, proposed, seconds_of


def trial(ratio: float, ending: str, text: str, drop: float) -> Trial:
    return Trial(text, ratio, ending, 0.9 - drop / 100.0, 1.0 - ratio, int(1000 * (1.01 - ratio)), drop, 1.0)


@given(st.floats(0.02, 0.98), st.floats(0.1, 3.0), st.sets(st.sampled_from([*ENDINGS[1:], "prune(lasso, 0.5)"])))
@settings(max_examples=60, deadline=None)
def test_the_search_ends_never_repeats_itself_and_closes_in_on_the_limit(
    limit: float, allowed: float, hopeless: set[str]
) -> None:
    """A model whose accuracy breaks at the ratio ``limit``; some recipes cannot be applied."""
    need, trials, refused = Need(max_drop=allowed), list[Trial](), list[str]()
    while (todo := proposed(trials, refused, need, CHANNELS)) is not None:
        ratio, ending, text = todo
        assert text not in {known.recipe for known in trials} | set(refused)
        if text in hopeless:
            refused.append(text)
            continue
        trials.append(trial(ratio, ending, text, 0.0 if ratio <= limit else 2.0 * allowed))
        assert len(trials) < 60
    tried = {known.ratio for known in trials}
    assert {0.0} | set(GRID) - {0.5} <= tried
    if 0.25 < limit < 0.75:
        below = max(ratio for ratio in tried if ratio <= limit)
        above = min(ratio for ratio in tried if ratio > limit)
        assert above - below <= 0.05


def test_the_original_and_what_costs_no_training_come_first() -> None:
    assert proposed([], [], Need(), CHANNELS) == (0.0, "", "")
    assert proposed([trial(0.0, "", "", 0.0)], [], Need(), CHANNELS) == (0.0, ENDINGS[1], ENDINGS[1])


def test_a_need_is_read_from_text() -> None:
    assert Need.of("ms<2, kb<=100,drop<0.5") == Need(max_ms=2.0, max_kb=100.0, max_drop=0.5)
    assert Need.of("") == Need()


@pytest.mark.parametrize("text", ["ms=2", "ms<fast", "watts<3", "kb<0", "ms<2,,kb<3"])
def test_a_need_that_is_not_understood_is_quoted(text: str) -> None:
    with pytest.raises(ConfigError, match="need: "):
        Need.of(text)


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90.0), ("20min", 1200.0), ("1.5h", 5400.0)])
def test_budgets_have_units(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["20", "0s", "soon", "-3min"])
def test_a_budget_without_unit_or_time_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="budget: "):
        seconds_of(text)


def test_a_search_returns_what_no_other_trial_beats(torch: Any) -> None:
    made = PassContract()
    lines: list[str] = []
    found = toolkit.search(made.net(), made.samples(), Need(max_kb=1e6), budget="20s", effort=0.01, tell=lines.append)
    assert len(found.trials) >= 2
    assert len(lines) == len(found.trials) + len(found.refused)
    assert found.best is not None and found.best.meets
    for choice in found.front:
        assert not any(other.beats(choice.trial) for other in found.trials)
        assert choice.artifact.content
    assert f"{len(found.trials)} recipes tried" in found.report()


def test_a_need_that_nothing_keeps_leaves_no_best(torch: Any) -> None:
    made = PassContract()
    found = toolkit.search(made.net(), made.samples(), Need(max_kb=0.001), budget="1s", effort=0.01)
    assert found.best is None
    assert "no" in found.report()


def test_an_onnx_file_cannot_be_searched() -> None:
    with pytest.raises(ConfigError, match="torch net"):
        toolkit.search("net.onnx", PassContract().samples())  # type: ignore[arg-type]
