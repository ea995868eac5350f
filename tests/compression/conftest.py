"""Small nets and recipes for the toolchain's tests; torch stays on one thread, beside everything else that runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "deploy" / "recipes" / "fashion-mnist.toml"


@pytest.fixture(scope="session")
def torch() -> Any:
    """torch, or a skipped test where the train extra is not installed."""
    module = pytest.importorskip("torch")
    module.set_num_threads(1)
    return module


@pytest.fixture
def recipe_text() -> str:
    """The text of the committed recipe."""
    return RECIPE.read_text()


@pytest.fixture
def recipe_path() -> Path:
    """The committed recipe."""
    return RECIPE


@pytest.fixture
def family(torch: Any) -> Any:
    """A nested family with random weights and batch statistics, ready for inference."""
    from edgemux.compression import recipe
    from edgemux.compression.nested import NestedNet

    torch.manual_seed(5)
    net = NestedNet(recipe.load(RECIPE).family)
    for part in net.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.running_mean.normal_(0.0, 0.2)
            part.running_var.uniform_(0.5, 2.0)
            part.weight.data.uniform_(0.5, 1.5)
            part.bias.data.normal_(0.0, 0.2)
    net.quantise(True)
    return net.eval()


@pytest.fixture
def images() -> Any:
    """Twelve random pictures, uint8 [12, 28, 28]."""
    import numpy as np

    return np.random.default_rng(3).integers(0, 256, (12, 28, 28), dtype=np.uint8)
