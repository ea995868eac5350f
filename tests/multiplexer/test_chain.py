"""A chain runs what is new; what a level was run for beside its answer is no reason to run it again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgemux.multiplexer.bundle import Bundle
from edgemux.multiplexer.chain import Activations, Chain, Golden
from edgemux.multiplexer.onnx_model import OnnxModel


class Counted(OnnxModel):
    runs = 0

    def run(self, *given: Any) -> Any:
        self.runs += 1
        return super().run(*given)


@pytest.fixture
def deltas(tiny_bundle: Path) -> list[Counted]:
    bundle = Bundle.open(tiny_bundle)
    return [Counted(bundle.read(level.files[-1]), level.name) for level in bundle.manifest.levels]


@pytest.fixture
def image(tiny_bundle: Path) -> dict[str, Any]:
    return {name: array[:1] for name, array in Golden(Bundle.open(tiny_bundle)).inputs.items()}


@pytest.mark.parametrize("reached", [1, 2, 3, 4])
@pytest.mark.parametrize("wanted", [1, 2, 3, 4])
def test_after_a_level_was_reached_each_level_answers_as_ever_and_runs_no_more_than_it_must(
    deltas: list[Counted], image: dict[str, Any], reached: int, wanted: int
) -> None:
    chain = Chain(deltas, image)
    expected = chain.answer(image, wanted)
    for delta in deltas:
        delta.runs = 0
    activations = Activations(image)
    chain.reach(reached, activations)
    chain.reach(reached, activations)
    np.testing.assert_array_equal(chain.run(wanted, activations), expected)
    assert [delta.runs for delta in deltas[:reached]] == [1 + (at == wanted - 1 < reached - 1) for at in range(reached)]
    assert activations.reached == max(reached, wanted)
