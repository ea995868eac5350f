# ruff: noqa: E402 - nothing here can be imported without torch
"""Every pass that is installed keeps the contract of passes; another package's would inherit the same tests."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from edgemux.compression import passes
from edgemux.compression.nets import ConvUnit, Residual
from edgemux.compression.pass_contract import CLASSES, PassContract
from edgemux.compression.passes import Pass
from edgemux.compression.samples import Samples

PLAIN = [
    "finetune",
    "distill(T=4)",
    "angular",
    "adapt",
    "prune(lasso, 0.5, 1)",
    "prune(thinet, 0.5, 1)",
    "student(shufflenet, 1.0)",
    "sparsify(0.5)",
    "cluster(3)",
    "deep(0.5, 3)",
    "int8",
    "int8_weights",
    "fp16",
    "codebook(3)",
]
ROUNDED = ["lowbit(4, 4)", "binarise(stochastic)"]
BLOCKS = ["layers(0.5)", "share"]
RECURRENT = ["units(0.5, round_to=1)", "int8_dynamic"]
# Capturing a net for torchao takes ten seconds a time; tests/compression/test_compress.py has it.
ELSEWHERE = {"qat"}


def made(text: str) -> Pass:
    from edgemux.compression.pass_recipe import PassRecipe

    return PassRecipe.of(text).steps[0].what


@pytest.fixture(autouse=True)
def _one_thread(torch: Any) -> None:
    """The fixture of the folder keeps torch on one thread."""


class Written(PassContract):
    """Made from a recipe's text."""

    text = ""

    def make(self) -> Pass:
        return made(self.text)


@pytest.mark.parametrize("text", PLAIN)
class TestPlain(Written):
    @pytest.fixture(autouse=True)
    def _text(self, text: str) -> None:
        self.text = text


@pytest.mark.parametrize("text", ROUNDED)
class TestRounded(Written):
    @pytest.fixture(autouse=True)
    def _text(self, text: str) -> None:
        self.text = text

    def compare(self, answers: Any, wanted: Any) -> None:
        """An activation on the edge between two steps may fall to either side, and all that follows with it."""
        assert np.abs(answers - wanted).mean() < 0.05 * max(1.0, np.abs(wanted).mean())


@pytest.mark.parametrize("text", BLOCKS)
class TestBlocks(Written):
    @pytest.fixture(autouse=True)
    def _text(self, text: str) -> None:
        self.text = text

    def net(self) -> Any:
        torch.manual_seed(0)
        nn = torch.nn
        tail = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, CLASSES)]
        return nn.Sequential(ConvUnit(1, 8), Residual(8, 1), Residual(8, 1), Residual(8, 1), *tail).eval()


class Reader(torch.nn.Module):
    """Two LSTM layers and a head over the last step."""

    def __init__(self) -> None:
        super().__init__()
        self.memory = torch.nn.LSTM(5, 8, num_layers=2, batch_first=True)
        self.head = torch.nn.Linear(8, CLASSES)

    def forward(self, x: Any) -> Any:
        return self.head(self.memory(x)[0][:, -1])


@pytest.mark.parametrize("text", RECURRENT)
class TestRecurrent(Written):
    @pytest.fixture(autouse=True)
    def _text(self, text: str) -> None:
        self.text = text

    def net(self) -> Any:
        torch.manual_seed(0)
        return Reader().eval()

    def samples(self) -> Samples:
        x = torch.rand(72, 6, 5, generator=torch.Generator().manual_seed(1))
        y = torch.arange(72) % CLASSES
        return Samples(x[:48], y[:48], x[48:], y[48:])


def test_every_pass_that_we_install_is_under_contract() -> None:
    covered = {type(made(text)).label for text in (*PLAIN, *ROUNDED, *BLOCKS, *RECURRENT)} | ELSEWHERE
    assert covered == set(passes.known())
    assert all(passes.kind_of(name).label == name for name in passes.known())
