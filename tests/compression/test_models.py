"""A compression is kept only where it pays, and the verdict says why."""

from __future__ import annotations

from typing import Any

import pytest

from edgemux.compression.recipe import Quantise


@pytest.mark.parametrize(
    ("accuracy", "ms", "kept"),
    [(0.950, 1.00, True), (0.949, 1.04, True), (0.940, 1.00, False), (0.950, 1.50, False)],
)
def test_int8_weights_are_kept_when_they_cost_neither_accuracy_nor_time(
    torch: Any, accuracy: float, ms: float, kept: bool
) -> None:
    from edgemux.compression.models import Trial, _choose

    how = Quantise(weights_int8=True, static_int8="off", max_loss=0.002)
    trials = {"fp32": Trial(0.95, 1.0, 4000), "int8 weights": Trial(accuracy, ms, 1000)}
    chosen, verdicts = _choose(trials, how)
    assert chosen == ("int8 weights" if kept else "fp32")
    assert verdicts["cloud: int8 weights"].startswith("kept" if kept else "rejected")


@pytest.mark.parametrize(("mode", "chosen"), [("use", "int8 arithmetic"), ("measure", "int8 weights")])
def test_int8_arithmetic_that_pays_is_used_only_when_asked_for(torch: Any, mode: Any, chosen: str) -> None:
    from edgemux.compression.models import Trial, _choose

    how = Quantise(weights_int8=True, static_int8=mode, max_loss=0.002)
    trials = {
        "fp32": Trial(0.95, 1.0, 4000),
        "int8 weights": Trial(0.95, 1.0, 1000),
        "int8 arithmetic": Trial(0.949, 0.4, 1000),
    }
    found, verdicts = _choose(trials, how)
    assert found == chosen
    assert "0.400 ms" in verdicts["cloud: int8 arithmetic"]


def test_int8_arithmetic_that_is_hardly_faster_is_rejected(torch: Any) -> None:
    from edgemux.compression.models import Trial, _choose

    how = Quantise(weights_int8=True, static_int8="use", max_loss=0.002)
    trials = {"fp32": Trial(0.95, 1.0, 4000), "int8 arithmetic": Trial(0.95, 0.95, 1000)}
    assert _choose(trials, how)[0] == "fp32"
